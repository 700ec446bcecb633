//! Plays public reports: what happened to others must leave the right books here. docs/field-reports.md tells them.

use anyhow::Result;
use serde_json::json;
use stand_ins::shopify::Tender;

use super::{books, said, sync_at, world_at, worth};
use crate::clock::at;

const SHOP: &str = "reports.myshopify.com";

/// Shops book a lost dispute as a refund of the whole order, although a part was paid back before
/// (<https://github.com/Automattic/woocommerce-payments/issues/6196>). The balance has each amount once.
#[tokio::test(flavor = "multi_thread")]
async fn a_dispute_after_a_partial_refund_takes_the_rest() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_rest").await?;
    let paid = world.stripe.payment("acct_rest", at("2026-11-02T09:00:00Z"), 10_000, "eur");
    world.stripe.refund("acct_rest", &paid.charge, at("2026-11-03T09:00:00Z"), 4_000);
    world.stripe.dispute("acct_rest", &paid.charge, at("2026-11-04T09:00:00Z"), 6_000);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "0.00")]));
    world.stripe.dispute_reversal("acct_rest", &paid.charge, at("2026-11-18T16:00:00Z"), 6_000);
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]));
    Ok(())
}

/// A dispute takes more than was paid, because the rate has changed since
/// (<https://github.com/polarsource/polar/issues/8344>); a seller refunds a payment that is disputed already, and pays
/// twice (<https://github.com/antiwork/gumroad/pull/4372>). What left the balance comes off, whatever it is called.
#[tokio::test(flavor = "multi_thread")]
async fn more_may_go_back_than_was_paid() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_more").await?;
    let dear = world.stripe.payment("acct_more", at("2026-11-02T09:00:00Z"), 10_000, "eur");
    world.stripe.dispute("acct_more", &dear.charge, at("2026-11-04T09:00:00Z"), 10_300);
    let both = world.stripe.payment("acct_more", at("2026-11-05T09:00:00Z"), 5_000, "eur");
    world.stripe.dispute("acct_more", &both.charge, at("2026-11-06T09:00:00Z"), 5_000);
    world.stripe.refund("acct_more", &both.charge, at("2026-11-07T09:00:00Z"), 5_000);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "-53.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    Ok(())
}

/// Exchanges upset connectors that add up orders (<https://github.com/microsoft/BCApps/pull/8554>,
/// <https://github.com/microsoft/BCApps/pull/10467>): the new item is in the order, the refund's total is already net of
/// it, and never below 0. Money moves by the difference alone, when it moves.
#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_moves_the_difference() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let dearer = world.shopify.tender(SHOP, Tender::new(at("2026-10-28T09:00:00Z"), "100.0", "EUR"));
    let cheaper = world.shopify.tender(SHOP, Tender::new(at("2026-10-29T09:00:00Z"), "80.0", "EUR"));
    let paid = Tender::new(at("2026-11-03T09:00:00Z"), "150.0", "EUR").same_order(&dearer);
    world.shopify.tender(SHOP, paid);
    world.shopify.refund(SHOP, &cheaper, at("2026-11-04T09:00:00Z"), "30.0");
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    world.post("monthly-sync", "month=2026-10").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-10", "180.00"), ("2026-11", "120.00")]));
    Ok(())
}

/// An order that is paid in another way than it is paid back (a gift card, store credit) moves no money
/// (<https://github.com/airbytehq/airbyte/issues/26561>); one on terms has none yet
/// (<https://github.com/Shopify/shopify-api-ruby/issues/1102>).
#[tokio::test(flavor = "multi_thread")]
async fn credit_is_no_money_back() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let sale = world.shopify.tender(SHOP, Tender::new(at("2026-11-02T09:00:00Z"), "60.0", "EUR"));
    for (day, amount, method) in [
        ("2026-11-05T09:00:00Z", "-20.0", "store_credit"),
        ("2026-11-06T09:00:00Z", "-10.0", "gift_card"),
        ("2026-11-07T09:00:00Z", "20.0", "store_credit"),
    ] {
        world.shopify.tender(SHOP, Tender::new(at(day), amount, "EUR").method(method).same_order(&sale));
    }
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    Ok(())
}

/// Importers that follow the order of Stripe's list, newest first, take the oldest row of a read for the last one
/// (<https://github.com/estuary/connectors/pull/1962>, <https://github.com/PostHog/posthog/pull/30693>); a row can show
/// seconds or minutes after its own time (<https://github.com/estuary/connectors/pull/2731>).
#[tokio::test(flavor = "multi_thread")]
async fn the_next_read_begins_before_the_end_of_the_last() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_order").await?;
    world.stripe.payment("acct_order", at("2026-11-02T09:00:00Z"), 1_000, "eur");
    let late = world.stripe.payment("acct_order", at("2026-11-18T12:09:59Z"), 500, "eur");
    world.stripe.hide("acct_order", &late.transaction);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "10.00")]));
    world.stripe.reveal("acct_order", &late.transaction);
    world.stripe.payment("acct_order", at("2026-11-18T17:00:00Z"), 200, "eur");
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "17.00")]));
    Ok(())
}

/// One payment in a currency of none, three or unusual decimals: Stripe keeps ISK in hundredths
/// (<https://docs.stripe.com/currencies#special-cases>), dinars in thousandths
/// (<https://github.com/woocommerce/woocommerce-gateway-stripe/issues/2720>), the shop writes decimals of all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_in_any_currency_counts_once() -> Result<()> {
    for (currency, at_stripe, in_shop) in [
        ("jpy", 5_000, "5000"),
        ("isk", 500_000, "5000"),
        ("ugx", 500_000, "5000"),
        ("kwd", 10_500, "10.500"),
    ] {
        let mut world = world_at("2026-11-18T12:00:00Z").await?;
        let user = world.stripe_user("acct_any").await?;
        world.shopify.add_shop(SHOP, "EUR", "shpat_any");
        world.connect_shopify(user, SHOP, "shpat_any", None).await?;
        let paid = world.stripe.converted_payment(
            "acct_any",
            at("2026-11-10T09:00:00Z"),
            (at_stripe, currency),
            (3_000, "eur"),
        );
        let tender = Tender::new(at("2026-11-10T09:00:00Z"), in_shop, &currency.to_uppercase());
        world.shopify.tender(SHOP, tender.shop_money("29.5").reference(&paid.intent));
        sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "30.00")]), "{currency}");
    }
    Ok(())
}

/// A dispute is won, and the payment is paid back later all the same: who nets what came back from the dispute against what
/// went out pays twice, or not at all (<https://github.com/elizaOS/eliza/issues/10997>,
/// <https://github.com/elizaOS/eliza/issues/11155>). Each row of the balance counts on its own day.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_won_dispute_gave_back_can_be_refunded_once() -> Result<()> {
    let mut world = world_at("2026-11-05T12:00:00Z").await?;
    let user = world.stripe_user("acct_won").await?;
    let paid = world.stripe.payment("acct_won", at("2026-11-02T09:00:00Z"), 10_000, "eur");
    world.stripe.dispute("acct_won", &paid.charge, at("2026-11-04T09:00:00Z"), 10_000);
    sync_at(&mut world, "2026-11-05T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "0.00")]));
    world.stripe.dispute_reversal("acct_won", &paid.charge, at("2026-12-10T09:00:00Z"), 10_000);
    world.stripe.refund("acct_won", &paid.charge, at("2026-12-31T23:30:00Z"), 6_000);
    sync_at(&mut world, "2027-01-01T06:10:00Z").await?;
    let expected = said(&[("2026-11", "0.00"), ("2026-12", "100.00"), ("2027-01", "-60.00")]);
    assert_eq!(books(&world, user).await?, expected);
    Ok(())
}

/// A debit is paid on the 30th and returned by the customer's bank a week later
/// (<https://github.com/cityofaustin/atd-data-tech/issues/12831>): what was received stays received, and goes back on its own
/// day. What Stripe calls a failure was never received (<https://github.com/balanced/balanced-docs/issues/374>).
#[tokio::test(flavor = "multi_thread")]
async fn a_debit_that_is_returned_goes_back_on_its_own_day() -> Result<()> {
    for (is_dispute, expected) in
        [(true, vec![("2026-11", "50.00"), ("2026-12", "-50.00")]), (false, Vec::new())]
    {
        let mut world = world_at("2026-11-20T12:00:00Z").await?;
        let user = world.stripe_user("acct_returned").await?;
        let (sent, there) = (at("2026-11-23T09:00:00Z"), at("2026-11-30T09:00:00Z"));
        let debit = world.stripe.debit("acct_returned", sent, 5_000, there);
        sync_at(&mut world, "2026-11-23T12:10:00Z").await?;
        world.stripe.settle_debit("acct_returned", &debit);
        sync_at(&mut world, "2026-11-30T12:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "50.00")]));
        let returned = at("2026-12-07T09:00:00Z");
        if is_dispute {
            world.stripe.dispute("acct_returned", &debit.charge, returned, 5_000);
        } else {
            world.stripe.fail_debit("acct_returned", &debit, returned);
        }
        for now in ["2026-12-07T12:10:00Z", "2027-01-10T06:10:00Z"] {
            sync_at(&mut world, now).await?;
            assert_eq!(books(&world, user).await?, said(&expected), "{is_dispute} {now}");
        }
    }
    Ok(())
}
