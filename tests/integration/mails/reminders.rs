//! "Record your turnover of last month": to whom, when, and what it says.

use anyhow::Result;
use chrono::{DateTime, Days, TimeDelta, Utc};
use jobs::{
    schedule::{Month, paris},
    urssaf::{monthly_due, quarterly_due},
};
use serde_json::json;
use uuid::Uuid;

use super::{
    given::{
        about, at, mail_to, mails_to, plain, recipients, says, says_not, second_of_next_month, text, turnover,
    },
    signed_up,
};
use crate::world::World;

/// Makes a Premium user; `reminder` is what their preferences say, if there are any.
async fn premium(world: &World, name: &str, reminder: Option<bool>) -> Result<Uuid> {
    let user = signed_up(world, &format!("{name}@example.test"), name, 40).await?;
    about(
        world,
        user,
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
    )
    .await?;
    if let Some(reminder) = reminder {
        let sql = format!(
            "insert into public.email_preferences (user_id, monthly_reminder) values ($1, {reminder})"
        );
        about(world, user, &sql).await?;
    }
    Ok(user)
}

fn query(at: DateTime<Utc>) -> String {
    format!("at={}", at.format("%Y-%m-%dT%H:%M:%SZ"))
}

#[tokio::test(flavor = "multi_thread")]
async fn premium_users_who_wish_it_and_nobody_else() -> Result<()> {
    let mut world = World::new().await?;
    let (month, _) = second_of_next_month(&mut world);
    premium(&world, "wants", Some(true)).await?;
    premium(&world, "refuses", Some(false)).await?;
    premium(&world, "silent", None).await?;
    let pro = signed_up(&world, "pro@example.test", "pro", 40).await?;
    about(
        &world,
        pro,
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_pro')",
    )
    .await?;
    about(&world, pro, "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)")
        .await?;
    let preferences =
        "select coalesce(jsonb_agg(to_jsonb(e) order by user_id), '[]') from public.email_preferences e";
    let before: serde_json::Value = world.value(preferences).await?;

    let tried = world.cron("send-reminders", "dry_run=true").await?;
    assert_eq!(tried["dryRun"]["skipped"], json!({"not_premium": 1, "refused_by_user": 2}), "{tried}");
    let answer = world.cron("send-reminders", "").await?;
    assert_eq!(
        (&answer["message"], &answer["sent"], &answer["errors"]),
        (&json!("Rappels mensuels : 1 envoyé, 0 erreurs"), &json!(1), &json!(0)),
        "{answer}"
    );
    assert_eq!(answer["excluded"], json!({"not_premium": 1, "refused_by_user": 2}), "{answer}");
    assert_eq!(answer.get("records"), None, "a run of mails imports nothing: {answer}");
    assert_eq!(recipients(&world), ["wants@example.test"]);
    assert_eq!(
        world.value::<serde_json::Value>(preferences).await?,
        before,
        "nobody's preference is changed"
    );
    let mail = mail_to(&world, "wants@example.test");
    assert!(plain(&mail.subject).ends_with(&month.french()), "{}", mail.subject);

    // The orchestrator has the same slot.
    let again = world.cron("monthly-orchestrator", "").await?;
    let part = &again["results"]["reminders"];
    assert_eq!(
        (&part["sent"], &part["errors"], &part["skipped"]),
        (&json!(1), &json!(0), &json!(true)),
        "{again}"
    );
    assert!(part["note"].as_str().unwrap_or_default().starts_with("déjà planifié par cron"), "{again}");
    assert_eq!(world.resend.accepted_count(), 1);
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_slots").await?, 1);
    Ok(())
}

/// It says both dates of the Urssaf, and what is recorded for the month, by whatever hand.
#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_is_recorded_and_until_when_to_declare() -> Result<()> {
    let mut world = World::new().await?;
    let (month, _) = second_of_next_month(&mut world);
    let key = month.to_string();
    let both = premium(&world, "both", Some(true)).await?;
    turnover(&world, both, &key, "services", "1234.50", "manual").await?;
    turnover(&world, both, &key, "Vente de marchandises", "1000.06", "auto_sync").await?;
    turnover(&world, both, &month.previous().to_string(), "services", "99999", "manual").await?;
    let negative = premium(&world, "negative", Some(true)).await?;
    turnover(&world, negative, &key, "services", "-12.30", "auto_sync").await?;
    premium(&world, "nothing", Some(true)).await?;
    let answer = world.cron("send-reminders", "").await?;
    assert_eq!((&answer["sent"], &answer["errors"]), (&json!(3), &json!(0)), "{answer}");

    let dates = [monthly_due(month), quarterly_due(month)].map(paris::french);
    let french = month.french();
    for name in ["both", "negative", "nothing"] {
        let mail = mail_to(&world, &format!("{name}@example.test"));
        let text = text(&mail);
        says(
            &text,
            &[
                &dates[0],
                &dates[1],
                &french,
                "chaque mois",
                "chaque trimestre",
                "https://comptalyze.com/dashboard",
            ],
        );
        says_not(&text, &["/pricing", "99 999"]);
        says(&plain(mail.html.as_deref().unwrap_or_default()), &[&dates[0], &dates[1]]);
        assert!(mail.headers.contains_key("List-Unsubscribe"));
    }
    says(&text(&mail_to(&world, "both@example.test")), &["2 234,56 €, en 2 enregistrements"]);
    says(
        &text(&mail_to(&world, "negative@example.test")),
        &["12,30 €", "Un montant négatif ne se déclare pas"],
    );
    says(&text(&mail_to(&world, "nothing@example.test")), &["Rien n’est encore enregistré", "0 €"]);
    Ok(())
}

/// It says what to declare of the month and of the quarter so far, and what to put aside by the
/// profile, from typed and imported rows. Books that cannot be read that far are not guessed at.
#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_to_declare_and_what_to_put_aside() -> Result<()> {
    let mut world = World::new().await?;
    let (month, _) = second_of_next_month(&mut world);
    let key = month.to_string();
    let known = premium(&world, "known", Some(true)).await?;
    turnover(&world, known, &key, "Vente de marchandises", "2400.40", "manual").await?;
    turnover(&world, known, &key, "Prestation de services", "599.50", "auto_sync").await?;
    about(
        &world,
        known,
        "insert into public.user_onboarding_data (user_id, ir_mode, has_acre) \
         values ($1, 'versement_liberatoire', false)",
    )
    .await?;
    premium(&world, "nothing", Some(true)).await?;
    let many = premium(&world, "many", Some(true)).await?;
    for number in 0..21 {
        turnover(&world, many, &key, &format!("Vente {number}"), "1", "manual").await?;
    }
    let answer = world.cron("send-reminders", "").await?;
    assert_eq!((&answer["sent"], &answer["errors"]), (&json!(3), &json!(0)), "{answer}");

    let mail = mail_to(&world, "known@example.test");
    let french = text(&mail);
    says(
        &french,
        &[
            "Ventes de marchandises : 2 400 €",
            "Prestations de services : 600 €",
            "Cotisations, ventes (12,3 %) : 295 €",
            "Cotisations, prestations (21,2 %) : 127 €",
            "Contribution à la formation : 3 €",
            "Versement libératoire de l’impôt : 34 €",
            "Total estimé : 459 €",
            "vous avez saisi 2 400,40 € et Comptalyze a importé 599,50 €",
            "avant midi",
        ],
    );
    says_not(&french, &["Nous ne savons pas"]);
    says(&plain(mail.html.as_deref().unwrap_or_default()), &["Total estimé", "459 €"]);
    for name in ["nothing", "many"] {
        let french = text(&mail_to(&world, &format!("{name}@example.test")));
        says_not(&french, &["À déclarer", "À mettre de côté"]);
    }
    Ok(())
}

/// The figures of one declaration, to the euro: goods of 1 500 in October, 2 400 in November, services of 600 in November.
#[tokio::test(flavor = "multi_thread")]
async fn november_2026_to_the_euro() -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at("2026-11-18T10:20:00Z"));
    second_of_next_month(&mut world);
    let user = premium(&world, "camille", Some(true)).await?;
    turnover(&world, user, "2026-10", "Vente de marchandises", "1500", "manual").await?;
    turnover(&world, user, "2026-11", "Vente de marchandises", "2400", "manual").await?;
    turnover(&world, user, "2026-11", "Prestation de services", "600", "manual").await?;
    world.cron("send-reminders", "").await?;
    let french = text(&mail_to(&world, "camille@example.test"));
    says(
        &french,
        &[
            "si vous déclarez chaque mois (novembre 2026) : - Ventes de marchandises : 2 400 € - Prestations de services : 600 €",
            "pour l’instant d’octobre à novembre 2026, et ne déclarez qu’une fois le trimestre terminé : \
             - Ventes de marchandises : 3 900 € - Prestations de services : 600 €",
            "Cotisations, ventes (12,3 %) : 295 €",
            "Cotisations, prestations (21,2 %) : 127 €",
            "Contribution à la formation : 3 €",
            "Total estimé : 425 €",
            "au plus tard le 31 décembre 2026, avant midi : il vous reste 29 jours",
            "au plus tard le 1er février 2027, avant midi : il vous reste 61 jours",
            "https://www.autoentrepreneur.urssaf.fr",
        ],
    );
    says_not(&french, &["double compte", "devises", "définitif"]);
    Ok(())
}

/// What is not in euros is in no figure, and said.
#[tokio::test(flavor = "multi_thread")]
async fn it_names_what_is_not_counted() -> Result<()> {
    let mut world = World::new().await?;
    let month = world.month();
    let user = world.stripe_user("acct_dollars").await?;
    about(
        &world,
        user,
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
    )
    .await?;
    about(&world, user, "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)")
        .await?;
    world.stripe.payment("acct_dollars", month.start() + TimeDelta::minutes(1), 4_000_000, "usd");
    world.stripe.payment("acct_dollars", month.start() + TimeDelta::minutes(2), 10_000, "eur");
    world.post("sync-integrations", "").await?;
    second_of_next_month(&mut world);
    world.cron("send-reminders", "").await?;
    let mail = mail_to(&world, "acct_dollars@example.test");
    says(&text(&mail), &["Les opérations en USD ne sont pas dans ces montants", "100,00 €"]);
    says(&plain(mail.html.as_deref().unwrap_or_default()), &["Les opérations en USD"]);
    Ok(())
}

/// A month that was not read to its end is said, with what is missing; nothing is to be declared as 0 € by that. Months before
/// the connection are the user's own, and of who was read nothing is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_month_that_was_not_read_whole_is_said() -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at("2026-11-10T11:00:00Z"));
    let accounts = ["acct_sold", "acct_nothing", "acct_never", "acct_good"];
    for account in accounts {
        let user = world.stripe_user(account).await?;
        for sql in [
            "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
            "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
        ] {
            about(&world, user, sql).await?;
        }
        turnover(&world, user, "2026-10", "Prestation de services", "50", "manual").await?;
    }
    for account in ["acct_sold", "acct_good"] {
        world.stripe.payment(account, at("2026-11-05T10:00:00Z"), 120_000, "eur");
    }
    world.stripe.revoke("acct_never");
    world.post("sync-integrations", "").await?;
    for account in ["acct_sold", "acct_nothing"] {
        world.stripe.revoke(account);
    }
    world.set_now(at("2026-12-02T06:00:00Z"));
    world.post("sync-integrations", "").await?;
    world.resend.clear().await?;
    world.set_now(at("2026-12-02T07:30:00Z"));
    let answer = world.cron("send-reminders", "").await?;
    assert_eq!(answer["sent"], json!(4), "{answer}");

    let read = |account: &str| text(&mail_to(&world, &format!("{account}@example.test")));
    let sold = read("acct_sold");
    says(
        &sold,
        &[
            "Novembre 2026 est incomplet",
            "Stripe n’a pas été lu depuis le 10 novembre 2026 : ces montants sont incomplets",
            "À déclarer, d’après vos enregistrements incomplets",
            "Prestations de services : 1 200 €",
            "À mettre de côté pour novembre 2026, d’après ces montants incomplets",
        ],
    );
    says_not(&sold, &["Octobre 2026", "lu pour octobre"]);
    for (account, missing) in
        [("acct_nothing", "depuis le 10 novembre 2026"), ("acct_never", "pour novembre 2026")]
    {
        let french = read(account);
        says(
            &french,
            &[
                "Rien n’est encore enregistré pour novembre 2026",
                &format!("Stripe n’a pas été lu {missing} : ces montants sont incomplets"),
                "rien d’enregistré, mais ce mois est incomplet",
            ],
        );
        says_not(&french, &["déclarez 0 €", "0 €, sans chiffre"]);
    }
    says_not(&read("acct_good"), &["incomplet", "n’a pas été lu"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_on_the_second_and_replayed_within_its_month() -> Result<()> {
    let mut world = World::new().await?;
    premium(&world, "wants", Some(true)).await?;
    let (month, second) = second_of_next_month(&mut world);
    for day in [1, 3] {
        world.set_now(paris::start_of(month.next().first_day() + Days::new(day - 1)) + TimeDelta::hours(12));
        for name in ["send-reminders", "monthly-orchestrator"] {
            let answer = world.cron(name, "").await?;
            let part = if name == "send-reminders" { &answer } else { &answer["results"]["reminders"] };
            assert_eq!((&part["sent"], &part["skipped"]), (&json!(0), &json!(true)), "{day}: {answer}");
            says(part["note"].as_str().unwrap_or_default(), &["dû le 2 de chaque mois", "prochaine"]);
        }
    }
    assert_eq!(world.resend.accepted_count(), 0);
    // Missed on the 2nd, made up for on the 28th.
    world.set_now(second + TimeDelta::days(20));
    let answer = world.cron("send-reminders", &query(second)).await?;
    assert_eq!((&answer["sent"], &answer["errors"]), (&json!(1), &json!(0)), "{answer}");
    assert!(plain(&mail_to(&world, "wants@example.test").subject).contains(&month.french()));
    let again = world.cron("send-reminders", &query(second + TimeDelta::hours(1))).await?;
    assert_eq!((&again["sent"], &again["skipped"]), (&json!(1), &json!(true)), "{again}");
    // Not any more in the month after.
    let late = Month::of(month.next().next().first_day());
    world.set_now(late.start() + TimeDelta::hours(1));
    for name in ["send-reminders", "monthly-orchestrator"] {
        let answer = world.cron(name, &query(second)).await?;
        let part = if name == "send-reminders" { &answer } else { &answer["results"]["reminders"] };
        assert_eq!((&part["sent"], &part["skipped"]), (&json!(0), &json!(true)), "{answer}");
        let note = part["note"].as_str().unwrap_or_default();
        assert_eq!(
            note,
            format!("trop tard : le rappel pour {} ne part qu’en {}", month.french(), month.next().french())
        );
    }
    assert_eq!(mails_to(&world, "wants@example.test").len(), 1);
    Ok(())
}
