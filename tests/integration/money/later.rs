//! What shows or turns later than anybody reads for: sales, disputes, and what a platform takes back.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::shopify::{Dispute, Tender};

use super::{books, excluded, said, sync_at, world_at, worth};
use crate::clock::at;

const SHOP: &str = "later.myshopify.com";
const ACCOUNT: &str = "acct_later";

/// A sale that was made offline shows days or weeks after its date. The crons alone find it, also where it lies further
/// back than any list is read: its order is new then.
#[tokio::test(flavor = "multi_thread")]
async fn a_sale_that_shows_weeks_later_is_found() -> Result<()> {
    for (sold, shown, found) in [
        ("2026-11-28T09:00:00Z", "2026-12-01T06:10:00Z", "2026-12-01T12:10:00Z"),
        ("2026-11-28T09:00:00Z", "2026-12-03T06:10:00Z", "2026-12-03T12:10:00Z"),
        ("2026-11-04T09:00:00Z", "2026-12-03T06:10:00Z", "2026-12-03T12:10:00Z"),
        ("2026-11-04T09:00:00Z", "2026-12-05T06:10:00Z", "2026-12-07T18:10:00Z"),
        ("2026-11-04T09:00:00Z", "2026-12-19T06:10:00Z", "2026-12-21T18:10:00Z"),
    ] {
        let mut world = world_at("2026-11-03T12:00:00Z").await?;
        let user = world.shopify_user(SHOP).await?;
        world.shopify.tender(SHOP, Tender::new(at("2026-11-02T09:00:00Z"), "5.0", "EUR"));
        sync_at(&mut world, "2026-11-03T12:10:00Z").await?;
        let sale = world.shopify.tender(SHOP, Tender::new(at(sold), "80.0", "EUR").late());
        sync_at(&mut world, "2026-11-29T12:10:00Z").await?;
        sync_at(&mut world, "2026-12-01T00:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "5.00")]), "{shown}");
        world.set_now(at(shown));
        world.shopify.reveal(SHOP, &sale);
        // The crons of some days.
        let (mut now, until) = (at(shown), at(found));
        while now <= until {
            sync_at(&mut world, &now.to_rfc3339()).await?;
            now += chrono::TimeDelta::hours(6);
        }
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "85.00")]), "{shown}");
        assert_eq!(worth(&world, user, 11).await?, json!({"status": "complete"}), "{shown}");
    }
    Ok(())
}

/// A platform takes back what it passed on in pieces: as long as a part is left it is her fee, all of it may be the sale.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_reversed_in_pieces_is_named_once_nothing_is_left() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    let paid = world.stripe.payment(ACCOUNT, at("2026-11-03T09:00:00Z"), 10_000, "eur");
    let other = world.stripe.payment(ACCOUNT, at("2026-11-03T10:00:00Z"), 10_000, "eur");
    for (day, cents) in [("2026-11-04T09:00:00Z", 1_000), ("2026-11-05T09:00:00Z", 2_000)] {
        world.stripe.transfer_reversal(ACCOUNT, &paid.charge, at(day), cents);
        world.stripe.transfer_reversal(ACCOUNT, &other.charge, at(day), cents);
    }
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    // A part that was paid back to the buyer is gone, too.
    world.stripe.refund(ACCOUNT, &paid.charge, at("2026-11-17T09:00:00Z"), 3_000);
    world.stripe.transfer_reversal(ACCOUNT, &paid.charge, at("2026-11-18T16:00:00Z"), 4_000);
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "170.00")]));
    let worth = worth(&world, user, 11).await?;
    assert!(worth["flaws"]["platform_reversal"].as_i64() >= Some(1), "{worth}");
    Ok(())
}

/// A dispute turns as often as it turns, across months and years.
#[tokio::test(flavor = "multi_thread")]
async fn a_dispute_turns_more_than_once() -> Result<()> {
    let mut world = world_at("2026-11-10T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let sale = world.shopify.tender(SHOP, Tender::new(at("2026-11-02T09:00:00Z"), "42.0", "EUR"));
    let dispute =
        world.shopify.dispute(SHOP, Dispute::new(at("2026-11-05T09:00:00Z"), "42.0", "EUR").about(&sale));
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    let whole = ("2026-11", "42.00");
    for (now, state, decided, expected) in [
        ("2026-11-20T12:10:00Z", "LOST", "2026-11-12T09:00:00Z", vec![("2026-11", "0.00")]),
        ("2026-12-02T12:10:00Z", "WON", "2026-12-01T09:00:00Z", vec![whole]),
        ("2027-01-03T12:10:00Z", "LOST", "2026-12-31T22:30:00Z", vec![whole, ("2026-12", "-42.00")]),
        ("2027-01-10T12:10:00Z", "ACCEPTED", "2027-01-09T09:00:00Z", vec![whole, ("2027-01", "-42.00")]),
        ("2027-02-10T12:10:00Z", "UNDER_REVIEW", "2027-02-09T09:00:00Z", vec![whole]),
        ("2027-02-20T12:10:00Z", "LOST", "2026-11-30T22:59:59Z", vec![("2026-11", "0.00")]),
        ("2027-02-22T12:10:00Z", "PREVENTED", "2027-02-20T22:59:59Z", vec![whole]),
    ] {
        world.shopify.finalize_dispute(SHOP, &dispute, state, at(decided));
        sync_at(&mut world, now).await?;
        assert_eq!(books(&world, user).await?, said(&expected), "{now} {state}");
    }
    assert_eq!(excluded(&world, &dispute).await?.as_deref(), Some("prevented"));
    Ok(())
}

/// A prevented dispute is said until it is decided otherwise: won, nothing went back; lost, it did; an inquiry that ends
/// has taken no money (<https://help.shopify.com/en/manual/payments/chargebacks>).
#[tokio::test(flavor = "multi_thread")]
async fn what_was_prevented_may_be_decided_otherwise() -> Result<()> {
    for (is_inquiry, ends, flaw, euros) in [
        (false, "WON", None, "42.00"),
        (false, "LOST", None, "0.00"),
        (false, "UNDER_REVIEW", None, "42.00"),
        (true, "WON", None, "42.00"),
        (true, "LOST", None, "42.00"),
        (true, "NEEDS_RESPONSE", None, "42.00"),
        (true, "PREVENTED", Some(json!({"prevented": 1})), "42.00"),
    ] {
        let mut world = world_at("2026-11-10T12:00:00Z").await?;
        let user = world.shopify_user(SHOP).await?;
        let sale = world.shopify.tender(SHOP, Tender::new(at("2026-11-02T09:00:00Z"), "42.0", "EUR"));
        let mut told = Dispute::new(at("2026-11-05T09:00:00Z"), "42.0", "EUR").about(&sale);
        if is_inquiry {
            told = told.inquiry();
        }
        let told = told.finalized("PREVENTED", at("2026-11-06T09:00:00Z"));
        let dispute = world.shopify.dispute(SHOP, told);
        sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
        assert_eq!(worth(&world, user, 11).await?["flaws"], json!({"prevented": 1}), "{is_inquiry} {ends}");
        world.shopify.finalize_dispute(SHOP, &dispute, ends, at("2026-11-10T16:00:00Z"));
        for now in ["2026-11-10T18:10:00Z", "2026-11-11T06:10:00Z"] {
            sync_at(&mut world, now).await?;
            assert_eq!(books(&world, user).await?, said(&[("2026-11", euros)]), "{is_inquiry} {ends}");
            let flaws = worth(&world, user, 11).await?["flaws"].clone();
            assert_eq!(flaws, flaw.clone().unwrap_or(Value::Null), "{is_inquiry} {ends}");
        }
    }
    Ok(())
}

/// An inquiry alone, whatever becomes of it, leaves no row and no doubt; when it becomes a chargeback, it is one.
#[tokio::test(flavor = "multi_thread")]
async fn an_inquiry_leaves_no_row() -> Result<()> {
    let mut world = world_at("2026-11-10T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let sale = world.shopify.tender(SHOP, Tender::new(at("2026-11-02T09:00:00Z"), "42.0", "EUR"));
    let told = Dispute::new(at("2026-11-05T09:00:00Z"), "42.0", "EUR").about(&sale).inquiry();
    world.shopify.dispute(SHOP, told.finalized("LOST", at("2026-11-06T09:00:00Z")));
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    let rows: i64 = world.value("select count(*) from jobs.integration_transactions").await?;
    assert_eq!(rows, 1);
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    Ok(())
}
