//! Permanent tokens are exchanged where the operator says so, once, and never lost.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    shopify::Tender,
};

use super::{SYNC, ask, heal, turnover};
use crate::world::World;

const SHOP: &str = "exchanged.myshopify.com";
const TOKEN: &str = "/admin/oauth/access_token";

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_token_is_exchanged_only_behind_the_switch() -> Result<()> {
    let mut world = World::new().await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(world.earlier(90), "42.0", "EUR"));
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(world.shopify.faults().count(TOKEN), 0, "off by default");

    world.set("SHOPIFY_EXCHANGE_PERMANENT_TOKENS", "true");
    let faults = world.shopify.faults();
    world.shopify.tender(SHOP, Tender::new(world.earlier(60), "8.0", "EUR"));
    // Both answers may be lost: Shopify's, and the database's.
    faults.add(Rule::on(TOKEN, Fault::CutAfter).times(1));
    world.environment.gateway.faults().add(Rule::on("integration_refresh_store", Fault::CutAfter).times(1));
    assert_eq!(heal(&world).await?, 1);
    let expires: bool = world
        .value(
            "select s.token_expires_at = $now + interval '1 hour' and t.refresh_token is not null \
             from jobs.integration_state s join public.integration_tokens t using (user_id, provider)",
        )
        .await?;
    assert!(expires, "a pair is stored, encrypted as every token");
    faults.forget();
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(faults.count(TOKEN), 0, "once");
    world.shopify.expire_access_tokens(SHOP);
    world.run("update jobs.integration_state set token_expires_at = $now").await?;
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("50.00"));
    Ok(())
}

/// A custom application's token is none of ours to exchange, and works on.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_exchanged_is_used_as_before() -> Result<()> {
    let mut world = World::new().await?;
    world.shopify_user(SHOP).await?;
    assert_eq!(heal(&world).await?, 0);
    world.set("SHOPIFY_EXCHANGE_PERMANENT_TOKENS", "true");
    world.shopify.tender(SHOP, Tender::new(world.earlier(90), "42.0", "EUR"));
    let refused = Fault::json(400, &json!({"error": "invalid_subject_token"}));
    world.shopify.faults().add(Rule::on(TOKEN, refused));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((&told.body["errors"], &told.body["totalSynced"]), (&json!(0), &json!(1)), "{}", told.text);
    Ok(())
}
