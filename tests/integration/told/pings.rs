//! A monitor hears of each task that was due: that it began, and how it went.

use anyhow::Result;
use chrono::TimeDelta;
use reqwest::Method;
use stand_ins::{
    faults::{Fault, Rule},
    resend::Resend,
};

use crate::{clock::replay, world::World};

/// Starts a server that answers whatever comes, and remembers it. What it is for does not matter
/// here.
async fn monitor() -> Result<Resend> {
    let monitor = Resend::bare().await?;
    monitor.faults().add(Rule::on("", Fault::Answer { status: 200, headers: Vec::new(), body: "OK".into() }));
    Ok(monitor)
}

/// Returns what it was told, one "path: body" each.
fn told(monitor: &Resend) -> Vec<String> {
    let seen = monitor.faults().seen();
    seen.iter().map(|seen| format!("{} {}: {}", seen.method, seen.target, seen.body)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_begins_and_goes_well_or_fails_with_the_reason() -> Result<()> {
    let mut world = World::new().await?;
    let monitor = monitor().await?;
    world.set("PING_URL_SYNC_INTEGRATIONS", &format!("{}/sync", monitor.url()));
    let user = world.stripe_user("acct_told").await?;
    world.post("sync-integrations", "").await?;
    let heard = told(&monitor);
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert_eq!(heard[0], "POST /sync/start: ");
    assert!(
        heard[1].starts_with("POST /sync: éléments\u{a0}: 1")
            || heard[1].starts_with("POST /sync: éléments : 1"),
        "{heard:?}"
    );

    // One user's run and a dry one say nothing of the task; nor does a cron that is not due.
    monitor.faults().forget();
    world.post("sync-integrations", "dry_run=true").await?;
    world.post("sync-integrations", &format!("user_id={user}")).await?;
    world.cron("daily-orchestrator", &replay(world.last_sync_hour() - TimeDelta::hours(3))).await?;
    assert_eq!(told(&monitor), Vec::<String>::new());

    world.stripe.revoke("acct_told");
    world.post("sync-integrations", "").await?;
    let heard = told(&monitor);
    assert_eq!((heard.len(), heard[0].as_str()), (2, "POST /sync/start: "), "{heard:?}");
    // It counts as an error, but nobody who runs the deployment can mend it.
    assert!(
        heard[1].starts_with("POST /sync: ") && heard[1].replace('\u{a0}', " ").contains("erreurs : 1"),
        "{heard:?}"
    );

    monitor.faults().forget();
    world.unset("STRIPE_SECRET_KEY");
    assert_eq!(world.call(Method::POST, "sync-integrations", "").await?.status, 500);
    let heard = told(&monitor);
    assert!(heard[1].starts_with("POST /sync/fail: ") && heard[1].contains("STRIPE_SECRET_KEY"), "{heard:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_is_not_there_changes_nothing_and_its_address_is_in_no_log() -> Result<()> {
    let mut world = World::new().await?;
    world.set("PING_URL_SYNC_INTEGRATIONS", "http://127.0.0.1:9/5f0c0e52-private");
    world.stripe_user("acct_alone").await?;
    let function = world.function("sync-integrations").await?;
    let answer = function.call(Method::POST, "", Some(&format!("Bearer {}", crate::world::SECRET))).await?;
    assert_eq!((answer.status.as_u16(), &answer.json()["errors"]), (200, &serde_json::json!(0)));
    assert!(function.log().contains("the monitor does not answer"));
    assert!(!function.log().contains("5f0c0e52-private"), "{}", function.log());
    Ok(())
}
