//! One movement of money, whichever provider reports it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::money::Currency;

/// What happened. The sign of the amount says which way the money went; this says why.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MovementKind {
    /// A customer paid.
    Payment,
    /// Money given back (negative).
    Refund,
    /// A refund that did not arrive and came back (positive).
    RefundFailure,
    /// A chargeback taken from the merchant (negative).
    Dispute,
    /// A chargeback won, the money is back (positive).
    DisputeReversal,
    /// A payment that was booked and failed afterwards (negative), e.g. a direct debit.
    ChargeFailure,
    /// The part of a booked charge that was not captured (negative).
    PartialCapture,
}

/// Why a movement is kept but never counted.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Exclusion {
    /// Paid with a gift card: the money came in when the card was sold.
    GiftCard,
    /// Paid with store credit: no money moved.
    StoreCredit,
    /// Known only in the buyer's currency; amount and currency are the buyer's.
    UnresolvedCurrency,
}

/// A movement of money. Serialises to what the settling database function takes:
///
/// ```
/// # use jobs::money::Currency;
/// # use jobs::providers::{Movement, MovementKind};
/// let movement = Movement {
///     external_id: "txn_1".into(),
///     kind: MovementKind::Refund,
///     occurred_at: "2026-11-21T10:00:00Z".parse().unwrap(),
///     amount_minor: -1250,
///     currency: Currency::EUR,
///     references: vec!["re_1".into(), "ch_1".into()],
///     excluded: None,
/// };
/// assert_eq!(
///     serde_json::to_string(&movement).unwrap(),
///     r#"{"external_id":"txn_1","kind":"refund","occurred_at":"2026-11-21T10:00:00Z","amount_minor":-1250,"currency":"EUR","references":["re_1","ch_1"],"excluded":null}"#,
/// );
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Movement {
    /// The provider's own id; unique and stable per provider and account.
    pub external_id: String,
    /// What happened.
    pub kind: MovementKind,
    /// When the money moved.
    pub occurred_at: DateTime<Utc>,
    /// Signed minor units of `currency`, gross of the provider's fees.
    pub amount_minor: i64,
    /// Settlement currency (the buyer's for [`Exclusion::UnresolvedCurrency`]).
    pub currency: Currency,
    /// Stripe ids (`ch_`, `py_`, `pi_`, `re_`, `pyr_`) of what was paid, sorted; behind them the Shopify order,
    /// which tells whose refund it is where Shopify names no payment. A payment and its refunds share
    /// the payment's id: the same movement seen through both providers has a common reference *and* the same
    /// kind of movement (money in or money back).
    pub references: Vec<String>,
    /// Set: kept and shown, never counted.
    pub excluded: Option<Exclusion>,
}

/// Whether `text` is the id of a Stripe object that identifies a payment or its refund.
pub(super) fn is_payment_reference(text: &str) -> bool {
    let Some((prefix, rest)) = text.split_once('_') else { return false };
    matches!(prefix, "ch" | "py" | "pi" | "re" | "pyr")
        && (1..=255).contains(&rest.len())
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ch_3Px", true)]
    #[case("pi_3Px", true)]
    #[case("re_3Px", true)]
    #[case("py_1", true)]
    #[case("pyr_1", true)]
    #[case("ch_", false)]
    #[case("ch", false)]
    #[case("du_1", false)]
    #[case("PAYID-XYZ", false)]
    #[case("ch_1 or 1=1", false)]
    fn references(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(is_payment_reference(text), expected);
    }
}
