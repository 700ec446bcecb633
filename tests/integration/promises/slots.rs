//! Slots: a cron's work is planned once, and nobody else is kept from working.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{claim, plan, replay, rpc};
use crate::world::World;

async fn count(world: &World, table: &'static str) -> Result<i64> {
    // Whether the J+3 mail is due depends on the hour at which the tests run.
    let syncs = if matches!(table, "jobs.job_runs" | "jobs.job_slots") {
        "where task <> 'marketing_day3'"
    } else {
        ""
    };
    let sql = format!("select count(*) from {table} {syncs}");
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(world.pool()).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_twice_is_one_run_and_a_post_is_never_blocked() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    let slot = replay(world.last_sync_hour());
    world.cron("daily-orchestrator", &slot).await?;
    // The same slot through the other door, and without `at=`: any minute of the six hours.
    let joined = world.cron("sync-integrations", &slot).await?;
    assert_eq!(joined["skipped"], true, "{joined}");
    let joined = world.cron("sync-integrations", "").await?;
    assert_eq!(joined["skipped"], true, "{joined}");
    assert_eq!((count(&world, "jobs.job_runs").await?, count(&world, "jobs.job_slots").await?), (1, 1));
    for expected in 2..=3 {
        let answer = world.post("sync-integrations", "").await?;
        assert_eq!(answer["skipped"], Value::Null, "{answer}");
        assert_eq!(
            (count(&world, "jobs.job_runs").await?, count(&world, "jobs.job_slots").await?),
            (expected, 1)
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_schedulers_whole_run_claims_a_slot() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_a").await?;
    let other = world.stripe_user("acct_b").await?;
    let slot = replay(world.last_sync_hour());
    let one = world.cron("sync-integrations", &format!("{slot}&user_id={user}")).await?;
    assert_eq!((&one["skipped"], &one["resultsTotal"]), (&Value::Null, &json!(1)), "{one}");
    world.cron("monthly-sync", "force=true").await?;
    world.cron("monthly-sync", &format!("month={}", world.months_ago(1))).await?;
    world.post("sync-integrations", &slot).await?;
    world.cron("sync-integrations", &format!("{slot}&dry_run=true")).await?;
    assert_eq!(count(&world, "jobs.job_slots").await?, 0);
    assert_eq!(count(&world, "jobs.job_runs").await?, 4);
    // So the cron that was meant still does its work, for everybody.
    let cron = world.cron("daily-orchestrator", &slot).await?;
    assert_eq!(cron["results"]["syncIntegrations"]["skipped"], false, "{cron}");
    assert_eq!(cron["results"]["syncIntegrations"]["synced"], 2, "{cron}");
    let slots: Vec<(String, String)> =
        sqlx::query_as("select task, slot from jobs.job_slots where task <> 'marketing_day3'")
            .fetch_all(world.pool())
            .await?;
    let expected = world.last_sync_hour().format("%Y-%m-%dT%HZ").to_string();
    assert_eq!(slots, [("sync_integrations".to_owned(), expected)]);
    let replayed: String = world
        .value("select trigger from jobs.job_runs where slot is not null and task <> 'marketing_day3'")
        .await?;
    assert_eq!(replayed, "replay");
    assert_ne!(user, other);
    Ok(())
}

/// Everything there is, in one number; logs apart.
const EVERYTHING: &str = "select md5(string_agg(t::text, '|' order by t::text)) from (\
    select r::text as t from jobs.job_runs r union all select s::text from jobs.job_slots s \
    union all select i::text from jobs.job_items i union all select x::text from jobs.integration_state x \
    union all select x::text from jobs.integration_transactions x \
    union all select x::text from jobs.auto_sync_totals x union all select x::text from public.ca_records x \
    union all select x::text from public.integration_tokens x union all select q::text from pgmq.q_jobs_stripe q \
    union all select q::text from pgmq.q_jobs_months q union all select c::text from jobs.job_chain c) t";

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_writes_its_log_row_and_nothing_else() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    world.stripe.payment("acct_a", world.earlier(5), 1_000, "eur");
    world.post("sync-integrations", "").await?;
    world.stripe.payment("acct_a", world.earlier(4), 2_000, "eur");
    world.stripe.faults().forget();
    let before: String = world.value(EVERYTHING).await?;
    let logged = count(&world, "public.sync_logs").await?;
    let calls = [
        (Method::POST, "sync-integrations", "dry_run=true"),
        (Method::GET, "sync-integrations", "dry_run=true"),
        (Method::POST, "monthly-sync", "dry_run=true&force=true"),
        (Method::GET, "daily-orchestrator", "dry_run=true"),
        (Method::GET, "monthly-orchestrator", "dry_run=true"),
        (Method::POST, "sync-integrations", "dry_run=true&at=2030-01-01T00:00:00Z"),
    ];
    for (method, name, query) in calls.clone() {
        let answer = world.call(method, name, query).await?;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
        assert_eq!(world.value::<String>(EVERYTHING).await?, before, "{name}?{query}");
    }
    assert_eq!(count(&world, "public.sync_logs").await?, logged + i64::try_from(calls.len())?);
    let dry: i64 = world
        .value("select count(*) from public.sync_logs where sync_type = 'dry_run' and user_id is null")
        .await?;
    assert_eq!(dry, i64::try_from(calls.len())?);
    assert_eq!(world.stripe.faults().seen().len(), 0, "nobody was asked");
    let answer = world.post("sync-integrations", "dry_run=true").await?;
    assert_eq!(answer["dryRun"]["items"], 1, "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_failed_left_no_slot() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    // The last statement of the plan fails: everything before it must be undone.
    world.run("alter table pgmq.q_jobs_stripe add constraint broken check (msg_id < 0) not valid").await?;
    let slot = replay(world.last_sync_hour());
    let answer = world.call(Method::GET, "daily-orchestrator", &slot).await?;
    assert_eq!(answer.status, 500, "{}", answer.text);
    for table in ["jobs.job_slots", "jobs.job_runs", "jobs.job_items"] {
        assert_eq!(count(&world, table).await?, 0, "{table}");
    }
    world.run("alter table pgmq.q_jobs_stripe drop constraint broken").await?;
    let answer = world.cron("daily-orchestrator", &slot).await?;
    let sync = &answer["results"]["syncIntegrations"];
    assert_eq!((&sync["synced"], &sync["skipped"]), (&json!(1), &json!(false)), "{answer}");
    Ok(())
}

/// A run was planned for 40 users and died at once; the next one does the work, all of it, in one go.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_run_left_is_superseded() -> Result<()> {
    let world = World::new().await?;
    for n in 0..40 {
        let shop = format!("shop-{n}.myshopify.com");
        world.shopify_user(&shop).await?;
        world.shopify.tenders(&shop, world.earlier(5), chrono::TimeDelta::zero(), 1);
    }
    let older = Uuid::new_v4();
    rpc(&world, "jobs_plan_sync", &plan(&world, older, None, None)).await?;
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!((&answer["totalSynced"], &answer["resultsTotal"]), (&json!(40), &json!(40)), "{answer}");
    assert_eq!(answer["remaining"], Value::Null, "{answer}");
    let superseded: i64 =
        world.value("select count(*) from jobs.job_items where status = 'superseded'").await?;
    assert_eq!(superseded, 40);
    let (status, finished): (String, bool) =
        sqlx::query_as("select status, finished_at is not null from jobs.job_runs where run_id = $1")
            .bind(older)
            .fetch_one(world.pool())
            .await?;
    assert_eq!((status.as_str(), finished), ("partial", true));
    assert_eq!(world.value::<i64>("select count(*) from pgmq.q_jobs_shopify").await?, 0);
    Ok(())
}

/// A run that takes the place of one that was asked to read further back reads as far.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_keeps_the_reach_of_those_it_supersedes() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    let reach =
        "select coalesce((payload ->> 'days')::integer, 0) from jobs.job_items where status = 'queued'";
    for (days, expected) in
        [(json!(null), 0), (json!(90), 90), (json!(30), 90), (json!(null), 90), (json!(120), 120)]
    {
        let mut plan = plan(&world, Uuid::new_v4(), None, None);
        plan["p_payload"]["days"] = days.clone();
        rpc(&world, "jobs_plan_sync", &plan).await?;
        assert_eq!(world.value::<i32>(reach).await?, expected, "after days={days}");
    }
    Ok(())
}

/// An item that somebody works on is left to them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_worked_on_is_not_superseded() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    assert_eq!(claim(&world, Uuid::new_v4(), 1).await?.len(), 1);
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    let superseded: i64 =
        world.value("select count(*) from jobs.job_items where status = 'superseded'").await?;
    assert_eq!(superseded, 0);
    Ok(())
}

/// What a run gave away to another one is said, and is no whole success.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_items_were_taken_over_says_so() -> Result<()> {
    let mut world = World::new().await?;
    world.set("JOB_CONCURRENCY", "1"); // two are settled, one is claimed ahead, the fourth is free
    let mut held = world.pool().begin().await?;
    for account in ["acct_a", "acct_b", "acct_c", "acct_d"] {
        let user = world.stripe_user(account).await?;
        sqlx::query(super::USER_LOCK).bind(user.to_string()).execute(&mut *held).await?;
    }
    let first = world.function("sync-integrations").await?;
    let bearer = format!("Bearer {}", crate::world::SECRET);
    let other = async {
        super::until("two items are settled, one is claimed ahead", async || {
            let claimed = "select count(*) from jobs.job_items where lease_id is not null";
            Ok(world.value::<i64>(super::WAITING).await? == 2 && world.value::<i64>(claimed).await? == 3)
        })
        .await?;
        let mut later = plan(&world, Uuid::new_v4(), None, None);
        later["p_payload"]["days"] = json!(30);
        rpc(&world, "jobs_plan_sync", &later).await?;
        held.rollback().await?;
        anyhow::Ok(())
    };
    let (answer, planned) = tokio::join!(first.call(Method::POST, "", Some(&bearer)), other);
    planned?;
    let answer = answer?.json();
    assert_eq!((&answer["superseded"], &answer["resultsTotal"]), (&json!(1), &json!(3)), "{answer}");
    let status: String = world.value("select status from public.sync_logs where user_id is null").await?;
    assert_eq!(status, "partial");
    Ok(())
}
