//! The month's recap: what was imported, once, and what keeps the figure from being whole.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use jobs::schedule::{Month, paris};
use serde_json::json;
use stand_ins::{shopify::Tender, stripe::PassedOn};
use uuid::Uuid;

use super::given::{
    about, at, last_day, mail_to, mails_to, plain, recipients, says, says_not, text, turnover,
};
use crate::world::World;

const SHOP: &str = "recaps.myshopify.com";

/// Returns noon of a day of a month.
fn day(month: Month, day: i64) -> DateTime<Utc> {
    month.start() + TimeDelta::days(day - 1) + TimeDelta::hours(12)
}

/// Returns the address of the user of an account.
fn of(account: &str) -> String {
    format!("{account}@example.test")
}

async fn with_shop(world: &World, user: Uuid) -> Result<()> {
    world.shopify.add_shop(SHOP, "EUR", "shpat_recaps");
    world.connect_shopify(user, SHOP, "shpat_recaps", None).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_last_day_it_is_provisional() -> Result<()> {
    let mut world = World::new().await?;
    let (month, now) = last_day(&mut world);
    for account in ["acct_sells", "acct_refuses", "acct_idle", "acct_gone"] {
        world.stripe_user(account).await?;
    }
    let accepts = world.stripe_user("acct_accepts").await?;
    for account in ["acct_sells", "acct_refuses", "acct_gone", "acct_accepts"] {
        world.stripe.payment(account, day(month, 3), 123_456, "eur");
    }
    // Before and after the month: no movement of it.
    world.stripe.payment("acct_idle", month.start() - TimeDelta::seconds(1), 5_000, "eur");
    about(
        &world,
        accepts,
        "insert into public.email_preferences (user_id, monthly_reminder) values ($1, false)",
    )
    .await?;
    world
        .run(
            "insert into public.email_preferences (user_id, monthly_reminder, monthly_recap_email) \
             select id, true, false from auth.users where email = 'acct_refuses@example.test'",
        )
        .await?;
    world
        .run(
            "update public.integration_tokens set is_active = false where user_id = \
             (select id from auth.users where email = 'acct_gone@example.test')",
        )
        .await?;
    world.user("without@example.test").await?;

    let answer = world.cron("monthly-orchestrator", "").await?;
    let part = &answer["results"]["monthlySync"];
    assert_eq!(
        (&part["synced"], &part["errors"], &part["skipped"]),
        (&json!(4), &json!(0), &json!(false)),
        "{answer}"
    );
    assert_eq!(part["recaps"], json!({"sent": 2, "errors": 0}), "{answer}");
    assert_eq!(answer["isLastDayOfMonth"], true, "{answer}");
    assert_eq!(recipients(&world), [of("acct_accepts"), of("acct_sells")]);
    let mail = mail_to(&world, &of("acct_sells"));
    let moment = format!("{} à 15 h 00", paris::french(paris::date(now)));
    let text = text(&mail);
    says(
        &text,
        &[
            "Total importé, provisoire : 1 234,56 €",
            &format!("Provisoire au {moment}"),
            "encaissé : 1 234,56 €",
        ],
    );
    says_not(&text, &["incomplet", "double compte", "négatif", "/pricing"]);
    says(&plain(mail.html.as_deref().unwrap_or_default()), &[&moment, "1 234,56 €"]);
    says(&plain(&mail.subject), &["provisoire", &month.french()]);
    assert!(
        mail.headers.contains_key("List-Unsubscribe") && mail.headers.contains_key("List-Unsubscribe-Post")
    );

    // The same slot, and an operator who insists after the month: each user has had theirs.
    let again = world.cron("monthly-orchestrator", "").await?;
    assert_eq!(again["results"]["monthlySync"]["skipped"], true, "{again}");
    world.set_now(month.end() + TimeDelta::hours(20));
    let answer = world.post("monthly-sync", "force=true").await?;
    assert_eq!((&answer["month"], &answer["errors"]), (&json!(month.french()), &json!(0)), "{answer}");
    assert_eq!(world.resend.accepted_count(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn by_source_with_refunds_and_twins_counted_once() -> Result<()> {
    let mut world = World::new().await?;
    let (month, _) = last_day(&mut world);
    world.set_now(month.end() + TimeDelta::hours(30));
    let user = world.stripe_user("acct_twins").await?;
    with_shop(&world, user).await?;
    // The month is before the connection. In January, what is typed is for a month to come.
    let other = if month.month() == 1 { 2 } else { 1 };
    let of_the_year = format!("Votre année {}", month.year());
    let year = [
        "Prestations de services : 500,00 €",
        "Seuil de franchise de TVA, services : 500,00 € sur",
        &of_the_year,
    ];
    let typed = format!(
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) \
         values ($1, {}, {other}, 'services', 500)",
        month.year()
    );
    about(&world, user, &typed).await?;
    // Once through both, once by each alone; two refunds.
    let both = world.stripe.payment("acct_twins", day(month, 2), 10_000, "eur");
    world.shopify.tender(SHOP, Tender::new(day(month, 2), "100.0", "EUR").reference(&both.charge));
    let alone = world.stripe.payment("acct_twins", day(month, 3), 20_000, "eur");
    world.stripe.refund("acct_twins", &alone.charge, day(month, 4), 1_550);
    let cash = world.shopify.tender(SHOP, Tender::new(day(month, 3), "50.5", "EUR").method("cash"));
    world.shopify.refund(SHOP, &cash, day(month, 5), "10.0");
    // No turnover: the bank's and Stripe's own.
    world.stripe.payout("acct_twins", day(month, 6), 20_000, "eur");
    world.stripe.fee("acct_twins", day(month, 6), 300, "eur");

    for _ in 0..2 {
        let answer = world.post("monthly-sync", "force=true").await?;
        assert_eq!((&answer["errors"], &answer["totalUsers"]), (&json!(0), &json!(1)), "{answer}");
        assert_eq!(answer["results"][0]["totalCA"], json!(325.00), "{answer}");
        let mail = mail_to(&world, &of("acct_twins"));
        let text = text(&mail);
        says(
            &text,
            &[
                "Total importé : 325,00 €",
                "Stripe - encaissé : 300,00 € - remboursé : -15,50 € - net : 284,50 €",
                "Shopify - encaissé : 50,50 € - remboursé : -10,00 € - net : 40,50 €",
            ],
        );
        if other < month.month() {
            says(&text, &year);
        } else {
            says_not(&text, &year);
        }
        says_not(&text, &["rovisoire", "incomplet", "double compte", "chiffre d’affaires total"]);
    }
    Ok(())
}

/// A replay of the last day is of that day, and says nothing of a month that has long been over.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_of_its_instant() -> Result<()> {
    let mut world = World::new().await?;
    let (month, at) = last_day(&mut world);
    world.set_now(month.end() + TimeDelta::days(2));
    world.stripe_user("acct_replay").await?;
    world.stripe.payment("acct_replay", day(month, 3), 10_000, "eur");
    world.stripe.payment("acct_replay", at + TimeDelta::hours(1), 5_000, "eur");
    let query = format!("at={}", at.format("%Y-%m-%dT%H:%M:%SZ"));
    let answer = world.cron("monthly-orchestrator", &query).await?;
    assert_eq!(answer["results"]["monthlySync"]["recaps"], json!({"sent": 1, "errors": 0}), "{answer}");
    let text = text(&mail_to(&world, &of("acct_replay")));
    says(
        &text,
        &["Total importé, provisoire : 100,00 €", "à 15 h 00 (heure de Paris) : ce qui est encaissé"],
    );
    says_not(&text, &["n’est pas terminé"]);
    Ok(())
}

/// A month before the one that recaps are about is put right in its figures, and nobody is written
/// to.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_month_or_one_that_goes_on_is_data_only() -> Result<()> {
    let mut world = World::new().await?;
    let (month, _) = last_day(&mut world);
    let now = month.next().start() + TimeDelta::days(9);
    world.set_now(now);
    world.stripe_user("acct_old").await?;
    let old = month.previous();
    for month in [old, month.next()] {
        world.stripe.payment("acct_old", day(month, 3), 2_000, "eur");
    }
    for (query, month, note) in [
        (format!("month={old}"), old, "mois ancien"),
        (format!("month={}", month.next()), month.next(), "le dernier jour du mois"),
    ] {
        let answer = world.post("monthly-sync", &query).await?;
        assert_eq!(
            (&answer["month"], &answer["errors"], &answer["results"][0]["totalCA"]),
            (&json!(month.french()), &json!(0), &json!(20.00)),
            "{answer}"
        );
        let said = answer["note"].as_str().unwrap_or_default();
        assert!(said.contains(note) && said.contains("données seules"), "{answer}");
        assert_eq!(answer.get("recaps"), None, "{answer}");
    }
    assert_eq!(world.resend.accepted_count(), 0);
    let tried = world.post("monthly-sync", &format!("dry_run=true&month={old}")).await?;
    says(tried["dryRun"]["note"].as_str().unwrap_or_default(), &["mois ancien"]);
    // An operator without force, in the middle of a month.
    let answer = world.post("monthly-sync", "").await?;
    assert_eq!(answer["message"], "Pas le dernier jour du mois", "{answer}");
    // The old month gets no recap later either; the last one does, without a movement it does not.
    let answer = world.post("monthly-sync", "force=true").await?;
    assert_eq!((&answer["month"], &answer["errors"]), (&json!(month.french()), &json!(0)), "{answer}");
    assert_eq!(world.resend.accepted_count(), 0, "nothing moved in {month}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_the_figure_from_being_whole_is_said() -> Result<()> {
    let mut world = World::new().await?;
    let (month, _) = last_day(&mut world);
    world.set_now(month.end() + TimeDelta::hours(30));
    let key = month.to_string();
    // Typed by hand as well.
    let typed = world.stripe_user("acct_typed").await?;
    world.stripe.payment("acct_typed", day(month, 3), 10_000, "eur");
    turnover(&world, typed, &key, "services", "80.50", "manual").await?;
    turnover(&world, typed, &key, "Vente de marchandises", "20", "manual").await?;
    turnover(&world, typed, &month.previous().to_string(), "services", "7777", "manual").await?;
    // Dollars.
    world.stripe_user("acct_dollars").await?;
    world.stripe.payment("acct_dollars", day(month, 3), 10_000, "eur");
    world.stripe.payment("acct_dollars", day(month, 4), 5_000, "usd");
    // Dollars alone.
    world.stripe_user("acct_usd").await?;
    world.stripe.payment("acct_usd", day(month, 4), 5_000, "usd");
    // A shop that cannot be read beside an account that can.
    let half = world.stripe_user("acct_half").await?;
    world.stripe.payment("acct_half", day(month, 3), 10_000, "eur");
    with_shop(&world, half).await?;
    world.shopify.set_status(SHOP, Some(404));
    // Nothing that can be read.
    world.stripe_user("acct_none").await?;
    world.stripe.payment("acct_none", day(month, 3), 10_000, "eur");
    world.stripe.revoke("acct_none");
    // More paid back than cashed.
    world.stripe_user("acct_less").await?;
    let paid = world.stripe.payment("acct_less", day(month.previous(), 20), 10_000, "eur");
    world.stripe.payment("acct_less", day(month, 2), 1_000, "eur");
    world.stripe.refund("acct_less", &paid.charge, day(month, 3), 10_000);

    let answer = world.post("monthly-sync", "force=true").await?;
    assert_eq!(answer["recaps"], json!({"sent": 5, "errors": 0}), "{answer}");
    assert_eq!((&answer["totalUsers"], &answer["errors"]), (&json!(6), &json!(2)), "{answer}");
    assert!(mails_to(&world, &of("acct_none")).is_empty(), "no figure, no recap");

    let read = |account: &str| text(&mail_to(&world, &of(account)));
    let complete = ["incomplet", "manquent", "devises"];
    let text = read("acct_typed");
    says(&text, &["Total importé : 100,00 €", "Attention au double compte", "saisi 100,50 € à la main"]);
    says_not(&text, &complete);
    let text = read("acct_dollars");
    says(&text, &["Total importé, incomplet : 100,00 €", "Les opérations en USD ne sont pas dans le total"]);
    says_not(&text, &["50,00", "n’a pas pu être lu", "Des opérations manquent"]);
    let text = read("acct_usd");
    says(&text, &["Total importé, incomplet : 0,00 €", "Les opérations en USD ne sont pas dans le total"]);
    let text = read("acct_half");
    says(&text, &["Total importé, incomplet : 100,00 €", "Shopify n’a pas pu être lu"]);
    says_not(&text, &["Stripe n’a pas", "Des opérations manquent"]);
    let text = read("acct_less");
    says(
        &text,
        &[
            "Total importé : -90,00 €",
            "Un montant négatif ne se déclare pas",
            "encaissé : 10,00 €",
            "remboursé : -100,00 €",
        ],
    );
    says_not(&text, &complete);

    // Mended, the month that failed gets its recap; the others had theirs.
    world.stripe.add_account("acct_none", "sk_acct_token_acct_none");
    world.stripe.payment("acct_none", day(month, 3), 10_000, "eur");
    world.shopify.set_status(SHOP, None);
    let answer = world.post("monthly-sync", "force=true").await?;
    assert_eq!(
        (&answer["errors"], &answer["recaps"]),
        (&json!(0), &json!({"sent": 1, "errors": 0})),
        "{answer}"
    );
    says(&read("acct_none"), &["100,00 €"]);
    assert_eq!(world.resend.accepted_count(), 6);
    Ok(())
}

/// A month without sales is declared as 0: told to those who sold before, and to nobody who has never sold, has typed
/// something, or could not be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_month_without_sales_says_declare_nothing() -> Result<()> {
    let mut world = World::new().await?;
    let (month, _) = last_day(&mut world);
    for account in ["acct_sold", "acct_never", "acct_typed", "acct_broken"] {
        let user = world.stripe_user(account).await?;
        if account != "acct_never" {
            let before = month.previous().to_string();
            turnover(&world, user, &before, "Prestation de services", "100", "manual").await?;
        }
        if account == "acct_typed" {
            turnover(&world, user, &month.to_string(), "Prestation de services", "50", "manual").await?;
        }
    }
    world.stripe.revoke("acct_broken");
    for _ in 0..2 {
        let answer = world.cron("monthly-orchestrator", "").await?;
        let part = &answer["results"]["monthlySync"];
        assert_eq!((&part["synced"], &part["recaps"]["sent"]), (&json!(3), &json!(1)), "{answer}");
        assert_eq!(recipients(&world), [of("acct_sold")]);
    }
    let mail = mail_to(&world, &of("acct_sold"));
    let text = text(&mail);
    says(
        &text,
        &[
            &format!("Comptalyze n’a importé aucun encaissement pour {}", month.french()),
            "Total importé, provisoire : 0,00 €",
            "Si vous n’avez rien encaissé par ailleurs, déclarez 0 €",
        ],
    );
    says_not(&text, &["Par source", "Par activité", "incomplet", "négatif"]);
    Ok(())
}

/// The year up to the month: later months are planned, not cashed; months of which nothing is known are named; what may
/// count twice is said.
#[tokio::test(flavor = "multi_thread")]
async fn the_year_goes_up_to_the_month() -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at("2026-11-18T10:20:00Z"));
    let (month, _) = last_day(&mut world);
    assert_eq!(month.to_string(), "2026-10");
    let user = world.stripe_user("acct_year").await?;
    about(
        &world,
        user,
        "insert into public.user_onboarding_data (user_id, company_creation_date) values ($1, '2026-05-11')",
    )
    .await?;
    for (of, euros, source) in [
        ("2026-05", "400", "manual"),
        ("2026-08", "300", "manual"),
        ("2026-08", "200", "auto_sync"),
        ("2026-12", "9000", "manual"),
    ] {
        turnover(&world, user, of, "Prestation de services", euros, source).await?;
    }
    world.stripe.payment("acct_year", day(month, 3), 10_000, "eur");
    let answer = world.cron("monthly-orchestrator", "").await?;
    assert_eq!(answer["results"]["monthlySync"]["recaps"], json!({"sent": 1, "errors": 0}), "{answer}");
    let text = text(&mail_to(&world, &of("acct_year")));
    says(
        &text,
        &[
            "Par activité : - Prestations de services : 100,00 €",
            "Prestations de services : 1 000,00 €",
            "Ce que vous avez saisi pour les mois suivants (9 000,00 €) n’est pas compté.",
            "Rien n’est enregistré pour juin, juillet et septembre 2026.",
            "En août 2026, vos enregistrements contiennent à la fois des saisies et des imports",
            ": c’est le plus proche",
        ],
    );
    says(&text, &["(au prorata de 37 500 € pour une année)"]);
    says_not(&text, &["10 000,00", "janvier", "déclarez 0 €", "Votre profil indique"]);
    Ok(())
}

/// A date of creation after the first turnover reduces no ceiling, as in an alert, and the recap says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_creation_date_that_the_books_contradict_reduces_nothing() -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at("2026-11-18T10:20:00Z"));
    let (month, _) = last_day(&mut world);
    for (account, first, euros) in [
        ("acct_early", "2026-02", "400"),
        ("acct_before", "2025-11", "400"),
        ("acct_refund", "2026-02", "-400"),
    ] {
        let user = world.stripe_user(account).await?;
        let created = "insert into public.user_onboarding_data (user_id, company_creation_date) values ($1, '2026-05-11')";
        about(&world, user, created).await?;
        turnover(&world, user, first, "Prestation de services", euros, "manual").await?;
        world.stripe.payment(account, day(month, 3), 10_000, "eur");
    }
    world.cron("monthly-orchestrator", "").await?;
    for (account, first) in [("acct_early", "février 2026"), ("acct_before", "novembre 2025")] {
        let text = text(&mail_to(&world, &of(account)));
        let contradicted = format!(
            "Votre profil indique une création le 11 mai 2026, mais des encaissements sont enregistrés dès {first}. Les \
             limites ne sont donc pas réduites au prorata."
        );
        says(&text, &[&contradicted, "sur 37 500 €"]);
        says_not(&text, &["pour une année"]);
    }
    let refund = text(&mail_to(&world, &of("acct_refund")));
    says(&refund, &["(au prorata de 37 500 € pour une année)"]);
    says_not(&refund, &["Votre profil indique"]);
    Ok(())
}

/// A sale that may be a payment at Stripe, too, is no missing one; a debit on its way alone is nothing to tell of.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_count_twice_is_said_and_what_has_not_come_is_not() -> Result<()> {
    let mut world = World::new().await?;
    let (month, _) = last_day(&mut world);
    world.set_now(month.end() + TimeDelta::hours(30));
    let both = world.stripe_user("acct_both").await?;
    world.stripe.payment("acct_both", day(month, 3), 10_000, "eur");
    with_shop(&world, both).await?;
    world.shopify.tender(SHOP, Tender::new(day(month, 3), "100.0", "EUR"));
    world.stripe_user("acct_waits").await?;
    world.stripe.debit("acct_waits", day(month, 20), 5_000, day(month, 26));
    world.stripe_user("acct_host").await?;
    world.stripe.passed_on("acct_host", day(month, 3), 8_500, PassedOn::Part);

    let answer = world.post("monthly-sync", "force=true").await?;
    assert_eq!(answer["recaps"], json!({"sent": 2, "errors": 0}), "{answer}");
    assert!(mails_to(&world, &of("acct_waits")).is_empty());
    let text = text(&mail_to(&world, &of("acct_both")));
    says(
        &text,
        &["Des montants sont peut-être comptés deux fois", "Une vente ou un remboursement Shopify ressemble"],
    );
    says_not(&text, &["Des opérations manquent", "incomplet", "plateforme a encaissé"]);
    let text = super::given::text(&mail_to(&world, &of("acct_host")));
    says(&text, &["Une plateforme a encaissé pour vous", "Hors paiements reversés par une plateforme"]);
    says_not(&text, &["Des opérations manquent", "incomplet"]);
    Ok(())
}
