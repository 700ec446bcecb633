//! What the jobs promise about money, and tests that try to break it: kills, overlaps, repeated
//! calls, long lists, month bounds, rows that users edit, and a random run against a model.

mod alert_parts;
mod catalogue;
mod catalogue_time;
mod estimates;
mod fairness;
mod kills;
mod long_lists;
mod marks;
mod migrations;
pub(crate) mod model;
mod months;
mod overlaps;
mod reconciled;
mod records;
mod repeats;
mod scale;
mod slots;
mod supabase_cli;
mod upgrade;
mod vendors;
mod whole_tables;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::TimeDelta;
use jobs::lane::Lane;
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) use crate::clock::{at, replay};
use crate::world::World;

/// Every settlement of a user takes this first; `$1` is the user.
pub(crate) const USER_LOCK: &str =
    "select pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || $1, 0))";

/// Counts the settlements that wait for it.
pub(crate) const WAITING: &str = "select count(*) from pg_locks l join pg_database d on d.oid = l.database \
                       where d.datname = current_database() and l.locktype = 'advisory' and not l.granted";

/// Waits for a condition, at most two minutes.
pub(crate) async fn until<F>(what: &str, mut condition: F) -> Result<()>
where
    F: AsyncFnMut() -> Result<bool>,
{
    let begun = Instant::now();
    while !condition().await? {
        if begun.elapsed() > Duration::from_mins(2) {
            bail!("still waiting: {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Calls one of our database functions, as the jobs call it.
pub(crate) async fn rpc(world: &World, function: &str, arguments: &Value) -> Result<Value> {
    let key = &world.environment.gateway.keys().secret;
    let (status, answer) = rpc_as(world, key, None, function, arguments).await?;
    ensure!(status.is_success(), "{function}: {status} {answer}");
    Ok(answer)
}

/// Calls it with any key, and a user's token.
async fn rpc_as(
    world: &World,
    key: &str,
    token: Option<&str>,
    function: &str,
    arguments: &Value,
) -> Result<(StatusCode, Value)> {
    let url = format!("{}/rest/v1/rpc/{function}", world.environment.gateway.url());
    let mut request = jobs::http::client()?.post(url).header("apikey", key).json(arguments);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await?;
    let status = response.status();
    let text = response.text().await?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

/// Returns what the imported rows of a user come to, in cents.
pub(crate) async fn imported_cents(world: &World, user: Uuid) -> Result<i64> {
    let sql = "select coalesce(sum(amount_eur * 100), 0)::bigint from public.ca_records \
               where user_id = $1 and source = 'auto_sync'";
    sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await.context(sql)
}

/// Returns what the stand-in shows of an account's turnover, added up by hand.
pub(crate) fn listed_cents(world: &World, account: &str) -> i64 {
    let turnover = ["charge", "refund", "dispute", "dispute_reversal", "refund_failure"];
    let listed = world.stripe.listed(account);
    let rows = listed.iter().filter(|row| turnover.contains(&row.reporting_category.as_str()));
    rows.map(|row| row.amount).sum()
}

/// Returns how many movements of a user are stored.
pub(crate) async fn movements(world: &World, user: Uuid) -> Result<i64> {
    let sql = "select count(*) from jobs.integration_transactions where user_id = $1";
    Ok(sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await?)
}

/// Makes every queued message visible, as if its visibility timeout had just passed.
async fn pass_visibility(world: &World) -> Result<()> {
    for lane in Lane::data().map(Lane::as_str) {
        let sql = format!("select pgmq.set_vt('jobs_{lane}', msg_id, 0) from pgmq.q_jobs_{lane}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(world.pool()).await?;
    }
    Ok(())
}

/// Returns the arguments of a plan of one user's or everybody's sync.
pub(crate) fn plan(world: &World, run_id: Uuid, slot: Option<&str>, user: Option<Uuid>) -> Value {
    json!({
        "p_run_id": run_id, "p_task": "sync_integrations", "p_kind": "sync_integration", "p_slot": slot,
        "p_trigger": if slot.is_some() { "cron" } else { "manual" }, "p_route": "/test",
        "p_as_of": world.now(), "p_parameters": {}, "p_payload": {"days": null},
        "p_user_id": user, "p_dry_run": false, "p_most_days": jobs::schedule::MOST_DAYS, "p_now": world.now(),
    })
}

/// Returns the arguments of a call that forgets what is older than it is kept.
pub(crate) fn prune(world: &World) -> Value {
    let ago = |days| world.now() - TimeDelta::days(days);
    json!({"p_before": ago(90), "p_personal_before": ago(395), "p_sealed_until": ago(1), "p_now": world.now()})
}

/// Claims up to `limit` items of the lane `stripe`.
async fn claim(world: &World, lease: Uuid, limit: usize) -> Result<Vec<Value>> {
    let arguments = json!({"p_claim": lease, "p_lane": "stripe", "p_limit": limit, "p_seconds": 60});
    Ok(rpc(world, "jobs_claim", &arguments).await?.as_array().context("a list")?.clone())
}

/// Ends an item that read these payments (id, cents), all of this minute.
fn settle(world: &World, item: &Value, lease: Uuid, integration: Uuid, payments: &[(&str, i64)]) -> Value {
    let now = world.now();
    let movements: Vec<Value> = payments
        .iter()
        .map(|(id, cents)| {
            json!({
                "external_id": id, "kind": "payment", "occurred_at": world.earlier(1), "amount_minor": cents,
                "currency": "EUR", "references": [format!("ch_{id}")], "excluded": null,
            })
        })
        .collect();
    let part = json!({
        "integration_id": integration, "provider": "stripe", "account": "acct_x", "movements": movements,
        "window": {"from": world.month().start(), "to": now}, "error": null, "notes": {},
        "count_month": false,
    });
    json!({
        "p_item_id": item["item_id"], "p_lease_id": lease, "p_user_id": item["user_id"], "p_chunk": 1,
        "p_final": true, "p_parts": [part], "p_cursor": null, "p_month": null, "p_as_of": now,
        "p_reconnect": {"refusals": 3, "mails": 2, "pause_days": 30, "open_days": 7, "codes": ["token_rejected"]}, "p_now": now,
    })
}
