//! Money that may come: what an answer does not say was received is not counted, wherever it lies and whoever asks.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    stripe::{Entry, Payment},
};

use super::{accounts::connect, books, excluded, said, sync_at, world_at, worth};
use crate::{
    clock::at,
    world::{World, encrypt},
};

const ACCOUNT: &str = "acct_expected";

fn shows(world: &World, debit: &Payment, method: Option<&str>, status: &Value) {
    let mut source =
        json!({"id": debit.charge, "object": "charge", "payment_intent": debit.intent, "status": status});
    if let Some(method) = method {
        source["payment_method_details"] = json!({"type": method});
    }
    world.stripe.show(ACCOUNT, &debit.transaction, json!({"source": source}));
}

/// A charge has one of three states (<https://docs.stripe.com/api/charges/object#charge_object-status>). What another word
/// means is not known: only what has succeeded was received, and the rest is followed.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_has_succeeded_was_received() -> Result<()> {
    for (method, status) in [
        (Some("boleto"), json!("pending")),
        (Some("multibanco"), json!("pending")),
        (Some("customer_balance"), json!("processing")),
        (Some("card"), json!("requires_capture")),
        (Some("sepa_debit"), json!("returned")),
        (None, json!("pending")),
        (None, Value::Null),
    ] {
        let mut world = world_at("2026-11-20T12:00:00Z").await?;
        let user = world.stripe_user(ACCOUNT).await?;
        world.stripe.payment(ACCOUNT, at("2026-11-19T09:00:00Z"), 1_000, "eur");
        let debit =
            world.stripe.debit(ACCOUNT, at("2026-11-20T09:00:00Z"), 5_000, at("2026-11-30T22:59:59Z"));
        shows(&world, &debit, method, &status);
        for now in ["2026-11-20T12:10:00Z", "2026-12-29T06:10:00Z"] {
            sync_at(&mut world, now).await?;
            assert_eq!(books(&world, user).await?, said(&[("2026-11", "10.00")]), "{method:?} {status}");
            let why = excluded(&world, &debit.transaction).await?;
            assert_eq!(why.as_deref(), Some("pending"), "{method:?} {status}");
        }
        assert_eq!(worth(&world, user, 11).await?["flaws"], json!({"pending": 1}), "{method:?} {status}");
        shows(&world, &debit, method, &json!("succeeded"));
        for now in ["2026-12-29T12:10:00Z", "2026-12-30T06:10:00Z"] {
            sync_at(&mut world, now).await?;
            assert_eq!(
                books(&world, user).await?,
                said(&[("2026-11", "60.00")]),
                "{method:?} {status} {now}"
            );
        }
    }
    Ok(())
}

/// A payment that is no card's (`type` is `payment`) may be a debit, whatever is missing in what is told of it. A card's
/// was received.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_tells_nothing_of_its_payment_was_received_if_it_is_a_cards() -> Result<()> {
    for (kind, source, cents) in [
        ("charge", json!("ch_1"), 4_000),
        ("charge", json!({"id": "ch_1", "object": "charge"}), 4_000),
        ("charge", Value::Null, 4_000),
        ("payment", json!("py_1"), 0),
        ("payment", json!({"id": "py_1", "object": "charge"}), 0),
        ("payment", json!({"id": "ch_1", "object": "charge"}), 0),
        ("payment", Value::Null, 0),
        ("payment", json!("src_1"), 0),
    ] {
        let mut world = world_at("2026-11-20T12:00:00Z").await?;
        let user = world.stripe_user(ACCOUNT).await?;
        world.stripe.payment(ACCOUNT, at("2026-11-19T09:00:00Z"), 1_000, "eur");
        let mut odd = Entry::new(at("2026-11-19T10:00:00Z"), 4_000, "eur").kind(kind, "charge");
        if !source.is_null() {
            odd = odd.oddities(json!({"source": source}));
        }
        world.stripe.add(ACCOUNT, odd);
        sync_at(&mut world, "2026-11-20T12:10:00Z").await?;
        let euros = format!("{}.00", 10 + cents / 100);
        assert_eq!(books(&world, user).await?, said(&[("2026-11", &euros)]), "{kind} {source}");
        // It is said once the month is over.
        world.set_now(at("2026-12-02T10:00:00Z"));
        let told = world.post("monthly-sync", "month=2026-11").await?;
        let expected = if cents == 0 { "partial" } else { "complete" };
        assert_eq!(told["results"][0]["month_status"], expected, "{kind} {source} {told}");
    }
    Ok(())
}

/// A debit counts in the month of its money, and was sent up to three weeks before. The first month of the books has it,
/// and so has a month that is read on request.
#[tokio::test(flavor = "multi_thread")]
async fn a_debit_that_was_sent_before_its_month_is_in_it() -> Result<()> {
    let mut world = world_at("2026-11-30T19:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    world.run("update public.integration_tokens set connected_at = '2026-11-30T18:00:00Z'").await?;
    for (sent, there, cents) in [
        ("2026-08-18T09:00:00Z", "2026-09-03T00:00:00Z", 3_000),
        ("2026-10-16T09:00:00Z", "2026-11-04T00:00:00Z", 5_000),
    ] {
        let debit = world.stripe.debit(ACCOUNT, at(sent), cents, at(there));
        world.stripe.settle_debit(ACCOUNT, &debit);
    }
    world.stripe.payment(ACCOUNT, at("2026-11-29T09:00:00Z"), 1_000, "eur");
    sync_at(&mut world, "2026-12-01T00:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "complete"}));
    let told = world.post("monthly-sync", "month=2026-09").await?;
    assert_eq!(told["results"][0]["month_status"], "complete", "{told}");
    assert_eq!(books(&world, user).await?, said(&[("2026-09", "30.00"), ("2026-11", "60.00")]));
    // What was read already is not read again for it.
    let asked = world.stripe.faults().count("/v1/balance_transactions");
    world.post("monthly-sync", "month=2026-11").await?;
    let from: String = world
        .value("select metadata -> 'window' ->> 'from' from public.sync_logs where user_id is not null order by synced_at desc, ctid desc limit 1")
        .await?;
    assert_eq!(from, "2026-10-31T23:00:00Z");
    assert_eq!(world.stripe.faults().count("/v1/balance_transactions"), asked + 1);
    Ok(())
}

/// A debit is on its way when its account is replaced by another one: nobody can ask for it any more, and its money would
/// come in a month that is not that account's. The month in which it was sent says so, until the account is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_debit_of_an_account_that_was_replaced_is_said() -> Result<()> {
    let mut world = world_at("2026-11-20T12:00:00Z").await?;
    let user = world.stripe_user("acct_first").await?;
    connect(&world, user, "acct_first", "2026-11-20T08:00:00Z").await?;
    world.stripe.payment("acct_first", at("2026-11-20T09:00:00Z"), 1_000, "eur");
    let debit =
        world.stripe.debit("acct_first", at("2026-11-27T09:00:00Z"), 5_000, at("2026-12-04T09:00:00Z"));
    sync_at(&mut world, "2026-11-20T12:10:00Z").await?;
    sync_at(&mut world, "2026-11-27T12:10:00Z").await?;
    connect(&world, user, "acct_second", "2026-11-28T08:00:00Z").await?;
    world.stripe.payment("acct_second", at("2026-11-28T09:00:00Z"), 700, "eur");
    sync_at(&mut world, "2026-11-28T12:10:00Z").await?;
    world.stripe.settle_debit("acct_first", &debit);
    sync_at(&mut world, "2026-12-10T06:10:00Z").await?;
    world.post("monthly-sync", "month=2026-11").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "17.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "partial", "flaws": {"pending": 1}}));
    sqlx::query(
        "update public.integration_tokens set stripe_account_id = 'acct_first', access_token = $2, \
         connected_at = '2026-12-11T08:00:00Z' where user_id = $1",
    )
    .bind(user)
    .bind(encrypt("sk_acct_first"))
    .execute(world.pool())
    .await?;
    sync_at(&mut world, "2026-12-11T12:10:00Z").await?;
    world.post("monthly-sync", "month=2026-11").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "17.00"), ("2026-12", "50.00")]));
    assert_eq!(worth(&world, user, 11).await?["flaws"], Value::Null);
    Ok(())
}

/// A debit that is asked for by its id and answered with what is no movement, or is not known any more, stays on its way.
/// Everything else is read.
#[tokio::test(flavor = "multi_thread")]
async fn an_odd_answer_about_one_debit_keeps_nothing_else_back() -> Result<()> {
    let html = Fault::Answer { status: 200, headers: Vec::new(), body: "<html>".into() };
    let refusal = json!({"error": {"type": "invalid_request_error", "message": "Unrecognized request."}});
    let gone = json!({"error": {"type": "invalid_request_error", "code": "resource_missing"}});
    for fault in [
        html,
        Fault::json(200, &json!({"id": "txn_other", "object": "balance_transaction"})),
        Fault::json(400, &refusal),
        Fault::json(404, &gone),
    ] {
        let mut world = world_at("2026-11-05T12:00:00Z").await?;
        let user = world.stripe_user(ACCOUNT).await?;
        let debit =
            world.stripe.debit(ACCOUNT, at("2026-11-05T09:00:00Z"), 5_000, at("2026-11-12T09:00:00Z"));
        sync_at(&mut world, "2026-11-05T12:10:00Z").await?;
        sync_at(&mut world, "2026-12-19T12:10:00Z").await?;
        world.stripe.payment(ACCOUNT, at("2026-12-20T09:00:00Z"), 1_000, "eur");
        let by_id = format!("/v1/balance_transactions/{}", debit.transaction);
        world.stripe.faults().add(Rule::on(&by_id, fault));
        let part = sync_at(&mut world, "2026-12-20T12:10:00Z").await?;
        assert_eq!((&part["errors"], &part["synced"]), (&json!(0), &json!(1)), "{part}");
        assert_eq!(books(&world, user).await?, said(&[("2026-12", "10.00")]));
        assert_eq!(excluded(&world, &debit.transaction).await?.as_deref(), Some("pending"));
        world.stripe.faults().clear();
        world.stripe.settle_debit(ACCOUNT, &debit);
        sync_at(&mut world, "2026-12-20T18:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "50.00"), ("2026-12", "10.00")]));
    }
    Ok(())
}

/// A refund that failed for want of money, or because the payment was disputed meanwhile, was never paid, whether or not
/// anybody saw it wait: both months stay as they were (`failure_reason`:
/// <https://docs.stripe.com/api/refunds/object#refund_object-failure_reason>). One that the customer's bank sent back was.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_failed_before_anybody_looked_was_paid_or_not_by_its_reason() -> Result<()> {
    for (reason, november, december) in [
        ("insufficient_funds", "100.00", None),
        ("charge_for_pending_refund_disputed", "100.00", None),
        ("expired_or_canceled_card", "60.00", Some("40.00")),
    ] {
        let mut world = world_at("2026-11-05T12:00:00Z").await?;
        let user = world.stripe_user(ACCOUNT).await?;
        let paid = world.stripe.payment(ACCOUNT, at("2026-11-02T09:00:00Z"), 10_000, "eur");
        sync_at(&mut world, "2026-11-05T12:10:00Z").await?;
        let back = world.stripe.refund(ACCOUNT, &paid.charge, at("2026-11-28T09:00:00Z"), 4_000);
        let failed = world.stripe.refund_failure(ACCOUNT, &paid.charge, at("2026-12-03T09:00:00Z"), 4_000);
        let source = json!({
            "id": back.source, "object": "refund", "charge": paid.charge, "status": "failed", "failure_reason": reason,
        });
        for row in [&back, &failed] {
            world.stripe.show(ACCOUNT, &row.transaction, json!({"source": source}));
        }
        sync_at(&mut world, "2026-12-05T12:10:00Z").await?;
        let expected: Vec<(&str, &str)> =
            [("2026-11", november)].into_iter().chain(december.map(|euros| ("2026-12", euros))).collect();
        assert_eq!(books(&world, user).await?, said(&expected), "{reason}");
    }
    Ok(())
}
