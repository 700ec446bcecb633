//! What follows from a year: VAT and the micro regime are states, what is unknown is not denied, and the edges of years.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use super::{
    SALES, SERVICES, about, at, books, created, held, mail_to, mails_to, message, plain, recorded, says,
    says_not, text, turnover, world,
};
use crate::world::World;

const LIBERAL: &str = "Activité libérale";

/// The text of the only mail that somebody got.
fn read(world: &World, name: &str) -> String {
    text(&mail_to(world, &format!("{name}@example.test")))
}

/// Whoever is liable is told so by every mail of the year, and never of a later day.
#[tokio::test(flavor = "multi_thread")]
async fn vat_is_a_state() -> Result<()> {
    let world = world().await?;
    let march = recorded(&world, "march", &[("2026-03", SERVICES, "42000")]).await?;
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 1);
    turnover(&world, march, "2026-06", SERVICES, "26000", "manual").await?;
    turnover(&world, march, "2026-06", SALES, "1", "manual").await?;
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 1);
    let mails: Vec<String> = mails_to(&world, "march@example.test").iter().map(text).collect();
    let since =
        "Vous êtes redevable de la TVA dès la date à laquelle le seuil majoré a été dépassé, en mars 2026";
    says(&mails[0], &["Seuil majoré de TVA – Prestations de services", "- dépassement : mars 2026"]);
    says(&mails[1], &["Seuil de franchise de TVA – Chiffre d’affaires total", "80 % atteints"]);
    for mail in &mails {
        says(mail, &[since, "sauf activité exonérée ou seuil propre"]);
        says_not(mail, &["le seuil n’est pas dépassé", "Le seuil n’est pas dépassé", "1er janvier 2027"]);
    }

    // The year before decides about 1 January.
    for (name, day, cashed, this_year) in [
        ("above", None, "40000", "31000"),
        ("just", None, "37500.01", "31000"),
        ("at", None, "37500.00", "31000"),
        ("new", Some("2025-10-01"), "10000", "31000"),
        ("small", Some("2025-10-01"), "9452.05", "31000"),
        ("both", None, "40000", "45000"),
    ] {
        let month = if day.is_some() { "2025-10" } else { "2025-01" };
        let rows = [(month, SERVICES, cashed), ("2026-03", SERVICES, this_year)];
        let user = recorded(&world, name, &rows).await?;
        if let Some(day) = day {
            created(&world, user, day).await?;
        }
    }
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 6);
    for name in ["above", "just", "new", "both"] {
        let mail = read(&world, name);
        says(
            &mail,
            &[
                "Vous êtes redevable de la TVA depuis le 1er janvier 2026, car le seuil de franchise a été dépassé en 2025",
            ],
        );
        says_not(&mail, &["1er janvier 2027", "n’est pas dépassé", "dès la date"]);
    }
    let reduced = "En 2025, année de la création, ce seuil était réduit au prorata des jours d’activité.";
    says(&read(&world, "new"), &[reduced]);
    says_not(&read(&world, "above"), &["prorata"]);
    for name in ["at", "small"] {
        let mail = read(&world, name);
        says(&mail, &["Le seuil n’est pas dépassé.", "à partir du 1er janvier 2027"]);
        says_not(&mail, &["depuis le 1er janvier 2026"]);
    }
    Ok(())
}

/// What became due in an earlier year is due since then, by every mail of each later year; and so is leaving the regime.
#[tokio::test(flavor = "multi_thread")]
async fn what_began_years_ago_did_not_begin_anew() -> Result<()> {
    let mut world = world().await?;
    let years =
        [("2024-02", SERVICES, "80000"), ("2025-02", SERVICES, "80000"), ("2026-02", SERVICES, "90000")];
    recorded(&world, "regime", &[&years[..], &[("2027-02", SERVICES, "90000")]].concat()).await?;
    let base =
        [("2025-01", SERVICES, "40000"), ("2026-06", SERVICES, "45000"), ("2027-02", SERVICES, "31000")];
    recorded(&world, "base", &base).await?;
    let increased =
        [("2025-06", SERVICES, "42000"), ("2026-06", SERVICES, "40000"), ("2027-02", SERVICES, "31000")];
    recorded(&world, "increased", &increased).await?;
    let over =
        [("2025-01", SERVICES, "40000"), ("2026-01", SERVICES, "37500"), ("2027-02", SERVICES, "31000")];
    recorded(&world, "over", &over).await?;
    world.set_now(at("2027-03-03T10:00:00Z"));
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 4);
    let regime = read(&world, "regime");
    says(
        &regime,
        &[
            "Vous ne relevez plus du régime micro-entreprise depuis le 1er janvier 2026 : le plafond a été dépassé deux \
             années de suite, en 2024 et en 2025. Le plafond a encore été dépassé en 2026, d’après vos enregistrements.",
            "Vous êtes redevable de la TVA depuis 2025, car le seuil majoré a été dépassé en février 2025",
        ],
    );
    says(
        &read(&world, "base"),
        &[
            "Vous êtes redevable de la TVA depuis le 1er janvier 2026, car le seuil de franchise a été dépassé en 2025",
            "Le seuil de franchise a encore été dépassé en 2026, d’après vos enregistrements.",
        ],
    );
    says(&read(&world, "increased"), &["depuis 2025, car le seuil majoré a été dépassé en juin 2025"]);
    for name in ["regime", "base", "increased"] {
        says_not(&read(&world, name), &["1er janvier 2027", "dépassé en juin 2026", "depuis 2026"]);
    }
    let over = read(&world, "over");
    says(
        &over,
        &[
            "Le seuil n’est pas dépassé. Vous étiez redevable de la TVA en 2026 : comme le seuil de franchise n’y a pas été \
             dépassé, d’après vos enregistrements, la franchise s’applique de nouveau depuis le 1er janvier 2027, sauf option pour la TVA.",
            "à partir du 1er janvier 2028",
        ],
    );
    says_not(&over, &["Vous êtes redevable"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_year_of_creation_in_proportion_to_its_days() -> Result<()> {
    let world = world().await?;
    let mut users = Vec::new();
    for (name, day, euros) in [
        ("below", "2026-04-01", "22602.73"),
        ("at", "2026-04-01", "22602.74"),
        ("increased", "2026-04-01", "31078.77"),
        ("first-day", "2026-01-01", "29999.99"),
        ("year-before", "2025-04-01", "29999.99"),
    ] {
        let user = recorded(&world, name, &[("2026-05", SERVICES, euros)]).await?;
        created(&world, user, day).await?;
        users.push(user);
    }
    // Turnover of a month before it: nothing is reduced by such a date, and the mail says so.
    let early =
        recorded(&world, "early", &[("2026-02", SERVICES, "29000"), ("2026-05", SERVICES, "1000")]).await?;
    created(&world, early, "2026-04-01").await?;
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!(answer["sent"], 3, "{answer}");
    says(
        &read(&world, "at"),
        &[
            "22 602,74 €",
            "limite au prorata de l’année de création : 28 253,42 €",
            "limite d’une année entière : 37 500 €",
        ],
    );
    let (highest, _) = held(&world, users[2], 2026).await?;
    let expected = [("vat_base_services".to_owned(), 100), ("vat_increased_services".to_owned(), 100)];
    assert_eq!(highest, BTreeMap::from(expected));
    let increased = read(&world, "increased");
    says(
        &increased,
        &[
            "limite au prorata de l’année de création : 31 078,76 €",
            "limite d’une année entière : 41 250 €",
            "Vous êtes redevable de la TVA dès la date à laquelle le seuil majoré a été dépassé, en mai 2026",
            "celles d’une année entière ne valent pas pour 2026",
        ],
    );
    says_not(&increased, &["2025"]);
    let early = read(&world, "early");
    says(
        &early,
        &["limite : 37 500 €", "Date de création non retenue", "1er avril 2026", "dès février 2026"],
    );
    says_not(&early, &["prorata de l’année"]);
    Ok(())
}

/// December is recorded in January, and the fourth quarter is declared until 1 February 2027.
#[tokio::test(flavor = "multi_thread")]
async fn after_new_year_the_year_before_is_checked_until_its_last_declarations() -> Result<()> {
    let mut world = world().await?;
    let user = books(&world, "december", &[(SERVICES, "29000")]).await?;
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 0);
    turnover(&world, user, "2026-12", SERVICES, "1000", "manual").await?;
    turnover(&world, user, "2027-01", SERVICES, "100", "manual").await?;
    let instants = [("2027-01-31T23:00:00Z", 1), ("2027-02-08T22:59:59Z", 1), ("2027-02-08T23:00:00Z", 0)];
    for (instant, due) in instants {
        let tried = world.post("check-thresholds", &format!("dry_run=true&at={instant}")).await?;
        assert_eq!(tried["dryRun"]["items"], due, "{instant}: {tried}");
    }
    world.set_now(at("2027-01-15T10:00:00Z"));
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!(answer["sent"], 1, "{answer}");
    assert_eq!(held(&world, user, 2026).await?.0, BTreeMap::from([("vat_base_services".to_owned(), 80)]));
    assert_eq!(held(&world, user, 2027).await?.1, 0);
    says(&read(&world, "december"), &["encaissé en 2026", "30 000,00 €", "n’a pas été dépassé en 2026"]);
    // Both years of one user: one mail each, in one run.
    let user = books(&world, "both", &[(SERVICES, "50000")]).await?;
    turnover(&world, user, "2027-01", SERVICES, "50000", "manual").await?;
    let answer = world.post("check-thresholds", &format!("user_id={user}")).await?;
    assert_eq!((&answer["message"], &answer["sent"]), (&message(2), &json!(2)), "{answer}");
    assert_eq!(mails_to(&world, "both@example.test").len(), 2);
    Ok(())
}

/// On 20 January nobody prepares for 1 January.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_begun_is_not_prepared() -> Result<()> {
    let mut world = world().await?;
    recorded(&world, "base", &[("2026-12", SERVICES, "38000")]).await?;
    let twice = [("2025-12", SERVICES, "77700.01"), ("2026-12", SERVICES, "83600.01")];
    recorded(&world, "twice", &twice).await?;
    world.set_now(at("2027-01-20T10:00:00Z"));
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 2);
    let base = read(&world, "base");
    says(
        &base,
        &["Vous êtes redevable de la TVA depuis le 1er janvier 2027", "facturez la TVA depuis cette date"],
    );
    let twice = read(&world, "twice");
    says(&twice, &["vous ne relevez plus du régime micro-entreprise depuis le 1er janvier 2027"]);
    for mail in [base, twice] {
        says_not(&mail, &["préparez", "à partir du 1er janvier 2027", "vous sortez", "À ce rythme"]);
    }
    Ok(())
}

/// Two consecutive years over the ceiling, one, and some of which not everything is known.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_year_before_says() -> Result<()> {
    let world = world().await?;
    for (name, before, day) in [
        ("twice", Some(("2025-06", "77700.01")), None),
        ("once", Some(("2025-01", "77700.00")), None),
        ("unknown", None, None),
        ("part", Some(("2025-12", "1000")), None),
        ("begun", Some(("2025-12", "1000")), Some("2025-11-15")),
        ("new", None, Some("2026-02-01")),
    ] {
        let user = books(&world, name, &[(SERVICES, "83600.01")]).await?;
        if let Some((month, euros)) = before {
            turnover(&world, user, month, SERVICES, euros, "manual").await?;
        }
        if let Some(day) = day {
            created(&world, user, day).await?;
        }
    }
    let out = books(&world, "out", &[(SERVICES, "70000")]).await?;
    for month in ["2024-05", "2025-05"] {
        turnover(&world, out, month, SERVICES, "80000", "manual").await?;
    }
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!(answer["sent"], 7, "2025 itself is not checked any more: {answer}");
    says(&read(&world, "twice"), &["deux années de suite", "au 1er janvier 2027"]);
    for name in ["once", "begun"] {
        says(&read(&world, name), &["ne l’était pas en 2025", "au 1er janvier 2028"]);
    }
    let unknown = read(&world, "unknown");
    says(&unknown, &["Rien n’est enregistré dans Comptalyze pour 2025", "Sinon, vous y restez"]);
    let part = read(&world, "part");
    says(
        &part,
        &["Pour 2025, rien n’est enregistré dans Comptalyze avant décembre 2025", "Sinon, vous y restez"],
    );
    for mail in [unknown, part] {
        says_not(&mail, &["deux années de suite, en 2025", "ne l’était pas"]);
        says(&mail, &["si le seuil de franchise y a été dépassé, la TVA est due depuis le 1er janvier 2026"]);
    }
    let new = read(&world, "new");
    says(&new, &["votre première année"]);
    says_not(&new, &["2025"]);
    says(
        &read(&world, "out"),
        &["Vous ne relevez plus du régime micro-entreprise depuis le 1er janvier 2026"],
    );
    Ok(())
}

/// Both outcomes are told, and the link to say which it is.
#[tokio::test(flavor = "multi_thread")]
async fn typed_plus_imported_is_to_be_verified() -> Result<()> {
    let world = world().await?;
    let user = books(&world, "twice", &[(SERVICES, "20000")]).await?;
    turnover(&world, user, "2026-03", SERVICES, "20000.01", "auto_sync").await?;
    // In different months there is no doubt.
    let apart = books(&world, "apart", &[(SERVICES, "20000")]).await?;
    turnover(&world, apart, "2026-04", SERVICES, "20000.01", "auto_sync").await?;
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!(answer["sent"], 2, "{answer}");
    let mail = mail_to(&world, "twice@example.test");
    let doubt = text(&mail);
    says(&plain(&mail.subject), &["à vérifier"]);
    says(
        &doubt,
        &[
            "À vérifier",
            "dont saisi à la main : 20 000,00 €",
            "dont importé : 20 000,01 €",
            "Si vos saisies et vos importations sont des encaissements distincts, vous êtes redevable de la TVA à partir \
             du 1er janvier 2027",
            "Si ce sont les mêmes, le seuil n’est pas dépassé",
            "Nous ne tirons aucune conséquence",
            "Dire si ce sont les mêmes encaissements : https://jobs.comptalyze.example/api/confirm?t=",
        ],
    );
    says_not(&doubt, &["Vous êtes redevable", "Dépassé"]);
    let certain = text(&mail_to(&world, "apart@example.test"));
    says(&certain, &["Dépassé", "Vous êtes redevable de la TVA à partir du 1er janvier 2027"]);
    says_not(&certain, &["À vérifier", "dont importé", "/api/confirm"]);
    Ok(())
}

/// What is typed for a month to come is planned; a liberal reads of liberal professions.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_planned_and_what_a_line_is_about() -> Result<()> {
    let world = world().await?;
    let planned = [("2026-11", SERVICES, "29999.99"), ("2026-12", SERVICES, "8000")];
    recorded(&world, "planned", &planned).await?;
    let more = [("2026-11", LIBERAL, "30000"), ("2026-12", SERVICES, "8000")];
    recorded(&world, "liberal", &more).await?;
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 1);
    let mail = read(&world, "liberal");
    says(
        &mail,
        &[
            "Prestations de services et professions libérales",
            "chiffre d’affaires : 30 000,00 €",
            "8 000,00 € saisis pour des mois à venir ne sont pas comptés",
        ],
    );
    says_not(&mail, &["Chiffre d’affaires total"]);
    Ok(())
}

/// Movements tell the day; money in dollars and an activity that nobody said are named.
#[tokio::test(flavor = "multi_thread")]
async fn the_day_of_a_crossing_and_what_the_figures_rest_on() -> Result<()> {
    let world = world().await?;
    let user = world.stripe_user("acct_day").await?;
    for (day, minor, currency) in [
        ("04", 4_000_000, "eur"),
        ("11", 125_000, "eur"),
        ("12", 100, "eur"),
        ("18", 50_000, "eur"),
        ("19", 4_000_000, "usd"),
    ] {
        world.stripe.payment("acct_day", at(&format!("2026-11-{day}T22:30:00Z")), minor, currency);
    }
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["alerts"], json!({"sent": 1, "errors": 0}), "{answer}");
    let mail = read(&world, "acct_day");
    says(
        &mail,
        &[
            "Vous êtes redevable de la TVA depuis le 12 novembre 2026, jour où le seuil majoré a été dépassé",
            "- dépassement : 4 novembre 2026",
            "- dépassement : 12 novembre 2026",
            "40 000,00 USD",
            "Faute d’indication, vos encaissements Stripe sont comptés comme des prestations de services.",
            "page Intégrations",
        ],
    );
    assert_eq!(held(&world, user, 2026).await?.1, 4);

    // What an account that is out of the books cashed is in no figure, whatever its currency.
    let out = world.stripe_user("acct_out").await?;
    world.stripe.payment("acct_out", at("2026-11-04T10:00:00Z"), 4_000_000, "usd");
    world.post("sync-integrations", "").await?;
    about(&world, out, "update jobs.integration_state set left_out = true where user_id = $1").await?;
    turnover(&world, out, "2026-10", SERVICES, "31000", "manual").await?;
    assert_eq!(world.post("check-thresholds", &format!("user_id={out}")).await?["sent"], 1);
    says_not(&read(&world, "acct_out"), &["USD"]);

    // Said by the user: no assumption.
    let said = world.stripe_user("acct_said").await?;
    about(
        &world,
        said,
        "update public.integration_tokens set activity_type = 'Activité libérale' where user_id = $1",
    )
    .await?;
    world.stripe.payment("acct_said", at("2026-11-04T10:00:00Z"), 3_100_000, "eur");
    world.post("sync-integrations", "").await?;
    says_not(&read(&world, "acct_said"), &["Faute d’indication", "USD"]);
    Ok(())
}

/// At 80 and 90 % the mail says when the limit is reached at this pace.
#[tokio::test(flavor = "multi_thread")]
async fn at_this_pace() -> Result<()> {
    let mut world = world().await?;
    world.set_now(at("2026-09-14T10:00:00Z"));
    let months = [
        "2025-09", "2025-10", "2025-11", "2025-12", "2026-01", "2026-02", "2026-03", "2026-04", "2026-05",
        "2026-06", "2026-07", "2026-08",
    ];
    let rows: Vec<_> = months.iter().map(|month| (*month, SERVICES, "4000")).collect();
    recorded(&world, "steady", &rows).await?;
    recorded(&world, "slow", &[("2026-01", SERVICES, "30500")]).await?;
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 2);
    // 32 000 € of 37 500 €: 5 500 € are left at 4 000 € a month, from 1 September on.
    says(
        &read(&world, "steady"),
        &[
            "À ce rythme, il serait dépassé vers la mi-octobre 2026.",
            "elle suppose que les mois qui viennent ressemblent aux douze derniers mois complets",
        ],
    );
    says(&read(&world, "slow"), &["il serait dépassé vers", "aux 8 derniers mois complets"]);
    Ok(())
}
