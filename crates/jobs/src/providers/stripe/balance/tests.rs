//! Reads rows of every kind, whole and damaged.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;
use crate::damage::{anything, damaged};

mod odd;

fn row(id: &str, category: &str, amount: i64) -> Value {
    json!({
        "id": id, "object": "balance_transaction", "amount": amount, "currency": "eur",
        "created": 1_795_000_000, "reporting_category": category, "balance_type": "payments",
        "fee": 25, "net": amount.saturating_sub(25), "type": "charge",
        "source": {"id": "ch_1", "object": "charge", "payment_intent": "pi_1"},
    })
}

fn read(rows: &[Value], has_more: bool) -> Result<Page, RefusedReason> {
    read_after(rows, has_more, None)
}

fn read_after(rows: &[Value], has_more: bool, cursor: Option<&str>) -> Result<Page, RefusedReason> {
    let list = json!({"object": "list", "data": rows, "has_more": has_more, "url": "/v1/x"});
    page(list.to_string().as_bytes(), cursor)
}

/// Returns a row with one field replaced, or removed for `None`.
fn with(field: &str, value: Option<Value>) -> Value {
    let mut row = row("txn_1", "charge", 1000);
    match value {
        Some(value) => row[field] = value,
        None => drop(row.as_object_mut().unwrap().remove(field)),
    }
    row
}

#[rstest]
#[case("charge", MovementKind::Payment)]
#[case("partial_capture_reversal", MovementKind::PartialCapture)]
#[case("refund", MovementKind::Refund)]
#[case("refund_failure", MovementKind::RefundFailure)]
#[case("dispute", MovementKind::Dispute)]
#[case("dispute_reversal", MovementKind::DisputeReversal)]
#[case("charge_failure", MovementKind::ChargeFailure)]
fn counted(#[case] category: &str, #[case] kind: MovementKind) {
    let page = read(&[row("txn_1", category, -730)], false).unwrap();
    assert_eq!((page.movements[0].kind, page.movements[0].amount_minor), (kind, Some(-730)));
    assert_eq!((page.next, page.unknown.len()), (None, 0));
}

#[rstest]
#[case(json!({"id": "re_1", "status": "pending", "pending_reason": "insufficient_funds"}), Some("pending"))]
#[case(json!({"id": "re_1", "status": "pending", "pending_reason": "charge_pending"}), Some("pending"))]
#[case(json!({"id": "re_1", "status": "pending", "pending_reason": "processing"}), Some("processing"))]
#[case(json!({"id": "re_1", "status": "pending"}), Some("processing"))]
#[case(json!({"id": "re_1", "status": "requires_action"}), Some("requires_action"))]
#[case(json!({"id": "re_1", "status": "succeeded", "pending_reason": null}), Some("succeeded"))]
#[case(json!({"id": "re_1", "status": "failed"}), Some("failed"))]
#[case(json!({"id": "re_1", "status": "failed", "failure_reason": "expired_or_canceled_card"}), Some("failed"))]
#[case(json!({"id": "re_1", "status": "failed", "failure_reason": "insufficient_funds"}), Some("never_paid"))]
#[case(json!("re_1"), None)]
fn refunds_that_wait_for_money(#[case] source: Value, #[case] state: Option<&str>) {
    let mut row = row("txn_1", "refund", -500);
    row["source"] = source;
    assert_eq!(read(&[row], false).unwrap().movements[0].state.as_deref(), state);
}

#[rstest]
fn not_turnover(
    #[values(
        "payout",
        "payout_reversal",
        "reserve_hold",
        "reserve_release",
        "fee",
        "fee_credit_funding",
        "tax_withholding",
        "topup",
        "issuing_transaction"
    )]
    category: &str,
) {
    // Such rows may lack anything.
    let bare = json!({"id": "txn_1", "reporting_category": category, "amount": null, "source": null});
    assert_eq!(read(&[bare], false).unwrap(), Page::default());
}

/// A seller who is a platform herself passes money on: the figure does not say how much of it is hers.
#[rstest]
fn money_passed_on_is_named(#[values("transfer", "transfer_reversal", "platform_earning")] category: &str) {
    let page = read(&[row("txn_1", category, -8000)], false).unwrap();
    assert_eq!((page.movements[0].kind, page.unknown.len()), (MovementKind::Unknown, 1));
}

/// The row of a sale by PayPal that is settled at PayPal is zero.
#[rstest]
#[case("charge", json!({"id": "py_1", "amount": 10_000, "currency": "eur", "status": "succeeded",
    "payment_method_details": {"type": "paypal"}}), Some(("settled_elsewhere:paypal", 10_000)))]
#[case("refund", json!({"id": "pyr_1", "amount": 2000, "currency": "usd", "status": "succeeded"}),
    Some(("settled_elsewhere:unknown", -2000)))]
#[case("charge", json!({"id": "ch_1", "amount": 0, "currency": "eur"}), None)]
#[case("charge", json!("ch_1"), None)]
#[case("dispute", json!({"id": "du_1", "amount": 500, "currency": "eur"}), Some(("settled_elsewhere:unknown", -500)))]
#[case("dispute_reversal", json!({"id": "du_1", "amount": 500, "currency": "eur"}),
    Some(("settled_elsewhere:unknown", 500)))]
#[case("charge_failure", json!({"id": "py_1", "amount": 500, "currency": "eur"}), None)]
fn what_is_settled_elsewhere(
    #[case] category: &str,
    #[case] source: Value,
    #[case] told: Option<(&str, i64)>,
) {
    let mut row = row("txn_1", category, 0);
    row["source"] = source;
    let movement = read(&[row], false).unwrap().movements.remove(0);
    let kept = (movement.kind == MovementKind::Unknown)
        .then(|| (movement.source_kind.as_str(), movement.original.as_ref().unwrap().amount_minor.unwrap()));
    assert_eq!(kept, told);
    assert_eq!(movement.amount_minor, Some(0));
}

/// What is learned later is not asked for again: a debit on its way must not count then.
/// What takes a payment back is no failure of nothing: as long as it names none, nobody knows what does not count with it.
#[rstest]
#[case(Value::Null, MovementKind::Unknown)]
#[case(json!("pi_1"), MovementKind::Unknown)]
#[case(json!({"id": "py_1", "object": "charge", "status": "failed"}), MovementKind::ChargeFailure)]
#[case(json!("py_1"), MovementKind::ChargeFailure)]
fn a_failure_names_its_payment(#[case] source: Value, #[case] kind: MovementKind) {
    let mut row = row("txn_1", "charge_failure", -1000);
    row["source"] = source;
    let page = read(&[row], false).unwrap();
    assert_eq!((page.movements[0].kind, page.unknown.is_empty()), (kind, kind != MovementKind::Unknown));
}

#[test]
fn an_unknown_kind_keeps_its_state_and_its_day() {
    let mut row = row("txn_1", "charge_of_2027", 1000);
    row["available_on"] = json!(1_795_600_000);
    row["source"] =
        json!({"id": "py_1", "status": "pending", "payment_method_details": {"type": "sepa_debit"}});
    let movement = read(&[row], false).unwrap().movements.remove(0);
    assert_eq!((movement.kind, movement.state.as_deref()), (MovementKind::Unknown, Some("pending")));
    assert_eq!(movement.occurred_at.unwrap().timestamp(), 1_795_600_000);
}

#[test]
fn unknown_categories_are_surfaced() {
    let rows =
        [row("txn_1", "other_adjustment", 5), row("txn_2", "brand_new", 7), row("txn_3", "brand_new", 8)];
    let page = read(&rows, false).unwrap();
    assert_eq!(page.unknown, [("brand_new".into(), 2), ("other_adjustment".into(), 1)].into());
    let kept: Vec<_> = page.movements.iter().map(|kept| (kept.kind, kept.source_kind.as_str())).collect();
    assert_eq!(kept[0], (MovementKind::Unknown, "other_adjustment"));
    assert_eq!((kept.len(), page.movements[2].amount_minor), (3, Some(8)));
}

#[rstest]
#[case("charge", Some("payments"), true)]
#[case("charge", None, true)]
#[case("charge", Some("issuing"), false)]
#[case("charge", Some("refund_and_dispute_prefunding"), false)]
#[case("refund", Some("refund_and_dispute_prefunding"), true)]
#[case("dispute", Some("refund_and_dispute_prefunding"), true)]
#[case("refund", Some("risk_reserved"), true)]
#[case("dispute", Some("risk_reserved"), true)]
#[case("charge", Some("risk_reserved"), false)]
#[case("refund", Some("settlement_reserved"), false)]
fn balances(#[case] category: &str, #[case] balance: Option<&str>, #[case] counted: bool) {
    let mut row = row("txn_1", category, 1);
    row["balance_type"] = balance.into();
    let page = read(&[row], false).unwrap();
    assert_eq!(
        (page.movements[0].kind != MovementKind::Unknown, page.unknown.is_empty()),
        (counted, counted)
    );
}

#[rstest]
#[case(json!("ch_1"), &["ch_1"])]
#[case(json!({"id": "ch_1", "payment_intent": "pi_1"}), &["ch_1", "pi_1"])]
#[case(json!({"id": "re_1", "charge": "ch_1", "payment_intent": null}), &["ch_1", "re_1"])]
#[case(json!({"id": "du_1", "charge": "ch_1", "payment_intent": "pi_1"}), &["ch_1", "pi_1"])]
#[case(json!({"id": "re_1", "charge": {"id": "ch_1", "payment_intent": "pi_1"}}), &["ch_1", "pi_1", "re_1"])]
#[case(json!({"id": "po_1"}), &[])]
#[case(json!(null), &[])]
#[case(json!(["ch_1"]), &[])]
fn payment_references(#[case] source: Value, #[case] expected: &[&str]) {
    assert_eq!(references(&source), expected);
}

#[rstest]
#[case("amount", None)]
#[case("amount", Some(json!(null)))]
#[case("amount", Some(json!(10.5)))]
#[case("amount", Some(json!(1e300)))]
#[case("amount", Some(json!(9_223_372_036_854_775_808_u64)))]
#[case("amount", Some(json!("10")))]
#[case("currency", None)]
#[case("currency", Some(json!("euros")))]
#[case("currency", Some(json!("usdc")))]
#[case("created", None)]
#[case("created", Some(json!(i64::MAX)))]
#[case("created", Some(json!(-9.5)))]
fn a_row_that_cannot_be_read_is_kept_as_read(#[case] field: &str, #[case] value: Option<Value>) {
    let page = read(&[row("txn_0", "charge", 1), with(field, value)], true).unwrap();
    let kept = &page.movements[1];
    let understood = kept.amount_minor.is_some()
        && kept.occurred_at.is_some()
        && kept.currency.as_deref() == Some("EUR")
        && kept.kind != MovementKind::Unknown;
    assert!(!understood, "{kept:?}");
    assert_eq!(kept.external_id, "txn_1");
}

/// Checks what Stripe says: a debit has its row from the day it is sent; the charge's own
/// status says when it has succeeded.
#[rstest]
#[case("sepa_debit", "pending", 300)]
#[case("sepa_debit", "succeeded", 300)]
#[case("card", "succeeded", 0)]
#[case("brand_new", "pending", 300)]
fn a_debit_counts_when_its_money_is_there(#[case] method: &str, #[case] status: &str, #[case] later: i64) {
    let mut row = row("txn_1", "charge", 1000);
    row["available_on"] = json!(1_795_000_300);
    row["source"]["status"] = status.into();
    row["source"]["payment_method_details"] = json!({"type": method});
    let movement = read(&[row], false).unwrap().movements.remove(0);
    assert_eq!(movement.state.as_deref(), Some(status));
    assert_eq!(movement.occurred_at.map(|at| at.timestamp()), Some(1_795_000_000 + later));
    assert_eq!(movement.listed_at.map(|at| at.timestamp()), Some(1_795_000_000));
}

/// With an application fee, which it names, the whole amount was passed on; without one a part may have stayed with the platform.
#[rstest]
#[case(json!({"source_transfer": "tr_1"}), &["py_1", "tr_1"])]
#[case(json!({"source_transfer": {"id": "tr_1"}}), &["py_1", "tr_1"])]
#[case(json!({"source_transfer": "tr_1", "application_fee": null}), &["py_1", "tr_1"])]
#[case(json!({"source_transfer": "tr_1", "application_fee": "fee_1"}), &["py_1", "fee_1"])]
#[case(json!({"source_transfer": null}), &["py_1"])]
#[case(json!({"source_transfer": "tr 1"}), &["py_1"])]
fn a_payment_names_the_transfer_that_passed_it_on(#[case] more: Value, #[case] expected: &[&str]) {
    let mut row = row("txn_1", "charge", 900);
    row["source"] = json!({"id": "py_1", "object": "charge", "status": "succeeded"});
    row["source"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    assert_eq!(read(&[row], false).unwrap().movements[0].references, expected);
}

#[test]
fn a_platform_that_takes_a_part_back_makes_no_refund() {
    let mut row = row("txn_1", "refund", -200);
    row["source"] =
        json!({"id": "pyr_1", "object": "refund", "charge": "py_1", "source_transfer_reversal": "trr_1"});
    assert_eq!(read(&[row], false).unwrap().movements[0].kind, MovementKind::PlatformReversal);
}

#[rstest]
#[case("balance_type", Some(json!(null)))]
#[case("source", None)]
#[case("source", Some(json!(null)))]
#[case("amount", Some(json!(i64::MIN)))]
fn harmless_gaps(#[case] field: &str, #[case] value: Option<Value>) {
    assert_eq!(read(&[with(field, value)], false).unwrap().movements.len(), 1);
}

#[rstest]
#[case("")]
#[case("null")]
#[case("[]")]
#[case("<html>maintenance</html>")]
#[case(r#"{"data":[]}"#)]
#[case(r#"{"has_more":false}"#)]
#[case(r#"{"data":null,"has_more":false}"#)]
#[case(r#"{"data":[null],"has_more":false}"#)]
#[case(r#"{"data":[],"has_more":"#)]
#[case(r#"{"data":[],"has_more":null}"#)]
#[case(r#"{"data":[],"has_more":0}"#)]
#[case(r#"{"data":[],"data":[],"has_more":false}"#)]
#[case(r#"{"data":[],"has_more":false,"error":{"type":"api_error"}}"#)]
#[case(r#"{"error":{"type":"api_error"}}"#)]
#[case("[[],false]")]
#[case(" [[],false,null]")]
fn no_list_is_not_an_empty_list(#[case] body: &str) {
    assert_eq!(page(body.as_bytes(), None), Err(RefusedReason::InvalidAnswer("list")));
}

#[test]
fn the_cursor_is_the_last_row_even_when_it_is_not_counted() {
    let rows = [row("txn_2", "charge", 1), row("txn_1", "payout", -1)];
    assert_eq!(read(&rows, true).unwrap().next.as_deref(), Some("txn_1"));
}

#[test]
fn a_page_without_progress_is_an_error() {
    assert_eq!(read(&[], true), Err(RefusedReason::EndlessPages));
    let rows = [row("txn_2", "charge", 1), row("txn_1", "charge", 1)];
    assert_eq!(read_after(&rows, true, Some("txn_1")), Err(RefusedReason::EndlessPages));
}

#[test]
fn one_row_twice_counts_once_and_two_rows_under_one_id_never() {
    let same = [row("txn_1", "charge", 5), row("txn_1", "charge", 5)];
    assert_eq!(read(&same, false).unwrap().movements.len(), 1);
    let differing = [row("txn_1", "charge", 5), row("txn_1", "charge", 6)];
    let page = read(&differing, false).unwrap();
    let [kept] = &page.movements[..] else { panic!("{page:?}") };
    assert_eq!((kept.kind, kept.amount_minor), (MovementKind::Unknown, None));
}

fn good() -> Value {
    let rows = [
        row("txn_4", "charge", 1200),
        row("txn_3", "refund", -200),
        row("txn_2", "payout", -1000),
        row("txn_1", "brand_new", 7),
    ];
    json!({"object": "list", "data": rows, "has_more": true, "url": "/v1/balance_transactions"})
}

/// Numbers that are written as JSON allows and no type of ours holds.
#[rstest]
#[case("1e400")]
#[case("123456789012345678901234567890")]
#[case("-0.0")]
#[case("1.0")]
#[case("12e1")]
fn a_number_that_is_no_amount_is_no_amount(#[case] number: &str) {
    let body = read_text(&row("txn_1", "charge", 4242)).replace("4242", number);
    let read = page(body.as_bytes(), None).map(|page| page.movements[0].amount_minor);
    assert!(matches!(read, Ok(None) | Err(RefusedReason::InvalidAnswer(_))), "{number}: {read:?}");
}

fn read_text(row: &Value) -> String {
    json!({"data": [row], "has_more": false}).to_string()
}

proptest! {
    #[test]
    fn no_body_panics(body: Vec<u8>) {
        let _ = page(&body, None);
    }

    /// Whatever is wrong with a page: either it is refused as a whole, or every row of it that may be money is there
    /// once, with the amount that it has, and there is a next page exactly where there is said to be one. A row without an
    /// id is there as itself.
    #[test]
    fn a_damaged_page_is_refused_or_whole(body in damaged(good()), cursor in prop::option::of("txn_[1-5]")) {
        let Ok(page) = page(body.to_string().as_bytes(), cursor.as_deref()) else { return Ok(()) };
        let rows = body["data"].as_array().unwrap();
        let may_be_money = |row: &&Value| kind_of(row["reporting_category"].as_str().unwrap_or_default()) != MovementKind::NoTurnover;
        let expected: std::collections::BTreeSet<_> =
            rows.iter().filter(may_be_money).map(|row| kept_id(&row["id"]).map_or_else(|| row.to_string(), str::to_owned)).collect();
        prop_assert_eq!(page.movements.len(), expected.len());
        for movement in &page.movements {
            let row = rows.iter().find(|row| row["id"] == movement.external_id.as_str());
            let Some(row) = row else {
                prop_assert_eq!((movement.kind, movement.source_kind.as_str()), (MovementKind::Unknown, NO_ID));
                continue;
            };
            prop_assert!(movement.amount_minor.is_none() || movement.amount_minor == row["amount"].as_i64());
        }
        prop_assert_eq!(page.next.is_some(), body["has_more"] == true);
        prop_assert!(page.next.is_none() || page.next != cursor);
    }

    #[test]
    fn any_source_names_payments_only(source in anything()) {
        prop_assert!(references(&source).iter().all(|text| is_payment_reference(text)));
    }

    #[test]
    fn no_euro_is_lost(amounts in prop::collection::vec(-10_000_000_000_i64..=10_000_000_000, 0..50)) {
        let rows: Vec<_> =
            amounts.iter().enumerate().map(|(i, amount)| row(&format!("txn_{i}"), "charge", *amount)).collect();
        let page = read(&rows, false).unwrap();
        prop_assert_eq!(page.movements.iter().filter_map(|m| m.amount_minor).collect::<Vec<_>>(), amounts);
    }
}
