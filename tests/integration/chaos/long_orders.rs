//! A shop with very many orders: their pages are read one after the other, in as many calls as it takes.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use chrono::TimeDelta;
use serde_json::Value;
use stand_ins::faults::{Fault, Rule};
use uuid::Uuid;

use super::{drain, time_passes};
use crate::{
    promises::{imported_cents, movements},
    world::World,
};

const SHOP: &str = "orders.myshopify.com";
const PAGE: usize = 75;

async fn shop_with(world: &World, orders: usize) -> Result<(Uuid, i64)> {
    let user = world.shopify_user(SHOP).await?;
    world.shopify.set_bucket(SHOP, 1e6, 1e6);
    Ok((user, world.shopify.tenders(SHOP, world.earlier(90), TimeDelta::zero(), orders)))
}

/// Returns behind which cursor each page of orders was asked for; `None` is the first page.
fn pages_of_orders(world: &World) -> Vec<Option<String>> {
    let seen = world.shopify.faults().seen();
    let bodies = seen.iter().filter(|seen| seen.body.contains("query Orders("));
    let asked = bodies.filter_map(|seen| serde_json::from_str::<Value>(&seen.body).ok());
    asked.map(|body| body["variables"]["after"].as_str().map(str::to_owned)).collect()
}

/// Calls drain-queue, as the next hop or somebody later does.
async fn go_on(world: &World) -> Result<()> {
    world.run("update jobs.job_chain set held_until = '-infinity'").await?;
    time_passes(world).await?;
    drain(world).await
}

/// Each call is over long before the list is; the next one goes on behind the last page, and no page is read twice.
#[tokio::test(flavor = "multi_thread")]
async fn they_are_read_in_hops() -> Result<()> {
    let mut world = World::new().await?;
    let (user, sum) = shop_with(&world, 12 * PAGE).await?;
    world.shopify.faults().set_round_trip(Duration::from_millis(300));
    world.set("JOB_BUDGET_SECONDS", "1");
    world.post("sync-integrations", "days=30").await?;
    let mut hops = 1;
    while imported_cents(&world, user).await? != sum {
        hops += 1;
        ensure!(hops <= 17, "there are not so many pages: it begins anew");
        go_on(&world).await?;
    }
    ensure!(hops >= 3, "one call was enough");
    assert_eq!(movements(&world, user).await?, 900);
    let asked = pages_of_orders(&world);
    let distinct: BTreeSet<_> = asked.iter().collect();
    // Behind 900 orders the stand-in has no page more.
    assert_eq!((asked.len(), distinct.len()), (12, 12), "{asked:?}");
    Ok(())
}

/// A slow page, and one that never comes before the time is over: the slow one is not read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_page_is_kept_where_the_next_one_never_comes() -> Result<()> {
    let mut world = World::new().await?;
    let (user, sum) = shop_with(&world, 4 * PAGE).await?;
    world.set("JOB_BUDGET_SECONDS", "10");
    let faults = world.shopify.faults().clone();
    let orders = |fault| Rule::on("graphql", fault).body("query Orders(").times(1);
    faults.add(orders(Fault::Delay(Duration::from_secs(8))));
    faults.add(orders(Fault::Delay(Duration::from_mins(1))));
    world.post("sync-integrations", "days=30").await?;
    faults.clear();
    let before = pages_of_orders(&world).len();
    go_on(&world).await?;
    assert_eq!(imported_cents(&world, user).await?, sum);
    let first = pages_of_orders(&world).into_iter().nth(before);
    ensure!(first.is_some_and(|cursor| cursor.is_some()), "the second call began at the first page");
    Ok(())
}
