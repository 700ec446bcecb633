//! Very many recipients: all are planned, none is lost, whatever fits into one answer or one budget.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;
use stand_ins::resend::Limits;

use crate::world::World;

/// Signs so many people up, three days ago.
async fn sign_up(world: &mut World, people: i32) -> Result<()> {
    let noon = world.midday();
    sqlx::query(
        "insert into auth.users (email, email_confirmed_at, created_at) \
         select 'u' || n || '@example.test', $2, $2 from generate_series(1, $1) n",
    )
    .bind(people)
    .bind(noon - chrono::TimeDelta::days(3))
    .execute(world.pool())
    .await?;
    Ok(())
}

async fn offers(world: &World) -> Result<Value> {
    let answer = world.cron("daily-tasks", "").await?;
    let part = answer["results"]["upgradeEmails"].clone();
    assert_eq!(part["errors"], 0, "{answer}");
    Ok(part)
}

/// Returns who got a mail, and checks that nobody got two.
fn reached(world: &World) -> BTreeSet<String> {
    let accepted = world.resend.accepted();
    let reached: BTreeSet<String> = accepted.iter().map(|accepted| accepted.mail.to.join(",")).collect();
    assert_eq!(reached.len(), accepted.len(), "somebody got two");
    reached
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_and_one_mails_leave_in_full_batches() -> Result<()> {
    let mut world = World::new().await?;
    world.resend.set_limits(Limits { per_second: Some(1_000), ..Limits::default() });
    sign_up(&mut world, 1_001).await?;
    let part = offers(&world).await?;
    assert_eq!((&part["sent"], &part["remaining"]), (&1_001.into(), &Value::Null), "{part}");
    assert_eq!(reached(&world).len(), 1_001);
    let keys: BTreeSet<Option<String>> =
        world.resend.accepted().iter().map(|accepted| accepted.key.clone()).collect();
    assert_eq!(keys.len(), 11, "ten full batches and the last one");
    for (what, count) in [
        ("sent", "select count(*) from jobs.email_deliveries where status = 'sent'"),
        ("noted", "select count(*) from public.marketing_emails where email_type = 'upgrade_day3'"),
    ] {
        let count: i64 = world.value(count).await?;
        assert_eq!(count, 1_001, "{what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_are_planned_and_what_does_not_fit_waits() -> Result<()> {
    const PEOPLE: i32 = 100_000;
    let mut world = World::new().await?;
    world.resend.drop_contents();
    world.resend.set_limits(Limits { per_second: Some(5), ..Limits::default() });
    sign_up(&mut world, PEOPLE).await?;

    // Time enough to plan on a busy machine, at a pace at which only some can leave.
    world.set("JOB_BUDGET_SECONDS", "25");
    let planned = offers(&world).await?;
    let run: Value = world.value("select plan from jobs.job_runs where task = 'marketing_day3'").await?;
    assert_eq!(run["items"], PEOPLE);
    for (what, count) in [
        ("deliveries", "select count(*) from jobs.email_deliveries"),
        ("people", "select count(distinct user_id) from jobs.email_deliveries"),
        ("items", "select count(*) from jobs.job_items"),
    ] {
        let count: i64 = world.value(count).await?;
        assert_eq!(count, i64::from(PEOPLE), "{what}");
    }

    // The next call joins and goes on, as far as its budget reaches.
    world.resend.set_limits(Limits { per_second: Some(1_000), ..Limits::default() });
    world.set("JOB_BUDGET_SECONDS", "3");
    let drained = offers(&world).await?;
    let sent = reached(&world).len();
    assert!(sent > 0, "{drained}");
    assert_eq!((&drained["sent"], &drained["skipped"]), (&sent.into(), &true.into()), "{drained}");
    let left = PEOPLE - i32::try_from(sent)?;
    assert_eq!(drained["remaining"], left, "{drained}");
    assert!(planned["remaining"].as_i64() >= drained["remaining"].as_i64(), "{planned}");
    for (what, count) in [
        ("planned", "select count(*) from jobs.email_deliveries where status = 'planned'"),
        ("messages", "select count(*) from pgmq.q_jobs_marketing"),
    ] {
        let count: i64 = world.value(count).await?;
        assert_eq!(count, i64::from(left), "{what}");
    }
    Ok(())
}
