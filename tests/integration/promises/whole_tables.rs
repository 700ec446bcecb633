//! With many users, no call of a single item's work reads a table of everybody's from end to end, not even before
//! the statistics know of what was just planned.

use anyhow::Result;
use chrono::TimeDelta;
use jobs::schedule::DAYS_AFTER_SIGN_UP;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use super::{plan, prune, rpc, settle};
use crate::world::World;

/// Makes 3,000 users with both providers, a history of movements and of finished runs.
const HISTORY: &str = "
    insert into auth.users (id, created_at) select md5('u' || n)::uuid, timestamptz '2020-01-01' from generate_series(1, 3000) n;
    insert into public.integration_tokens (user_id, provider, access_token, stripe_account_id, shop_domain)
        select id, p, 'x', 'acct_' || id, id || '.myshopify.com' from auth.users, unnest(array['stripe', 'shopify']) p;
    insert into jobs.integration_state (user_id, provider, account, activity, first_month, counted)
        select user_id, provider, 'acct_x', 'Vente de marchandises', '2020-01-01', '{[2020-01-01,)}'
        from public.integration_tokens;
    insert into jobs.integration_transactions
        (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs)
        select user_id, provider, provider || n, 'acct_x', 'payment', $now - n * interval '5 days', 100, 'EUR',
            array['ch_' || user_id || n, 'gid://shopify/Order/' || n]
        from public.integration_tokens, generate_series(1, 8) n;
    insert into public.ca_records (user_id, year, month, activity_type, amount_eur)
        select id, 2026, n, 'services', 1 from auth.users, generate_series(1, 8) n;
    insert into jobs.job_runs (run_id, task, slot, trigger, route, as_of, status, started_at, finished_at)
        select md5('r' || n)::uuid, 'sync_integrations', n::text, 'cron', '/', $now, 'success', $now, $now
        from generate_series(1, 2000) n;
    insert into jobs.job_items (run_id, lane, kind, subject, user_id, status, settled_at)
        select r.run_id, t.provider, 'sync_integration', t.id, t.user_id, 'done', $now
        from jobs.job_runs r, (select * from public.integration_tokens limit 800) t where r.slot::integer <= 40;
    analyze;";

/// Runs a call; says which of our tables it read from end to end, with how many rows. The queue itself is pgmq's,
/// which reads it so until there are statistics.
async fn read_whole(world: &World, call: &str) -> Result<Vec<(String, i64)>> {
    let counters = "select relid::regclass::text, seq_tup_read from pg_stat_xact_user_tables \
                    where seq_tup_read > 1000 and schemaname <> 'pgmq' order by 1";
    // The counters are the session's.
    let mut connection = PgConnection::connect(world.environment.db.url()).await?;
    sqlx::raw_sql("begin").execute(&mut connection).await?;
    sqlx::raw_sql(AssertSqlSafe(call)).execute(&mut connection).await?;
    let read = sqlx::query_as(counters).fetch_all(&mut connection).await?;
    sqlx::raw_sql("commit").execute(&mut connection).await?;
    connection.close().await?;
    Ok(read)
}

/// Calls a function by its arguments' names, as PostgREST does.
fn call(function: &str, arguments: &Value) -> String {
    let arguments: Vec<String> = arguments
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| match value {
            Value::Null => format!("{name} => null"),
            Value::String(text) => format!("{name} => '{text}'"),
            Value::Array(items) if name != "p_parts" => {
                let items: Vec<String> = items.iter().map(|item| item.to_string().replace('"', "")).collect();
                format!("{name} => '{{{}}}'", items.join(","))
            }
            Value::Object(_) | Value::Array(_) => format!("{name} => '{value}'::jsonb"),
            other => format!("{name} => {other}"),
        })
        .collect();
    format!("select public.{function}({})", arguments.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_items_work_reads_no_whole_table() -> Result<()> {
    let world = World::new().await?;
    sqlx::raw_sql(AssertSqlSafe(world.dated(HISTORY))).execute(world.pool()).await?;
    let run = Uuid::new_v4();
    rpc(&world, "jobs_plan_sync", &plan(&world, run, None, None)).await?;
    let lease = Uuid::new_v4();

    let claim = json!({"p_claim": lease, "p_lane": "stripe", "p_limit": 32, "p_seconds": 60});
    let mut seen = vec![("jobs_claim", read_whole(&world, &call("jobs_claim", &claim)).await?)];
    let items = rpc(&world, "jobs_claim", &claim).await?;
    assert_eq!(items.as_array().map(Vec::len), Some(32));
    let (first, second) = (&items[0], &items[1]);
    let ids: Vec<&Value> = items.as_array().into_iter().flatten().map(|item| &item["item_id"]).collect();
    let integration: Uuid = serde_json::from_value(first["subject"].clone())?;
    let held = json!({"p_lane": "stripe", "p_items": ids, "p_leases": vec![lease; 32], "p_seconds": 60});
    let back = json!({
        "p_item_id": second["item_id"], "p_lease_id": lease, "p_delay_seconds": 0,
        "p_error": {"code": "network", "message": "m"}, "p_max_attempts": 5, "p_now": world.now(),
    });
    let mut released = held.clone();
    released.as_object_mut().expect("an object").remove("p_seconds");
    released["p_delay_seconds"] = json!(0);
    let token: String = world.value("select access_token from public.integration_tokens limit 1").await?;
    let calls = [
        ("integration_context", json!({"p_items": ids})),
        (
            "integration_prove",
            json!({"p_integration_id": integration, "p_access_token": token, "p_account": "x", "p_all_orders": null}),
        ),
        ("jobs_heartbeat", held),
        ("integration_settle", settle(&world, first, lease, integration, &[("txn_1", 100), ("txn_2", 200)])),
        ("jobs_give_back", back),
        ("jobs_release", released),
        ("jobs_close_runs", json!({"p_now": world.now()})),
        (
            "jobs_log",
            json!({
                "p_id": Uuid::new_v4(), "p_sync_type": "cron", "p_status": "success", "p_records": 1, "p_error": null,
                "p_metadata": {}, "p_now": world.now(),
            }),
        ),
    ];
    for (function, arguments) in calls {
        seen.push((function, read_whole(&world, &call(function, &arguments)).await?));
    }
    seen.retain(|(_, tables)| !tables.is_empty());
    assert_eq!(seen, []);
    let settled: i64 = world.value("select count(*) from public.sync_logs where user_id is not null").await?;
    assert_eq!(settled, 1, "the settle did settle");

    // A report reads its own run's items, and those of no other.
    let report = json!({"p_run_id": run, "p_limit": 1000, "p_bytes": 1_000_000, "p_now": world.now()});
    let whole = read_whole(&world, &call("jobs_report", &report)).await?;
    assert_eq!(whole, []);
    Ok(())
}

/// Plans and forgetting read what they work on, and none of the finished work of 90 days, nor the ledger of mails.
#[tokio::test(flavor = "multi_thread")]
async fn planning_and_forgetting_read_no_history() -> Result<()> {
    let world = World::new().await?;
    sqlx::raw_sql(AssertSqlSafe(world.dated(HISTORY))).execute(world.pool()).await?;
    sqlx::raw_sql(AssertSqlSafe(world.dated(
        "insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, status, settled_at)
             select 'monthly_recap/' || id || '/' || n, 'monthly_recap', id, id, md5('r')::uuid, 'sent', $now
             from auth.users, generate_series(1, 12) n;
         insert into public.sync_logs (user_id, provider, sync_type, status, synced_at)
             select id, 'stripe', 'cron', 'success', $now - n * interval '1 day'
             from auth.users, generate_series(85, 96) n;
         insert into jobs.job_runs (run_id, task, trigger, route, as_of, status, parameters, started_at, finished_at)
             select gen_random_uuid(), 'check_thresholds', 'manual', '/', $now, 'success', '{}', $now, $now
             from generate_series(1, 20000);
         update jobs.job_runs set finished_at = $now - interval '100 days' where run_id = md5('r1')::uuid;
         update auth.users set email = id || '@example.test', email_confirmed_at = $now, created_at = $now - interval '4 days';
         insert into public.email_preferences (user_id, monthly_reminder) select id, true from auth.users;
         analyze;",
    )))
    .execute(world.pool())
    .await?;
    // The second one supersedes all that the first one planned.
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    let mut calls = vec![call("jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None))];
    for kind in ["marketing_day3", "monthly_reminder"] {
        calls.push(call(
            "jobs_plan_mails",
            &json!({
                "p_run_id": Uuid::new_v4(), "p_task": kind, "p_kind": kind, "p_slot": null, "p_trigger": "manual",
                "p_route": "/", "p_as_of": world.now(), "p_parameters": {}, "p_user_id": null,
                "p_dry_run": false, "p_prices": {"p": "premium"}, 
        "p_first_day": DAYS_AFTER_SIGN_UP.start(), "p_last_day": DAYS_AFTER_SIGN_UP.end(),
                "p_month": "2026-10-01", "p_expires_at": world.month().end(), "p_now": world.now(),
            }),
        ));
    }
    calls.push(call("jobs_prune", &prune(&world)));
    for call in calls {
        let mut read = read_whole(&world, &call).await?;
        read.retain(|(table, _)| {
            matches!(
                table.as_str(),
                "jobs.job_items" | "jobs.job_runs" | "jobs.email_deliveries" | "sync_logs"
            )
        });
        assert_eq!(read, [], "{call}");
    }
    // What tells the operator, and what brings lost mails back, looks at calls and at what came back: not at all logs and mails.
    let ago = world.now() - TimeDelta::days(100);
    let troubles = json!({
        "p_first_since": ago, "p_latest_since": ago, "p_stuck_before": ago, "p_slots_since": ago, "p_calls_since": ago,
        "p_outage": {}, "p_now": world.now(),
    });
    let reconcile = json!({"p_route": "/", "p_now": world.now()});
    for (function, arguments, table) in
        [("jobs_troubles", troubles, "sync_logs"), ("jobs_reconcile", reconcile, "jobs.email_deliveries")]
    {
        let read = read_whole(&world, &call(function, &arguments)).await?;
        assert!(read.iter().all(|(name, _)| name != table), "{function}: {read:?}");
    }
    let counts: (i64, i64) = sqlx::query_as(
        "select (select count(*) from jobs.job_items where status = 'superseded'), \
         (select count(*) from jobs.email_deliveries where status = 'planned')",
    )
    .fetch_one(world.pool())
    .await?;
    assert_eq!(counts, (6_000, 3_000), "nobody is Premium");
    Ok(())
}
