//! From a page of balance transactions to movements. Pure.

use std::collections::HashMap;

use chrono::DateTime;
use serde::Deserialize;
use serde_json::{Number, Value};

use crate::providers::movement::is_payment_reference;
use crate::providers::{Movement, MovementKind, Page, RefusedReason};

#[derive(Deserialize)]
struct List {
    data: Vec<Row>,
    has_more: bool,
}

/// Every field may be missing: what a row lacks is decided per row, so that a payout without a currency does
/// not cost the page.
#[derive(Deserialize)]
struct Row {
    id: Option<String>,
    amount: Option<Number>,
    currency: Option<String>,
    created: Option<Number>,
    reporting_category: Option<String>,
    balance_type: Option<String>,
    #[serde(default)]
    source: Value,
}

enum Category {
    Counted(MovementKind),
    NotTurnover,
    Unknown,
}

/// "Reporting categories": what customers pay and get back counts; what moves between balances, banks and
/// Stripe does not. Anything else is surfaced, never guessed.
fn category(name: &str) -> Category {
    Category::Counted(match name {
        "charge" => MovementKind::Payment,
        "partial_capture_reversal" => MovementKind::PartialCapture,
        "refund" => MovementKind::Refund,
        "refund_failure" => MovementKind::RefundFailure,
        "dispute" => MovementKind::Dispute,
        "dispute_reversal" => MovementKind::DisputeReversal,
        "charge_failure" => MovementKind::ChargeFailure,
        "payout"
        | "payout_reversal"
        | "fee"
        | "network_cost"
        | "tax"
        | "transfer"
        | "transfer_reversal"
        | "topup"
        | "topup_reversal"
        | "connect_collection_transfer"
        | "connect_reserved_funds"
        | "risk_reserved_funds"
        | "currency_conversion"
        | "contribution"
        | "advance"
        | "advance_funding"
        | "anticipation_repayment" => return Category::NotTurnover,
        _ if name.starts_with("financing_") || name.starts_with("issuing_") => return Category::NotTurnover,
        _ => return Category::Unknown,
    })
}

/// Refunds and disputes are paid from the prefunding balance when the payments balance is empty ("Add funds to
/// your Stripe balance"): money back to customers all the same. No other balance holds turnover.
fn holds_turnover(balance_type: Option<&str>, kind: MovementKind) -> bool {
    match balance_type {
        None | Some("payments") => true,
        Some("refund_and_dispute_prefunding") => kind != MovementKind::Payment,
        Some(_) => false,
    }
}

/// Reads one page, asked for behind `cursor`. A row of a counted category that cannot be read makes the whole
/// page invalid: to leave it out would be a euro lost in silence.
pub(super) fn page(body: &[u8], cursor: Option<&str>) -> Result<Page, RefusedReason> {
    let list: List = serde_json::from_slice(body).map_err(|_| RefusedReason::InvalidAnswer("list"))?;
    let (mut page, mut seen) = (Page::default(), HashMap::new());
    let mut last_id = None;
    for row in list.data {
        let id = row.id.clone().filter(|id| !id.is_empty()).ok_or(RefusedReason::InvalidAnswer("id"))?;
        if cursor == Some(id.as_str()) {
            return Err(RefusedReason::EndlessPages);
        }
        let name = row.reporting_category.as_deref().filter(|name| !name.is_empty());
        let name = name.ok_or(RefusedReason::InvalidAnswer("reporting_category"))?;
        match category(name) {
            Category::NotTurnover => {}
            Category::Unknown => page.ignore(name),
            Category::Counted(kind) if !holds_turnover(row.balance_type.as_deref(), kind) => {
                page.ignore(&format!("balance_type:{}", row.balance_type.unwrap_or_default()));
            }
            Category::Counted(kind) => page.add(&mut seen, movement(&row, id.clone(), kind)?)?,
        }
        last_id = Some(id);
    }
    if list.has_more {
        page.next = Some(last_id.ok_or(RefusedReason::EndlessPages)?);
    }
    Ok(page)
}

fn movement(row: &Row, external_id: String, kind: MovementKind) -> Result<Movement, RefusedReason> {
    let created = row.created.as_ref().and_then(Number::as_i64);
    let currency = row.currency.as_deref().and_then(|code| code.parse().ok());
    Ok(Movement {
        external_id,
        kind,
        occurred_at: created
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
            .ok_or(RefusedReason::InvalidAnswer("created"))?,
        amount_minor: row
            .amount
            .as_ref()
            .and_then(Number::as_i64)
            .ok_or(RefusedReason::InvalidAnswer("amount"))?,
        currency: currency.ok_or(RefusedReason::InvalidAnswer("currency"))?,
        references: references(&row.source),
        excluded: None,
    })
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

    /// A row with one field replaced, or removed for `None`.
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
        assert_eq!((page.movements[0].kind, page.movements[0].amount_minor), (kind, -730));
        assert_eq!((page.next, page.ignored.len()), (None, 0));
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
        assert!(page.movements.is_empty());
        assert_eq!(page.ignored, [("brand_new".into(), 2), ("other_adjustment".into(), 1)].into());
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
        assert_eq!((page.movements.len(), page.ignored.len()), (usize::from(counted), usize::from(!counted)));
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
    #[case("amount", None)]
    #[case("amount", Some(json!(null)))]
    #[case("amount", Some(json!(10.5)))]
    #[case("amount", Some(json!(1e300)))]
    #[case("amount", Some(json!(9_223_372_036_854_775_808_u64)))]
    #[case("amount", Some(json!("10")))]
    #[case("currency", None)]
    #[case("currency", Some(json!("euros")))]
    #[case("created", None)]
    #[case("created", Some(json!(i64::MAX)))]
    #[case("created", Some(json!(-9.5)))]
    #[case("reporting_category", None)]
    #[case("reporting_category", Some(json!(null)))]
    fn a_counted_row_that_cannot_be_read_stops_the_page(#[case] field: &str, #[case] value: Option<Value>) {
        let result = read(&[row("txn_0", "charge", 1), with(field, value)], true);
        assert!(matches!(result, Err(RefusedReason::InvalidAnswer(_))), "{result:?}");
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
    fn a_number_that_is_no_amount_stops_the_page(#[case] number: &str) {
        let body = read_text(&row("txn_1", "charge", 4242)).replace("4242", number);
        assert!(matches!(page(body.as_bytes(), None), Err(RefusedReason::InvalidAnswer(_))), "{number}");
    }

    fn read_text(row: &Value) -> String {
        json!({"data": [row], "has_more": false}).to_string()
    }

    proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>) {
            let _ = page(&body, None);
        }

        /// Whatever is wrong with a page: either it is refused as a whole, or every row of it that counts is there
        /// once, with its amount, and there is a next page exactly where there is said to be one.
        #[test]
        fn a_damaged_page_is_refused_or_whole(body in damaged(good()), cursor in prop::option::of("txn_[1-5]")) {
            let Ok(page) = page(body.to_string().as_bytes(), cursor.as_deref()) else { return Ok(()) };
            // serde reads a list as an object's fields, in order: no page of Stripe's looks like that.
            let Some(rows) = body["data"].as_array() else { return Ok(()) };
            let counts = |row: &&Value| {
                let category = row["reporting_category"].as_str().unwrap();
                ["charge", "refund"].contains(&category) && holds_turnover(row["balance_type"].as_str(), MovementKind::Refund)
                    && (category != "charge" || row["balance_type"].as_str().is_none_or(|name| name == "payments"))
            };
            let mut expected: Vec<_> = rows
                .iter()
                .filter(counts)
                .map(|row| (row["id"].as_str().unwrap(), row["amount"].as_i64().unwrap()))
                .collect();
            expected.sort_unstable();
            expected.dedup();
            let mut read: Vec<_> =
                page.movements.iter().map(|movement| (movement.external_id.as_str(), movement.amount_minor)).collect();
            read.sort_unstable();
            prop_assert_eq!(read, expected);
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
            prop_assert_eq!(page.movements.iter().map(|m| m.amount_minor).collect::<Vec<_>>(), amounts);
        }
    }
}
