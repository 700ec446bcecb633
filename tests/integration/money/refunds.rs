//! Refunds that cannot be paid at once, and refunds that fail. Whether a refund that waits has its row already, the vendor
//! does not say: the books are right either way.

use anyhow::Result;
use serde_json::json;
use stand_ins::stripe::Entry;

use super::{books, excluded, said, sync_at, world_at, worth};
use crate::clock::at;

const ACCOUNT: &str = "acct_refunds";

/// The balance cannot pay a refund of 40 €; weeks later it can
/// (<https://github.com/emfcamp/Website/issues/1017>, <https://github.com/craftcms/commerce-stripe/issues/134>). It comes
/// off once it is paid, and once; until then it is followed, however long that takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_waits_for_money_comes_off_once() -> Result<()> {
    for row_at_once in [true, false] {
        let mut world = world_at("2026-11-05T12:00:00Z").await?;
        let user = world.stripe_user(ACCOUNT).await?;
        let paid = world.stripe.payment(ACCOUNT, at("2026-11-02T09:00:00Z"), 10_000, "eur");
        let asked = at("2026-11-10T09:00:00Z");
        let waits = row_at_once
            .then(|| world.stripe.waiting_refund(ACCOUNT, &paid.charge, asked, 4_000, "insufficient_funds"));
        for now in ["2026-11-10T12:10:00Z", "2026-11-10T18:10:00Z", "2026-12-15T06:10:00Z"] {
            sync_at(&mut world, now).await?;
            assert_eq!(books(&world, user).await?, said(&[("2026-11", "100.00")]), "{now} {row_at_once}");
        }
        let november = match &waits {
            Some(refund) => {
                assert_eq!(excluded(&world, &refund.transaction).await?.as_deref(), Some("pending"));
                json!({"status": "partial", "flaws": {"pending": 1}})
            }
            None => json!({"status": "complete"}),
        };
        assert_eq!(worth(&world, user, 11).await?, november);
        // More than thirty days after it was asked for.
        let expected = if let Some(refund) = &waits {
            world.stripe.pay_refund(ACCOUNT, refund);
            said(&[("2026-11", "60.00")])
        } else {
            world.stripe.refund(ACCOUNT, &paid.charge, at("2026-12-15T09:00:00Z"), 4_000);
            said(&[("2026-11", "100.00"), ("2026-12", "-40.00")])
        };
        for now in ["2026-12-15T12:10:00Z", "2026-12-16T06:10:00Z"] {
            sync_at(&mut world, now).await?;
            assert_eq!(books(&world, user).await?, expected, "{now} {row_at_once}");
            assert_eq!(worth(&world, user, 11).await?, json!({"status": "complete"}));
        }
    }
    Ok(())
}

/// A refund fails after it was paid or after it waited, or is disputed while it waits
/// (<https://support.stripe.com/questions/pending-refunds-due-to-insufficient-funds-or-stripe-balance>: it "will fail and a
/// dispute will be created"): its two rows cancel, and the dispute comes off once.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_fails_cancels_itself() -> Result<()> {
    for (waits, row_at_once) in [(true, true), (true, false), (false, true)] {
        let mut world = world_at("2026-11-05T12:00:00Z").await?;
        let user = world.stripe_user(ACCOUNT).await?;
        let paid = world.stripe.payment(ACCOUNT, at("2026-11-02T09:00:00Z"), 10_000, "eur");
        let asked = at("2026-11-10T09:00:00Z");
        if row_at_once && waits {
            world.stripe.waiting_refund(ACCOUNT, &paid.charge, asked, 4_000, "insufficient_funds");
        } else if row_at_once {
            world.stripe.refund(ACCOUNT, &paid.charge, asked, 4_000);
        }
        sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
        let meanwhile = if waits { "100.00" } else { "60.00" };
        assert_eq!(books(&world, user).await?, said(&[("2026-11", meanwhile)]), "{waits} {row_at_once}");
        if row_at_once {
            world.stripe.refund_failure(ACCOUNT, &paid.charge, at("2026-11-20T09:00:00Z"), 4_000);
        }
        world.stripe.dispute(ACCOUNT, &paid.charge, at("2026-11-20T10:00:00Z"), 10_000);
        for now in ["2026-11-20T12:10:00Z", "2026-11-21T06:10:00Z"] {
            sync_at(&mut world, now).await?;
            assert_eq!(books(&world, user).await?, said(&[("2026-11", "0.00")]), "{waits} {row_at_once}");
        }
        assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    }
    Ok(())
}

/// A refund of a debit that is still on its way takes nothing back that was not received.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_of_money_that_has_not_come_is_none_yet() -> Result<()> {
    for succeeds in [true, false] {
        let mut world = world_at("2026-11-05T12:00:00Z").await?;
        let user = world.stripe_user(ACCOUNT).await?;
        world.stripe.payment(ACCOUNT, at("2026-11-02T09:00:00Z"), 1_000, "eur");
        let debit =
            world.stripe.debit(ACCOUNT, at("2026-11-06T09:00:00Z"), 5_000, at("2026-11-16T09:00:00Z"));
        let asked = at("2026-11-07T09:00:00Z");
        let refund = world.stripe.waiting_refund(ACCOUNT, &debit.charge, asked, 5_000, "charge_pending");
        sync_at(&mut world, "2026-11-07T12:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "10.00")]));
        if succeeds {
            world.stripe.settle_debit(ACCOUNT, &debit);
            world.stripe.pay_refund(ACCOUNT, &refund);
        } else {
            world.stripe.fail_debit(ACCOUNT, &debit, at("2026-11-16T09:00:00Z"));
            world.stripe.refund_failure(ACCOUNT, &debit.charge, at("2026-11-16T10:00:00Z"), 5_000);
        }
        sync_at(&mut world, "2026-11-16T12:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "10.00")]), "{succeeds}");
        assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    }
    Ok(())
}

/// A refund that is under way to the customer has left the balance; one that waits for the customer's bank details, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_under_way_has_left_the_balance() -> Result<()> {
    for (status, reason) in
        [("pending", json!("processing")), ("pending", json!(null)), ("requires_action", json!(null))]
    {
        let mut world = world_at("2026-11-05T12:00:00Z").await?;
        let user = world.stripe_user(ACCOUNT).await?;
        let paid = world.stripe.payment(ACCOUNT, at("2026-11-02T09:00:00Z"), 10_000, "eur");
        let back = world.stripe.refund(ACCOUNT, &paid.charge, at("2026-11-04T09:00:00Z"), 4_000);
        let source = json!({
            "id": back.source, "object": "refund", "charge": paid.charge, "status": status, "pending_reason": reason,
        });
        world.stripe.show(ACCOUNT, &back.transaction, json!({"source": source}));
        sync_at(&mut world, "2026-11-05T12:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]), "{status} {reason}");
        assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    }
    Ok(())
}

/// A refund waits for money and fails in another month: nothing was ever paid, so neither month changes. The same where it
/// waited for a debit that fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_was_never_paid_changes_no_month() -> Result<()> {
    let mut world = world_at("2026-11-05T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    let paid = world.stripe.payment(ACCOUNT, at("2026-11-02T09:00:00Z"), 10_000, "eur");
    let debit = world.stripe.debit(ACCOUNT, at("2026-11-27T09:00:00Z"), 5_000, at("2026-12-04T09:00:00Z"));
    let asked = at("2026-11-28T09:00:00Z");
    for (charge, amount, reason) in
        [(&paid.charge, 4_000, "insufficient_funds"), (&debit.charge, 5_000, "charge_pending")]
    {
        world.stripe.waiting_refund(ACCOUNT, charge, asked, amount, reason);
    }
    sync_at(&mut world, "2026-11-28T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "100.00")]));
    world.stripe.fail_debit(ACCOUNT, &debit, at("2026-12-04T09:00:00Z"));
    for (charge, amount) in [(&paid.charge, 4_000), (&debit.charge, 5_000)] {
        world.stripe.refund_failure(ACCOUNT, charge, at("2026-12-05T09:00:00Z"), amount);
    }
    for now in ["2026-12-05T12:10:00Z", "2026-12-06T06:10:00Z", "2027-01-15T06:10:00Z"] {
        sync_at(&mut world, now).await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "100.00")]), "{now}");
        assert_eq!(worth(&world, user, 11).await?, json!({"status": "complete"}));
    }
    Ok(())
}

/// What is refunded of a payment of which a part is held back is taken from there first
/// (<https://docs.stripe.com/connect/connected-account-reserves>): money back to the customer all the same. What is held
/// back is no turnover. What a bank takes back of a payment that had come may have a type and no category.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_from_a_reserve_comes_off() -> Result<()> {
    let mut world = world_at("2026-11-05T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    let paid = world.stripe.payment(ACCOUNT, at("2026-11-02T09:00:00Z"), 10_000, "eur");
    let held = Entry::new(at("2026-11-02T10:00:00Z"), -5_000, "eur").kind("reserve_hold", "reserve_hold");
    world.stripe.add(ACCOUNT, held);
    let back = world.stripe.refund(ACCOUNT, &paid.charge, at("2026-11-03T09:00:00Z"), 4_000);
    world.stripe.show(ACCOUNT, &back.transaction, json!({"balance_type": "risk_reserved"}));
    sync_at(&mut world, "2026-11-05T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));

    let taken = Entry::new(at("2026-11-04T09:00:00Z"), -2_000, "eur").kind("payment_reversal", "charge");
    world.stripe.add(ACCOUNT, taken.oddities(json!({"reporting_category": null})));
    sync_at(&mut world, "2026-11-05T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "partial", "flaws": {"unknown_kind": 1}}));
    Ok(())
}

/// A debit is refunded or disputed before it is paid, and nothing says that the refund waits for it: nothing was received, so
/// nothing goes off. Paid, both count; failed, neither does, also where it had been paid before.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_back_of_nothing_is_nothing() -> Result<()> {
    for ends in ["paid", "failed", "paid and failed"] {
        let mut world = world_at("2026-11-05T12:00:00Z").await?;
        let user = world.stripe_user(ACCOUNT).await?;
        world.stripe.payment(ACCOUNT, at("2026-11-02T09:00:00Z"), 1_000, "eur");
        let (sent, there) = (at("2026-11-23T09:00:00Z"), at("2026-11-30T09:00:00Z"));
        sync_at(&mut world, "2026-11-05T12:10:00Z").await?;
        let debit = world.stripe.debit(ACCOUNT, sent, 5_000, there);
        let back = world.stripe.refund(ACCOUNT, &debit.charge, at("2026-11-24T09:00:00Z"), 3_000);
        let taken = world.stripe.dispute(ACCOUNT, &debit.charge, at("2026-12-01T09:00:00Z"), 5_000);
        world.stripe.dispute_reversal(ACCOUNT, &debit.charge, at("2026-12-02T09:00:00Z"), 3_000);
        for now in ["2026-11-24T12:10:00Z", "2026-12-02T12:10:00Z", "2026-12-02T18:10:00Z"] {
            sync_at(&mut world, now).await?;
            assert_eq!(books(&world, user).await?, said(&[("2026-11", "10.00")]), "{ends} {now}");
            assert_eq!(
                excluded(&world, &back.transaction).await?.as_deref(),
                Some("pending"),
                "{ends} {now}"
            );
        }
        if ends != "failed" {
            world.stripe.settle_debit(ACCOUNT, &debit);
            sync_at(&mut world, "2026-12-03T06:10:00Z").await?;
            assert_eq!(excluded(&world, &taken.transaction).await?, None);
            // 10 and 50, less 30; less 50, and 30 back.
            let expected = said(&[("2026-11", "30.00"), ("2026-12", "-20.00")]);
            assert_eq!(books(&world, user).await?, expected, "{ends}");
        }
        if ends != "paid" {
            world.stripe.fail_debit(ACCOUNT, &debit, at("2026-12-03T09:00:00Z"));
        }
        let expected = match ends {
            "paid" => said(&[("2026-11", "30.00"), ("2026-12", "-20.00")]),
            _ => said(&[("2026-11", "10.00")]),
        };
        for now in ["2026-12-03T12:10:00Z", "2026-12-04T06:10:00Z", "2027-01-15T06:10:00Z"] {
            sync_at(&mut world, now).await?;
            assert_eq!(books(&world, user).await?, expected, "{ends} {now}");
        }
    }
    Ok(())
}
