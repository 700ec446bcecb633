//! What one user stores, however large, is not read for what is asked about everybody: it is seen to be too large by its
//! size. Four tokens of 100 MB would else keep the claims of a whole lane from ending in time.

use anyhow::{Result, ensure};
use jobs::{
    providers::OUTAGE,
    schedule::{MOST_DAYS, Task},
    supabase::FUNCTIONS,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

use super::{ORDINARY_DAY, busy_user, write};
use crate::{clock::at, world::World};

/// Counts the pages of large values of these tables that were read so far.
const READ: &str = "select coalesce(sum(toast_blks_read + toast_blks_hit), 0)::bigint from pg_statio_user_tables \
    where schemaname || '.' || relname = any (array['public.integration_tokens', 'auth.users', 'public.user_profiles', \
    'public.ca_records'])";

/// Calls a function of ours with its arguments by name; answers how many such pages it has read.
async fn pages_read(connection: &mut sqlx::PgConnection, function: &str, arguments: &Value) -> Result<i64> {
    let named: Vec<String> = arguments
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let literal = match value {
                Value::Null => "null".to_owned(),
                Value::Array(items) if items.iter().all(Value::is_string) => {
                    let items: Vec<String> =
                        items.iter().filter_map(Value::as_str).map(|item| format!("'{item}'")).collect();
                    format!("array[{}]", items.join(","))
                }
                Value::Array(items) => format!(
                    "array[{}]::bigint[]",
                    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
                ),
                Value::String(text) => format!("'{text}'"),
                Value::Object(_) => format!("'{value}'"),
                other => other.to_string(),
            };
            format!("{name} => {literal}")
        })
        .collect();
    let count = async |connection: &mut sqlx::PgConnection| -> Result<i64> {
        sqlx::query("select pg_stat_force_next_flush()").execute(&mut *connection).await?;
        Ok(sqlx::query_scalar(READ).fetch_one(connection).await?)
    };
    let before = count(connection).await?;
    sqlx::query(AssertSqlSafe(format!("select public.{function}({})", named.join(", "))))
        .execute(&mut *connection)
        .await?;
    Ok(count(connection).await? - before)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_has_stored_is_not_read_for_everybody() -> Result<()> {
    let world = World::at(at(ORDINARY_DAY)).await?;
    let user = busy_user(&world, "large", false).await?;
    let shop = busy_user(&world, "shop", false).await?;
    // Does not shrink when it is stored.
    let noise = "(select string_agg(md5(n::text), '') from generate_series(1, 100000) n)";
    for sql in [
        format!("update public.integration_tokens set access_token = {noise}, refresh_token = {noise}"),
        // What belongs to a row of the other provider.
        format!("update public.integration_tokens set shop_domain = {noise} where user_id = '{user}'"),
        format!(
            "update public.integration_tokens set provider = 'shopify', shop_domain = 'a.myshopify.com' where user_id = '{shop}'"
        ),
        format!(
            "update auth.users set raw_user_meta_data = jsonb_build_object('plan', {noise}) where id = '{user}'"
        ),
        format!("update public.user_profiles set full_name = {noise}"),
    ] {
        write(&world, sql).await?;
    }
    let now = world.now();
    let ago = |days| now - chrono::TimeDelta::days(days);
    let run = |task: &str| {
        json!({
            "p_run_id": Uuid::new_v4(), "p_task": task, "p_slot": null, "p_trigger": "manual", "p_route": "/test",
            "p_as_of": now, "p_parameters": {}, "p_user_id": null, "p_dry_run": false, "p_now": now,
        })
    };
    let with = |mut run: Value, more: Value| {
        let (Some(fields), Some(more)) = (run.as_object_mut(), more.as_object()) else { return run };
        fields.extend(more.clone());
        run
    };
    let sync = json!({"p_kind": "sync_integration", "p_payload": {"days": null}, "p_most_days": MOST_DAYS});
    let offers = json!({
        "p_kind": "marketing_day3", "p_prices": {}, "p_first_day": 3, "p_last_day": 6, "p_month": null, "p_expires_at": null,
    });
    let mut connection = world.pool().acquire().await?;
    connection.ping().await?;
    for (function, arguments) in [
        ("jobs_plan_sync", with(run("sync_integrations"), sync)),
        ("jobs_plan_mails", with(run("marketing_day3"), offers)),
        ("integration_context", json!({"p_items": [1, 2]})),
        (
            "jobs_status",
            json!({
                "p_functions": FUNCTIONS.as_slice(), "p_tasks": Task::ALL, "p_runs": 5, "p_days": 14, "p_broken": 30,
                "p_since": ago(68), "p_failed_since": ago(30), "p_late_before": ago(1), "p_outage": OUTAGE, "p_now": now,
            }),
        ),
        (
            "jobs_troubles",
            json!({
                "p_first_since": ago(8), "p_latest_since": ago(1), "p_stuck_before": ago(1), "p_slots_since": ago(60),
                "p_calls_since": ago(30), "p_outage": OUTAGE, "p_now": now,
            }),
        ),
        (
            "threshold_books",
            json!({
                "p_after": null, "p_limit": 100, "p_user_id": null, "p_due": false, "p_floors": {"2026": 100},
                "p_bytes": 4_194_304, "p_noted_at": null, "p_now": now,
            }),
        ),
    ] {
        let pages = pages_read(&mut connection, function, &arguments).await?;
        println!("{function}: {pages} pages");
        ensure!(pages <= 16, "{function} reads {pages} pages of what single users have stored");
    }
    let items: i64 = world.value("select count(*) from jobs.job_items where status = 'queued'").await?;
    assert_eq!(items, 4, "two integrations and two offers are planned");
    Ok(())
}
