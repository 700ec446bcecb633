//! Plans at once that no slot keeps apart: each mail is planned once, and none of them fails.

use anyhow::Result;
use futures_util::future::try_join_all;
use jobs::schedule::{DAYS_AFTER_SIGN_UP, paris};
use serde_json::json;
use uuid::Uuid;

use super::{assert_each_once, drain, rpc, world_of};
use crate::world::World;

async fn plan(world: &World, n: usize) -> Result<u64> {
    let now = world.now();
    let arguments = json!({
        "p_run_id": Uuid::new_v4(), "p_task": "marketing_day3", "p_kind": "marketing_day3",
        "p_slot": (n == 0).then(|| paris::date(now).to_string()), "p_trigger": "manual", "p_route": "/test",
        "p_as_of": now, "p_parameters": {}, "p_user_id": null, "p_dry_run": false,
        "p_prices": {"price_pro": "pro", "price_premium": "premium"},
        "p_first_day": DAYS_AFTER_SIGN_UP.start(), "p_last_day": DAYS_AFTER_SIGN_UP.end(), "p_month": null,
        "p_expires_at": null, "p_now": now,
    });
    Ok(rpc(world, "jobs_plan_mails", &arguments).await?["plan"]["items"].as_u64().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mail_is_planned_by_one_of_them() -> Result<()> {
    let world = world_of(150).await?;
    let planned = try_join_all((0..8).map(|n| plan(&world, n))).await?;
    assert_eq!(planned.iter().sum::<u64>(), 150, "{planned:?}");
    let items: i64 = world.value("select count(*) from jobs.job_items").await?;
    assert_eq!(items, 150);
    drain(&world).await?;
    assert_each_once(&world, (0..150).map(super::address));
    Ok(())
}
