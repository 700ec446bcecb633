//! Who has to act on a refusal: its user, the operator, or nobody. Nobody is asked to mend what is not theirs.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    shopify::{self, Tender, http_error},
    stripe,
};

use super::{SYNC, ask, heal, last_error, turnover};
use crate::{
    mails::received,
    world::{SECRET, World},
};

const SHOP: &str = "acts.myshopify.com";
const LIST: &str = "/v1/balance_transactions";

/// Returns what the status page says of a dependency.
pub(super) async fn health(world: &World, name: &str) -> Result<Value> {
    let function = world.function("status").await?;
    let request = jobs::http::client()?.get(function.url()).bearer_auth(SECRET);
    let told = function.send(request.header("accept", "application/json")).await?.json();
    let checks = told["health"].as_array().cloned().unwrap_or_default();
    Ok(checks.into_iter().find(|check| check["name"] == name).unwrap_or_default())
}

/// Syncs so often that a user who is to blame is mailed.
pub(super) async fn insist(world: &World) -> Result<()> {
    for _ in 0..4 {
        ask(world, Method::POST, SYNC, "").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_lacking_is_no_withdrawn_access() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_permission").await?;
    world.stripe.payment("acct_permission", world.earlier(90), 4_200, "eur");
    let bare = Fault::Answer { status: 403, headers: Vec::new(), body: String::new() };
    for fault in [stripe::more_permissions("application"), stripe::more_permissions("session"), bare] {
        world.stripe.faults().clear();
        world.stripe.faults().add(Rule::on("/v1/account", fault));
        let told = ask(&world, Method::POST, SYNC, "").await?;
        let message = told.problem("permission_lacking").unwrap_or_else(|| panic!("{}", told.text));
        assert!(message.contains("n’est pas à refaire") && !message.contains("retiré"), "{message}");
        assert_eq!(last_error(&world, user).await?.as_deref(), Some(message));
    }
    insist(&world).await?;
    assert_eq!(received(&world), [], "nobody is asked to connect again in vain");
    world.stripe.faults().clear();
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_account_is_called_one() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_test").await?;
    world.stripe.faults().add(Rule::on(LIST, stripe::test_account("acct_test")));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    let message = told.problem("test_mode").unwrap_or_else(|| panic!("{}", told.text));
    assert!(message.contains("compte de test"), "{message}");
    assert_eq!(last_error(&world, user).await?.as_deref(), Some(message));
    Ok(())
}

/// Our key lacks something: the operator's to mend, seen by the status page before any user is blamed.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_lacks_a_permission_is_ours() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_lacks").await?;
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(health(&world, "Stripe").await?["state"], "bon");
    for fault in [stripe::no_connect(), stripe::restricted("rak_charge_read")] {
        world.stripe.faults().clear();
        world.stripe.faults().add(Rule::on(LIST, fault));
        assert_eq!(health(&world, "Stripe").await?["state"], "à corriger");
        let told = ask(&world, Method::POST, SYNC, "").await?;
        assert!(told.problem("own_permission").is_some(), "{}", told.text);
        assert_eq!(last_error(&world, user).await?, None);
    }
    insist(&world).await?;
    assert_eq!(received(&world), []);
    assert_eq!(world.value::<i32>("select max(attempts) from jobs.job_items").await?, 0);
    world.stripe.faults().clear();
    world.stripe.payment("acct_lacks", world.earlier(90), 4_200, "eur");
    assert_eq!(
        health(&world, "Stripe").await?["state"],
        "à corriger",
        "one kind of source may still need it"
    );
    Ok(())
}

/// An application that Shopify has not approved fails for every shop, and no merchant can mend it.
#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_is_not_approved_is_ours() -> Result<()> {
    let world = World::new().await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(world.earlier(90), "42.0", "EUR"));
    world.shopify.faults().add(Rule::on("graphql", shopify::not_approved("Order")));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    let message = told.problem("app_not_approved").unwrap_or_else(|| panic!("{}", told.text));
    assert!(message.contains("les connexions ne sont pas à refaire"), "{message}");
    assert_eq!((&told.body["errors"], &told.body["remaining"]), (&json!(1), &json!(1)), "{}", told.text);
    assert_eq!(health(&world, "Shopify").await?["state"], "à corriger");
    insist(&world).await?;
    assert_eq!((last_error(&world, user).await?, received(&world)), (None, Vec::new()));
    world.shopify.faults().clear();
    assert_eq!(heal(&world).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_430_passes_by_itself() -> Result<()> {
    let world = World::new().await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(world.earlier(90), "42.0", "EUR"));
    world.shopify.faults().add(Rule::on("graphql", http_error(430)).times(1));
    assert_eq!(heal(&world).await?, 1, "asked again within the run");
    world.shopify.faults().add(Rule::on("graphql", http_error(430)));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert!(told.problem("rate_limited").is_some() && told.body["remaining"] == 1, "{}", told.text);
    assert_eq!(world.value::<i32>("select max(attempts) from jobs.job_items").await?, 0);
    world.shopify.faults().clear();
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(last_error(&world, user).await?, None);
    Ok(())
}

/// Only one of two users of a shop has its pair: the other one is told so, and neither is mailed to and fro.
#[tokio::test(flavor = "multi_thread")]
async fn a_shop_that_another_user_has_connected_since() -> Result<()> {
    let world = World::new().await?;
    let earlier = world.user("earlier@example.test").await?;
    let tokens = world.shopify.add_expiring_shop(SHOP, "EUR");
    world.connect_shopify(earlier, SHOP, &tokens.access_token, Some(&tokens.refresh_token)).await?;
    assert_eq!(heal(&world).await?, 0);
    let later = world.user("later@example.test").await?;
    let tokens = world.shopify.add_expiring_shop(SHOP, "EUR");
    world.connect_shopify(later, SHOP, &tokens.access_token, Some(&tokens.refresh_token)).await?;
    // The other one's proof may be written first.
    for round in 0..4 {
        let told = ask(&world, Method::POST, SYNC, "").await?;
        assert_eq!(told.body["errors"], 1, "{}", told.text);
        if round > 0 {
            let message = told.problem("connected_elsewhere").unwrap_or_else(|| panic!("{}", told.text));
            assert!(message.contains("depuis un autre compte Comptalyze"), "{message}");
            assert_eq!(last_error(&world, earlier).await?.as_deref(), Some(message));
        }
        assert_eq!(last_error(&world, later).await?, None);
    }
    assert_eq!(received(&world), []);
    Ok(())
}

/// A pair is worth more than what an answer says beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pair_without_lifetimes_is_kept() -> Result<()> {
    let world = World::new().await?;
    let user = world.user("pair@example.test").await?;
    let tokens = world.shopify.add_expiring_shop(SHOP, "EUR");
    world.connect_shopify(user, SHOP, &tokens.access_token, Some(&tokens.refresh_token)).await?;
    world.shopify.omit_lifetimes(SHOP);
    for refreshes in 1..=2 {
        world.shopify.expire_access_tokens(SHOP);
        world.shopify.tender(SHOP, Tender::new(world.earlier(90), "42.0", "EUR"));
        assert_eq!(heal(&world).await?, 1);
        assert_eq!(world.shopify.refreshes(SHOP), refreshes);
    }
    let hour: bool = world
        .value("select token_expires_at = $now + interval '1 hour' and refresh_token_expires_at is null from jobs.integration_state")
        .await?;
    assert!(hour, "an hour is assumed, and no end is invented");
    Ok(())
}
