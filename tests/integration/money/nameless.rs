//! Rows of a shop that do not say through whom the money went: what they may have in common with Stripe's is said, of each
//! of them, and one movement explains one row.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::shopify::Tender;
use uuid::Uuid;

use super::{books, sync_at, world_at};
use crate::{clock::at, world::World};

const ACCOUNT: &str = "acct_nameless";
const SHOP: &str = "nameless.myshopify.com";

async fn both(now: &str) -> Result<(World, Uuid)> {
    let world = world_at(now).await?;
    let user = world.stripe_user(ACCOUNT).await?;
    world.shopify.add_shop(SHOP, "EUR", "shpat_nameless");
    world.connect_shopify(user, SHOP, "shpat_nameless", None).await?;
    Ok((world, user))
}

/// Returns what a month lacks or may have twice.
async fn flaws(world: &World, user: Uuid, month: &str) -> Result<Value> {
    let sql = "select jobs.month_flaws($1, to_date($2, 'YYYY-MM'), $3)";
    Ok(sqlx::query_scalar(sql).bind(user).bind(month).bind(world.now()).fetch_one(world.pool()).await?)
}

/// Says what is sold in the shop beside a payment of 100 € at Stripe.
#[derive(Clone, Copy, Debug)]
enum Sold {
    /// It is of the same amount and minute, without a name.
    Alike,
    /// It was paid in cash.
    InCash,
    /// It is of another amount.
    OtherAmount,
    /// It is of the same amount, but another one names the payment at Stripe.
    BesideAnother,
}

/// A sale that names no charge is paid back in a later month, and so is a payment at Stripe that it may be, by the same
/// amount: both come off, which is said. What cannot be that payment's refund is no doubt.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_of_a_nameless_sale_may_come_off_twice() -> Result<()> {
    let (sold, returned) = (at("2026-10-05T09:00:00Z"), at("2026-11-05T09:00:00Z"));
    for (case, october, november, left) in [
        (Sold::Alike, json!({"maybe_twice": 1}), json!({"refund_of_unknown_sale": 1}), "-40.00"),
        (Sold::InCash, json!({}), json!({}), "-40.00"),
        (Sold::OtherAmount, json!({}), json!({}), "-40.00"),
        (Sold::BesideAnother, json!({}), json!({}), "-40.00"),
    ] {
        let (mut world, user) = both("2026-10-02T12:00:00Z").await?;
        let paid = world.stripe.payment(ACCOUNT, sold, 10_000, "eur");
        let tender = match case {
            Sold::InCash => Tender::new(sold, "100.0", "EUR").method("cash"),
            Sold::OtherAmount => Tender::new(sold, "70.0", "EUR"),
            Sold::Alike | Sold::BesideAnother => Tender::new(sold, "100.0", "EUR"),
        };
        let sale = world.shopify.tender(SHOP, tender);
        if matches!(case, Sold::BesideAnother) {
            let other = Tender::new(sold, "100.0", "EUR").reference(&paid.charge);
            let other = world.shopify.tender(SHOP, other);
            world.shopify.refund(SHOP, &other, returned, "20.0");
        }
        sync_at(&mut world, "2026-10-06T06:10:00Z").await?;
        assert_eq!(flaws(&world, user, "2026-10").await?, october, "{case:?}");
        world.stripe.refund(ACCOUNT, &paid.charge, returned, 2_000);
        world.shopify.refund(SHOP, &sale, returned, "20.0");
        sync_at(&mut world, "2026-11-05T12:10:00Z").await?;
        assert_eq!(flaws(&world, user, "2026-11").await?, november, "{case:?}");
        let of_november: Vec<f64> = books(&world, user)
            .await?
            .iter()
            .filter(|(month, _)| month == "2026-11")
            .map(|(_, euros)| euros.parse().expect("euros"))
            .collect();
        assert_eq!(format!("{:.2}", of_november.iter().sum::<f64>()), left, "{case:?}");
    }
    Ok(())
}

/// The payment that was paid back is known to nobody here: it may be the nameless sale's. A refund hours apart is another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_at_stripe_of_a_payment_that_was_never_read_may_be_a_nameless_sales() -> Result<()> {
    for (returned, expected) in
        [("2026-11-05T09:00:00Z", json!({"refund_of_unknown_sale": 1})), ("2026-11-06T09:00:00Z", json!({}))]
    {
        let (mut world, user) = both("2026-11-02T12:00:00Z").await?;
        let paid = world.stripe.payment(ACCOUNT, at("2026-05-05T09:00:00Z"), 10_000, "eur");
        let sale = world.shopify.tender(SHOP, Tender::new(at("2026-11-03T09:00:00Z"), "70.0", "EUR"));
        world.shopify.refund(SHOP, &sale, at("2026-11-05T09:00:00Z"), "20.0");
        world.stripe.refund(ACCOUNT, &paid.charge, at(returned), 2_000);
        sync_at(&mut world, "2026-11-06T12:10:00Z").await?;
        assert_eq!(flaws(&world, user, "2026-11").await?, expected, "{returned}");
    }
    Ok(())
}

/// Payments that only orders tell, and movements at Stripe of their amount: one explains one, within an hour, also on both
/// sides of a month's end; where there are as many as can be brought together, nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn one_movement_explains_one_unlisted_payment() -> Result<()> {
    let one = json!({"unlisted_payment": 1});
    let none = json!({});
    let (ten, eleven) = ("2026-11-03T10:00:00Z", "2026-11-03T11:20:00Z");
    for (unlisted, at_stripe, october, november) in [
        // Both lie within an hour of it.
        (vec![ten, eleven], vec!["2026-11-03T10:40:00Z"], &none, &one),
        (vec![ten, eleven], vec!["2026-11-03T10:40:00Z", "2026-11-03T12:15:00Z"], &none, &none),
        (vec![ten, eleven], vec![ten, eleven], &none, &none),
        (vec![ten, eleven], vec!["2026-11-03T09:05:00Z", "2026-11-03T10:25:00Z"], &none, &none),
        // Midnight in Paris is at 23:00.
        (vec!["2026-10-31T22:30:00Z", "2026-10-31T23:30:00Z"], vec!["2026-10-31T23:05:00Z"], &none, &one),
        (vec!["2026-10-31T22:10:00Z", "2026-10-31T22:40:00Z"], vec!["2026-10-31T23:05:00Z"], &one, &none),
    ] {
        let (mut world, user) = both("2026-10-02T12:00:00Z").await?;
        sync_at(&mut world, "2026-10-02T12:10:00Z").await?;
        for when in &unlisted {
            world.shopify.tender(SHOP, Tender::new(at(when), "50.0", "EUR").unlisted());
        }
        for when in &at_stripe {
            world.stripe.payment(ACCOUNT, at(when), 5_000, "eur");
        }
        sync_at(&mut world, "2026-11-04T06:10:00Z").await?;
        // Whichever of the two was read first.
        sync_at(&mut world, "2026-11-04T12:10:00Z").await?;
        let found = (flaws(&world, user, "2026-10").await?, flaws(&world, user, "2026-11").await?);
        assert_eq!(found, (october.clone(), november.clone()), "{unlisted:?} {at_stripe:?}");
    }
    Ok(())
}

/// A shop's list has a sale without a name, an order tells another one, and Stripe has one payment that could be either: it
/// may count twice, and one payment is missing. With a second movement within the hour nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_listed_sale_comes_before_one_that_only_an_order_tells() -> Result<()> {
    for (at_stripe, expected) in [
        (vec!["2026-11-03T10:40:00Z"], json!({"unlisted_payment": 1, "maybe_twice": 1})),
        (vec!["2026-11-03T10:40:00Z", "2026-11-03T11:30:00Z"], json!({"maybe_twice": 1})),
    ] {
        let (mut world, user) = both("2026-11-02T12:00:00Z").await?;
        world.shopify.tender(SHOP, Tender::new(at("2026-11-03T10:00:00Z"), "50.0", "EUR").unlisted());
        world.shopify.tender(SHOP, Tender::new(at("2026-11-03T11:00:00Z"), "50.0", "EUR"));
        for when in &at_stripe {
            world.stripe.payment(ACCOUNT, at(when), 5_000, "eur");
        }
        sync_at(&mut world, "2026-11-04T06:10:00Z").await?;
        sync_at(&mut world, "2026-11-04T12:10:00Z").await?;
        assert_eq!(flaws(&world, user, "2026-11").await?, expected, "{at_stripe:?}");
    }
    Ok(())
}
