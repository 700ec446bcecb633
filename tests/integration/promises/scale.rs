//! What does not grow with the number of users, or keeps up with it: forgetting, and waiting for others.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use stand_ins::faults::{Fault, Rule};
use uuid::Uuid;

use super::{claim, pass_visibility, plan, prune, replay, rpc, until};
use crate::world::{SECRET, World};

/// One call of `jobs_prune` forgets so many rows of a sort at most.
const MOST: i64 = 20_000;

/// Makes two old runs with more items than two calls forget, as many logs, 50 old runs of single
/// users, and a run of yesterday.
const OLD: &str = "
    insert into jobs.job_runs (run_id, task, trigger, route, as_of, status, started_at, finished_at)
        select md5('r' || n)::uuid, 'sync_integrations', 'cron', '/', t, 'success', t, t
        from generate_series(1, 53) n, lateral (select $now - interval '1 day' * case when n <= 52 then 90 + n else 1 end as t) x;
    insert into jobs.job_items (run_id, lane, kind, subject, status, settled_at)
        select md5('r' || r.n)::uuid, 'stripe', 'sync_integration', gen_random_uuid(), 'done', $now
        from (values (1, 30000), (2, 12000), (53, 40)) r (n, items), generate_series(1, r.items);
    insert into public.sync_logs (provider, sync_type, status, synced_at)
        select 'stripe', 'cron', 'success', $now - interval '1 day' * case when n <= 42000 then 91 else 1 end
        from generate_series(1, 42040) n;
    insert into jobs.email_events (event_id, kind, received_at)
        select n::text, 'email.sent', $now - interval '91 days' from generate_series(1, 10) n;";

/// Counts items, runs, logs of integrations, events.
const KEPT: &str = "select format('%s %s %s %s', (select count(*) from jobs.job_items), \
    (select count(*) from jobs.job_runs where route = '/'), \
    (select count(*) from public.sync_logs where provider = 'stripe'), (select count(*) from jobs.email_events))";

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_forgets_all_that_is_old() -> Result<()> {
    let world = World::new().await?;
    sqlx::raw_sql(AssertSqlSafe(world.dated(OLD))).execute(world.pool()).await?;
    world.cron("daily-orchestrator", "").await?;
    assert_eq!(world.value::<String>(KEPT).await?, "40 1 40 0");
    assert_eq!(world.environment.gateway.faults().count("jobs_prune"), 3);
    // Nothing is left: one call says so.
    world.cron("daily-orchestrator", "").await?;
    assert_eq!(world.environment.gateway.faults().count("jobs_prune"), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_forgets_a_slice_of_the_oldest() -> Result<()> {
    let world = World::new().await?;
    sqlx::raw_sql(AssertSqlSafe(world.dated(OLD))).execute(world.pool()).await?;
    let pruned = rpc(&world, "jobs_prune", &prune(&world)).await?;
    let slice = json!({"logs": MOST, "items": MOST, "runs": 51, "events": 10, "blanked": 0, "left": true});
    assert_eq!(pruned, slice, "the runs without items are forgotten at once");
    let of_the_oldest: i64 =
        world.value("select count(*) from jobs.job_items where run_id = md5('r2')::uuid").await?;
    assert_eq!(of_the_oldest, 0);
    for (items, runs, left) in [(MOST, 0, true), (2_000, 1, false)] {
        let pruned = rpc(&world, "jobs_prune", &prune(&world)).await?;
        let (found, expected) =
            (json!([pruned["items"], pruned["runs"], pruned["left"]]), json!([items, runs, left]));
        assert_eq!(found, expected, "{pruned}");
    }
    let pruned = rpc(&world, "jobs_prune", &prune(&world)).await?;
    assert_eq!(pruned, json!({"logs": 0, "items": 0, "runs": 0, "events": 0, "blanked": 0, "left": false}));
    Ok(())
}

/// What somebody else has locked is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn forgetting_waits_for_nobody() -> Result<()> {
    let world = World::new().await?;
    sqlx::raw_sql(AssertSqlSafe(world.dated(OLD))).execute(world.pool()).await?;
    let mut held = world.pool().begin().await?;
    sqlx::raw_sql("select from jobs.job_items for update; select from public.sync_logs for update")
        .execute(&mut *held)
        .await?;
    let pruned = rpc(&world, "jobs_prune", &prune(&world)).await?;
    assert_eq!((&pruned["logs"], &pruned["items"], &pruned["runs"]), (&json!(0), &json!(0), &json!(50)));
    held.rollback().await?;
    Ok(())
}

/// Forgetting ends with the budget, whatever is left.
#[tokio::test(flavor = "multi_thread")]
async fn no_second_slice_after_the_budget() -> Result<()> {
    let mut world = World::new().await?;
    world.set("JOB_BUDGET_SECONDS", "3");
    sqlx::raw_sql(AssertSqlSafe(world.dated(OLD))).execute(world.pool()).await?;
    let faults = world.environment.gateway.faults();
    faults.add(Rule::on("jobs_prune", Fault::Delay(Duration::from_secs(4))));
    world.cron("daily-orchestrator", "").await?;
    assert_eq!(faults.count("jobs_prune"), 1);
    assert_eq!(world.value::<String>(KEPT).await?, "22040 2 22040 0");
    Ok(())
}

/// While somebody else holds an item of the run, it is looked at again and again, and added up once.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_adds_nothing_up() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_held").await?;
    let hour = world.last_sync_hour();
    let run = Uuid::new_v4();
    let mut planned = plan(&world, run, Some(&hour.format("%Y-%m-%dT%HZ").to_string()), None);
    planned["p_as_of"] = json!(hour);
    rpc(&world, "jobs_plan_sync", &planned).await?;
    assert_eq!(claim(&world, Uuid::new_v4(), 1).await?.len(), 1);

    let faults = world.environment.gateway.faults();
    let joined = world.function("sync-integrations").await?;
    let (query, bearer) = (replay(hour), format!("Bearer {SECRET}"));
    let comes_free = async {
        until("three looks", async || Ok(faults.count("jobs_run_waits") >= 3)).await?;
        world.run("update jobs.job_items set leased_until = '-infinity'").await?;
        pass_visibility(&world).await
    };
    let (answer, freed) = tokio::join!(joined.call(reqwest::Method::GET, &query, Some(&bearer)), comes_free);
    freed?;
    let answer = answer?.json();
    assert_eq!((&answer["skipped"], &answer["resultsTotal"]), (&json!(true), &json!(1)), "{answer}");
    assert_eq!(answer["remaining"], Value::Null, "{answer}");
    let seen = faults.seen();
    let of_the_run = seen.iter().filter(|call| call.body.contains(&run.to_string()));
    let reports = of_the_run.filter(|call| call.target.ends_with("/rpc/jobs_report")).count();
    assert_eq!(reports, 1);
    Ok(())
}

/// A run takes over what each item of older ones had failed, stored and reached, two of the same subject together.
#[tokio::test(flavor = "multi_thread")]
async fn each_item_takes_over_its_own() -> Result<()> {
    let world = World::new().await?;
    for account in ["acct_a", "acct_b", "acct_c", "acct_d"] {
        world.stripe_user(account).await?;
    }
    let of = "from public.integration_tokens t where t.id = i.subject and t.stripe_account_id";
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    // Held by somebody, they are not superseded by the second run, but by the third.
    world.run("update jobs.job_items set leased_until = '2999-01-01'").await?;
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    let stored = |records: u32, month: &str| json!({"records": records, "by_provider": {"stripe": records}, "months": [month], "cursor": {"after": "x"}});
    let (second, older) = ("i.leased_until is null", "i.leased_until is not null");
    for (set, which, account) in [
        (format!("progress = '{}'", stored(7, "2026-10-01")), older, "acct_a"),
        (format!("progress = '{}'", stored(5, "2026-11-01")), second, "acct_a"),
        ("attempts = 3, error = '{\"code\": \"old\"}'".to_owned(), older, "acct_b"),
        ("attempts = 1, error = '{\"code\": \"new\"}'".to_owned(), second, "acct_b"),
        ("payload = '{\"days\": 400}'".to_owned(), older, "acct_c"),
    ] {
        let sql = format!("update jobs.job_items i set {set} {of} = '{account}' and {which}");
        let changed = sqlx::query(AssertSqlSafe(sql)).execute(world.pool()).await?.rows_affected();
        assert_eq!(changed, 1, "{account}");
    }
    world.run("update jobs.job_items set leased_until = null").await?;
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    let items: Value = world
        .value(
            "select jsonb_object_agg(t.stripe_account_id, jsonb_build_array(i.attempts, i.error -> 'code', i.progress, i.payload)) \
             from jobs.job_items i join public.integration_tokens t on t.id = i.subject where i.status = 'queued'",
        )
        .await?;
    let both = json!({"records": 12, "by_provider": {"stripe": 12}, "months": ["2026-10-01", "2026-11-01"]});
    assert_eq!(
        items,
        json!({
            "acct_a": [0, null, both, {"days": null}], "acct_b": [3, "old", {}, {"days": null}],
            "acct_c": [0, null, {}, {"days": 366}], "acct_d": [0, null, {}, {"days": null}],
        })
    );
    let messages: Vec<Value> = sqlx::query_scalar("select message from pgmq.q_jobs_stripe order by msg_id")
        .fetch_all(world.pool())
        .await?;
    let ids: Vec<i64> =
        sqlx::query_scalar("select item_id from jobs.job_items where status = 'queued' order by item_id")
            .fetch_all(world.pool())
            .await?;
    assert_eq!(messages.len(), 4, "those of the superseded went with them");
    for (message, id) in messages.iter().zip(ids) {
        let run: Uuid = serde_json::from_value(message["run_id"].clone())?;
        let whole = json!({"version": 1, "run_id": run, "item_id": id, "kind": "sync_integration"});
        assert_eq!(message, &whole);
    }
    Ok(())
}

/// What happens to older items while the new ones are written is taken over, too; who is claimed keeps their own.
#[tokio::test(flavor = "multi_thread")]
async fn what_changes_during_a_plan_is_taken_over() -> Result<()> {
    let world = World::new().await?;
    for account in ["acct_a", "acct_b", "acct_c"] {
        world.stripe_user(account).await?;
    }
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    world.run("update jobs.job_items set attempts = 2, error = '{\"code\": \"m\"}'").await?;
    // The new items' foreign keys wait for their users.
    let mut held = world.pool().begin().await?;
    sqlx::query("select from auth.users for update").execute(&mut *held).await?;
    let meanwhile = async {
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                       and datname = current_database() and query ilike '%jobs_plan_sync%'";
        until("the plan waits", async || Ok(world.value::<i64>(waiting).await? == 1)).await?;
        for (set, account) in [("leased_until = '2999-01-01'", "acct_a"), ("attempts = 3", "acct_b")] {
            let sql = format!(
                "update jobs.job_items i set {set} from public.integration_tokens t \
                 where t.id = i.subject and t.stripe_account_id = '{account}'"
            );
            sqlx::query(AssertSqlSafe(sql)).execute(world.pool()).await?;
        }
        held.rollback().await?;
        anyhow::Ok(())
    };
    let next = plan(&world, Uuid::new_v4(), None, None);
    let (planned, changed) = tokio::join!(rpc(&world, "jobs_plan_sync", &next), meanwhile);
    changed?;
    assert_eq!(planned?["plan"]["items"], 3);
    let items: Value = world
        .value(
            "select jsonb_agg(jsonb_build_array(t.stripe_account_id, i.status, i.attempts)) \
             from jobs.job_items i join public.integration_tokens t on t.id = i.subject",
        )
        .await?;
    let mut items: Vec<Value> = serde_json::from_value(items)?;
    items.sort_by_key(ToString::to_string);
    assert_eq!(
        json!(items),
        json!([
            ["acct_a", "queued", 0],
            ["acct_a", "queued", 2],
            ["acct_b", "queued", 3],
            ["acct_b", "superseded", 3],
            ["acct_c", "queued", 2],
            ["acct_c", "superseded", 2],
        ])
    );
    Ok(())
}
