//! One payment that two providers report: each movement at Stripe explains one in the shop, by amount and currency.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use stand_ins::shopify::Tender;
use uuid::Uuid;

use super::{books, said, source::Dice, sync_at, world_at};
use crate::{clock::at, world::World};

const SHOP: &str = "twins.myshopify.com";
const DAY: &str = "2026-11-10T09:00:00Z";

async fn both() -> Result<(World, Uuid)> {
    let world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_twins").await?;
    world.shopify.add_shop(SHOP, "EUR", "shpat_twins");
    world.connect_shopify(user, SHOP, "shpat_twins", None).await?;
    Ok((world, user))
}

/// Returns the sum of what was imported, in cents.
async fn cents(world: &mut World, user: Uuid) -> Result<i64> {
    sync_at(world, "2026-11-18T12:10:00Z").await?;
    cents_now(world, user).await
}

async fn cents_now(world: &World, user: Uuid) -> Result<i64> {
    let sql = "select (coalesce(sum(amount_eur), 0) * 100)::bigint from public.ca_records where user_id = $1 and source = 'auto_sync'";
    Ok(sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await?)
}

async fn flaws(world: &World, user: Uuid) -> Result<Value> {
    let sql = "select jobs.month_flaws($1, '2026-11-01', '2026-11-18T12:10:00Z')";
    Ok(sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await?)
}

/// Stripe knows 100 €, 20 € of them paid back there, and the shop 30 € by bank transfer: 50 € are
/// left.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_by_bank_transfer_is_money_of_its_own() -> Result<()> {
    let (mut world, user) = both().await?;
    let paid = world.stripe.payment("acct_twins", at(DAY), 10_000, "eur");
    let sold = world.shopify.tender(SHOP, Tender::new(at(DAY), "100.0", "EUR").reference(&paid.charge));
    world.stripe.refund("acct_twins", &paid.charge, at("2026-11-12T09:00:00Z"), 2_000);
    world.shopify.refund(SHOP, &sold, at("2026-11-12T09:00:00Z"), "20.0");
    let manual =
        Tender::new(at("2026-11-13T09:00:00Z"), "-30.0", "EUR").method("bank_deposit").same_order(&sold);
    world.shopify.tender(SHOP, manual);
    assert_eq!(cents(&mut world, user).await?, 5_000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_beside_a_chargeback_is_money_of_its_own() -> Result<()> {
    let (mut world, user) = both().await?;
    let paid = world.stripe.payment("acct_twins", at(DAY), 10_000, "eur");
    let sold = world.shopify.tender(SHOP, Tender::new(at(DAY), "100.0", "EUR").reference(&paid.charge));
    world.stripe.dispute("acct_twins", &paid.charge, at("2026-11-12T09:00:00Z"), 1_500);
    world.shopify.refund(SHOP, &sold, at("2026-11-13T09:00:00Z"), "15.0");
    assert_eq!(cents(&mut world, user).await?, 7_000);
    Ok(())
}

/// A payment is captured in two pieces, which the shop tells as two, under one charge.
#[tokio::test(flavor = "multi_thread")]
async fn one_charge_in_two_pieces() -> Result<()> {
    let (mut world, user) = both().await?;
    let paid = world.stripe.payment("acct_twins", at(DAY), 10_000, "eur");
    let first = world.shopify.tender(SHOP, Tender::new(at(DAY), "60.0", "EUR").reference(&paid.charge));
    let second = Tender::new(at(DAY), "40.0", "EUR").reference(&paid.charge).same_order(&first);
    world.shopify.tender(SHOP, second);
    assert_eq!(cents(&mut world, user).await?, 10_000);
    Ok(())
}

/// Two refunds have one amount, and Stripe knows one of them.
#[tokio::test(flavor = "multi_thread")]
async fn one_movement_explains_one() -> Result<()> {
    let (mut world, user) = both().await?;
    let paid = world.stripe.payment("acct_twins", at(DAY), 10_000, "eur");
    let sold = world.shopify.tender(SHOP, Tender::new(at(DAY), "100.0", "EUR").reference(&paid.charge));
    world.stripe.refund("acct_twins", &paid.charge, at("2026-11-12T09:00:00Z"), 2_000);
    for _ in 0..2 {
        world.shopify.refund(SHOP, &sold, at("2026-11-12T09:00:00Z"), "20.0");
    }
    assert_eq!(cents(&mut world, user).await?, 6_000);
    Ok(())
}

/// The rate is another here and there: a dollar refund is recognised by its dollars.
#[tokio::test(flavor = "multi_thread")]
async fn another_rate_is_no_other_money() -> Result<()> {
    let (mut world, user) = both().await?;
    let paid = world.stripe.converted_payment("acct_twins", at(DAY), (10_000, "usd"), (9_200, "eur"));
    let tender = Tender::new(at(DAY), "100.0", "USD").shop_money("91.5").reference(&paid.charge);
    world.shopify.tender(SHOP, tender);
    assert_eq!(cents(&mut world, user).await?, 9_200);
    Ok(())
}

/// A payment names no charge, and one at Stripe has the same amount and day: perhaps it is the
/// same, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_counted_twice_is_said() -> Result<()> {
    let (mut world, user) = both().await?;
    world.stripe.payment("acct_twins", at(DAY), 10_000, "eur");
    world.shopify.tender(SHOP, Tender::new(at("2026-11-10T15:00:00Z"), "100.0", "EUR"));
    assert_eq!(cents(&mut world, user).await?, 20_000);
    assert_eq!(flaws(&world, user).await?, json!({"maybe_twice": 1}));
    // Cash is no charge, and another day is another sale.
    let (mut world, user) = both().await?;
    world.stripe.payment("acct_twins", at(DAY), 10_000, "eur");
    world.shopify.tender(SHOP, Tender::new(at(DAY), "100.0", "EUR").method("cash"));
    world.shopify.tender(SHOP, Tender::new(at("2026-11-11T09:00:00Z"), "100.0", "EUR"));
    assert_eq!(cents(&mut world, user).await?, 30_000);
    assert_eq!(flaws(&world, user).await?, json!({}));
    Ok(())
}

/// A debit that the shop reports, too, was received in neither place as long as it waits, and when it fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_debit_is_no_sale_of_the_shop() -> Result<()> {
    let (mut world, user) = both().await?;
    let debit = world.stripe.debit("acct_twins", at(DAY), 10_000, at("2026-11-17T09:00:00Z"));
    world.shopify.tender(SHOP, Tender::new(at(DAY), "100.0", "EUR").reference(&debit.charge));
    assert_eq!(cents(&mut world, user).await?, 0);
    world.stripe.fail_debit("acct_twins", &debit, at("2026-11-18T15:00:00Z"));
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(cents_now(&world, user).await?, 0);
    Ok(())
}

/// Two refunds of one order are equal, and Stripe's books have the later one alone: the earlier one comes off in its own
/// month, by the shop, whether the shop names them or not, and whether or not midnight lies between the two reports of the later one.
#[tokio::test(flavor = "multi_thread")]
async fn of_equal_refunds_the_one_that_stripe_tells_is_stripes() -> Result<()> {
    for (are_named, told_at) in
        [(true, "2026-11-05T22:30:00Z"), (false, "2026-11-05T22:30:00Z"), (false, "2026-11-06T07:00:00Z")]
    {
        let mut world = world_at("2026-10-25T12:00:00Z").await?;
        world.shopify.add_shop(SHOP, "EUR", "shpat_twins");
        let user = world.user("equal@example.test").await?;
        world.connect_shopify(user, SHOP, "shpat_twins", None).await?;
        world.run("update public.integration_tokens set connected_at = '2026-10-05T08:00:00Z'").await?;
        world.stripe.add_account("acct_equal", "sk_acct_equal");
        let paid = world.stripe.payment("acct_equal", at("2026-10-10T09:00:00Z"), 10_000, "eur");
        let sold = Tender::new(at("2026-10-10T09:00:00Z"), "100.0", "EUR").reference(&paid.charge);
        let sold = world.shopify.tender(SHOP, sold);
        for (in_shop, at_stripe) in
            [("2026-10-20T09:00:00Z", "2026-10-20T09:00:05Z"), ("2026-11-05T22:30:00Z", told_at)]
        {
            let back = world.stripe.refund("acct_equal", &paid.charge, at(at_stripe), 2_000);
            let tender = Tender::new(at(in_shop), "-20.0", "EUR").same_order(&sold);
            world.shopify.tender(SHOP, if are_named { tender.reference(&back.source) } else { tender });
        }
        sync_at(&mut world, "2026-10-25T12:10:00Z").await?;
        world.connect_stripe(user, "acct_equal", "sk_acct_equal").await?;
        world.run("update public.integration_tokens set connected_at = '2026-11-03T08:00:00Z' where provider = 'stripe'").await?;
        sync_at(&mut world, "2026-11-08T12:10:00Z").await?;
        let expected = said(&[("2026-10", "80.00"), ("2026-11", "-20.00")]);
        assert_eq!(books(&world, user).await?, expected, "{are_named} {told_at}");
    }
    Ok(())
}

/// A refund that the shop names is no other of the same amount, which Stripe tells alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_is_named_is_no_other() -> Result<()> {
    let (mut world, user) = both().await?;
    let paid = world.stripe.payment("acct_twins", at(DAY), 10_000, "eur");
    let sold = world.shopify.tender(SHOP, Tender::new(at(DAY), "100.0", "EUR").reference(&paid.charge));
    world.stripe.refund("acct_twins", &paid.charge, at("2026-11-12T09:00:00Z"), 2_000);
    let other = Tender::new(at("2026-11-12T09:00:00Z"), "-20.0", "EUR").same_order(&sold);
    world.shopify.tender(SHOP, other.reference("re_elsewhere"));
    assert_eq!(cents(&mut world, user).await?, 6_000);
    Ok(())
}

/// The shop tells one refund in two pieces, which both name it.
#[tokio::test(flavor = "multi_thread")]
async fn one_refund_in_two_pieces() -> Result<()> {
    let (mut world, user) = both().await?;
    let paid = world.stripe.payment("acct_twins", at(DAY), 10_000, "eur");
    let sold = world.shopify.tender(SHOP, Tender::new(at(DAY), "100.0", "EUR").reference(&paid.charge));
    let back = world.stripe.refund("acct_twins", &paid.charge, at("2026-11-12T09:00:00Z"), 3_000);
    for amount in ["-10.0", "-20.0"] {
        let piece = Tender::new(at("2026-11-12T09:00:00Z"), amount, "EUR").same_order(&sold);
        world.shopify.tender(SHOP, piece.reference(&back.source));
    }
    assert_eq!(cents(&mut world, user).await?, 7_000);
    Ok(())
}

/// Orders have equal refunds, days apart, of which Stripe tells some, each within hours: those are explained, and no others.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_in_time_explains() -> Result<()> {
    let (world, user) = both().await?;
    world.post("sync-integrations", "").await?;
    let mut dice = Dice(7);
    let insert = "insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs) \
        values ($1, $2, $3, 'acct_twins', case when $4 > 0 then 'payment' else 'refund' end, $5, $4, 'EUR', $6)";
    let row =
        async |provider: &'static str, id: String, cents: i64, when: DateTime<Utc>, refs: Vec<String>| {
            sqlx::query(insert)
                .bind(user)
                .bind(provider)
                .bind(id)
                .bind(cents)
                .bind(when)
                .bind(refs)
                .execute(world.pool())
                .await
        };
    let mut expected = Vec::new();
    for order in 0..25 {
        let (charge, of_order) = (format!("ch_{order}"), format!("gid://shopify/Order/{order}"));
        let begin = at("2026-09-01T09:00:00Z");
        row("shopify", format!("s{order}"), 90_000, begin, vec![charge.clone(), of_order.clone()]).await?;
        row("stripe", format!("p{order}"), 90_000, begin, vec![charge.clone()]).await?;
        for nth in 0..2 + dice.below(7) {
            let when =
                begin + TimeDelta::days(2 * i64::try_from(nth + dice.below(2))? + 4 * i64::try_from(nth)?);
            let id = format!("s{order}-{nth}");
            row("shopify", id.clone(), -2_000, when, vec![of_order.clone()]).await?;
            if dice.below(2) == 0 {
                let told = when + TimeDelta::hours(i64::try_from(dice.below(40))? - 20);
                row(
                    "stripe",
                    format!("p{order}-{nth}"),
                    -2_000,
                    told,
                    vec![charge.clone(), format!("re_{order}x{nth}")],
                )
                .await?;
                expected.push(id);
            }
        }
    }
    let sql = "select external_id from jobs.movements_reported_twice($1, '{2026-09-01,2026-10-01,2026-11-01}', false) where external_id ~ '-'";
    let mut found: Vec<String> = sqlx::query_scalar(sql).bind(user).fetch_all(world.pool()).await?;
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    Ok(())
}

/// What was paid back in cash is not what Stripe has paid back of the same order, on whichever day.
#[tokio::test(flavor = "multi_thread")]
async fn cash_is_not_stripes() -> Result<()> {
    let (mut world, user) = both().await?;
    let paid = world.stripe.payment("acct_twins", at(DAY), 10_000, "eur");
    let sold = world.shopify.tender(SHOP, Tender::new(at(DAY), "100.0", "EUR").reference(&paid.charge));
    world.stripe.refund("acct_twins", &paid.charge, at("2026-11-12T09:00:00Z"), 2_000);
    let cash = Tender::new(at("2026-11-12T09:00:00Z"), "-20.0", "EUR").method("cash").same_order(&sold);
    world.shopify.tender(SHOP, cash);
    assert_eq!(cents(&mut world, user).await?, 6_000);
    Ok(())
}

/// The shop calls one payment by its intent, and a refund of it, whose order is gone, by its charge: both refunds are
/// Stripe's, of one order.
#[tokio::test(flavor = "multi_thread")]
async fn names_side_by_side_are_one_payment() -> Result<()> {
    let (mut world, user) = both().await?;
    let paid = world.stripe.payment("acct_twins", at(DAY), 10_000, "eur");
    let sold = Tender::new(at(DAY), "100.0", "EUR").reference(&paid.intent);
    let sold = world.shopify.tender(SHOP, sold);
    for (day, cents, is_gone) in [("2026-11-12T09:00:00Z", 500, true), ("2026-11-14T09:00:00Z", 1_000, false)]
    {
        world.stripe.refund("acct_twins", &paid.charge, at(day), cents);
        let tender = Tender::new(at(day), &format!("-{}.0", cents / 100), "EUR");
        let tender =
            if is_gone { tender.reference(&paid.charge).deleted_order() } else { tender.same_order(&sold) };
        world.shopify.tender(SHOP, tender);
    }
    assert_eq!(cents(&mut world, user).await?, 8_500);
    Ok(())
}

/// A refund in dollars is Stripe's by its dollars, though another one, by bank transfer, has its sum in euros.
#[tokio::test(flavor = "multi_thread")]
async fn the_buyers_money_decides_before_the_euros() -> Result<()> {
    let (mut world, user) = both().await?;
    let paid = world.stripe.converted_payment("acct_twins", at(DAY), (10_000, "usd"), (9_200, "eur"));
    let tender = Tender::new(at(DAY), "100.0", "USD").shop_money("92.0").reference(&paid.charge);
    let sold = world.shopify.tender(SHOP, tender);
    world.stripe.refund("acct_twins", &paid.charge, at("2026-11-12T09:00:00Z"), 920);
    let dollars =
        Tender::new(at("2026-11-12T09:00:00Z"), "-10.0", "USD").shop_money("-9.5").same_order(&sold);
    world.shopify.tender(SHOP, dollars);
    let euros =
        Tender::new(at("2026-11-14T09:00:00Z"), "-9.2", "EUR").method("bank_deposit").same_order(&sold);
    world.shopify.tender(SHOP, euros);
    assert_eq!(cents(&mut world, user).await?, 9_200 - 920 - 920);
    Ok(())
}
