//! What does not grow with the number of users.

use anyhow::Result;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{plan, rpc};
use crate::world::World;

/// A run takes over what each item of older ones had failed, stored and reached, two of the same subject together.
#[tokio::test(flavor = "multi_thread")]
async fn each_item_takes_over_its_own() -> Result<()> {
    let world = World::new().await?;
    for account in ["acct_a", "acct_b", "acct_c", "acct_d"] {
        world.stripe_user(account).await?;
    }
    let of = "from public.integration_tokens t where t.id = i.subject and t.stripe_account_id";
    rpc(&world, "jobs_plan_sync", &plan(Uuid::new_v4(), None, None)).await?;
    // Held by somebody, they are not superseded by the second run, but by the third.
    world.run("update public.job_items set leased_until = now() + interval '1 hour'").await?;
    rpc(&world, "jobs_plan_sync", &plan(Uuid::new_v4(), None, None)).await?;
    let stored = |records: u32, month: &str| json!({"records": records, "by_provider": {"stripe": records}, "months": [month], "cursor": {"after": "x"}});
    let (second, older) = ("i.leased_until is null", "i.leased_until is not null");
    for (set, which, account) in [
        (format!("progress = '{}'", stored(7, "2026-10-01")), older, "acct_a"),
        (format!("progress = '{}'", stored(5, "2026-11-01")), second, "acct_a"),
        ("attempts = 3, error = '{\"code\": \"old\"}'".to_owned(), older, "acct_b"),
        ("attempts = 1, error = '{\"code\": \"new\"}'".to_owned(), second, "acct_b"),
        ("payload = '{\"days\": 400}'".to_owned(), older, "acct_c"),
    ] {
        let sql = format!("update public.job_items i set {set} {of} = '{account}' and {which}");
        let changed = sqlx::query(sqlx::AssertSqlSafe(sql)).execute(world.pool()).await?.rows_affected();
        assert_eq!(changed, 1, "{account}");
    }
    world.run("update public.job_items set leased_until = null").await?;
    rpc(&world, "jobs_plan_sync", &plan(Uuid::new_v4(), None, None)).await?;
    let items: Value = world
        .value(
            "select jsonb_object_agg(t.stripe_account_id, jsonb_build_array(i.attempts, i.error -> 'code', i.progress, i.payload)) \
             from public.job_items i join public.integration_tokens t on t.id = i.subject where i.status = 'queued'",
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
        sqlx::query_scalar("select item_id from public.job_items where status = 'queued' order by item_id")
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
