//! Tokens that expire: renewed once, stored before they are used, and said where that fails.

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use reqwest::Method;
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    shopify::{RefreshReuse, Tender, http_error},
};
use uuid::Uuid;

use super::{SYNC, ask, heal, last_error, turnover};
use crate::world::World;

const SHOP: &str = "expiring.myshopify.com";
const REFRESH: &str = "/admin/oauth/access_token";

/// Makes a shop with expiring tokens and 42.00 that nobody has read yet.
async fn world_with_shop() -> Result<(World, Uuid)> {
    let world = World::new().await?;
    let user = world.user("expiring@example.test").await?;
    let tokens = world.shopify.add_expiring_shop(SHOP, "EUR");
    world.connect_shopify(user, SHOP, &tokens.access_token, Some(&tokens.refresh_token)).await?;
    world.shopify.tender(SHOP, Tender::new(world.earlier(90), "42.0", "EUR"));
    Ok((world, user))
}

/// Lets the token expire now: the shop refuses it, and we know by the clock.
async fn expire(world: &World) -> Result<()> {
    world.shopify.expire_access_tokens(SHOP);
    world
        .run("update jobs.integration_state set token_expires_at = $now - interval '1 minute' where account = 'expiring.myshopify.com'")
        .await?;
    Ok(())
}

/// Returns both tokens as stored: encrypted, each as hex of an IV and of a ciphertext.
async fn stored(world: &World) -> Result<(String, String)> {
    let sql = "select access_token, refresh_token from public.integration_tokens where shop_domain = $1";
    let pair: (String, String) = sqlx::query_as(sql).bind(SHOP).fetch_one(world.pool()).await?;
    for token in [&pair.0, &pair.1] {
        let (iv, text) = token.split_once(':').unwrap_or_default();
        let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(iv.len() == 32 && hex(iv) && text.len() % 32 == 0 && hex(text), "{token}");
    }
    Ok(pair)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_when_it_ends_and_keeps_its_proof() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    // Nobody told us when this one expires: it has.
    world.shopify.expire_access_tokens(SHOP);
    let first = stored(&world).await?;
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(world.shopify.refreshes(SHOP), 1);
    let second = stored(&world).await?;
    assert!(first.0 != second.0 && first.1 != second.1);
    let proof = "select proof || proven_at::text from jobs.integration_state where proof is not null";
    let proven: String = world.value(proof).await?;

    // This time we know, and renew before we ask.
    expire(&world).await?;
    world.shopify.tender(SHOP, Tender::new(world.earlier(60), "8.0", "EUR"));
    world.shopify.faults().forget();
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(world.shopify.refreshes(SHOP), 2);
    let asked: Vec<_> =
        world.shopify.faults().seen().iter().map(|seen| seen.target.contains(REFRESH)).collect();
    assert_eq!(
        asked,
        [true, false, false, false],
        "renewed, then sales, disputes and orders: proven already"
    );
    let same_grant: bool = world
        .value(
            "select s.proof = jobs.token_fingerprint(t) and s.account = t.shop_domain \
                from jobs.integration_state s join public.integration_tokens t using (user_id, provider)",
        )
        .await?;
    assert!(same_grant, "the proof of the old token is one of the new");
    assert_ne!(world.value::<String>(proof).await?, proven, "of the new token, by its fingerprint");
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("50.00"));

    // A fresh one is left alone.
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(world.shopify.refreshes(SHOP), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_in_the_middle_of_a_list() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    let sum = 4_200 + world.shopify.tenders(SHOP, world.earlier(600), TimeDelta::seconds(1), 250);
    world
        .shopify
        .faults()
        .add(Rule::on("graphql", http_error(401)).body("tenderTransactions").skip(1).times(1));
    assert_eq!(heal(&world).await?, 251);
    assert_eq!(world.shopify.refreshes(SHOP), 1);
    assert_eq!(turnover(&world, user).await?, Some(format!("{}.{:02}", sum / 100, sum % 100)));
    Ok(())
}

/// The stand-in refuses a refresh token that was used before: a second refresh would end the connection.
#[tokio::test(flavor = "multi_thread")]
async fn two_runs_at_once_renew_once() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    assert_eq!(heal(&world).await?, 1);
    for round in 1..=3 {
        expire(&world).await?;
        world.shopify.tender(SHOP, Tender::new(world.earlier(60), "1.0", "EUR"));
        // Slow enough for the runs to meet.
        world.shopify.faults().clear();
        world.shopify.faults().add(Rule::on(REFRESH, Fault::Delay(std::time::Duration::from_millis(500))));
        let runs = [(); 3].map(|()| ask(&world, Method::POST, SYNC, ""));
        for told in futures_util::future::try_join_all(runs).await? {
            assert_eq!((told.status, &told.body["errors"]), (200, &json!(0)), "{}", told.text);
        }
        assert_eq!(world.shopify.refreshes(SHOP), round, "exactly one");
        stored(&world).await?;
        // Who found the lease taken left its item to others.
        heal(&world).await?;
        assert_eq!(turnover(&world, user).await?, Some(format!("{}.00", 42 + round)));
    }
    assert_eq!(last_error(&world, user).await?, None);
    Ok(())
}

/// Every answer on the way is lost once. As Shopify behaves, the old refresh token is good until the pair that
/// replaced it is used, so asking again is safe; what we store, we store once.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_on_the_way_lose_no_token() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    world.shopify.set_refresh_reuse(RefreshReuse::UntilReplacementUsed);
    assert_eq!(heal(&world).await?, 1);
    for (number, name) in
        ["integration_refresh_begin", "integration_refresh_store", "integration_refresh_end", REFRESH]
            .into_iter()
            .enumerate()
    {
        expire(&world).await?;
        world.shopify.tender(SHOP, Tender::new(world.earlier(60), "1.0", "EUR"));
        let rule = Rule::on(name, Fault::CutAfter).times(1);
        if name == REFRESH { world.shopify.faults() } else { world.environment.gateway.faults() }.add(rule);
        assert_eq!(heal(&world).await?, 1, "{name}");
        stored(&world).await?;
        let leases: i64 = world
            .value("select count(*) from jobs.integration_state where refresh_lease is not null")
            .await?;
        assert_eq!(leases, 0, "{name}: the lease is given back");
        assert_eq!(turnover(&world, user).await?, Some(format!("{}.00", 43 + number)));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_refresh_asks_for_a_new_connection() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    assert_eq!(heal(&world).await?, 1);
    world.shopify.uninstall(SHOP);
    world.run("update jobs.integration_state set token_expires_at = $now - interval '1 minute'").await?;
    let before = stored(&world).await?;
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(1)), "{}", told.text);
    let message = told.problem("refresh_rejected").unwrap_or_default().to_owned();
    assert!(message.contains("doit être refaite"), "{}", told.text);
    assert_eq!(last_error(&world, user).await?, Some(message));
    assert_eq!(stored(&world).await?, before, "nothing was overwritten");
    // No refresh token is left, and the token has ended.
    world.run("update public.integration_tokens set refresh_token = null").await?;
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(1)), "{}", told.text);
    assert!(told.text.contains("doit être refaite"), "{}", told.text);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"), "what was read stays");

    // Connected again.
    let tokens = world.shopify.add_expiring_shop(SHOP, "EUR");
    sqlx::query("update public.integration_tokens set access_token = $1, refresh_token = $2")
        .bind(crate::world::encrypt(&tokens.access_token))
        .bind(crate::world::encrypt(&tokens.refresh_token))
        .execute(world.pool())
        .await?;
    world.shopify.tender(SHOP, Tender::new(world.earlier(60), "8.0", "EUR"));
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(last_error(&world, user).await?, None);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("50.00"));
    Ok(())
}

/// Our own client secret is wrong: no merchant is to blame, and no token is lost.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_client_secret_refused() -> Result<()> {
    let (mut world, user) = world_with_shop().await?;
    world.shopify_user("permanent.myshopify.com").await?;
    assert_eq!(heal(&world).await?, 1);
    expire(&world).await?;
    world.shopify.tender(SHOP, Tender::new(world.earlier(60), "8.0", "EUR"));
    let right = world.replace("SHOPIFY_CLIENT_SECRET", Some("shpss_rolled".into()));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(1)), "{}", told.text);
    let message = told.problem("own_credentials").unwrap_or_default();
    assert!(message.contains("Shopify refuse les identifiants de Comptalyze"), "{}", told.text);
    assert!(!told.log.contains("shpss_"));
    assert_eq!(last_error(&world, user).await?, None, "no merchant is told to act on our mistake");
    world.replace("SHOPIFY_CLIENT_SECRET", right);
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("50.00"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_token_is_never_renewed() -> Result<()> {
    let world = World::new().await?;
    let user = world.shopify_user("permanent.myshopify.com").await?;
    world.shopify.tender("permanent.myshopify.com", Tender::new(world.earlier(90), "42.0", "EUR"));
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(world.shopify.faults().count(REFRESH), 0);
    let expiry: Option<chrono::DateTime<Utc>> =
        world.value("select token_expires_at from jobs.integration_state").await?;
    assert_eq!(expiry, None);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

/// A gateway broke twice; then the refresh token is good still, or the pair was lost on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_broke_is_tried_again_and_then_said() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    assert_eq!(heal(&world).await?, 1);
    let broken = || Rule::on(REFRESH, http_error(520)).times(2);
    expire(&world).await?;
    world.shopify.faults().add(broken());
    assert_eq!(heal(&world).await?, 0);
    assert_eq!((world.shopify.refreshes(SHOP), last_error(&world, user).await?), (1, None));
    expire(&world).await?;
    let gone = json!({"error": "invalid_request", "error_description": "This request requires an active refresh_token"});
    world.shopify.faults().add(broken());
    world.shopify.faults().add(Rule::on(REFRESH, Fault::json(401, &gone)));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    let message = told.problem("refresh_rejected").unwrap_or_else(|| panic!("{}", told.text));
    assert_eq!(last_error(&world, user).await?.as_deref(), Some(message));
    Ok(())
}
