//! Money that is kept and not counted, and what is said of it.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{shopify::Tender, stripe::Entry};

use super::{SYNC, ask, turnover};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn other_currencies_are_kept_and_said_and_not_counted() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_travel").await?;
    world.stripe.payment("acct_travel", world.earlier(90), 4_200, "eur");
    world.stripe.payment("acct_travel", world.earlier(80), 10_000, "usd");
    world.stripe.payment("acct_travel", world.earlier(70), 5_000, "jpy");
    // A dollar payment that settles in euros is euros.
    world.stripe.converted_payment("acct_travel", world.earlier(60), (1_000, "usd"), (900, "eur"));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!(
        (told.status, &told.body["totalSynced"], &told.body["errors"]),
        (200, &json!(4), &json!(0)),
        "{}",
        told.text
    );
    assert_eq!(told.body["partial"], 1, "{}", told.text);
    let result = &told.body["results"][0];
    assert_eq!(
        (&result["status"], &result["uncounted_currencies"]),
        (&json!("partial"), &json!(["JPY", "USD"])),
        "{}",
        told.text
    );
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("51.00"));
    let status: String = world.value("select metadata ->> 'status' from public.ca_records").await?;
    assert_eq!(status, "partial", "the month's figure says what it is worth");
    let kept: Vec<(String, i64)> = sqlx::query_as(
        "select currency, amount_minor from jobs.integration_transactions where currency <> 'EUR' order by 1",
    )
    .fetch_all(world.pool())
    .await?;
    assert_eq!(kept, [("JPY".to_owned(), 5_000), ("USD".to_owned(), 10_000)]);
    let logged: Value = world
        .value("select metadata -> 'uncounted_currencies' from public.sync_logs where provider = 'stripe'")
        .await?;
    assert_eq!(logged, json!(["JPY", "USD"]));
    // Said again as long as it is so, and nothing is new.
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((&told.body["totalSynced"], &told.body["partial"]), (&json!(0), &json!(1)), "{}", told.text);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn gift_cards_are_kept_and_not_counted() -> Result<()> {
    let world = World::new().await?;
    let shop = "cards.myshopify.com";
    let user = world.shopify_user(shop).await?;
    world.shopify.tender(shop, Tender::new(world.earlier(90), "42.0", "EUR"));
    world.shopify.tender(shop, Tender::new(world.earlier(80), "25.0", "EUR").gift_card());
    world.shopify.tender(shop, Tender::new(world.earlier(70), "12.0", "EUR").method("store_credit"));
    world.shopify.tender(shop, Tender::new(world.earlier(60), "99.0", "EUR").test());
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(0)), "{}", told.text);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    let kept: Vec<(Option<String>, i64)> = sqlx::query_as(
        "select excluded, amount_minor from jobs.integration_transactions order by occurred_at, 2 desc",
    )
    .fetch_all(world.pool())
    .await?;
    assert_eq!(kept.len(), 3, "test sales are no sales: {kept:?}");
    assert!(
        kept.contains(&(Some("gift_card".into()), 2_500))
            && kept.contains(&(Some("store_credit".into()), 1_200))
    );
    Ok(())
}

/// A buyer's currency whose rate the shop tells is the shop's money; one whose rate nobody tells is
/// not guessed.
#[tokio::test(flavor = "multi_thread")]
async fn a_buyers_currency() -> Result<()> {
    let world = World::new().await?;
    let shop = "monde.myshopify.com";
    let user = world.shopify_user(shop).await?;
    world.shopify.tender(shop, Tender::new(world.earlier(90), "50.0", "USD").shop_money("45.5"));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["results"][0]["status"]), (200, &json!("success")), "{}", told.text);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("45.50"));
    world.shopify.tender(shop, Tender::new(world.earlier(80), "20.0", "USD").deleted_order());
    let told = ask(&world, Method::POST, SYNC, "").await?;
    let result = &told.body["results"][0];
    assert_eq!(
        (&result["status"], &result["uncounted_currencies"]),
        (&json!("partial"), &json!(["USD"])),
        "{}",
        told.text
    );
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("45.50"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_category_that_nobody_knows_is_reported_and_not_guessed() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_novel").await?;
    world.stripe.payment("acct_novel", world.earlier(90), 4_200, "eur");
    world
        .stripe
        .add("acct_novel", Entry::new(world.earlier(80), 700, "eur").kind("novelty", "loyalty_reward"));
    world
        .stripe
        .add("acct_novel", Entry::new(world.earlier(70), 300, "eur").kind("novelty", "loyalty_reward"));
    world.stripe.payout("acct_novel", world.earlier(60), 1_000, "eur");
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!(
        (told.status, &told.body["errors"], &told.body["partial"]),
        (200, &json!(0), &json!(1)),
        "{}",
        told.text
    );
    let result = &told.body["results"][0];
    assert_eq!(result["unknown_movements"], json!({"loyalty_reward": 2}), "{}", told.text);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    let logged: Value = world
        .value("select metadata -> 'notes' -> 'unknown' from public.sync_logs where provider = 'stripe'")
        .await?;
    assert_eq!(logged, json!({"loyalty_reward": 2}));
    Ok(())
}
