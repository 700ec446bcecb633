//! One strange row is one strange row: it is kept as read and said, and costs nobody else anything.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    shopify::{Dispute, Tender},
    stripe::Entry,
};

use super::{books, excluded, said, sync_at, world_at, worth};
use crate::clock::at;

const SHOP: &str = "strange.myshopify.com";

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_kept_and_said_and_the_rest_is_read() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let when = at("2026-11-10T09:00:00Z");
    world.shopify.tender(SHOP, Tender::new(when, "30.0", "EUR"));
    let coins = world.shopify.tender(SHOP, Tender::new(when, "5.0", "USDC"));
    let fine = world.shopify.tender(SHOP, Tender::new(when, "45.455", "EUR"));
    let dispute = world.shopify.dispute(SHOP, Dispute::new(when, "9.0", "USDC"));
    let part = sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!((&part["synced"], &part["errors"]), (&json!(1), &json!(0)), "{part}");
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "30.00")]));
    for id in [&coins.id, &fine.id, &dispute] {
        assert_eq!(excluded(&world, id).await?.as_deref(), Some("amount_not_read"), "{id}");
    }
    let read: Value = world
        .value("select original -> 'amount' from jobs.integration_transactions where currency = 'EUR' and amount_minor is null")
        .await?;
    assert_eq!(read, json!("45.455"));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "partial", "flaws": {"amount_not_read": 3}}));
    // Later, too.
    world.shopify.tender(SHOP, Tender::new(at("2026-11-18T16:00:00Z"), "7.0", "EUR"));
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "37.00")]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_currency_costs_its_month_the_name_of_whole() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_odd").await?;
    let when = at("2026-11-10T09:00:00Z");
    world.stripe.payment("acct_odd", when, 4_200, "eur");
    let odd = world.stripe.add("acct_odd", Entry::new(when, 900, "eur").oddities(json!({"currency": null})));
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(excluded(&world, &odd.transaction).await?.as_deref(), Some("no_currency"));
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "42.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "partial", "flaws": {"no_currency": 1}}));
    Ok(())
}

/// A movement of an unknown kind is kept, said for as long as it is missing, and counted once the
/// kind is known, without reading it again.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_kind_is_missing_until_it_is_learned() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_earns").await?;
    world.stripe.payment("acct_earns", at("2026-11-02T09:00:00Z"), 4_200, "eur");
    let earning =
        Entry::new(at("2026-11-03T09:00:00Z"), 25_000, "eur").kind("platform_earning", "platform_earning");
    let earning = world.stripe.add("acct_earns", earning);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    let missing = json!({"status": "partial", "flaws": {"unknown_kind": 1}});
    assert_eq!(worth(&world, user, 11).await?, missing);
    // Later windows do not reach it.
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(worth(&world, user, 11).await?, missing);
    world.set_now(at("2026-12-03T10:00:00Z"));
    let told = world.post("monthly-sync", "month=2026-11").await?;
    assert_eq!(told["results"][0]["month_status"], "partial", "{told}");
    assert_eq!(told["results"][0]["unknown_movements"], json!({"platform_earning": 1}), "{told}");

    // As if this version had learned that such rows are refunds: they are called that from now on.
    world
        .run("update jobs.integration_transactions set source_kind = 'refund' where kind = 'unknown'")
        .await?;
    world.stripe.hide("acct_earns", &earning.transaction);
    // The far read of this day does not reach it any more.
    sync_at(&mut world, "2026-12-05T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "292.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "complete"}));
    Ok(())
}

/// Money that a customer sent without a payment that it belongs to is moved to the balance under a category of its own
/// (`unreconciled_customer_funds`, in the list of Stripe's specification). Whether it is kept, nobody here knows.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_customer_sent_without_a_payment_is_named() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_bank").await?;
    world.stripe.payment("acct_bank", at("2026-11-02T09:00:00Z"), 4_200, "eur");
    let unreconciled = Entry::new(at("2026-11-03T09:00:00Z"), 5_000, "eur")
        .kind("payment_unreconciled", "unreconciled_customer_funds");
    world.stripe.add("acct_bank", unreconciled);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "42.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "partial", "flaws": {"unknown_kind": 1}}));
    Ok(())
}

/// The kinds that Stripe documents as no turnover make nothing partial.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_turnover_is_not_missing() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_holds").await?;
    world.stripe.payment("acct_holds", at("2026-11-02T09:00:00Z"), 4_200, "eur");
    for kind in [
        "payout_minimum_balance_hold",
        "payout_minimum_balance_release",
        "climate_order_purchase",
        "climate_order_refund",
        "payment_network_reserve_hold",
        "payment_network_reserve_release",
        "stripe_balance_payment_debit",
        "stripe_balance_payment_debit_reversal",
    ] {
        world.stripe.add("acct_holds", Entry::new(at("2026-11-03T09:00:00Z"), -700, "eur").kind(kind, kind));
    }
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "42.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    Ok(())
}

/// One place decides what counts: the row's own column, which nobody can write.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_write_what_counts() -> Result<()> {
    let world = world_at("2026-11-18T12:00:00Z").await?;
    world.stripe_user("acct_one").await?;
    world.stripe.payment("acct_one", at("2026-11-02T09:00:00Z"), 4_200, "eur");
    world.call(Method::POST, "sync-integrations", "").await?;
    let written =
        sqlx::query("update jobs.integration_transactions set excluded = 'x'").execute(world.pool()).await;
    assert!(written.is_err());
    let generated: String = world
        .value(
            "select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d join pg_attribute a \
             on (a.attrelid, a.attnum) = (d.adrelid, d.adnum) \
             where d.adrelid = 'jobs.integration_transactions'::regclass and a.attname = 'excluded'",
        )
        .await?;
    assert!(generated.starts_with("jobs.why_excluded("), "{generated}");
    Ok(())
}

/// A sale by PayPal that PayPal settles is zero in the balance: the month lacks it, and says so. Other sales count.
#[tokio::test(flavor = "multi_thread")]
async fn what_paypal_settles_is_missing_and_said() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_wallet").await?;
    world.stripe.payment("acct_wallet", at("2026-11-03T09:00:00Z"), 4_200, "eur");
    let wallet = world.stripe.paid_at_paypal("acct_wallet", at("2026-11-04T09:00:00Z"), 10_000);
    // Its dispute is a matter of that account, too (<https://docs.stripe.com/payments/paypal/disputed-payments>).
    let dispute = world.stripe.dispute("acct_wallet", &wallet.charge, at("2026-11-06T09:00:00Z"), 10_000);
    world.stripe.show("acct_wallet", &dispute.transaction, json!({"amount": 0}));
    for hour in ["12:10", "18:10"] {
        sync_at(&mut world, &format!("2026-11-18T{hour}:00Z")).await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "42.00")]));
        assert_eq!(
            worth(&world, user, 11).await?,
            json!({"status": "partial", "flaws": {"unknown_kind": 2}})
        );
    }
    let (kind, paid): (String, i64) = sqlx::query_as(
        "select source_kind, (original ->> 'amount_minor')::bigint from jobs.integration_transactions where external_id = $1",
    )
    .bind(&wallet.transaction)
    .fetch_one(world.pool())
    .await?;
    assert_eq!((kind.as_str(), paid), ("settled_elsewhere:paypal", 10_000));
    Ok(())
}
