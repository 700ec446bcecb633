//! A 2nd or a last day that no cron took is made up by the crons of the days after: once, under its own slot.

use anyhow::Result;
use chrono::{DateTime, Days, TimeDelta, Utc};
use jobs::schedule::{Month, paris};
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    resend::Resend,
};

use super::{
    given::{about, recipients},
    kind, signed_up_at,
};
use crate::{clock::replay, world::World};

/// Returns noon in Paris on a day of a month.
fn noon(month: Month, day: u64) -> DateTime<Utc> {
    paris::start_of(month.first_day() + Days::new(day - 1)) + TimeDelta::hours(12)
}

async fn premium(world: &World) -> Result<()> {
    let long_ago = world.now() - TimeDelta::days(200);
    let user = signed_up_at(world, "premium@example.test", "Premium", long_ago).await?;
    let subscribed =
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')";
    about(world, user, subscribed).await?;
    about(world, user, "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)")
        .await
}

/// Counts the mails of a kind that have left.
fn sent(world: &World, of: &str) -> usize {
    world.resend.accepted().iter().filter(|accepted| kind(accepted) == of).count()
}

/// Makes an installation that has been at work since the 1st of the month after this one.
async fn at_work() -> Result<(World, Month)> {
    let mut world = World::new().await?;
    let month = world.month().next();
    world.set_now(noon(month, 1));
    premium(&world).await?;
    world.post("sync-integrations", "").await?;
    Ok((world, month))
}

async fn reminders(world: &mut World, at: DateTime<Utc>) -> Result<Value> {
    world.set_now(at);
    Ok(world.cron("monthly-orchestrator", "").await?["results"]["reminders"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_2nd_is_made_up_once() -> Result<()> {
    let (mut world, month) = at_work().await?;
    let slot = json!(month.to_string());
    // A dry run tells what a call would make up, and takes nothing.
    world.set_now(noon(month, 3));
    let tried = world.cron("send-reminders", "dry_run=true").await?;
    assert_eq!((&tried["dryRun"]["madeUp"], &tried["dryRun"]["items"]), (&slot, &json!(1)), "{tried}");
    // A replay means its own instant.
    let replayed = world.cron("send-reminders", &replay(noon(month, 3))).await?;
    assert_eq!((&replayed["skipped"], &replayed["madeUp"]), (&json!(true), &Value::Null), "{replayed}");
    assert_eq!(sent(&world, "monthly_reminder"), 0);

    let part = reminders(&mut world, noon(month, 3)).await?;
    assert_eq!(
        (&part["sent"], &part["skipped"], &part["madeUp"]),
        (&json!(1), &json!(false), &slot),
        "{part}"
    );
    let said = format!("rattrape le passage du 2 {}, qu’aucun cron n’avait pris", month.french());
    assert_eq!(part["note"], json!(said));
    for day in [3, 4, 7] {
        let part = reminders(&mut world, noon(month, day)).await?;
        assert_eq!((&part["skipped"], &part["madeUp"]), (&json!(true), &Value::Null), "{part}");
        let note = part["note"].as_str().unwrap_or_default();
        assert!(note.starts_with("dû le 2 de chaque mois, prochaine fois le 2 "), "{note}");
    }
    assert_eq!(sent(&world, "monthly_reminder"), 1);
    let claimed: String =
        world.value("select slot from jobs.job_slots where task = 'monthly_reminders'").await?;
    assert_eq!(json!(claimed), slot);
    Ok(())
}

/// The database refuses the call of the 2nd: nothing is planned, nothing lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_2nd_that_failed_is_made_up() -> Result<()> {
    let (mut world, month) = at_work().await?;
    let refused = Fault::json(400, &json!({"code": "22003", "message": "numeric field overflow"}));
    world.environment.gateway.faults().add(Rule::on("jobs_plan_mails", refused));
    world.set_now(noon(month, 2));
    assert_eq!(world.call(Method::GET, "monthly-orchestrator", "").await?.status, 500);
    world.environment.gateway.faults().clear();
    let part = reminders(&mut world, noon(month, 7)).await?;
    assert_eq!((&part["sent"], &part["madeUp"]), (&json!(1), &json!(month.to_string())), "{part}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_8th_on_a_2nd_is_gone() -> Result<()> {
    let (mut world, month) = at_work().await?;
    let part = reminders(&mut world, noon(month, 8)).await?;
    assert_eq!((&part["skipped"], &part["madeUp"]), (&json!(true), &Value::Null), "{part}");
    assert_eq!(sent(&world, "monthly_reminder"), 0);
    Ok(())
}

/// Who installs on the 3rd owes nobody the reminders of the 2nd; nor does a replay of an earlier day make them owed.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_installation_makes_nothing_up() -> Result<()> {
    let mut world = World::new().await?;
    let month = world.month().next();
    world.set_now(noon(month, 3));
    premium(&world).await?;
    world
        .cron("daily-orchestrator", &replay(paris::start_of(month.first_day()) + TimeDelta::hours(8)))
        .await?;
    for hours in [1, 2] {
        world.set_now(noon(month, 3) + TimeDelta::hours(hours));
        let answer = world.cron("monthly-orchestrator", "").await?;
        for part in ["reminders", "monthlySync"] {
            let part = &answer["results"][part];
            assert_eq!((&part["skipped"], &part["madeUp"]), (&json!(true), &Value::Null), "{answer}");
        }
    }
    assert_eq!(sent(&world, "monthly_reminder"), 0);
    Ok(())
}

/// The last day is missed: until the 5th its recap leaves, of the month to its end, and the monitor hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_missed_last_day_is_made_up_once() -> Result<()> {
    let mut world = World::new().await?;
    let monitor = Resend::bare().await?;
    monitor.faults().add(Rule::on("", Fault::Answer { status: 200, headers: Vec::new(), body: "OK".into() }));
    world.set("PING_URL_MONTHLY_SYNC", &format!("{}/month", monitor.url()));
    let month = world.month();
    world.set_now(paris::start_of(month.last_day()) - TimeDelta::hours(9));
    world.stripe_user("acct_late").await?;
    world.post("sync-integrations", "").await?;
    let evening = paris::start_of(month.next().first_day()) - TimeDelta::hours(2);
    world.stripe.payment("acct_late", evening, 12_300, "eur");

    world.set_now(noon(month.next(), 5));
    let answer = world.cron("monthly-orchestrator", "").await?;
    let part = &answer["results"]["monthlySync"];
    assert_eq!(
        (&part["synced"], &part["skipped"], &part["madeUp"]),
        (&json!(1), &json!(false), &json!(month.to_string())),
        "{answer}"
    );
    assert_eq!(sent(&world, "monthly_recap"), 1);
    let heard: Vec<String> = monitor.faults().seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(heard, ["/month"]);
    for at in [noon(month.next(), 5) + TimeDelta::hours(1), noon(month.next(), 6)] {
        world.set_now(at);
        let answer = world.cron("monthly-orchestrator", "").await?;
        let part = &answer["results"]["monthlySync"];
        assert_eq!((&part["skipped"], &part["madeUp"]), (&json!(true), &Value::Null), "{answer}");
    }
    assert_eq!(sent(&world, "monthly_recap"), 1);
    Ok(())
}

/// The other door of the same task: its answer names the month that it made up.
#[tokio::test(flavor = "multi_thread")]
async fn the_single_route_makes_up_too() -> Result<()> {
    let mut world = World::new().await?;
    let month = world.month();
    world.set_now(paris::start_of(month.last_day()) - TimeDelta::hours(9));
    world.stripe_user("acct_late").await?;
    world.post("sync-integrations", "").await?;
    world.set_now(noon(month.next(), 1));
    let answer = world.cron("monthly-sync", "").await?;
    assert_eq!(
        (&answer["month"], &answer["madeUp"]),
        (&json!(month.french()), &json!(month.to_string())),
        "{answer}"
    );
    let answer = world.cron("monthly-orchestrator", "").await?;
    assert_eq!(answer["results"]["monthlySync"]["skipped"], true, "{answer}");
    Ok(())
}

/// Who connects after the month that is made up gets no recap of it: it is in nobody's books.
#[tokio::test(flavor = "multi_thread")]
async fn who_connected_after_the_month_gets_no_recap_of_it() -> Result<()> {
    let mut world = World::new().await?;
    let month = world.month();
    world.set_now(paris::start_of(month.last_day()) - TimeDelta::hours(9));
    world.stripe_user("acct_before").await?;
    world.post("sync-integrations", "").await?;
    world.set_now(noon(month.next(), 2));
    let user = world.stripe_user("acct_after").await?;
    about(&world, user, "update public.integration_tokens set connected_at = $now where user_id = $1")
        .await?;
    for account in ["acct_before", "acct_after"] {
        let evening = paris::start_of(month.next().first_day()) - TimeDelta::hours(2);
        world.stripe.payment(account, evening, 420_000, "eur");
    }
    world.set_now(noon(month.next(), 3));
    let answer = world.cron("monthly-orchestrator", "").await?;
    let part = &answer["results"]["monthlySync"];
    assert_eq!((&part["synced"], &part["madeUp"]), (&json!(2), &json!(month.to_string())), "{answer}");
    assert_eq!(recipients(&world), ["acct_before@example.test"]);
    Ok(())
}
