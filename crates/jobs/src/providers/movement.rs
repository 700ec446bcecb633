//! One movement of money, as a provider tells it.
//!
//! A movement is kept whatever can be understood of it. Whether it counts is decided by the database from its stored
//! row (`jobs.why_excluded`), not here.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::money::{Currency, MinorAmount};

/// Says what happened. The sign of the amount says which way the money went; this says why.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MovementKind {
    /// A customer paid.
    Payment,
    /// Money was given back (negative).
    Refund,
    /// A refund did not arrive and came back (positive).
    RefundFailure,
    /// A chargeback was taken from the merchant (negative).
    Dispute,
    /// A chargeback was won, the money is back (positive).
    DisputeReversal,
    /// A payment that was booked has failed (negative): it was never received.
    ChargeFailure,
    /// A part of a booked charge was not captured (negative).
    PartialCapture,
    /// A platform took a part of what it had passed on back (negative): its fee, or a refund of the sale.
    PlatformReversal,
    /// The movement is no turnover, as it turned out after it had been kept as unknown.
    NoTurnover,
    /// This version does not know what the provider's name for it means.
    Unknown,
}

/// Represents a movement of money. The settling database function takes it as it serialises, or many of them by fields:
///
/// ```
/// # use jobs::money::{Currency, MinorAmount};
/// # use jobs::providers::{Movement, MovementKind};
/// let at = "2026-11-21T10:00:00Z".parse().unwrap();
/// let amount = MinorAmount::new(-1250, Currency::EUR);
/// let movement = Movement {
///     references: vec!["re_1".into(), "ch_1".into()],
///     ..Movement::new("txn_1", MovementKind::Refund, "refund", at, amount)
/// };
/// assert_eq!(
///     serde_json::to_string(&movement).unwrap(),
///     r#"{"external_id":"txn_1","kind":"refund","source_kind":"refund","state":null,"method":null,"occurred_at":"2026-11-21T10:00:00Z","listed_at":"2026-11-21T10:00:00Z","amount_minor":-1250,"currency":"EUR","converted":true,"original":null,"references":["re_1","ch_1"]}"#,
/// );
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Movement {
    /// Is the provider's own id; unique and stable per provider and account.
    pub external_id: String,
    pub kind: MovementKind,
    /// Is the provider's own name for it, from which a later version may learn the kind.
    pub source_kind: String,
    /// Is the state of the payment or dispute behind it, in the provider's words; `None` where none
    /// was told.
    pub state: Option<String>,
    /// Says how it was paid, in the provider's words.
    pub method: Option<String>,
    /// Says when it counts; `None` where the provider tells no date that can be read.
    pub occurred_at: Option<DateTime<Utc>>,
    /// Is the date under which the provider lists it.
    pub listed_at: Option<DateTime<Utc>>,
    /// Is in signed minor units of `currency`, gross of the provider's fees; `None` where the
    /// amount cannot be read.
    pub amount_minor: Option<i64>,
    /// Is the account's currency (the buyer's where it is not `converted`), as told.
    pub currency: Option<String>,
    /// Says whether `amount_minor` and `currency` are the account's own; else they are the buyer's.
    pub converted: bool,
    /// Holds what was read, where `amount_minor` and `currency` are something else.
    pub original: Option<Original>,
    /// Lists Stripe ids (`ch_`, `py_`, `pi_`, `re_`, `pyr_`) of what was paid, and of the transfer
    /// (`tr_`) by which a platform passed it on, sorted; behind them the Shopify order, which tells whose refund it is where Shopify names no payment. A payment
    /// and its refunds share the payment's id: the same movement seen through both providers has a
    /// common reference *and* the same kind of movement (money in or money back).
    pub references: Vec<String>,
}

/// Represents what a transaction of an order says was paid. It is no movement: the list of movements should have it, too.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct OrderPayment {
    /// Names the order (`gid://shopify/Order/…`).
    pub order: String,
    /// Names the transaction (`gid://shopify/OrderTransaction/…`).
    pub id: String,
    /// Is when it was paid.
    pub at: DateTime<Utc>,
    /// Is in signed minor units of `currency`, the shop's.
    pub amount_minor: i64,
    pub currency: String,
    /// Names the means of payment; what was paid before (a gift card) is none that the list has to show.
    pub method: Option<String>,
}

/// Represents an amount as a provider wrote it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Original {
    /// Is the text of the amount, cut at 40 characters.
    pub amount: Option<String>,
    /// Is the text of the currency, cut at 20 characters.
    pub currency: Option<String>,
    /// Is the amount in minor units of the currency, where it can be read.
    pub amount_minor: Option<i64>,
    /// Names the order whose transactions told the conversion.
    pub rate_from: Option<String>,
}

impl Original {
    /// Keeps what can be kept of two texts.
    pub(super) fn of(amount: Option<&str>, currency: Option<&str>) -> Self {
        let cut = |text: &str, most: usize| text.chars().filter(|c| !c.is_control()).take(most).collect();
        let minor = match (amount, currency.map(str::parse::<Currency>)) {
            (Some(amount), Some(Ok(currency))) => {
                MinorAmount::from_decimal_str(amount, currency).ok().filter(|amount| is_credible(*amount))
            }
            _ => None,
        };
        let minor = minor.map(MinorAmount::minor);
        Self {
            amount: amount.map(|text| cut(text, 40)),
            currency: currency.map(|text| cut(text, 20)),
            amount_minor: minor,
            rate_from: None,
        }
    }
}

impl Movement {
    /// Creates a movement of which everything is known that the provider's list tells.
    pub fn new(
        external_id: impl Into<String>,
        kind: MovementKind,
        source_kind: impl Into<String>,
        at: DateTime<Utc>,
        amount: MinorAmount,
    ) -> Self {
        Self {
            external_id: external_id.into(),
            kind,
            source_kind: source_kind.into(),
            state: None,
            method: None,
            occurred_at: Some(at),
            listed_at: Some(at),
            amount_minor: Some(amount.minor()),
            currency: Some(amount.currency().to_string()),
            converted: true,
            original: None,
            references: Vec::new(),
        }
    }

    /// Returns a movement of which the provider told two things under one id: nobody knows which is true, so it does not
    /// count until the provider tells one.
    pub(super) fn contradicted(self) -> Self {
        let told = || Original {
            amount: self.amount_minor.map(|minor| minor.to_string()),
            currency: self.currency.clone(),
            ..Original::default()
        };
        // Disputes have a list of their own, which their kind tells.
        let of_disputes = if self.source_kind.starts_with("dispute") { "dispute:" } else { "" };
        Self {
            kind: MovementKind::Unknown,
            source_kind: format!("{of_disputes}two_rows_with_one_id"),
            state: None,
            original: self.original.clone().or_else(|| Some(told())),
            amount_minor: None,
            ..self
        }
    }
}

/// Is the kind of a row without an id. The database knows it, too (`jobs.follow_movements`): such a row is missing until
/// it is told with its id.
pub(super) const NO_ID: &str = "row_without_id";
/// Is the kind of a dispute without an id, likewise.
pub(super) const DISPUTE_WITHOUT_ID: &str = "dispute:without_id";

/// Returns an id that can be kept; `None` where there is none, or one that the database could not store.
pub(super) fn kept_id(id: &Value) -> Option<&str> {
    id.as_str().filter(|id| (1..=255).contains(&id.len()) && !id.chars().any(char::is_control))
}

/// Returns what a row without an id is kept under: the same row is the same movement again.
pub(super) fn unnamed(row: &Value) -> String {
    let digest = Sha256::digest(row.to_string());
    digest[..16].iter().fold("unnamed:".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

/// Returns whether an amount may be true. No sum of the books could hold more (`numeric(12, 2)`): one such row would keep
/// everything else of its account from being written.
pub(super) fn is_credible(amount: MinorAmount) -> bool {
    let most = if amount.currency() == Currency::EUR { 10_i64.pow(10) } else { 10_i64.pow(15) };
    (-most..=most).contains(&amount.minor())
}

/// Cuts a provider's word to what is kept of it: at most 60 visible ASCII characters.
pub(super) fn word(text: &str) -> String {
    const LONGEST: usize = 60;
    text.chars().filter(char::is_ascii_graphic).take(LONGEST).collect()
}

/// Returns whether `text` is the id of a Stripe object that identifies a payment or its refund.
pub(super) fn is_payment_reference(text: &str) -> bool {
    is_id_of(text, &["ch", "py", "pi", "re", "pyr"])
}

/// Returns whether `text` is the id of a transfer between two accounts of Stripe.
pub(super) fn is_transfer(text: &str) -> bool {
    is_id_of(text, &["tr"])
}

/// Returns whether `text` is the id of a fee that a platform took of a payment.
pub(super) fn is_application_fee(text: &str) -> bool {
    is_id_of(text, &["fee"])
}

fn is_id_of(text: &str, prefixes: &[&str]) -> bool {
    let Some((prefix, rest)) = text.split_once('_') else { return false };
    prefixes.contains(&prefix)
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

    #[rstest]
    #[case(10_000_000_000, "EUR", true)]
    #[case(-10_000_000_001, "EUR", false)]
    #[case(10_000_000_001, "IDR", true)]
    #[case(1_000_000_000_000_001, "IDR", false)]
    #[case(i64::MIN, "USD", false)]
    fn credible_amounts(#[case] minor: i64, #[case] currency: &str, #[case] expected: bool) {
        assert_eq!(is_credible(MinorAmount::new(minor, currency.parse().unwrap())), expected);
    }

    #[rstest]
    #[case(Some("45.455"), Some("EUR"), None)]
    #[case(Some("-45.45"), Some("EUR"), Some(-4545))]
    #[case(Some("12"), Some("USDC"), None)]
    #[case(Some("12"), None, None)]
    #[case(None, Some("EUR"), None)]
    fn originals(#[case] amount: Option<&str>, #[case] currency: Option<&str>, #[case] minor: Option<i64>) {
        let original = Original::of(amount, currency);
        assert_eq!(original.amount_minor, minor);
        assert_eq!((original.amount.as_deref(), original.currency.as_deref()), (amount, currency));
    }
}
