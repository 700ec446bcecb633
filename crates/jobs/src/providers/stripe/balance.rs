//! From balance transactions to movements. Pure.
//!
//! What a row means is told by its `reporting_category` ([Reporting categories]). A row that cannot be understood is
//! kept as it was read, without an id or a category, too; only a page that is no list of rows is refused. Where a row has no
//! category, its [type] names it.
//!
//! [Reporting categories]: https://docs.stripe.com/reports/reporting-categories
//! [type]: https://docs.stripe.com/reports/balance-transaction-types

use std::borrow::Cow;
use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny};
use serde_json::Value;

use super::categories::{holds_turnover, kind_of};
use crate::money::{Currency, MinorAmount};
use crate::providers::movement::{
    NO_ID, Original, is_application_fee, is_credible, is_payment_reference, is_transfer, kept_id, unnamed,
    word,
};
use crate::providers::picked::Picked::{self, Fields, Whole};
use crate::providers::{Movement, MovementKind, Page, RefusedReason};

#[derive(Deserialize)]
struct List {
    #[serde(deserialize_with = "rows")]
    data: Vec<Value>,
    has_more: bool,
    /// Is in no list. Stripe's own library takes every answer that has one for a refusal, whatever its status
    /// (<https://github.com/stripe/stripe-node/blob/master/src/RequestSender.ts>).
    error: Option<IgnoredAny>,
}

/// Is what is read of a row and of its expanded source. Of what only has to be there nothing inside is kept.
const ROW: Picked = Fields(&[
    ("id", Whole),
    ("reporting_category", Whole),
    ("type", Whole),
    ("balance_type", Whole),
    ("created", Whole),
    ("available_on", Whole),
    ("amount", Whole),
    ("currency", Whole),
    ("source", SOURCE),
]);
const SOURCE: Picked = Fields(&[
    ("id", Whole),
    ("amount", Whole),
    ("currency", Whole),
    ("status", Whole),
    ("pending_reason", Whole),
    ("failure_reason", Whole),
    ("payment_method_details", Fields(&[("type", Whole)])),
    ("charge", Fields(&[("id", Whole), ("payment_intent", Whole)])),
    ("payment_intent", Fields(&[("id", Whole)])),
    ("source_transfer", Fields(&[("id", Whole)])),
    ("source_transfer_reversal", Fields(&[])),
    ("application_fee", Whole),
]);

fn rows<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Value>, D::Error> {
    match ROW.deserialize(deserializer)? {
        Value::Array(rows) if rows.iter().all(Value::is_object) => Ok(rows),
        _ => Err(D::Error::custom("no list of objects")),
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

/// Is the state of a refund that failed while it waited for money.
const NEVER_PAID: &str = "never_paid";

/// These states say that the money is there or will not come, or say nothing. Money is expected in every other one, whatever
/// it is called.
const SAID_OTHERWISE: [&str; 4] = ["succeeded", "failed", "canceled", "unknown"];

/// Reads one page, asked for behind `cursor`.
pub(super) fn page(body: &[u8], cursor: Option<&str>) -> Result<Page, RefusedReason> {
    let list: List = serde_json::from_slice(body).map_err(|_| RefusedReason::InvalidAnswer("list"))?;
    // serde reads an array as an object's fields, in order.
    if list.error.is_some() || !body.trim_ascii_start().starts_with(b"{") {
        return Err(RefusedReason::InvalidAnswer("list"));
    }
    let (mut page, mut seen) = (Page::default(), HashMap::new());
    let mut last_id = None;
    for row in list.data {
        let movement = movement(&row)?;
        if let Some(id) = kept_id(&row["id"]) {
            if cursor == Some(id) {
                return Err(RefusedReason::EndlessPages);
            }
            last_id = Some(id.to_owned());
        }
        match movement.kind {
            MovementKind::NoTurnover => continue,
            MovementKind::Unknown => page.note_unknown(&movement.source_kind),
            _ => {}
        }
        page.add(&mut seen, movement);
    }
    if list.has_more {
        page.next = Some(last_id.ok_or(RefusedReason::EndlessPages)?);
    }
    Ok(page)
}

/// Reads one balance transaction that was asked for by its id.
pub(super) fn single(body: &[u8]) -> Result<Movement, RefusedReason> {
    let row = ROW.read(body).map_err(|_| RefusedReason::InvalidAnswer("balance transaction"))?;
    movement(&row)
}

fn movement(row: &Value) -> Result<Movement, RefusedReason> {
    let external_id = kept_id(&row["id"]);
    let says_nothing = |fields: &[&str]| fields.iter().all(|field| row[field].is_null());
    if says_nothing(&["amount", "created"])
        && (external_id.is_none() || says_nothing(&["reporting_category", "type"]))
    {
        return Err(RefusedReason::InvalidAnswer("row"));
    }
    let category = category(row);
    let balance = match &row["balance_type"] {
        Value::Null => None,
        told => Some(told.as_str().unwrap_or("?")),
    };
    let source = &row["source"];
    let (mut kind, mut source_kind) = (kind_of(&category), word(&category));
    // What comes back of a refund that failed: of a card's under a category of its own, of any other way to pay under the
    // refund's. https://docs.stripe.com/reports/balance-transaction-types
    if kind == MovementKind::Refund && row["amount"].as_i64().is_some_and(|amount| amount > 0) {
        kind = MovementKind::RefundFailure;
    }
    if external_id.is_none() && kind != MovementKind::NoTurnover {
        (kind, source_kind) = (MovementKind::Unknown, NO_ID.to_owned());
    }
    if !matches!(kind, MovementKind::NoTurnover | MovementKind::Unknown) && !holds_turnover(balance, kind) {
        (kind, source_kind) =
            (MovementKind::Unknown, word(&format!("balance_type:{}", balance.unwrap_or_default())));
    }
    // The platform's part of a payment, taken back: a fee of hers, or a refund of the sale that she made.
    // https://docs.stripe.com/api/refunds/object#refund_object-source_transfer_reversal
    if matches!(kind, MovementKind::Refund | MovementKind::RefundFailure)
        && !source["source_transfer_reversal"].is_null()
    {
        kind = MovementKind::PlatformReversal;
    }
    let mut references = references(source);
    // What it takes back counts as long as nobody knows which payment that was.
    if kind == MovementKind::ChargeFailure && !references.iter().any(|name| !name.starts_with("pi_")) {
        (kind, source_kind) = (MovementKind::Unknown, "charge_failure:unnamed".to_owned());
    }

    let created = instant(&row["created"]);
    let method = source["payment_method_details"]["type"].as_str().map(word);
    let elsewhere = settled_elsewhere(row, kind);
    if elsewhere.is_some() {
        let method = method.as_deref().unwrap_or("unknown");
        (kind, source_kind) = (MovementKind::Unknown, word(&format!("settled_elsewhere:{method}")));
    }
    // Of a kind that is unknown, too: it may be learned, and is not asked for again then.
    let is_refund = source["id"].as_str().is_some_and(|id| id.starts_with("re_") || id.starts_with("pyr_"));
    let state = match kind {
        MovementKind::Refund => refund_state(source),
        MovementKind::RefundFailure => refund_state(source).filter(|state| state == NEVER_PAID),
        MovementKind::Unknown if is_refund => refund_state(source),
        MovementKind::Payment | MovementKind::Unknown => payment_state(row),
        _ => None,
    };
    let is_debit = method.as_deref().is_some_and(|method| DEBITS.contains(&method));
    let may_be_payment = matches!(kind, MovementKind::Payment | MovementKind::Unknown);
    let is_expected = state.as_deref().is_some_and(|state| !SAID_OTHERWISE.contains(&state));
    let occurred_at = if may_be_payment && (is_debit || is_expected) {
        // The day on which the money is there, as Stripe states it: docs/adr/0015.
        instant(&row["available_on"]).max(created)
    } else {
        created
    };

    let amount_minor = row["amount"].as_i64();
    let currency = row["currency"].as_str().map(|code| word(code).to_uppercase());
    let readable = amount_minor.is_some_and(|minor| is_amount(minor, currency.as_deref()));
    let original = match elsewhere {
        Some(paid) => Some(paid),
        None if readable => bought_for(source, amount_minor, currency.as_deref()),
        None => Some(as_read(row)),
    };
    references.extend(passed_on(source, kind).map(str::to_owned));
    references.extend(application_fee(source, kind).map(str::to_owned));
    Ok(Movement {
        external_id: external_id.map_or_else(|| unnamed(row), str::to_owned),
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
        references,
    })
}

fn is_amount(minor: i64, currency: Option<&str>) -> bool {
    let currency = currency.and_then(|code| code.parse::<Currency>().ok());
    currency.is_some_and(|currency| is_credible(MinorAmount::new(minor, currency)))
}

/// Returns the category of a row; where it has none, its type, as was reported of `payment_reversal`: what a bank takes back of
/// a payment that had come.
fn category(row: &Value) -> Cow<'_, str> {
    let text = |field: &str| row[field].as_str().filter(|name| !name.is_empty());
    match (text("reporting_category"), text("type")) {
        (Some(category), _) => category.into(),
        (None, Some(kind)) => format!("type:{kind}").into(),
        (None, None) => "row_without_category".into(),
    }
}

fn instant(seconds: &Value) -> Option<DateTime<Utc>> {
    let instant = DateTime::from_timestamp(seconds.as_i64()?, 0)?;
    // What the database can store.
    (instant.timestamp() > -62_000_000_000 && instant.timestamp() < 250_000_000_000).then_some(instant)
}

/// Returns the state of the payment behind a row, where the source tells it. A payment that is only named, or of which
/// nothing is told, may be a debit on its way, unless it is a card's: the row's type is `charge` then, and its id `ch_…`
/// (<https://docs.stripe.com/api/balance_transactions/object#balance_transaction_object-type>).
fn payment_state(row: &Value) -> Option<String> {
    let source = &row["source"];
    if let Some(status) = source["status"].as_str().filter(|status| !status.is_empty()) {
        return Some(word(status));
    }
    let id = source.as_str().or(source["id"].as_str()).unwrap_or_default();
    (id.starts_with("py_") || row["type"] == "payment").then(|| "unknown".to_owned())
}

/// Returns the state of the refund behind a row, where the source tells it: `pending` as long as it cannot be paid, because
/// the account has no money or the payment itself has not come ([`pending_reason`]). One that is under way to the customer
/// has left the balance. One that failed while it waited was never paid, whether or not anybody saw it wait
/// ([`failure_reason`]).
///
/// [`pending_reason`]: https://docs.stripe.com/changelog/basil/2025-04-30/refund-pending-reason
/// [`failure_reason`]: https://docs.stripe.com/api/refunds/object#refund_object-failure_reason
fn refund_state(source: &Value) -> Option<String> {
    let waits_for = source["pending_reason"].as_str();
    let state = match (source["status"].as_str()?, waits_for, source["failure_reason"].as_str()) {
        ("pending", Some("insufficient_funds" | "charge_pending"), _) => "pending",
        ("pending", ..) => "processing",
        ("failed" | "canceled", _, Some("insufficient_funds" | "charge_for_pending_refund_disputed")) => {
            NEVER_PAID
        }
        (status, ..) => status,
    };
    Some(word(state))
}

/// Returns what the buyer paid, where that was another currency than the row's.
fn bought_for(source: &Value, amount_minor: Option<i64>, currency: Option<&str>) -> Option<Original> {
    let (paid, bought_in) = (source["amount"].as_i64()?, source["currency"].as_str()?.to_uppercase());
    if currency == Some(bought_in.as_str()) || !is_amount(paid, Some(&bought_in)) {
        return None;
    }
    let signed = if amount_minor? < 0 { paid.checked_abs()?.checked_neg()? } else { paid };
    Some(Original { currency: Some(word(&bought_in)), amount_minor: Some(signed), ..Original::default() })
}

/// Returns what was paid of a row that moves nothing: the money is on an account of another house. Sales by PayPal that
/// are [settled there](https://docs.stripe.com/payments/paypal/choose-settlement-preference) have a row of zero,
/// whatever was paid, and so has what goes back of them. What it is here is not known: many record their PayPal sales by
/// hand.
fn settled_elsewhere(row: &Value, kind: MovementKind) -> Option<Original> {
    let source = &row["source"];
    let (paid, paid_in) = (source["amount"].as_i64()?, source["currency"].as_str()?);
    let sign = match kind {
        MovementKind::Payment | MovementKind::RefundFailure | MovementKind::DisputeReversal => 1,
        MovementKind::Refund | MovementKind::Dispute => -1,
        _ => return None,
    };
    let is_elsewhere = paid != 0 && row["amount"].as_i64() == Some(0) && is_amount(paid, Some(paid_in));
    is_elsewhere.then(|| Original {
        currency: Some(word(paid_in).to_uppercase()),
        amount_minor: paid.checked_mul(sign),
        ..Original::default()
    })
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

/// Returns the transfer by which a platform passed a payment on, where the amount may be less than what the buyer paid:
/// the platform decides [whether all of it or a part is transferred]. With an application fee all of it is, and the fee
/// goes back apart, so that the amount is the buyer's.
///
/// [whether all of it or a part is transferred]: https://docs.stripe.com/connect/destination-charges
fn passed_on(source: &Value, kind: MovementKind) -> Option<&str> {
    let transfer = source["source_transfer"].as_str().or_else(|| source["source_transfer"]["id"].as_str())?;
    let is_whole = !source["application_fee"].is_null();
    (kind == MovementKind::Payment && !is_whole && is_transfer(transfer)).then_some(transfer)
}

/// Returns the fee that a platform took of a payment which it passed on. What it takes back of such a payment is no fee, but
/// a refund: its transfer is reversed [in proportion to what is refunded].
///
/// [in proportion to what is refunded]: https://docs.stripe.com/api/refunds/create#create_refund-reverse_transfer
fn application_fee(source: &Value, kind: MovementKind) -> Option<&str> {
    let fee = source["application_fee"].as_str()?;
    let is_passed_on = kind == MovementKind::Payment && !source["source_transfer"].is_null();
    (is_passed_on && is_application_fee(fee)).then_some(fee)
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
mod tests;
