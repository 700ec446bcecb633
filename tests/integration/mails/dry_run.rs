//! `dry_run=true` on every route that mails: what would happen, by the same plan, and only a row in the log.

use anyhow::Result;
use chrono::{Days, TimeDelta};
use jobs::schedule::paris;
use reqwest::Method;
use serde_json::{Value, json};

use super::given::{about, turnover};
use super::signed_up_at;
use crate::world::World;

/// Returns everything that a run might write, but for the log.
pub(crate) async fn written(world: &World) -> Result<Value> {
    world
        .value(
            "select jsonb_build_array(\
             (select count(*) from jobs.job_runs), (select count(*) from jobs.job_items), \
             (select count(*) from jobs.job_slots), (select count(*) from jobs.email_deliveries), \
             (select count(*) from jobs.email_batches), (select count(*) from jobs.threshold_alerts), \
             (select count(*) from public.marketing_emails), (select count(*) from public.email_preferences), \
             (select count(*) from jobs.integration_transactions), (select count(*) from public.ca_records), \
             (select count(*) from pgmq.q_jobs_alerts), (select count(*) from pgmq.q_jobs_marketing), \
             (select count(*) from pgmq.q_jobs_reminders), (select count(*) from pgmq.q_jobs_recaps))",
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_and_everything_is_told() -> Result<()> {
    let mut world = World::new().await?;
    let month = paris::month(world.now());
    let second = paris::start_of(month.next().first_day() + Days::new(1)) + TimeDelta::hours(12);
    let last = paris::start_of(month.last_day()) + TimeDelta::hours(12);
    let free = signed_up_at(&world, "free@example.test", "Free", second - TimeDelta::days(4)).await?;
    let premium =
        signed_up_at(&world, "premium@example.test", "Premium", second - TimeDelta::days(4)).await?;
    about(
        &world,
        premium,
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
    )
    .await?;
    about(
        &world,
        premium,
        "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
    )
    .await?;
    turnover(&world, free, &month.to_string(), "services", "50000", "manual").await?;
    turnover(&world, premium, &month.to_string(), "services", "29000", "manual").await?;
    let seller = world.stripe_user("acct_dry").await?;
    world.stripe.payment("acct_dry", month.start() + TimeDelta::hours(1), 1_000, "eur");

    let marketing = json!({
        "items": 1, "skipped": {"paid_plan": 1}, "unknown_prices": [],
        "candidates": [{"user_id": free, "outcome": "due"}, {"user_id": premium, "outcome": "paid_plan"}],
    });
    let reminders = json!({
        "items": 1, "skipped": {}, "unknown_prices": [],
        "candidates": [{"user_id": premium, "outcome": "due"}],
    });
    let sync = json!({
        "items": 1, "skipped": {}, "candidates": [{"user_id": seller, "provider": "stripe", "outcome": "due"}],
    });
    world.set_now(second);
    let before = written(&world).await?;
    for (clocked, method, name, path, expected) in [
        (second, Method::GET, "daily-tasks", "/results/upgradeEmails/dryRun", &marketing),
        (second, Method::GET, "daily-orchestrator", "/results/marketingEmails/dryRun", &marketing),
        (second, Method::GET, "send-reminders", "/dryRun", &reminders),
        (second, Method::GET, "monthly-orchestrator", "/results/reminders/dryRun", &reminders),
        (last, Method::GET, "monthly-orchestrator", "/results/monthlySync/dryRun", &sync),
        (last, Method::POST, "monthly-sync", "/dryRun", &sync),
    ] {
        world.set_now(clocked);
        world.run("delete from public.sync_logs").await?;
        let answer = world.call(method, name, "dry_run=true").await?;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
        let body = answer.json();
        assert_eq!(body.pointer(path), Some(expected), "{name}: {body}");
        assert_eq!(written(&world).await?, before, "{name}");
        let log: Vec<(String, String, i32)> =
            sqlx::query_as("select sync_type, status, records_synced from public.sync_logs")
                .fetch_all(world.pool())
                .await?;
        assert_eq!(log, [("dry_run".to_owned(), "success".to_owned(), 0)], "{name}");
    }
    world.run("delete from public.sync_logs").await?;
    let body = world
        .post("check-thresholds", &format!("dry_run=true&at={}", last.format("%Y-%m-%dT%H:%M:%SZ")))
        .await?;
    let plan = &body["dryRun"];
    assert_eq!(
        (&plan["items"], &plan["scanned"], &plan["skipped"]),
        (&json!(1), &json!(3), &json!({})),
        "{body}"
    );
    let candidate = &plan["candidates"][0];
    assert_eq!(
        (&candidate["user_id"], &candidate["outcome"], &candidate["year"]),
        (&json!(free), &json!("due"), &json!(month.year())),
        "{body}"
    );
    assert!(
        candidate["steps"].as_array().is_some_and(|steps| steps.iter().any(|step| step["step"] == 100)),
        "{body}"
    );
    assert_eq!(written(&world).await?, before);
    assert_eq!(world.value::<i64>("select count(*) from public.sync_logs").await?, 1);
    assert_eq!(world.resend.accepted_count(), 0);
    assert!(world.resend.faults().seen().is_empty());
    Ok(())
}
