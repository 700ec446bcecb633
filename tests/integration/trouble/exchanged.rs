//! Permanent tokens are exchanged where the operator says so, once, and never lost.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    shopify::Tender,
};

use super::{
    SYNC, ask, heal, last_error, turnover,
    who_acts::{health, insist},
};
use crate::{mails::received, world::World};

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

/// What Shopify does from 2027 on with the permanent tokens of a public application: the operator acts, and no user can.
#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_token_that_is_no_longer_accepted_is_ours() -> Result<()> {
    let mut world = World::new().await?;
    let known = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(world.earlier(90), "42.0", "EUR"));
    assert_eq!(heal(&world).await?, 1);
    // One that was read before, and one that was connected since.
    let new = world.shopify_user("new.myshopify.com").await?;
    world.shopify.tender("new.myshopify.com", Tender::new(world.earlier(90), "8.0", "EUR"));
    world.shopify.retire_permanent_tokens();
    let told = ask(&world, Method::POST, SYNC, "").await?;
    let message = told.problem("permanent_token").unwrap_or_else(|| panic!("{}", told.text));
    assert!(message.contains("n’est pas à refaire"), "{message}");
    let shopify = health(&world, "Shopify").await?;
    assert_eq!(shopify["state"], "à corriger", "{shopify}");
    assert!(shopify["message"].as_str().is_some_and(|said| said.contains("jeton permanent")), "{shopify}");
    insist(&world).await?;
    assert_eq!(received(&world), [], "nobody is asked to connect again in vain");
    for user in [known, new] {
        assert_eq!(last_error(&world, user).await?, None);
    }
    world.set("SHOPIFY_EXCHANGE_PERMANENT_TOKENS", "true");
    world.run("update pgmq.q_jobs_shopify set vt = '-infinity'").await?;
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, known).await?.as_deref(), Some("42.00"));
    assert_eq!(turnover(&world, new).await?.as_deref(), Some("8.00"));
    Ok(())
}
