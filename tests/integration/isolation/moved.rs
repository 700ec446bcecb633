//! What a user's row becomes between the plan and the claim: another's, another provider's, nobody's. Money stays with the
//! owner of the row, and everybody else is served.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use super::{ORDINARY_DAY, assert_imported, busy_user, write};
use crate::{
    clock::at,
    promises::{plan, rpc, until},
    world::{SECRET, World},
};

/// Plans a sync of everybody, as another call that was cut off would leave it.
async fn planned(world: &World) -> Result<()> {
    rpc(world, "jobs_plan_sync", &plan(world, Uuid::new_v4(), None, None)).await?;
    Ok(())
}

/// Works on what is planned, without a plan of its own.
async fn drain(world: &World) -> Result<()> {
    let function = world.function("drain-queue").await?;
    function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
    let rows = "select count(*) from public.sync_logs where sync_type = 'drain'";
    until("the row of the call", async || Ok(world.value::<i64>(rows).await? > 0)).await?;
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_items where status = 'queued'").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_anothers_by_now_is_read_for_nobody_else() -> Result<()> {
    let world = World::at(at(ORDINARY_DAY)).await?;
    let before = busy_user(&world, "moved", true).await?;
    let sound = busy_user(&world, "sound", true).await?;
    let after = world.user("after@example.test").await?;
    planned(&world).await?;
    write(
        &world,
        format!("update public.integration_tokens set user_id = '{after}' where user_id = '{before}'"),
    )
    .await?;
    drain(&world).await?;
    let stored: Vec<Uuid> = sqlx::query_scalar("select distinct user_id from jobs.integration_transactions")
        .fetch_all(world.pool())
        .await?;
    assert_eq!(stored, [sound]);
    assert_imported(&world, sound).await?;
    assert_eq!(world.imported(before).await?, []);
    let told = world.post("sync-integrations", "").await?;
    assert_eq!(told["errors"], json!(0), "{told}");
    assert_imported(&world, after).await?;
    assert_eq!(world.imported(before).await?, []);
    Ok(())
}

/// The row keeps its id and becomes one of another provider; it is taken away; its owner is.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changes_after_the_plan_costs_nobody_else_anything() -> Result<()> {
    let world = World::at(at(ORDINARY_DAY)).await?;
    let mut odd = Vec::new();
    for name in ["provider", "inactive", "id", "gone", "owner", "account", "token"] {
        odd.push(busy_user(&world, name, true).await?);
    }
    let sound = busy_user(&world, "sound", true).await?;
    planned(&world).await?;
    let row = "public.integration_tokens";
    for (user, sql) in odd.iter().zip([
        format!("update {row} set provider = 'shopify', shop_domain = 'a.myshopify.com' where user_id = "),
        format!("update {row} set is_active = null where user_id = "),
        format!("update {row} set id = gen_random_uuid() where user_id = "),
        format!("delete from {row} where user_id = "),
        "delete from auth.users where id = ".to_owned(),
        format!("update {row} set stripe_account_id = 'acct_sound' where user_id = "),
        format!("update {row} set access_token = E'a\\x01b' where user_id = "),
    ]) {
        write(&world, format!("{sql}'{user}'")).await?;
    }
    drain(&world).await?;
    assert_imported(&world, sound).await?;
    for user in odd {
        assert_eq!(world.imported(user).await?, []);
    }
    Ok(())
}
