//! What follows from a year where no step tells it: told once, by itself. And what was told and does not hold: said once.

use anyhow::Result;
use serde_json::json;
use uuid::Uuid;

use super::{
    SALES, SERVICES, about, at, mail_to, mails_to, message, plain, recorded, says, says_not, text, turnover,
    world,
};
use crate::world::World;

/// Checks one user; returns how many mails left.
async fn check(world: &World, user: Uuid) -> Result<u64> {
    let answer = world.post("check-thresholds", &format!("user_id={user}")).await?;
    assert_eq!(answer["errors"], 0, "{answer}");
    Ok(answer["sent"].as_u64().unwrap_or(99))
}

/// Turnover of the year before is typed in autumn; this year is far from every ceiling.
#[tokio::test(flavor = "multi_thread")]
async fn the_year_before_decides_without_a_step() -> Result<()> {
    let world = world().await?;
    let user = recorded(&world, "late", &[("2026-03", SERVICES, "9000")]).await?;
    assert_eq!(check(&world, user).await?, 0);
    turnover(&world, user, "2025-05", SERVICES, "37500", "manual").await?;
    assert_eq!(check(&world, user).await?, 0, "met is not exceeded");
    turnover(&world, user, "2025-06", SERVICES, "0.01", "manual").await?;
    let tried = world.post("check-thresholds", "dry_run=true").await?;
    assert_eq!(tried["dryRun"]["candidates"][0]["consequences"], json!(["vat_due"]), "{tried}");
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!((&answer["message"], &answer["sent"]), (&message(1), &json!(1)), "{answer}");
    let mail = mail_to(&world, "late@example.test");
    says(&plain(&mail.subject), &["Vous êtes redevable de la TVA, d’après vos enregistrements"]);
    says(
        &text(&mail),
        &[
            "Voici ce qui découle pour 2026 de ce qui est enregistré dans Comptalyze.",
            "Vous êtes redevable de la TVA depuis le 1er janvier 2026, car le seuil de franchise a été dépassé en 2025",
            "facturez la TVA depuis cette date",
        ],
    );
    says_not(&text(&mail), &["Le niveau atteint", "%", "Rectification"]);
    assert_eq!(check(&world, user).await?, 0);

    // A step of VAT says it, too: nothing is told beside it. And it swings: a cent less takes nothing back.
    about(&world, user, "update public.ca_records set amount_eur = 0 where user_id = $1 and month = 6")
        .await?;
    assert_eq!(check(&world, user).await?, 0);
    about(&world, user, "update public.ca_records set amount_eur = 0.01 where user_id = $1 and month = 6")
        .await?;
    turnover(&world, user, "2026-06", SERVICES, "21000", "manual").await?;
    assert_eq!((check(&world, user).await?, check(&world, user).await?), (1, 0));
    says(&text(&mails_to(&world, "late@example.test")[1]), &["80 % atteints", "depuis le 1er janvier 2026"]);
    Ok(())
}

/// Out of the micro regime by two years that were typed late; whoever refuses alerts is told when they want them again.
#[tokio::test(flavor = "multi_thread")]
async fn leaving_the_regime_is_told_without_a_step() -> Result<()> {
    let world = world().await?;
    let rows =
        [("2024-05", SERVICES, "80000"), ("2025-05", SERVICES, "80000"), ("2026-05", SERVICES, "9000")];
    let user = recorded(&world, "out", &rows).await?;
    let refuse = "insert into public.email_preferences (user_id, threshold_alert_email) values ($1, false)";
    about(&world, user, refuse).await?;
    assert_eq!(check(&world, user).await?, 0);
    let accept = "update public.email_preferences set threshold_alert_email = true where user_id = $1";
    about(&world, user, accept).await?;
    assert_eq!((check(&world, user).await?, check(&world, user).await?), (1, 0));
    says(
        &text(&mail_to(&world, "out@example.test")),
        &[
            "Vous ne relevez plus du régime micro-entreprise depuis le 1er janvier 2026",
            "Vous êtes redevable de la TVA depuis 2025, car le seuil majoré a été dépassé en mai 2025",
        ],
    );
    Ok(())
}

/// What the mails of a year announced for the next one is no news in January.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_announced_is_not_told_again_in_january() -> Result<()> {
    let mut world = world().await?;
    let base = recorded(&world, "base", &[("2026-03", SERVICES, "38000")]).await?;
    let twice = [("2025-05", SERVICES, "80000"), ("2026-05", SERVICES, "90000")];
    let twice = recorded(&world, "twice", &twice).await?;
    assert_eq!((check(&world, base).await?, check(&world, twice).await?), (1, 1));
    for instant in ["2027-01-15T10:00:00Z", "2027-03-15T10:00:00Z"] {
        world.set_now(at(instant));
        for user in [base, twice] {
            assert_eq!(check(&world, user).await?, 0, "{instant}");
        }
    }
    // Typed after the last check of 2026, it was announced by nobody.
    let late = recorded(&world, "after", &[("2026-03", SERVICES, "38000")]).await?;
    assert_eq!((check(&world, late).await?, check(&world, late).await?), (1, 0));
    says(&text(&mail_to(&world, "after@example.test")), &["depuis le 1er janvier 2027"]);
    Ok(())
}

/// The regime is left once: whoever is above its ceiling in the years after, too, gets no mail for that alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_regime_that_was_left_is_no_news_in_later_years() -> Result<()> {
    let mut world = world().await?;
    let rows = [("2025-05", SERVICES, "80000"), ("2026-05", SERVICES, "90000")];
    let user = recorded(&world, "out", &rows).await?;
    assert_eq!(check(&world, user).await?, 1);
    for (instant, month, sent) in [
        ("2027-01-15T10:00:00Z", None, 0),
        ("2027-06-15T10:00:00Z", Some("2027-05"), 1),
        ("2028-01-15T10:00:00Z", None, 0),
        ("2028-03-15T10:00:00Z", None, 0),
    ] {
        world.set_now(at(instant));
        if let Some(month) = month {
            turnover(&world, user, month, SERVICES, "90000", "manual").await?;
        }
        assert_eq!(check(&world, user).await?, sent, "{instant}");
    }
    let step = text(mails_to(&world, "out@example.test").last().expect("the steps of 2027"));
    says(&step, &["Vous ne relevez plus du régime micro-entreprise depuis le 1er janvier 2027"]);
    Ok(())
}

/// A mistake that was corrected: what an alert said is taken back by the next mail that its user gets, once.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_by_mistake_is_taken_back_once() -> Result<()> {
    let world = world().await?;
    let user = recorded(&world, "typo", &[("2026-03", SERVICES, "80000"), ("2026-04", SALES, "10")]).await?;
    assert_eq!(check(&world, user).await?, 1);
    says(&text(&mail_to(&world, "typo@example.test")), &["Vous êtes redevable de la TVA dès la date"]);
    about(&world, user, "update public.ca_records set amount_eur = 8000 where user_id = $1 and month = 3")
        .await?;
    assert_eq!(check(&world, user).await?, 0, "whoever corrected it knows: no mail for that alone");

    // 68 000 € of goods are 80 % of their base threshold: the next mail.
    turnover(&world, user, "2026-05", SALES, "60500", "manual").await?;
    assert_eq!(check(&world, user).await?, 1);
    let mails: Vec<String> = mails_to(&world, "typo@example.test").iter().map(text).collect();
    says(
        &mails[1],
        &[
            "Rectification. Des courriels précédents annonçaient le dépassement",
            "du seuil de franchise de TVA (services)",
            "du seuil majoré de TVA (services) en 2026",
            "ne tenez plus compte de ces annonces",
            "80 % atteints",
        ],
    );
    says_not(&mails[1], &["vous disait redevable"]);
    turnover(&world, user, "2026-06", SALES, "8500", "manual").await?;
    assert_eq!(check(&world, user).await?, 1);
    let last = text(mails_to(&world, "typo@example.test").last().expect("a third mail"));
    says(&last, &["90 % atteints"]);
    says_not(&last, &["Rectification"]);
    Ok(())
}

/// The reminder takes back what an alert said without a step; a mail that did not leave leaves it to the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_reminder_takes_it_back_too() -> Result<()> {
    let mut world = world().await?;
    let rows = [("2025-05", SERVICES, "40000"), ("2026-10", SERVICES, "100")];
    let user = recorded(&world, "premium", &rows).await?;
    for sql in [
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
        "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
    ] {
        about(&world, user, sql).await?;
    }
    assert_eq!(check(&world, user).await?, 1);
    about(&world, user, "update public.ca_records set amount_eur = 4000 where user_id = $1 and year = 2025")
        .await?;
    assert_eq!(check(&world, user).await?, 0);
    for (instant, takes_back) in [("2026-12-02T07:00:00Z", true), ("2027-01-02T07:00:00Z", false)] {
        world.set_now(at(instant));
        world.cron("send-reminders", "").await?;
        let mails = mails_to(&world, "premium@example.test");
        let last = text(mails.last().expect("a reminder"));
        let words = "Rectification. Un courriel précédent vous disait redevable de la TVA en 2026.";
        assert_eq!(last.contains(words), takes_back, "{last}");
    }
    Ok(())
}

/// Only a mail that can say it takes something back, and only once no doubt about the same ceiling is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_back_is_said_by_a_mail_that_can() -> Result<()> {
    let world = world().await?;
    let user = recorded(&world, "doubt", &[("2026-03", SERVICES, "80000")]).await?;
    assert_eq!(check(&world, user).await?, 1);
    about(&world, user, "update public.ca_records set amount_eur = 8000 where user_id = $1").await?;
    assert_eq!(check(&world, user).await?, 0);
    // Both wait in the lane of alerts, and are claimed together.
    for kind in ["integration_trouble", "threshold_alert"] {
        let plan = format!(
            "insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts) \
             select '{kind}/next', '{kind}', $1, $1, run_id, '{{}}' from jobs.job_runs limit 1"
        );
        about(&world, user, &plan).await?;
    }
    let doubt = "insert into jobs.threshold_alerts (user_id, year, threshold, step, told_as, run_id) \
                 select user_id, year, threshold, step, 'to_verify', run_id from jobs.threshold_alerts \
                 where user_id = $1 and step = 100 and threshold = 'vat_base_services'";
    about(&world, user, doubt).await?;
    let say = "select jobs.retract_in_mails(array(select delivery_id from jobs.email_deliveries \
               where user_id = $1 and status = 'planned'))";
    let said = "select coalesce(string_agg(a.threshold || ' ' || d.kind, ', ' order by a.threshold), '') \
                from jobs.threshold_alerts a join jobs.email_deliveries d on d.delivery_id = a.unsaid_by";
    about(&world, user, say).await?;
    assert_eq!(world.value::<String>(said).await?, "vat_increased_services threshold_alert");
    about(&world, user, "delete from jobs.threshold_alerts where user_id = $1 and told_as = 'to_verify'")
        .await?;
    about(&world, user, say).await?;
    let all = "vat_base_services threshold_alert, vat_increased_services threshold_alert";
    assert_eq!(world.value::<String>(said).await?, all);
    Ok(())
}

/// Turnover was typed for the wrong year: VAT is due all the same, and nobody is told to go back on it.
#[tokio::test(flavor = "multi_thread")]
async fn what_still_follows_is_not_taken_back() -> Result<()> {
    let world = world().await?;
    let rows = [("2026-03", SERVICES, "42000"), ("2026-04", SERVICES, "10")];
    let user = recorded(&world, "moved", &rows).await?;
    assert_eq!(check(&world, user).await?, 1);
    about(&world, user, "update public.ca_records set year = 2025 where user_id = $1 and month = 3").await?;
    assert_eq!(check(&world, user).await?, 0);
    let plan = "insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts) \
                select 'next', 'monthly_reminder', $1, $1, run_id, '{}' from jobs.job_runs limit 1";
    about(&world, user, plan).await?;
    let say = "select jobs.retract_in_mails(array(select delivery_id from jobs.email_deliveries \
               where user_id = $1 and status = 'planned'))";
    let unsaid = "select count(*) from jobs.threshold_alerts where unsaid_by is not null";
    about(&world, user, say).await?;
    assert_eq!(world.value::<i64>(unsaid).await?, 0);
    about(&world, user, "delete from public.ca_records where user_id = $1 and year = 2025").await?;
    assert_eq!(check(&world, user).await?, 0);
    about(&world, user, say).await?;
    assert!(world.value::<i64>(unsaid).await? > 0, "nothing is due any more");
    Ok(())
}
