//! What changes at the source changes here, whenever it changes; an answer that says less changes nothing.

use anyhow::Result;
use serde_json::json;
use stand_ins::{
    shopify::{Dispute, Tender},
    stripe::PassedOn,
};

use super::{books, excluded, said, sync_at, world_at, worth};
use crate::clock::at;

const SHOP: &str = "changes.myshopify.com";

#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_outlives_its_order() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(at("2026-11-16T09:00:00Z"), "100.0", "USD").shop_money("92.0"));
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "92.00")]));
    // Deleted, or out of reach: both look alike.
    world.shopify.hide_orders_before(SHOP, at("2026-11-17T00:00:00Z"));
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    sync_at(&mut world, "2026-11-19T06:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "92.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    Ok(())
}

/// A dispute was lost five days ago and is visible today; then it is won after all.
#[tokio::test(flavor = "multi_thread")]
async fn a_dispute_is_a_state() -> Result<()> {
    let mut world = world_at("2026-11-10T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let sale = world.shopify.tender(SHOP, Tender::new(at("2026-11-02T09:00:00Z"), "42.0", "EUR"));
    let dispute =
        world.shopify.dispute(SHOP, Dispute::new(at("2026-11-05T09:00:00Z"), "42.0", "EUR").about(&sale));
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "42.00")]));
    world.shopify.finalize_dispute(SHOP, &dispute, "LOST", at("2026-11-11T09:00:00Z"));
    sync_at(&mut world, "2026-11-16T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "0.00")]), "its date lies before the window");
    world.shopify.finalize_dispute(SHOP, &dispute, "WON", at("2026-11-17T09:00:00Z"));
    sync_at(&mut world, "2026-11-17T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "42.00")]));
    Ok(())
}

/// A prevented dispute was paid back or not, which nobody here knows. It is said; a refund of the
/// same order settles it.
#[tokio::test(flavor = "multi_thread")]
async fn a_prevented_dispute_is_never_silent() -> Result<()> {
    let mut world = world_at("2026-11-10T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let sale = world.shopify.tender(SHOP, Tender::new(at("2026-11-02T09:00:00Z"), "42.0", "EUR"));
    let dispute = Dispute::new(at("2026-11-05T09:00:00Z"), "42.0", "EUR").about(&sale);
    let dispute = world.shopify.dispute(SHOP, dispute.finalized("PREVENTED", at("2026-11-06T09:00:00Z")));
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    assert_eq!(excluded(&world, &dispute).await?.as_deref(), Some("prevented"));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "partial", "flaws": {"prevented": 1}}));
    world.shopify.refund(SHOP, &sale, at("2026-11-07T09:00:00Z"), "42.0");
    sync_at(&mut world, "2026-11-10T18:10:00Z").await?;
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "0.00")]));
    Ok(())
}

/// A sale made offline shows days after its date, also across the end of a month.
#[tokio::test(flavor = "multi_thread")]
async fn a_sale_that_shows_late_is_found_by_the_crons() -> Result<()> {
    let mut world = world_at("2026-11-20T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    sync_at(&mut world, "2026-11-20T12:10:00Z").await?;
    let sale = world.shopify.tender(SHOP, Tender::new(at("2026-11-28T09:00:00Z"), "80.0", "EUR").late());
    for now in ["2026-11-29T12:10:00Z", "2026-11-30T18:10:00Z", "2026-12-02T18:10:00Z"] {
        sync_at(&mut world, now).await?;
    }
    world.shopify.reveal(SHOP, &sale);
    sync_at(&mut world, "2026-12-03T06:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "80.00")]));
    Ok(())
}

/// A far read happens once a day, not with every read. The first one reaches back to what was sent 30 days before the books
/// begin.
#[tokio::test(flavor = "multi_thread")]
async fn only_one_read_a_day_reaches_far_back() -> Result<()> {
    let mut world = world_at("2026-11-20T12:00:00Z").await?;
    world.stripe_user("acct_deep").await?;
    let mut windows = Vec::new();
    for now in
        ["2026-11-20T06:10:00Z", "2026-11-20T12:10:00Z", "2026-11-20T18:10:00Z", "2026-11-21T06:10:00Z"]
    {
        sync_at(&mut world, now).await?;
        let days: i64 = world
            .value(
                "select extract(day from (metadata -> 'window' ->> 'to')::timestamptz - (metadata -> 'window' ->> 'from')::timestamptz)::bigint \
                 from public.sync_logs where provider = 'stripe' order by synced_at desc limit 1",
            )
            .await?;
        windows.push(days);
    }
    assert_eq!(windows, [49, 3, 3, 30]);
    Ok(())
}

/// A platform takes its fee back by reversing a part of its transfer: gross stays gross.
#[tokio::test(flavor = "multi_thread")]
async fn a_platforms_fee_is_no_refund() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_seller").await?;
    let paid = world.stripe.payment("acct_seller", at("2026-11-03T09:00:00Z"), 10_000, "eur");
    world.stripe.transfer_reversal("acct_seller", &paid.charge, at("2026-11-04T09:00:00Z"), 1_000);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "100.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    world.stripe.transfer_reversal("acct_seller", &paid.charge, at("2026-11-18T16:00:00Z"), 10_000);
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(
        worth(&world, user, 11).await?,
        json!({"status": "partial", "flaws": {"platform_reversal": 1}}),
        "all of it: the fee, or the sale"
    );
    Ok(())
}

/// Of a payment that a platform passed on whole, less her application fee, a part that she takes back is a refund to the
/// buyer: it is named, since the row itself looks like a fee's.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_platform_refunds_is_said() -> Result<()> {
    for (how, lacks) in [(PassedOn::WithFee, true), (PassedOn::Part, false)] {
        let mut world = world_at("2026-11-18T12:00:00Z").await?;
        let user = world.stripe_user("acct_market").await?;
        let paid = world.stripe.passed_on("acct_market", at("2026-11-03T09:00:00Z"), 10_000, how);
        world.stripe.transfer_reversal("acct_market", &paid.charge, at("2026-11-04T09:00:00Z"), 4_000);
        sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "100.00")]), "{how:?}");
        assert_eq!(worth(&world, user, 11).await?["flaws"]["platform_reversal"] == 1, lacks, "{how:?}");
    }
    Ok(())
}

/// What a platform passed on may lack its commission, which the account does not tell: it is counted and said. With an
/// application fee the account shows the buyer's amount.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_platform_passed_on_is_said() -> Result<()> {
    for (how, expected) in [
        (PassedOn::Part, json!({"status": "partial", "flaws": {"passed_on": 1}})),
        (PassedOn::WithFee, json!({"status": "provisional"})),
    ] {
        let mut world = world_at("2026-11-18T12:00:00Z").await?;
        let user = world.stripe_user("acct_host").await?;
        world.stripe.payment("acct_host", at("2026-11-02T09:00:00Z"), 1_000, "eur");
        let paid = world.stripe.passed_on("acct_host", at("2026-11-03T09:00:00Z"), 8_500, how);
        sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "95.00")]));
        assert_eq!(worth(&world, user, 11).await?, expected);
        // An answer that only names the charge says less, and changes nothing.
        world.stripe.show("acct_host", &paid.transaction, json!({"source": paid.charge}));
        sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
        assert_eq!(worth(&world, user, 11).await?, expected, "{how:?}");
    }
    Ok(())
}

/// A refund that is cancelled after it was booked comes back like one that failed: Stripe's own example of a cancelled
/// refund has a `failure_balance_transaction` (<https://docs.stripe.com/api/refunds/cancel>).
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_is_cancelled_comes_back_on_that_day() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_cancels").await?;
    let paid = world.stripe.payment("acct_cancels", at("2026-10-28T09:00:00Z"), 10_000, "eur");
    world.stripe.refund("acct_cancels", &paid.charge, at("2026-10-30T09:00:00Z"), 4_000);
    world.stripe.refund_failure("acct_cancels", &paid.charge, at("2026-11-03T09:00:00Z"), 4_000);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    world.post("monthly-sync", "month=2026-10").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-10", "60.00"), ("2026-11", "40.00")]));
    Ok(())
}

/// A loss whose date is not told any more keeps the date that was known.
#[tokio::test(flavor = "multi_thread")]
async fn a_date_that_was_known_stays() -> Result<()> {
    let mut world = world_at("2026-11-10T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let dispute =
        Dispute::new(at("2026-11-05T09:00:00Z"), "42.0", "EUR").finalized("LOST", at("2026-11-06T09:00:00Z"));
    let dispute = world.shopify.dispute(SHOP, dispute);
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "-42.00")]));
    world.shopify.forget_decision(SHOP, &dispute);
    sync_at(&mut world, "2026-11-10T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "-42.00")]));
    Ok(())
}

/// A platform's reversal whose source is not expanded any more is still no refund.
#[tokio::test(flavor = "multi_thread")]
async fn a_reversal_that_was_known_stays() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_less").await?;
    let paid = world.stripe.payment("acct_less", at("2026-11-17T09:00:00Z"), 10_000, "eur");
    let back = world.stripe.transfer_reversal("acct_less", &paid.charge, at("2026-11-17T10:00:00Z"), 1_000);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    world.stripe.show("acct_less", &back.transaction, json!({"source": back.source}));
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "100.00")]));
    Ok(())
}
