//! From balance transactions to movements. Pure.
//!
//! What a row means is told by its `reporting_category` ([Reporting categories]). A row that cannot be understood is
//! kept as it was read; only a page that is no list, or a row without an id, is refused.
//!
//! [Reporting categories]: https://docs.stripe.com/reports/reporting-categories

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use crate::providers::movement::{Original, is_payment_reference, word};
use crate::providers::{Movement, MovementKind, Page, RefusedReason};

#[derive(Deserialize)]
struct List {
    data: Vec<serde_json::Map<String, Value>>,
    has_more: bool,
}

/// These categories are turnover: what customers pay and get back.
const COUNTED: [(&str, MovementKind); 7] = [
    ("charge", MovementKind::Payment),
    ("partial_capture_reversal", MovementKind::PartialCapture),
    ("refund", MovementKind::Refund),
    ("refund_failure", MovementKind::RefundFailure),
    ("dispute", MovementKind::Dispute),
    ("dispute_reversal", MovementKind::DisputeReversal),
    ("charge_failure", MovementKind::ChargeFailure),
];

/// These categories are none: what moves between balances, banks and Stripe. `platform_earning` and
/// `other_adjustment` are missing on purpose: they are money of which this version does not know
/// whether it counts.
const NO_TURNOVER: [&str; 31] = [
    "payout",
    "payout_reversal",
    // https://docs.stripe.com/changelog/acacia/2024-12-18/payout-minimum-balance
    "payout_minimum_balance_hold",
    "payout_minimum_balance_release",
    "fee",
    "network_cost",
    "tax",
    "transfer",
    "transfer_reversal",
    "topup",
    "topup_reversal",
    "connect_collection_transfer",
    "connect_reserved_funds",
    "risk_reserved_funds",
    "payment_network_reserve_hold",
    "payment_network_reserve_release",
    "payment_network_reserved_funds",
    "currency_conversion",
    "contribution",
    "climate_order_purchase",
    "climate_order_refund",
    "advance",
    "advance_funding",
    "anticipation_repayment",
    // A subscription of a platform, paid from the balance:
    // https://docs.stripe.com/changelog/basil/2025-03-31/add_pay_with_stripe_balance_bt_types
    "stripe_balance_payment_debit",
    "stripe_balance_payment_debit_reversal",
    "financing_paydown",
    "financing_paydown_reversal",
    "financing_payout",
    "financing_payout_reversal",
    "issuing_transaction",
];

/// Returns our kind for each category that this version knows, also for rows that an earlier version kept as unknown.
pub fn kinds() -> serde_json::Map<String, Value> {
    let counted = COUNTED.iter().map(|(name, kind)| ((*name).to_owned(), serde_json::json!(kind)));
    let others =
        NO_TURNOVER.iter().map(|name| ((*name).to_owned(), serde_json::json!(MovementKind::NoTurnover)));
    counted.chain(others).collect()
}

fn kind_of(category: &str) -> MovementKind {
    let counted = COUNTED.iter().find(|(name, _)| *name == category);
    match counted {
        Some((_, kind)) => *kind,
        None if NO_TURNOVER.contains(&category)
            || category.starts_with("financing_")
            || category.starts_with("issuing_") =>
        {
            MovementKind::NoTurnover
        }
        None => MovementKind::Unknown,
    }
}

/// Returns whether a balance holds turnover of this kind. Refunds and disputes are paid from the prefunding balance when
/// the payments balance is empty ("Add funds to your Stripe balance"): money back to customers all the same.
fn holds_turnover(balance_type: Option<&str>, kind: MovementKind) -> bool {
    match balance_type {
        None | Some("payments") => true,
        Some("refund_and_dispute_prefunding") => kind != MovementKind::Payment,
        Some(_) => false,
    }
}

/// These ways to pay tell days later whether the money was received. Their row is there from the
/// day the debit is sent
/// (<https://support.stripe.com/questions/changes-to-balance-transaction-behavior-for-debit-payment-methods>).
const DEBITS: [&str; 7] = [
    "acss_debit",
    "au_becs_debit",
    "bacs_debit",
    "nz_bank_account",
    "sepa_debit",
    "us_bank_account",
    "ach_debit",
];

/// Reads one page, asked for behind `cursor`.
pub(super) fn page(body: &[u8], cursor: Option<&str>) -> Result<Page, RefusedReason> {
    let list: List = serde_json::from_slice(body).map_err(|_| RefusedReason::InvalidAnswer("list"))?;
    let (mut page, mut seen) = (Page::default(), HashMap::new());
    let mut last_id = None;
    for row in list.data {
        let row = Value::Object(row);
        let movement = movement(&row)?;
        if cursor == Some(movement.external_id.as_str()) {
            return Err(RefusedReason::EndlessPages);
        }
        last_id = Some(movement.external_id.clone());
        match movement.kind {
            MovementKind::NoTurnover => continue,
            MovementKind::Unknown => page.note_unknown(&movement.source_kind),
            _ => {}
        }
        page.add(&mut seen, movement)?;
    }
    if list.has_more {
        page.next = Some(last_id.ok_or(RefusedReason::EndlessPages)?);
    }
    Ok(page)
}

/// Reads one balance transaction that was asked for by its id.
pub(super) fn single(body: &[u8]) -> Result<Movement, RefusedReason> {
    let row: Value =
        serde_json::from_slice(body).map_err(|_| RefusedReason::InvalidAnswer("balance transaction"))?;
    movement(&row)
}

fn movement(row: &Value) -> Result<Movement, RefusedReason> {
    let external_id = row["id"].as_str().filter(|id| !id.is_empty() && id.len() <= 255);
    let external_id = external_id.ok_or(RefusedReason::InvalidAnswer("id"))?.to_owned();
    // Without one it is no balance transaction.
    let category = row["reporting_category"].as_str().filter(|name| !name.is_empty());
    let category = category.ok_or(RefusedReason::InvalidAnswer("reporting_category"))?;
    let balance = row["balance_type"].as_str();
    let source = &row["source"];
    let (mut kind, mut source_kind) = (kind_of(category), word(category));
    if !matches!(kind, MovementKind::NoTurnover | MovementKind::Unknown) && !holds_turnover(balance, kind) {
        (kind, source_kind) =
            (MovementKind::Unknown, word(&format!("balance_type:{}", balance.unwrap_or_default())));
    }
    // The platform's part of a payment, taken back: a fee of hers, or a refund of the sale that she made.
    // https://docs.stripe.com/api/refunds/object#refund_object-source_transfer_reversal
    if kind == MovementKind::Refund && !source["source_transfer_reversal"].is_null() {
        kind = MovementKind::PlatformReversal;
    }

    let created = instant(&row["created"]);
    let method = source["payment_method_details"]["type"].as_str().map(word);
    let state = if kind == MovementKind::Payment { payment_state(source) } else { None };
    let is_debit = method.as_deref().is_some_and(|method| DEBITS.contains(&method));
    let occurred_at = if kind == MovementKind::Payment && (is_debit || state.as_deref() == Some("pending")) {
        // The day on which the money is there, as Stripe states it: docs/adr/0015.
        instant(&row["available_on"]).max(created)
    } else {
        created
    };

    let amount_minor = row["amount"].as_i64();
    let currency = row["currency"].as_str().map(|code| word(code).to_uppercase());
    let readable = amount_minor.is_some()
        && currency.as_deref().is_some_and(|code| code.parse::<crate::money::Currency>().is_ok());
    let original =
        if readable { bought_for(source, amount_minor, currency.as_deref()) } else { Some(as_read(row)) };
    Ok(Movement {
        external_id,
        kind,
        source_kind,
        state,
        method,
        occurred_at,
        listed_at: created,
        amount_minor: amount_minor.filter(|_| readable),
        currency,
        converted: true,
        original,
        references: references(source),
    })
}

fn instant(seconds: &Value) -> Option<DateTime<Utc>> {
    let instant = DateTime::from_timestamp(seconds.as_i64()?, 0)?;
    // What the database can store.
    (instant.timestamp() > -62_000_000_000 && instant.timestamp() < 250_000_000_000).then_some(instant)
}

/// Returns the state of the payment behind a row, where the source tells it. A payment that is only
/// named may be a debit on its way, unless its id is a card's (`ch_`).
fn payment_state(source: &Value) -> Option<String> {
    match source {
        Value::Object(_) => source["status"].as_str().map(word),
        Value::String(id) if id.starts_with("py_") => Some("unknown".to_owned()),
        _ => None,
    }
}

/// Returns what the buyer paid, where that was another currency than the row's.
fn bought_for(source: &Value, amount_minor: Option<i64>, currency: Option<&str>) -> Option<Original> {
    let (paid, bought_in) = (source["amount"].as_i64()?, source["currency"].as_str()?.to_uppercase());
    if currency == Some(bought_in.as_str()) {
        return None;
    }
    let signed = if amount_minor? < 0 { paid.checked_abs()?.checked_neg()? } else { paid };
    Some(Original { currency: Some(word(&bought_in)), amount_minor: Some(signed), ..Original::default() })
}

/// Returns what stands where an amount and a currency are expected.
fn as_read(row: &Value) -> Original {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let (amount, currency) = (text(&row["amount"]), text(&row["currency"]));
    Original { amount_minor: None, ..Original::of(amount.as_deref(), currency.as_deref()) }
}

/// The source is a charge, a refund or a dispute, expanded or as its id; refunds and disputes name their charge.
fn references(source: &Value) -> Vec<String> {
    let candidates = [source, &source["id"], &source["charge"], &source["payment_intent"]];
    let nested =
        [&source["charge"]["id"], &source["charge"]["payment_intent"], &source["payment_intent"]["id"]];
    let mut ids: Vec<String> = candidates
        .into_iter()
        .chain(nested)
        .filter_map(Value::as_str)
        .filter(|text| is_payment_reference(text))
        .map(str::to_owned)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::damage::{anything, damaged};

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
    fn not_turnover(
        #[values("payout", "payout_reversal", "fee", "transfer", "topup", "issuing_transaction")]
        category: &str,
    ) {
        // Such rows may lack anything.
        let bare = json!({"id": "txn_1", "reporting_category": category, "amount": null, "source": null});
        assert_eq!(read(&[bare], false).unwrap(), Page::default());
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
    #[case("refund", Some("risk_reserved"), false)]
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
    #[case("id", None)]
    #[case("id", Some(json!(null)))]
    #[case("id", Some(json!("")))]
    #[case("reporting_category", None)]
    #[case("reporting_category", Some(json!(null)))]
    fn a_row_without_an_id_or_a_category_stops_the_page(#[case] field: &str, #[case] value: Option<Value>) {
        let result = read(&[row("txn_0", "charge", 1), with(field, value)], true);
        assert!(matches!(result, Err(RefusedReason::InvalidAnswer(_))), "{result:?}");
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
    fn a_debit_counts_when_its_money_is_there(
        #[case] method: &str,
        #[case] status: &str,
        #[case] later: i64,
    ) {
        let mut row = row("txn_1", "charge", 1000);
        row["available_on"] = json!(1_795_000_300);
        row["source"]["status"] = status.into();
        row["source"]["payment_method_details"] = json!({"type": method});
        let movement = read(&[row], false).unwrap().movements.remove(0);
        assert_eq!(movement.state.as_deref(), Some(status));
        assert_eq!(movement.occurred_at.map(|at| at.timestamp()), Some(1_795_000_000 + later));
        assert_eq!(movement.listed_at.map(|at| at.timestamp()), Some(1_795_000_000));
    }

    #[test]
    fn a_platform_that_takes_a_part_back_makes_no_refund() {
        let mut row = row("txn_1", "refund", -200);
        row["source"] =
            json!({"id": "pyr_1", "object": "refund", "charge": "py_1", "source_transfer_reversal": "trr_1"});
        assert_eq!(read(&[row], false).unwrap().movements[0].kind, MovementKind::PlatformReversal);
    }

    #[test]
    fn every_category_has_one_meaning() {
        assert_eq!(kinds().len(), COUNTED.len() + NO_TURNOVER.len());
        assert!(COUNTED.iter().all(|(name, kind)| kind_of(name) == *kind));
        assert!(NO_TURNOVER.iter().all(|name| kind_of(name) == MovementKind::NoTurnover));
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
        assert!(read(&differing, false).is_err());
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
        /// once, with the amount that it has, and there is a next page exactly where there is said to be one.
        #[test]
        fn a_damaged_page_is_refused_or_whole(body in damaged(good()), cursor in prop::option::of("txn_[1-5]")) {
            let Ok(page) = page(body.to_string().as_bytes(), cursor.as_deref()) else { return Ok(()) };
            let rows = body["data"].as_array().unwrap();
            let may_be_money = |row: &&Value| !NO_TURNOVER.contains(&row["reporting_category"].as_str().unwrap_or_default());
            let expected: std::collections::BTreeSet<_> =
                rows.iter().filter(may_be_money).map(|row| row["id"].as_str().unwrap()).collect();
            prop_assert_eq!(page.movements.len(), expected.len());
            for movement in &page.movements {
                let row = rows.iter().find(|row| row["id"] == movement.external_id.as_str()).unwrap();
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
        fn no_euro_is_lost(amounts in prop::collection::vec(any::<i64>(), 0..50)) {
            let rows: Vec<_> =
                amounts.iter().enumerate().map(|(i, amount)| row(&format!("txn_{i}"), "charge", *amount)).collect();
            let page = read(&rows, false).unwrap();
            prop_assert_eq!(page.movements.iter().filter_map(|m| m.amount_minor).collect::<Vec<_>>(), amounts);
        }
    }
}
