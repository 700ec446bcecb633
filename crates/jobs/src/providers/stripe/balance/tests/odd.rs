//! Reads rows in which something is odd that holds no list together.

use super::*;

#[rstest]
#[case("id", None, NO_ID)]
#[case("id", Some(json!(null)), NO_ID)]
#[case("id", Some(json!("")), NO_ID)]
#[case("id", Some(json!(12)), NO_ID)]
#[case("id", Some(json!("txn_\u{0}")), NO_ID)]
#[case("reporting_category", None, "type:charge")]
#[case("reporting_category", Some(json!(null)), "type:charge")]
#[case("reporting_category", Some(json!(7)), "type:charge")]
#[case("balance_type", Some(json!(7)), "balance_type:?")]
fn a_row_without_an_id_or_a_category_costs_nobody_else_anything(
    #[case] field: &str,
    #[case] value: Option<Value>,
    #[case] kind: &str,
) {
    let page = read(&[row("txn_0", "charge", 1), with(field, value.clone())], true).unwrap();
    let [sound, odd] = &page.movements[..] else { panic!("{page:?}") };
    assert_eq!((sound.kind, sound.amount_minor), (MovementKind::Payment, Some(1)));
    assert_eq!(
        (odd.kind, odd.source_kind.as_str(), odd.amount_minor),
        (MovementKind::Unknown, kind, Some(1000))
    );
    let last = if field == "id" { "txn_0" } else { "txn_1" };
    assert_eq!((page.next.as_deref(), page.unknown[kind]), (Some(last), 1));
    // The same row is the same movement.
    let again = read(&[with(field, value)], false).unwrap();
    assert_eq!(again.movements[0].external_id, odd.external_id);
}

#[test]
fn a_row_without_a_category_and_a_type_is_kept() {
    let mut odd = with("reporting_category", None);
    odd["type"] = json!(null);
    let page = read(&[odd], false).unwrap();
    assert_eq!(page.movements[0].source_kind, "row_without_category");
}

/// What comes back of a refund of any other way to pay than a card has the refund's own category.
#[rstest]
#[case(-500, MovementKind::Refund)]
#[case(0, MovementKind::Refund)]
#[case(500, MovementKind::RefundFailure)]
fn a_refund_that_comes_back_is_no_refund(#[case] amount: i64, #[case] kind: MovementKind) {
    let mut row = row("txn_1", "refund", amount);
    row["source"] = json!({"id": "pyr_1", "object": "refund", "charge": "py_1", "status": "failed"});
    assert_eq!(read(&[row], false).unwrap().movements[0].kind, kind);
}

#[test]
fn a_list_of_rows_without_ids_has_no_next_page() {
    let rows = [with("id", None), row("", "charge", 1)];
    assert_eq!(read(&rows, false).unwrap().movements.len(), 2);
    assert_eq!(read(&rows, true), Err(RefusedReason::EndlessPages));
    let empty = read(&[json!({"reporting_category": "charge"})], false);
    assert_eq!(empty, Err(RefusedReason::InvalidAnswer("row")));
    let bare = read(&[json!({"id": "txn_1"})], false);
    assert_eq!(bare, Err(RefusedReason::InvalidAnswer("row")));
}

/// One row of so much would keep the books of its account from being written.
#[rstest]
#[case(10_000_000_001)]
#[case(i64::MAX)]
#[case(i64::MIN)]
fn more_than_can_be_true_is_not_read(#[case] amount: i64) {
    let kept = read(&[row("txn_1", "charge", amount)], false).unwrap().movements.remove(0);
    assert_eq!((kept.kind, kept.amount_minor), (MovementKind::Payment, None));
    assert_eq!(kept.original.unwrap().amount, Some(amount.to_string()));
}
