//! What a month lacks or may have twice is said of the month whose account it is, and one row explains one.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    shopify::{Dispute, Tender},
    stripe::Entry,
};
use uuid::Uuid;

use super::{accounts::connect, books, said, sync_at, world_at, worth};
use crate::{clock::at, world::World};

const ACCOUNT: &str = "acct_doubts";
const SHOP: &str = "doubts.myshopify.com";

async fn both() -> Result<(World, Uuid)> {
    let world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    world.shopify.add_shop(SHOP, "EUR", "shpat_doubts");
    world.connect_shopify(user, SHOP, "shpat_doubts", None).await?;
    Ok((world, user))
}

/// Returns what a month lacks or may have twice.
async fn flaws(world: &World, user: Uuid, month: &str) -> Result<Value> {
    let sql = "select jobs.month_flaws($1, to_date($2, 'YYYY-MM'), $3)";
    Ok(sqlx::query_scalar(sql).bind(user).bind(month).bind(world.now()).fetch_one(world.pool()).await?)
}

/// Another account and a shop are connected in November, and have odd rows in October, which is in the books of the account
/// before: nothing of them is said of October, neither by the month nor by the log nor by an alert.
#[tokio::test(flavor = "multi_thread")]
async fn odd_rows_of_another_account_say_nothing_of_a_month() -> Result<()> {
    let mut world = world_at("2026-10-02T12:00:00Z").await?;
    let user = world.stripe_user("acct_first").await?;
    connect(&world, user, "acct_first", "2026-10-02T08:00:00Z").await?;
    world.stripe.payment("acct_first", at("2026-10-12T09:00:00Z"), 2_000, "eur");
    sync_at(&mut world, "2026-10-02T12:10:00Z").await?;
    sync_at(&mut world, "2026-11-09T18:10:00Z").await?;
    connect(&world, user, "acct_second", "2026-11-10T08:00:00Z").await?;
    for day in ["2026-10-20T09:00:00Z", "2026-11-10T09:00:00Z"] {
        let odd = Entry::new(at(day), 25_000, "eur").kind("platform_earning", "platform_earning");
        world.stripe.add("acct_second", odd);
        world.stripe.payment("acct_second", at(day), 700, "usd");
    }
    world.shopify.add_shop(SHOP, "EUR", "shpat_doubts");
    world.connect_shopify(user, SHOP, "shpat_doubts", None).await?;
    world.run("update public.integration_tokens set connected_at = $now where provider = 'shopify'").await?;
    world.shopify.tender(SHOP, Tender::new(at("2026-10-25T09:00:00Z"), "12.0", "USDC"));
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    assert_eq!(worth(&world, user, 10).await?, json!({"status": "complete"}));
    assert_eq!(flaws(&world, user, "2026-11").await?, json!({"unknown_kind": 1, "currency": 1}));
    let log: Value = world
        .value("select metadata - array['run_id', 'window', 'notes'] from public.sync_logs where provider = 'shopify'")
        .await?;
    assert_eq!(log, json!({}), "nothing of the shop's is missing in its months");
    let sql = "select public.threshold_details(jsonb_build_array(jsonb_build_object(\
        'user_id', $1, 'year', 2026, 'months', '[]'::jsonb))) -> 0 -> 'uncounted'";
    let foreign: Value = sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await?;
    assert_eq!(foreign, json!([{"currency": "USD", "amount": 700}]), "that of November");
    // The first account is back: what the second one had in November stays November's.
    connect(&world, user, "acct_first", "2026-12-02T08:00:00Z").await?;
    let odd = Entry::new(at("2026-11-20T09:00:00Z"), 100, "eur").kind("platform_earning", "platform_earning");
    world.stripe.add("acct_first", odd);
    sync_at(&mut world, "2026-12-02T12:10:00Z").await?;
    assert_eq!(flaws(&world, user, "2026-10").await?, json!({}));
    assert_eq!(flaws(&world, user, "2026-11").await?, json!({"unknown_kind": 2, "currency": 1}));
    assert_eq!(flaws(&world, user, "2026-12").await?, json!({}));
    Ok(())
}

/// A debit counts days after it was sent. A payment in the shop that names no charge agrees with it on the day on which it
/// was sent, or counts: it may be the same money, which is said of the month that has the shop's.
#[tokio::test(flavor = "multi_thread")]
async fn a_debit_that_the_shop_does_not_name_may_be_counted_twice() -> Result<()> {
    for (sold, november, december) in [
        ("2026-11-27T15:00:00Z", json!({"maybe_twice": 1}), json!({})),
        ("2026-12-04T08:00:00Z", json!({}), json!({"maybe_twice": 1})),
        ("2026-11-28T15:00:00Z", json!({}), json!({})),
    ] {
        let (mut world, user) = both().await?;
        let debit =
            world.stripe.debit(ACCOUNT, at("2026-11-27T09:00:00Z"), 10_000, at("2026-12-04T09:00:00Z"));
        world.shopify.tender(SHOP, Tender::new(at(sold), "100.0", "EUR"));
        sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
        // Sent, and not received yet.
        sync_at(&mut world, "2026-11-28T18:10:00Z").await?;
        assert_eq!(flaws(&world, user, "2026-11").await?, november, "{sold}");
        world.stripe.settle_debit(ACCOUNT, &debit);
        sync_at(&mut world, "2026-12-04T12:10:00Z").await?;
        assert_eq!(flaws(&world, user, "2026-11").await?, november, "{sold}");
        assert_eq!(flaws(&world, user, "2026-12").await?, december, "{sold}");
    }
    Ok(())
}

/// The buyer's dollars are the same here and there, whatever they are worth; midnight, and a month's end, lie between a
/// payment and its tender.
#[tokio::test(flavor = "multi_thread")]
async fn another_rate_or_a_few_seconds_do_not_hide_a_payment_that_may_count_twice() -> Result<()> {
    let (mut world, user) = both().await?;
    world.run("update public.integration_tokens set connected_at = '2026-10-25T08:00:00Z'").await?;
    let day = at("2026-11-10T09:00:00Z");
    world.stripe.converted_payment(ACCOUNT, day, (10_000, "usd"), (9_200, "eur"));
    world.shopify.tender(SHOP, Tender::new(day, "100.0", "USD").shop_money("91.5"));
    world.stripe.payment(ACCOUNT, at("2026-10-31T22:59:58Z"), 3_300, "eur");
    world.shopify.tender(SHOP, Tender::new(at("2026-10-31T23:00:03Z"), "33.0", "EUR"));
    // An hour and more around midnight is another sale.
    world.stripe.payment(ACCOUNT, at("2026-11-12T22:20:00Z"), 4_400, "eur");
    world.shopify.tender(SHOP, Tender::new(at("2026-11-12T23:30:00Z"), "44.0", "EUR"));
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(flaws(&world, user, "2026-11").await?, json!({"maybe_twice": 2}));
    assert_eq!(flaws(&world, user, "2026-10").await?, json!({}));
    Ok(())
}

/// Two disputes of an order were prevented, in two months, and one of them was paid back, for all that is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_explains_one_prevented_dispute() -> Result<()> {
    let mut world = world_at("2026-10-25T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    sync_at(&mut world, "2026-10-25T12:10:00Z").await?;
    let sale = world.shopify.tender(SHOP, Tender::new(at("2026-10-24T09:00:00Z"), "84.0", "EUR"));
    for (begun, ended) in
        [("2026-10-30T09:00:00Z", "2026-10-31T09:00:00Z"), ("2026-11-05T09:00:00Z", "2026-11-06T09:00:00Z")]
    {
        let dispute = Dispute::new(at(begun), "42.0", "EUR").about(&sale);
        world.shopify.dispute(SHOP, dispute.finalized("PREVENTED", at(ended)));
    }
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    assert_eq!(flaws(&world, user, "2026-10").await?, json!({"prevented": 1}));
    assert_eq!(flaws(&world, user, "2026-11").await?, json!({"prevented": 1}));
    world.shopify.refund(SHOP, &sale, at("2026-11-07T09:00:00Z"), "42.0");
    sync_at(&mut world, "2026-11-10T18:10:00Z").await?;
    assert_eq!(flaws(&world, user, "2026-10").await?, json!({}));
    assert_eq!(flaws(&world, user, "2026-11").await?, json!({"prevented": 1}));
    world.shopify.refund(SHOP, &sale, at("2026-11-11T09:00:00Z"), "42.0");
    sync_at(&mut world, "2026-11-11T12:10:00Z").await?;
    assert_eq!(flaws(&world, user, "2026-11").await?, json!({}));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    Ok(())
}

/// An order was paid through Stripe and the shop's list has no tender of it: Stripe counts the money, and nothing is missing.
/// Each payment at Stripe explains one.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_stripe_counts_is_not_missing() -> Result<()> {
    let day = at("2026-11-11T09:00:00Z");
    for (unlisted, nameless, expected) in [
        (1, 0, json!({})),
        (2, 0, json!({"unlisted_payment": 1})),
        (1, 1, json!({"unlisted_payment": 1, "maybe_twice": 1})),
    ] {
        let (mut world, user) = both().await?;
        let paid = world.stripe.payment(ACCOUNT, at("2026-11-10T09:00:00Z"), 6_000, "eur");
        world.stripe.payment(ACCOUNT, day, 4_000, "eur");
        let first = Tender::new(at("2026-11-10T09:00:00Z"), "60.0", "EUR").reference(&paid.charge);
        let first = world.shopify.tender(SHOP, first);
        for _ in 0..unlisted {
            world.shopify.tender(SHOP, Tender::new(day, "40.0", "EUR").same_order(&first).unlisted());
        }
        for _ in 0..nameless {
            world.shopify.tender(SHOP, Tender::new(day, "40.0", "EUR"));
        }
        sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
        // Whichever of the two was read first, the next sync says what is missing of both.
        let part = sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
        assert_eq!(flaws(&world, user, "2026-11").await?, expected, "{unlisted} {nameless}");
        let missing = expected.get("unlisted_payment").map(|_| json!(1)).unwrap_or_default();
        assert_eq!(part["partial"], missing, "{unlisted} {nameless}: {part}");
        let euros = 100 + 40 * nameless;
        let (total, sum) = (format!("{euros}.00"), world.imported(user).await?);
        let sum: f64 = sum.iter().map(|(_, _, euros)| euros.parse::<f64>().expect("euros")).sum();
        assert_eq!(format!("{sum:.2}"), total);
    }
    Ok(())
}

/// An order was paid through Stripe without a tender, alone or beside one, and is paid back there, too. Nothing in the shop
/// names the charge, so both refunds come off: which is said, for it is not known.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_of_a_payment_that_only_an_order_tells_is_said() -> Result<()> {
    let (sold, returned) = (at("2026-11-10T09:00:00Z"), at("2026-11-12T09:00:00Z"));
    for beside in [false, true] {
        let (mut world, user) = both().await?;
        let mut order = Tender::new(sold, "40.0", "EUR").unlisted();
        if beside {
            let first = world.stripe.payment(ACCOUNT, at("2026-11-10T07:00:00Z"), 6_000, "eur");
            let first = Tender::new(at("2026-11-10T07:00:00Z"), "60.0", "EUR").reference(&first.charge);
            order = order.same_order(&world.shopify.tender(SHOP, first));
        }
        let order = world.shopify.tender(SHOP, order);
        let paid = world.stripe.payment(ACCOUNT, sold, 4_000, "eur");
        sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
        assert_eq!(flaws(&world, user, "2026-11").await?, json!({}), "{beside}: Stripe counts the payment");
        world.stripe.refund(ACCOUNT, &paid.charge, returned, 4_000);
        world.shopify.refund(SHOP, &order, returned, "40.0");
        world.post("sync-integrations", "days=30").await?;
        assert_eq!(flaws(&world, user, "2026-11").await?, json!({"refund_of_unknown_sale": 1}), "{beside}");
    }
    Ok(())
}

/// What agrees in amount and day and lies hours apart is another sale: the order's payment is missing. Nor does a debit that
/// failed explain one.
#[tokio::test(flavor = "multi_thread")]
async fn another_sale_of_the_day_explains_no_missing_payment() -> Result<()> {
    let sold = at("2026-11-10T09:00:00Z");
    for (when, fails, expected) in [
        ("2026-11-10T09:20:00Z", false, json!({})),
        ("2026-11-10T14:00:00Z", false, json!({"unlisted_payment": 1})),
        ("2026-11-10T09:00:00Z", true, json!({"unlisted_payment": 1})),
    ] {
        let (mut world, user) = both().await?;
        world.shopify.tender(SHOP, Tender::new(sold, "40.0", "EUR").unlisted());
        if fails {
            let debit = world.stripe.debit(ACCOUNT, at(when), 4_000, at("2026-11-16T09:00:00Z"));
            world.stripe.fail_debit(ACCOUNT, &debit, at("2026-11-14T09:00:00Z"));
        } else {
            world.stripe.payment(ACCOUNT, at(when), 4_000, "eur");
        }
        sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
        assert_eq!(flaws(&world, user, "2026-11").await?, expected, "{when} {fails}");
    }
    Ok(())
}

/// A refund through Stripe whose order is gone in the shop: by the name of its charge it is Stripe's; without a name it may
/// be, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_whose_order_is_gone_is_not_subtracted_twice_in_silence() -> Result<()> {
    for (is_named, cents, expected) in
        [(true, 8_000, json!({})), (false, 6_000, json!({"refund_of_unknown_sale": 1}))]
    {
        let (mut world, user) = both().await?;
        let paid = world.stripe.payment(ACCOUNT, at("2026-11-10T09:00:00Z"), 10_000, "eur");
        let sold = Tender::new(at("2026-11-10T09:00:00Z"), "100.0", "EUR").reference(&paid.charge);
        world.shopify.tender(SHOP, sold);
        let day = at("2026-11-12T09:00:00Z");
        world.stripe.refund(ACCOUNT, &paid.charge, day, 2_000);
        let back = Tender::new(day, "-20.0", "EUR").deleted_order();
        world.shopify.tender(SHOP, if is_named { back.reference(&paid.charge) } else { back });
        sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
        let sum: i64 = world
            .value("select (sum(amount_eur) * 100)::bigint from public.ca_records where source = 'auto_sync'")
            .await?;
        assert_eq!(sum, cents, "{is_named}");
        assert_eq!(flaws(&world, user, "2026-11").await?, expected, "{is_named}");
    }
    Ok(())
}

/// A dispute of a state that nobody knows yet is one strange row: the list of payments is not in doubt for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dispute_of_an_unknown_state_casts_no_doubt_on_the_payments() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(at("2026-11-10T09:00:00Z"), "60.0", "EUR"));
    // The vendor adds states: https://shopify.dev/changelog/adds-support-for-dispute-preventions
    let dispute = json!({
        "id": "gid://shopify/ShopifyPaymentsDispute/7", "type": "CHARGEBACK", "status": "PAUSED", "finalizedOn": null,
        "initiatedAt": "2026-11-17T09:00:00Z", "amount": {"amount": "60.00", "currencyCode": "EUR"}, "order": null,
    });
    let disputes = json!({"nodes": [dispute], "pageInfo": {"hasNextPage": false, "endCursor": null}});
    let told =
        json!({"data": {"shop": {"currencyCode": "EUR"}, "shopifyPaymentsAccount": {"disputes": disputes}}});
    world.shopify.faults().add(Rule::on("graphql", Fault::json(200, &told)).body("query Disputes"));
    for now in ["2026-11-18T12:10:00Z", "2026-11-18T18:10:00Z", "2026-11-19T06:10:00Z"] {
        sync_at(&mut world, now).await?;
        assert_eq!(flaws(&world, user, "2026-11").await?, json!({"unknown_kind": 1}), "{now}");
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]));
    }
    Ok(())
}
