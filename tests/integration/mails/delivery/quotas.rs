//! A quota ends in the middle: the urgent mails leave first, the rest waits in the queue and leaves the next day.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    resend::{Limits, restricted_api_key},
};

use super::{
    BATCH, add, address, assert_each_once, attempts, blocking, drain, plan, recipients, requests, size,
    states, world_of,
};
use crate::world::World;

/// Plans J+3 mails that wait, and then alerts.
async fn waiting(offers: usize, alerts: usize) -> Result<World> {
    let world = world_of(offers).await?;
    let run = plan(&world).await?;
    for n in 0..alerts {
        add(&world, run, "threshold_alert", &alert(n)).await?;
    }
    Ok(world)
}

fn alert(n: usize) -> String {
    format!("alert-{n}@example.test")
}

/// Returns how many alerts and offers have left.
fn left(world: &World) -> (usize, usize) {
    let all = recipients(world);
    let alerts = all.iter().filter(|to| to.starts_with("alert-")).count();
    (alerts, all.len() - alerts)
}

async fn the_rest_leaves(world: &World, offers: usize, alerts: usize) -> Result<Value> {
    let part = drain(world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(offers + alerts), &json!(0)), "{part}");
    assert!(part.get("remaining").is_none(), "{part}");
    assert_each_once(world, (0..offers).map(address).chain((0..alerts).map(alert)));
    assert_eq!(attempts(world).await?, 0, "a quota is no attempt");
    Ok(part)
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_leave_and_the_rest_waits_for_the_next_day() -> Result<()> {
    let world = waiting(60, 10).await?;
    world.resend.set_limits(Limits { daily: Some(40), ..Limits::default() });
    let part = drain(&world).await?;
    assert_eq!(left(&world), (10, 30), "{part}");
    assert_eq!((&part["sent"], &part["remaining"]), (&json!(40), &json!(30)), "{part}");
    assert!(blocking(&part, "daily_quota"), "{part}");
    assert_eq!(
        requests(&world).iter().map(size).collect::<Vec<_>>(),
        [10, 30],
        "no larger than what is left"
    );
    // Nothing is asked for while nothing is left.
    let part = drain(&world).await?;
    assert!(blocking(&part, "daily_quota"), "{part}");
    assert_eq!(requests(&world).len(), 2);
    world.resend.new_day();
    the_rest_leaves(&world, 60, 10).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_months_quota_is_told_by_its_name() -> Result<()> {
    let world = waiting(20, 2).await?;
    world.resend.set_limits(Limits { daily: Some(100), monthly: Some(12), ..Limits::default() });
    let part = drain(&world).await?;
    assert_eq!(left(&world), (2, 10), "{part}");
    assert!(blocking(&part, "monthly_quota"), "{part}");
    world.resend.set_limits(Limits::default());
    the_rest_leaves(&world, 20, 2).await?;
    Ok(())
}

/// Alerts that come while offers wait for a new day go before them.
#[tokio::test(flavor = "multi_thread")]
async fn alerts_that_come_later_go_first() -> Result<()> {
    let world = world_of(30).await?;
    let run = plan(&world).await?;
    world.resend.set_limits(Limits { daily: Some(10), ..Limits::default() });
    drain(&world).await?;
    for n in 0..7 {
        add(&world, run, "threshold_alert", &alert(n)).await?;
    }
    world.resend.new_day();
    let part = drain(&world).await?;
    assert_eq!((left(&world), &part["remaining"]), ((7, 13), &json!(17)), "{part}");
    Ok(())
}

/// Others send on the same account: less is left than the service said a moment ago.
#[tokio::test(flavor = "multi_thread")]
async fn less_is_left_than_was_said() -> Result<()> {
    let mut world = waiting(60, 0).await?;
    world.set("JOB_BUDGET_SECONDS", "8");
    world.resend.set_limits(Limits { daily: Some(40), ..Limits::default() });
    let period =
        json!({"used": 0, "limit": 60, "sent": 0, "received": 0, "resets_at": "2099-01-01T00:00:00.000Z"});
    let said = json!({
        "object": "usage", "generated_at": "2099-01-01T00:00:00.000Z",
        "emails": {"daily": period, "monthly": period},
        "contacts": {"used": 0, "limit": 1000}, "segments": {"used": 0, "limit": 3},
        "broadcasts": {"used": 0, "limit": null},
        "ai_credits": {"used": 0, "limit": 0, "next_increase_at": null},
        "automation_runs": {"used": 0, "limit": 1000, "resets_at": "2099-01-01T00:00:00.000Z"},
        "domains": {"used": 1, "limit": 1}, "rate_limit": {"limit": 10, "duration": "1000ms"},
    });
    world.resend.faults().add(Rule::on("/usage", Fault::json(200, &said)).times(1));
    let part = drain(&world).await?;
    assert_eq!(requests(&world).iter().map(size).collect::<Vec<_>>(), [60, 40], "{part}");
    assert_eq!((left(&world), &part["remaining"]), ((0, 40), &json!(20)), "{part}");
    assert!(blocking(&part, "daily_quota"), "{part}");
    world.resend.new_day();
    the_rest_leaves(&world, 60, 0).await?;
    Ok(())
}

/// The service takes its time to say what is left: what is less urgent must not take it meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn alerts_go_first_although_the_quota_is_slow_to_tell() -> Result<()> {
    let world = waiting(60, 10).await?;
    world.resend.set_limits(Limits { daily: Some(60), ..Limits::default() });
    world.resend.faults().add(Rule::on("/usage", Fault::Delay(Duration::from_secs(2))));
    let part = drain(&world).await?;
    assert_eq!(left(&world), (10, 50), "{part}");
    assert!(blocking(&part, "daily_quota"), "{part}");
    Ok(())
}

/// A key that may only send cannot ask: smaller batches are tried until one fits.
#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_tells_what_is_left() -> Result<()> {
    let world = waiting(90, 10).await?;
    world.resend.set_limits(Limits { daily: Some(60), ..Limits::default() });
    world.resend.faults().add(Rule::on("/usage", restricted_api_key()));
    let part = drain(&world).await?;
    assert_eq!(requests(&world).iter().map(size).collect::<Vec<_>>(), [10, 90, 45], "{part}");
    assert_eq!((left(&world), &part["remaining"]), ((10, 45), &json!(45)), "{part}");
    assert!(blocking(&part, "quota"), "{part}");
    // Down to the last one, which is left over.
    let part = drain(&world).await?;
    assert_eq!(requests(&world).iter().skip(3).map(size).collect::<Vec<_>>(), [45, 22, 11, 5], "{part}");
    assert_eq!((left(&world), &part["remaining"]), ((10, 50), &json!(40)), "{part}");
    let part = drain(&world).await?;
    assert_eq!(requests(&world).last().map(size), Some(1), "{part}");
    assert!(blocking(&part, "quota"), "{part}");
    world.resend.new_day();
    the_rest_leaves(&world, 90, 10).await?;
    Ok(())
}

/// A batch whose outcome is not known waits, too, and is not cut down.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_batch_waits_as_it_is() -> Result<()> {
    let world = waiting(30, 0).await?;
    world.resend.faults().add(Rule::on(BATCH, Fault::CutBefore).times(2));
    drain(&world).await?;
    world.resend.set_limits(Limits { daily: Some(20), ..Limits::default() });
    super::come_back(&world).await?;
    let part = drain(&world).await?;
    assert!(blocking(&part, "daily_quota"), "{part}");
    assert_eq!((left(&world), states(&world).await?), ((0, 0), super::all("sealed", 30)));
    world.resend.set_limits(Limits::default());
    super::come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(30), &json!(0)), "{part}");
    assert_each_once(&world, (0..30).map(address));
    Ok(())
}
