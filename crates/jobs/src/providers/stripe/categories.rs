//! Which categories of balance transactions are turnover, and which are not.
//!
//! What a row means is told by its `reporting_category` ([Reporting categories]).
//!
//! [Reporting categories]: https://docs.stripe.com/reports/reporting-categories

use serde_json::Value;

use crate::providers::MovementKind;

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

/// These categories are none: what moves between balances, banks and Stripe. `platform_earning`, `transfer` (of a seller
/// who is a platform herself, to others) and `other_adjustment` are missing on purpose: they are money of which this
/// version does not know whether it counts.
const NO_TURNOVER: [&str; 34] = [
    "payout",
    "payout_reversal",
    // https://docs.stripe.com/changelog/acacia/2024-12-18/payout-minimum-balance
    "payout_minimum_balance_hold",
    "payout_minimum_balance_release",
    "fee",
    "network_cost",
    "tax",
    // Between balances, held back for the state, and given by Stripe for its own fees: in the table of
    // https://docs.stripe.com/reports/reporting-categories
    "tax_fund",
    "tax_withholding",
    "fee_credit_funding",
    "topup",
    "topup_reversal",
    "connect_collection_transfer",
    "connect_reserved_funds",
    "risk_reserved_funds",
    // Held back and given back, for refunds and disputes to come:
    // https://docs.stripe.com/changelog/clover/2026-01-28/monitor-reserve-activity-on-balance-transactions
    "reserve_hold",
    "reserve_release",
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

/// Returns what a category means to this version.
pub(super) fn kind_of(category: &str) -> MovementKind {
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
/// the payments balance is empty ("Add funds to your Stripe balance"), and those of a payment of which a part is held back
/// "are automatically taken first from reserved amounts" ([reserves]): money back to customers all the same.
///
/// [reserves]: https://docs.stripe.com/connect/connected-account-reserves
pub(super) fn holds_turnover(balance_type: Option<&str>, kind: MovementKind) -> bool {
    match balance_type {
        None | Some("payments") => true,
        Some("refund_and_dispute_prefunding" | "risk_reserved") => kind != MovementKind::Payment,
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_category_has_one_meaning() {
        assert_eq!(kinds().len(), COUNTED.len() + NO_TURNOVER.len());
        assert!(COUNTED.iter().all(|(name, kind)| kind_of(name) == *kind));
        assert!(NO_TURNOVER.iter().all(|name| kind_of(name) == MovementKind::NoTurnover));
    }
}
