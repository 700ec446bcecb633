//! Alerts: which steps a year's books cross, each told once, in one mail. `law`: what follows from the year; `told`: what
//! a correction does to what was told; `assumed`: an activity that nobody said;
//! `alone`: what follows without a step.

mod alone;
mod assumed;
mod law;
mod told;

use std::collections::BTreeMap;

use anyhow::Result;
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::given::{
    about, at, mail_to, mails_to, plain, problem, recipients, says, says_not, text, turnover,
};
use crate::{promises::until, world::World};

const SERVICES: &str = "Prestation de services";
const SALES: &str = "Vente de marchandises";
const NOW: &str = "2026-11-24T10:00:00Z";

/// Holds (activity, euros).
type Rows = Vec<(&'static str, &'static str)>;
/// Holds the highest step of each threshold that is crossed.
type Steps = Vec<(&'static str, i16)>;

/// Makes a user with rows of 2026: (activity, euros), all of March, typed.
async fn books(world: &World, name: &str, rows: &[(&str, &str)]) -> Result<Uuid> {
    let user = world.user(&format!("{name}@example.test")).await?;
    for (activity, euros) in rows {
        turnover(world, user, "2026-03", activity, euros, "manual").await?;
    }
    Ok(user)
}

/// Signs a user up who has typed rows: (month, activity, euros).
async fn recorded(world: &World, name: &str, rows: &[(&str, &str, &str)]) -> Result<Uuid> {
    let user = world.user(&format!("{name}@example.test")).await?;
    for (month, activity, euros) in rows {
        turnover(world, user, month, activity, euros, "manual").await?;
    }
    Ok(user)
}

/// Writes down on which day a user says that the activity began.
async fn created(world: &World, user: Uuid, day: &str) -> Result<()> {
    let sql = format!(
        "insert into public.user_onboarding_data (user_id, company_creation_date) values ($1, '{day}')"
    );
    about(world, user, &sql).await
}

/// Returns a user's held steps: the highest of each threshold, and how many there are altogether.
async fn held(world: &World, user: Uuid, year: i32) -> Result<(BTreeMap<String, i16>, i64)> {
    let sql = "select threshold, max(step), count(*) from jobs.threshold_alerts \
               where user_id = $1 and year = $2 group by threshold";
    let rows: Vec<(String, i16, i64)> =
        sqlx::query_as(sql).bind(user).bind(year).fetch_all(world.pool()).await?;
    let count = rows.iter().map(|row| row.2).sum();
    Ok((rows.into_iter().map(|(threshold, step, _)| (threshold, step)).collect(), count))
}

async fn world() -> Result<World> {
    let mut world = World::new().await?;
    world.set_now(at(NOW));
    Ok(world)
}

fn message(sent: u64) -> Value {
    let alerts = if sent == 1 { "alerte envoyée" } else { "alertes envoyées" };
    json!(format!("Vérification terminée : {sent} {alerts}, 0 erreurs"))
}

/// Checks each ceiling, a cent below and a cent above; mixed books; refunds; spellings.
#[tokio::test(flavor = "multi_thread")]
async fn at_below_and_above() -> Result<()> {
    let world = world().await?;
    let (base, total) = ("vat_base_services", "vat_base_total");
    let (more, more_total) = ("vat_increased_services", "vat_increased_total");
    let (micro, micro_total) = ("micro_services", "micro_total");
    #[rustfmt::skip]
    let table: Vec<(Rows, Steps)> = vec![
        (vec![(SERVICES, "29999.99")], vec![]),
        (vec![(SERVICES, "30000.00")], vec![(base, 80)]),
        (vec![(SERVICES, "33749.99")], vec![(base, 80)]),
        (vec![(SERVICES, "33750.00")], vec![(base, 90)]),
        (vec![(SERVICES, "37500.00")], vec![(base, 90)]),
        (vec![(SERVICES, "37500.01")], vec![(base, 100)]),
        (vec![(SERVICES, "41250.00")], vec![(base, 100)]),
        (vec![(SERVICES, "41250.01")], vec![(base, 100), (more, 100)]),
        (vec![(SERVICES, "66879.99")], vec![(base, 100), (more, 100)]),
        (vec![(SERVICES, "66880.00")], vec![(base, 100), (more, 100), (micro, 80)]),
        (vec![(SERVICES, "75240.00")], vec![(base, 100), (more, 100), (micro, 90)]),
        (vec![(SERVICES, "83600.00")], vec![(base, 100), (more, 100), (micro, 90)]),
        (vec![(SERVICES, "83600.01")], vec![(base, 100), (more, 100), (micro, 100)]),
        (vec![(SALES, "67999.99")], vec![]),
        (vec![(SALES, "68000.00")], vec![(total, 80)]),
        (vec![(SALES, "85000.00")], vec![(total, 90)]),
        (vec![(SALES, "85000.01")], vec![(total, 100)]),
        (vec![(SALES, "93500.00")], vec![(total, 100)]),
        (vec![(SALES, "93500.01")], vec![(total, 100), (more_total, 100)]),
        (vec![(SALES, "162479.99")], vec![(total, 100), (more_total, 100)]),
        (vec![(SALES, "162480.00")], vec![(total, 100), (more_total, 100), (micro_total, 80)]),
        (vec![(SALES, "203100.00")], vec![(total, 100), (more_total, 100), (micro_total, 90)]),
        (vec![(SALES, "203100.01")], vec![(total, 100), (more_total, 100), (micro_total, 100)]),
        // Sales are never in the sum of services; services are in the total.
        (vec![(SALES, "203000"), (SERVICES, "100.01")], vec![(total, 100), (more_total, 100), (micro_total, 100)]),
        (vec![(SALES, "40000"), (SERVICES, "29999.99")], vec![(total, 80)]),
        (vec![(SALES, "37999.99"), (SERVICES, "30000")], vec![(base, 80)]),
        // Refunds of one activity do not hide another, and lower their own.
        (vec![(SALES, "-2000"), (SERVICES, "31000")], vec![(base, 80)]),
        (vec![(SERVICES, "31000"), (SERVICES, "-1000.01")], vec![]),
        // However it is spelled; what is not known counts in the total.
        (vec![("services", "10000"), ("PRESTATIONS DE SERVICES", "10000"), ("Activité libérale", "10000")], vec![(base, 80)]),
        (vec![("Conseil en apiculture", "30000")], vec![]),
        (vec![("Conseil en apiculture", "38000"), (SERVICES, "30000")], vec![(total, 80), (base, 80)]),
    ];
    let mut users = Vec::new();
    for (number, (rows, _)) in table.iter().enumerate() {
        users.push(books(&world, &format!("row{number}"), rows).await?);
    }
    let told = table.iter().filter(|(_, steps)| !steps.is_empty()).count() as u64;
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!((&answer["message"], &answer["sent"]), (&message(told), &json!(told)), "{answer}");
    for ((rows, expected), user) in table.iter().zip(users) {
        let (highest, count) = held(&world, user, 2026).await?;
        let expected: BTreeMap<String, i16> =
            expected.iter().map(|(threshold, step)| ((*threshold).to_owned(), *step)).collect();
        assert_eq!(highest, expected, "{rows:?}");
        let below: i64 = expected
            .iter()
            .map(
                |(threshold, step)| {
                    if threshold.starts_with("vat_increased") { 1 } else { i64::from(step / 10 - 7).min(3) }
                },
            )
            .sum();
        assert_eq!(count, below, "steps below are used up: {rows:?}");
    }
    let mut once = recipients(&world);
    once.dedup();
    assert_eq!(once.len() as u64, told, "one mail for all of a user's steps");

    // A warning, and no error.
    let unknown = problem(&answer, "unknown_activity");
    assert_eq!((&unknown["warning"], &answer["errors"]), (&json!(true), &json!(0)), "{answer}");
    says(unknown["message"].as_str().unwrap_or_default(), &["« Conseil en apiculture »", "dans le total"]);
    let again = world.post("check-thresholds", "").await?;
    assert_eq!((&again["message"], &again["sent"]), (&message(0), &json!(0)), "{again}");
    assert_eq!(again.get("records"), None, "nothing is imported here: {again}");
    assert_eq!(world.resend.accepted_count() as u64, told);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_once_a_year() -> Result<()> {
    let world = world().await?;
    let user = books(&world, "grows", &[(SERVICES, "30500")]).await?;
    let step = async |euros: &str, sent: u64| -> Result<()> {
        if !euros.is_empty() {
            turnover(&world, user, "2026-10", SERVICES, euros, "manual").await?;
        }
        let answer = world.post("check-thresholds", "").await?;
        assert_eq!(
            (&answer["message"], &answer["sent"]),
            (&message(sent), &json!(sent)),
            "{euros}: {answer}"
        );
        Ok(())
    };
    step("", 1).await?;
    step("", 0).await?;
    step("-500", 0).await?;
    step("500", 0).await?;
    step("8000", 1).await?; // 38 500: 90 is used up by 100
    assert_eq!(held(&world, user, 2026).await?.1, 3);
    step("-2000", 0).await?; // below, and above again
    step("2000", 0).await?;
    step("-4000", 0).await?; // 34 500: 90 % are not told of any more
    step("10000", 1).await?; // 44 500: the increased threshold
    let mails = mails_to(&world, "grows@example.test");
    says(&text(&mails[0]), &["80 % atteints"]);
    says(&text(&mails[1]), &["Dépassé"]);
    says(&text(&mails[2]), &["dès la date à laquelle le seuil majoré a été dépassé, en octobre 2026"]);
    says_not(&text(&mails[2]), &["Seuil de franchise de TVA –"]);
    for mail in &mails {
        says(&text(mail), &["https://comptalyze.com/dashboard/statistiques"]);
        assert!(!mail.headers.contains_key("List-Unsubscribe"), "alerts link to the preferences");
        says_not(&text(mail), &["/api/unsubscribe", "/pricing"]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn five_alerts_and_whoever_refuses_them() -> Result<()> {
    let world = world().await?;
    for number in 0..5 {
        books(&world, &format!("alert{number}"), &[(SERVICES, "41250.01"), (SALES, "1")]).await?;
    }
    let refuses = books(&world, "refuses", &[(SERVICES, "41250.01")]).await?;
    about(
        &world,
        refuses,
        "insert into public.email_preferences (user_id, monthly_reminder, threshold_alert_email) values ($1, true, false)",
    )
    .await?;
    let banned = books(&world, "banned", &[(SERVICES, "41250.01")]).await?;
    about(&world, banned, "update auth.users set banned_until = 'infinity' where id = $1").await?;
    let tried = world.post("check-thresholds", "dry_run=true").await?;
    assert_eq!(tried["message"], "Essai : rien n’a été envoyé", "{tried}");
    let plan = &tried["dryRun"];
    assert_eq!(
        (&plan["items"], &plan["skipped"], &plan["scanned"]),
        (&json!(5), &json!({"refused_by_user": 1, "user_banned": 1}), &json!(7)),
        "{tried}"
    );
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!(answer["message"], "Vérification terminée : 5 alertes envoyées, 0 erreurs", "{answer}");
    assert_eq!((&answer["sent"], &answer["errors"]), (&json!(5), &json!(0)), "{answer}");
    assert_eq!(
        (&answer["checked"], &answer["excluded"]),
        (&json!(7), &json!({"refused_by_user": 1, "user_banned": 1})),
        "{answer}"
    );
    // Not told means not used up: who allows alerts again is told then.
    about(
        &world,
        refuses,
        "update public.email_preferences set threshold_alert_email = true where user_id = $1",
    )
    .await?;
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!(answer["message"], "Vérification terminée : 1 alerte envoyée, 0 erreurs", "{answer}");
    Ok(())
}

/// The application calls this after each entry.
#[tokio::test(flavor = "multi_thread")]
async fn one_user_takes_few_requests() -> Result<()> {
    let world = world().await?;
    let user = books(&world, "one", &[(SERVICES, "29000")]).await?;
    books(&world, "other", &[(SERVICES, "50000")]).await?;
    let function = world.function("check-thresholds").await?;
    let bearer = format!("Bearer {}", crate::world::SECRET);
    let requests = world.environment.gateway.faults();
    let query = format!("user_id={user}");
    let check = async || -> Result<(u64, usize)> {
        requests.forget();
        let answer = function.call(Method::POST, &query, Some(&bearer)).await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
        Ok((answer.json()["sent"].as_u64().unwrap_or(99), requests.seen().len()))
    };
    let (sent, count) = check().await?;
    assert!(sent == 0 && count <= 5, "{sent} sent, {count} requests");
    turnover(&world, user, "2026-10", SERVICES, "1000", "manual").await?;
    assert_eq!(check().await?.0, 1);
    let (sent, count) = check().await?;
    assert!(sent == 0 && count <= 5, "{sent} sent, {count} requests");
    assert_eq!(recipients(&world), ["one@example.test"], "nobody else is looked at");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_checks_once_a_week() -> Result<()> {
    let mut world = world().await?;
    let user = books(&world, "weekly", &[(SERVICES, "30000")]).await?;
    let first = world.cron("check-thresholds", "").await?;
    assert_eq!((&first["message"], &first["skipped"]), (&message(1), &json!(false)), "{first}");
    turnover(&world, user, "2026-10", SERVICES, "5000", "manual").await?;
    world.set_now(at("2026-11-29T22:59:59Z")); // the Sunday of that week
    let second = world.cron("check-thresholds", "").await?;
    assert_eq!((&second["skipped"], &second["sent"]), (&json!(true), &json!(1)), "{second}");
    says(second["note"].as_str().unwrap_or_default(), &["déjà planifié par cron pour 2026-W48"]);
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_slots").await?, 1);
    assert_eq!(world.resend.accepted_count(), 1);
    // An operator is never blocked; the next Monday has its own slot.
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 1);
    turnover(&world, user, "2026-10", SERVICES, "5000", "manual").await?;
    world.set_now(at("2026-11-29T23:00:00Z"));
    let third = world.cron("check-thresholds", "").await?;
    assert_eq!((&third["skipped"], &third["sent"]), (&json!(false), &json!(1)), "{third}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_changes_totals_tells_in_the_same_run() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_alerts").await?;
    world.stripe_user("acct_small").await?;
    let now = world.now();
    let earlier = (now - TimeDelta::minutes(30)).max(jobs::schedule::paris::month(now).start());
    world.stripe.payment("acct_alerts", earlier, 3_000_000, "eur");
    world.stripe.payment("acct_small", earlier, 1_000, "eur");
    let due = "select count(*) from jobs.threshold_checks_due";
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!((&answer["totalSynced"], &answer["errors"]), (&json!(2), &json!(0)), "{answer}");
    assert_eq!(answer["alerts"], json!({"sent": 1, "errors": 0}), "{answer}");
    assert_eq!(answer["resultsTotal"], 2, "mails are no results: {answer}");
    assert_eq!(recipients(&world), ["acct_alerts@example.test"]);
    says(&text(&mail_to(&world, "acct_alerts@example.test")), &["30 000,00 €", "80 % atteints"]);
    assert_eq!(world.value::<i64>(due).await?, 0);
    let run: String = world.value("select task from jobs.job_runs").await?;
    assert_eq!(run, "sync_integrations", "one run");

    let again = world.post("sync-integrations", "").await?;
    assert_eq!((again.get("alerts"), &again["errors"]), (None, &json!(0)), "{again}");
    assert_eq!(world.value::<i64>(due).await?, 0);
    // A change that crosses nothing: checked, and nothing to tell.
    world.stripe.payment("acct_alerts", earlier, 100, "eur");
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!((&answer["totalSynced"], answer.get("alerts")), (&json!(1), None), "{answer}");
    assert_eq!(world.value::<i64>(due).await?, 0);
    assert_eq!(world.resend.accepted_count(), 1);
    Ok(())
}

/// What a sync could not check any more is checked by whoever goes on with the queue.
#[tokio::test(flavor = "multi_thread")]
async fn drain_queue_checks_what_is_left() -> Result<()> {
    let world = world().await?;
    let function = world.function("drain-queue").await?;
    let bearer = format!("Bearer {}", crate::world::SECRET);
    let drained = async |times: i64| -> Result<()> {
        let answer = function.call(Method::POST, "", Some(&bearer)).await?;
        assert_eq!(answer.status, 202, "{}", answer.text);
        let logged = "select count(*) from public.sync_logs where sync_type = 'drain' and status = 'success'";
        until("the drain's row in the log", async || Ok(world.value::<i64>(logged).await? == times)).await
    };
    let small = books(&world, "small", &[(SERVICES, "29999.99")]).await?;
    let mark = "insert into jobs.threshold_checks_due (user_id) values ($1)";
    about(&world, small, mark).await?;
    drained(1).await?;
    let left =
        "select (select count(*) from jobs.threshold_checks_due) + (select count(*) from jobs.job_runs)";
    assert_eq!(world.value::<i64>(left).await?, 0, "checked, and no run where there is nothing to tell");
    turnover(&world, small, "2026-10", SERVICES, "0.01", "manual").await?;
    about(&world, small, mark).await?;
    drained(2).await?;
    assert_eq!(recipients(&world), ["small@example.test"]);
    let runs: Value =
        world.value("select jsonb_agg(jsonb_build_array(task, route, status)) from jobs.job_runs").await?;
    assert_eq!(runs, json!([["check_thresholds", "/api/cron/drain-queue", "success"]]));
    Ok(())
}
