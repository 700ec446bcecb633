//! The cases of real users once more, with other inputs: other debits, currencies of no and of three decimals, the days on
//! which clocks change, the last second of a month and of a year, a kill between two reads, an answer that comes twice.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    faults::Fault,
    shopify::{Dispute, Tender},
    stripe::Payment,
};
use uuid::Uuid;

use super::{books, excluded, said, sync_at, world_at};
use crate::{chaos::killed_at, clock::at, world::World};

const ACCOUNT: &str = "acct_cases";
const SHOP: &str = "replayed.myshopify.com";

async fn both(now: &str) -> Result<(World, Uuid)> {
    let world = world_at(now).await?;
    let user = world.stripe_user(ACCOUNT).await?;
    world.shopify.add_shop(SHOP, "EUR", "shpat_replayed");
    world.connect_shopify(user, SHOP, "shpat_replayed", None).await?;
    world.run("update public.integration_tokens set connected_at = $now").await?;
    Ok((world, user))
}

/// Shows the charge behind a debit as one of another kind, which was bought for `money`.
fn shows(world: &World, debit: &Payment, (method, status): (&str, &str), (amount, currency): (i64, &str)) {
    let source = json!({
        "id": debit.charge, "object": "charge", "amount": amount, "currency": currency, "status": status,
        "payment_intent": debit.intent, "payment_method_details": {"type": method},
    });
    world.stripe.show(ACCOUNT, &debit.transaction, json!({"source": source}));
}

/// Any payment that was on its way counts once, in the month of Paris in which its money was there: summer and winter, at
/// the last second of a month and the first of the next one; also where a function is killed after it has noted it.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_on_its_way_counts_once_when_it_is_there() -> Result<()> {
    for (method, sent, waits, there, then, month) in [
        (
            "bacs_debit",
            "2026-10-23",
            "2026-10-31T18:10:00Z",
            "2026-10-31T23:30:00Z",
            "2026-11-01T00:10:00Z",
            "2026-11",
        ),
        (
            "us_bank_account",
            "2026-11-28",
            "2026-11-30T18:10:00Z",
            "2026-11-30T22:59:59Z",
            "2026-12-01T00:10:00Z",
            "2026-11",
        ),
        (
            "acss_debit",
            "2026-11-28",
            "2026-11-30T18:10:00Z",
            "2026-11-30T23:00:00Z",
            "2026-12-01T00:10:00Z",
            "2026-12",
        ),
        (
            "au_becs_debit",
            "2027-03-25",
            "2027-03-31T18:10:00Z",
            "2027-03-31T22:00:00Z",
            "2027-04-01T00:10:00Z",
            "2027-04",
        ),
        (
            "sofort",
            "2026-12-20",
            "2027-01-03T18:10:00Z",
            "2027-01-04T00:00:00Z",
            "2027-01-04T06:10:00Z",
            "2027-01",
        ),
    ] {
        let (mut world, user) = both(&format!("{sent}T05:00:00Z")).await?;
        let debit = world.stripe.debit(ACCOUNT, at(&format!("{sent}T09:00:00Z")), 12_345, at(there));
        shows(&world, &debit, (method, "pending"), (12_345, "eur"));
        for now in [&format!("{sent}T12:10:00Z"), waits] {
            let part = sync_at(&mut world, now).await?;
            assert_eq!((&part["errors"], &part["synced"]), (&json!(0), &json!(2)), "{method} {now}: {part}");
            assert_eq!(books(&world, user).await?, [], "{method} {now}");
            assert_eq!(
                excluded(&world, &debit.transaction).await?.as_deref(),
                Some("pending"),
                "{method} {now}"
            );
        }
        shows(&world, &debit, (method, "succeeded"), (12_345, "eur"));
        world.set_now(at(then));
        let noted = ("integration_settle", Fault::Late(std::time::Duration::from_mins(5)));
        killed_at(&world, (Method::POST, "sync-integrations", "days=30"), noted).await?;
        // The cron reads it again, and its repetition joins the first one.
        for _ in 0..2 {
            world.cron("daily-orchestrator", "").await?;
            assert_eq!(books(&world, user).await?, said(&[(month, "123.45")]), "{method}");
        }
    }
    Ok(())
}

/// A debit in pounds that settles in euros fails: it was never received, whether or not its charge says so by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_debit_in_another_currency_that_fails_was_never_received() -> Result<()> {
    for status in ["pending", "succeeded", "failed"] {
        let (mut world, user) = both("2026-10-20T05:00:00Z").await?;
        let (sent, there) = (at("2026-10-20T09:00:00Z"), at("2026-10-26T00:00:00Z"));
        let debit = world.stripe.debit(ACCOUNT, sent, 8_765, there);
        shows(&world, &debit, ("bacs_debit", "pending"), (7_500, "gbp"));
        sync_at(&mut world, "2026-10-20T12:10:00Z").await?;
        world.stripe.fail_debit(ACCOUNT, &debit, at("2026-11-02T09:00:00Z"));
        shows(&world, &debit, ("bacs_debit", status), (7_500, "gbp"));
        for now in ["2026-11-02T12:10:00Z", "2026-11-03T06:10:00Z"] {
            sync_at(&mut world, now).await?;
            assert_eq!(books(&world, user).await?, [], "{status} {now}");
            let why = excluded(&world, &debit.transaction).await?;
            assert_eq!(why.as_deref(), Some("failed"), "{status} {now}");
        }
    }
    Ok(())
}

/// Sales in yen and in Kuwaiti dinars whose orders are deleted, or out of reach, keep what they were worth, also after the
/// end of a month and of the clocks' summer.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sale_was_worth_outlives_its_order_in_any_currency() -> Result<()> {
    for (price, currency, worth) in
        [("5000", "JPY", "30.25"), ("12.345", "KWD", "37.1"), ("9.99", "USD", "9.01")]
    {
        let (mut world, user) = both("2026-10-20T05:00:00Z").await?;
        let sold = ["2026-10-25T00:30:00Z", "2026-10-31T23:30:00Z"]
            .map(|day| world.shopify.tender(SHOP, Tender::new(at(day), price, currency).shop_money(worth)));
        sync_at(&mut world, "2026-11-01T06:10:00Z").await?;
        let euros = format!("{:.2}", worth.parse::<f64>()?);
        let both = said(&[("2026-10", &euros), ("2026-11", &euros)]);
        assert_eq!(books(&world, user).await?, both, "{currency}");
        world.shopify.delete_order(SHOP, &sold[0]);
        sync_at(&mut world, "2026-11-01T12:10:00Z").await?;
        world.shopify.hide_orders_before(SHOP, at("2026-11-30T00:00:00Z"));
        for (now, month) in [("2026-11-02T06:10:00Z", "2026-10"), ("2026-11-20T06:10:00Z", "2026-11")] {
            sync_at(&mut world, now).await?;
            world.post("monthly-sync", &format!("month={month}")).await?;
            assert_eq!(books(&world, user).await?, both, "{currency} {now}");
        }
    }
    Ok(())
}

/// A sale a minute before the end of October, paid back in November: in part through Stripe, in part by bank transfer, and
/// once more through Stripe. Each counts once, on its own day: the bank transfer is the shop's, the rest Stripe's.
#[tokio::test(flavor = "multi_thread")]
async fn refunds_of_three_kinds_come_off_once_each() -> Result<()> {
    let (mut world, user) = both("2026-10-20T05:00:00Z").await?;
    let paid = world.stripe.payment(ACCOUNT, at("2026-10-31T22:59:00Z"), 25_050, "eur");
    let sold = Tender::new(at("2026-10-31T22:59:10Z"), "250.5", "EUR").reference(&paid.intent);
    let sold = world.shopify.tender(SHOP, sold);
    for (day, cents, euros) in
        [("2026-11-01T00:10:00Z", 1_725, "17.25"), ("2026-11-30T22:59:59Z", 2_240, "22.4")]
    {
        world.stripe.refund(ACCOUNT, &paid.charge, at(day), cents);
        world.shopify.refund(SHOP, &sold, at(day), euros);
    }
    let by_bank = Tender::new(at("2026-11-02T09:00:00Z"), "-22.4", "EUR").method("bank_deposit");
    world.shopify.tender(SHOP, by_bank.same_order(&sold));
    sync_at(&mut world, "2026-10-31T18:10:00Z").await?;
    for now in ["2026-12-01T06:10:00Z", "2026-12-01T12:10:00Z", "2026-12-02T06:10:00Z"] {
        sync_at(&mut world, now).await?;
        assert_eq!(
            books(&world, user).await?,
            said(&[("2026-10", "250.50"), ("2026-11", "-39.65"), ("2026-11", "-22.40")]),
            "{now}"
        );
    }
    Ok(())
}

/// A dispute is lost in the first half hour of a month of Paris, seen days later, and won in the next year; a sale made
/// offline in the year's last second shows in January.
#[tokio::test(flavor = "multi_thread")]
async fn the_edges_of_months_and_years_are_those_of_paris() -> Result<()> {
    let (mut world, user) = both("2026-11-20T05:00:00Z").await?;
    let sale = world.shopify.tender(SHOP, Tender::new(at("2026-11-21T09:00:00Z"), "1234.56", "EUR"));
    let dispute = Dispute::new(at("2026-11-23T09:00:00Z"), "1234.56", "EUR").about(&sale);
    let dispute = world.shopify.dispute(SHOP, dispute);
    let late = Tender::new(at("2026-12-31T22:59:59Z"), "80.01", "EUR").late();
    let late = world.shopify.tender(SHOP, late);
    sync_at(&mut world, "2026-11-30T18:10:00Z").await?;
    world.shopify.finalize_dispute(SHOP, &dispute, "LOST", at("2026-11-30T23:20:00Z"));
    sync_at(&mut world, "2026-12-07T06:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "1234.56"), ("2026-12", "-1234.56")]));
    world.shopify.finalize_dispute(SHOP, &dispute, "WON", at("2027-01-02T09:00:00Z"));
    sync_at(&mut world, "2027-01-02T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "1234.56")]));
    world.shopify.reveal(SHOP, &late);
    sync_at(&mut world, "2027-01-05T06:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "1234.56"), ("2026-12", "80.01")]));
    let years: Value = world.value("select jsonb_agg(distinct year) from public.ca_records").await?;
    assert_eq!(years, json!([2026]));
    Ok(())
}
