//! The JSON shapes of API version 2026-10-28.endive: the account, and what balance transactions point to.

use serde_json::{Value, json};

/// Says what a platform keeps of a payment that it passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassedOn {
    /// It transfers what it likes, and keeps the rest without a trace in the seller's account.
    Part,
    /// It transfers all of it, and takes an application fee of it.
    WithFee,
}

/// Represents what a row points to, in its own currency: the customer's, which need not be the
/// settlement currency.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Charge {
        intent: String,
        amount: i64,
        currency: String,
        created: i64,
        method: &'static str,
        status: &'static str,
        /// Says how a platform passed it on, if one did.
        passed_on: Option<PassedOn>,
    },
    Refund {
        charge: String,
        intent: String,
        amount: i64,
        currency: String,
        created: i64,
        status: &'static str,
        /// Says what a pending refund waits for.
        pending_reason: Option<&'static str>,
        /// Is true where the platform took a part of its transfer back
        /// (`source_transfer_reversal`).
        by_platform: bool,
    },
    Dispute {
        charge: String,
        intent: String,
        amount: i64,
        currency: String,
        created: i64,
        won: bool,
    },
    Payout {
        amount: i64,
        currency: String,
        created: i64,
    },
    Topup {
        amount: i64,
        currency: String,
        created: i64,
    },
}

impl Source {
    /// As `expand[]=data.source` shows it.
    pub(super) fn json(&self, id: &str, transaction: &str) -> Value {
        match self {
            Self::Charge { intent, amount, currency, created, method, status, passed_on } => {
                let mut charge =
                    charge((id, transaction, intent), (*amount, currency), *created, (method, status));
                if let Some(passed_on) = passed_on {
                    charge["source_transfer"] = format!("tr_{id}").into();
                    if *passed_on == PassedOn::WithFee {
                        charge["application_fee"] = format!("fee_{id}").into();
                    }
                }
                charge
            }
            Self::Refund {
                charge,
                intent,
                amount,
                currency,
                created,
                status,
                pending_reason,
                by_platform,
            } => {
                let mut refund = json!({
                    "id": id,
                    "object": "refund",
                    "amount": amount,
                    "balance_transaction": transaction,
                    "charge": charge,
                    "created": created,
                    "currency": currency,
                    "customer": null,
                    "customer_account": null,
                    "metadata": {},
                    "payment_intent": intent,
                    "payment_method": null,
                    "reason": null,
                    "receipt_number": null,
                    "source_transfer_reversal": by_platform.then(|| format!("trr_{id}")),
                    "status": status,
                    "transfer_reversal": null,
                });
                if let Some(reason) = pending_reason {
                    refund["pending_reason"] = (*reason).into();
                }
                refund
            }
            Self::Dispute { charge, intent, amount, currency, created, won } => {
                dispute(id, charge, intent, *amount, currency, *created, *won)
            }
            Self::Payout { amount, currency, created } => {
                payout(id, transaction, *amount, currency, *created)
            }
            Self::Topup { amount, currency, created } => json!({
                "id": id,
                "initiated_by": "user",
                "object": "topup",
                "amount": amount,
                "balance_transaction": transaction,
                "created": created,
                "currency": currency,
                "description": null,
                "expected_availability_date": created,
                "failure_code": null,
                "failure_message": null,
                "livemode": false,
                "metadata": {},
                "source": null,
                "statement_descriptor": null,
                "status": "succeeded",
                "transfer_group": null,
            }),
        }
    }
}

fn charge(
    (id, transaction, intent): (&str, &str, &str),
    (amount, currency): (i64, &str),
    created: i64,
    (method, status): (&str, &str),
) -> Value {
    let set = json!({
        "id": id,
        "object": "charge",
        "amount": amount,
        "amount_captured": amount,
        "amount_refunded": 0,
        "balance_transaction": transaction,
        "billing_details": {"address": null, "email": null, "name": null, "phone": null, "tax_id": null},
        "calculated_statement_descriptor": "COMPTALYZE",
        "captured": true,
        "created": created,
        "currency": currency,
        "disputed": false,
        "fraud_details": {},
        "livemode": false,
        "metadata": {},
        // A pending charge is "paid" already; its status is what tells.
        "paid": status != "failed",
        "payment_intent": intent,
        "payment_method_details": {"type": method},
        "refunded": false,
        "status": status,
    });
    with_nulls(
        set,
        &[
            "application",
            "application_fee",
            "application_fee_amount",
            "customer",
            "description",
            "failure_balance_transaction",
            "failure_code",
            "failure_message",
            "on_behalf_of",
            "outcome",
            "payment_method",
            "receipt_email",
            "receipt_number",
            "receipt_url",
            "review",
            "shipping",
            "source",
            "source_transfer",
            "statement_descriptor",
            "statement_descriptor_suffix",
            "transfer_data",
            "transfer_group",
        ],
    )
}

/// Adds the fields that the API shows as null.
fn with_nulls(mut object: Value, names: &[&str]) -> Value {
    for name in names {
        object[*name] = Value::Null;
    }
    object
}

fn dispute(
    id: &str,
    charge: &str,
    intent: &str,
    amount: i64,
    currency: &str,
    created: i64,
    won: bool,
) -> Value {
    json!({
        "id": id,
        "object": "dispute",
        "amount": amount,
        "balance_transactions": [],
        "charge": charge,
        "created": created,
        "currency": currency,
        "enhanced_eligibility_types": [],
        "evidence": {
            "access_activity_log": null, "billing_address": null, "cancellation_policy": null,
            "cancellation_policy_disclosure": null, "cancellation_rebuttal": null,
            "customer_communication": null, "customer_email_address": null, "customer_name": null,
            "customer_purchase_ip": null, "customer_signature": null,
            "duplicate_charge_documentation": null, "duplicate_charge_explanation": null,
            "duplicate_charge_id": null, "enhanced_evidence": {}, "product_description": null,
            "receipt": null, "refund_policy": null, "refund_policy_disclosure": null,
            "refund_refusal_explanation": null, "service_date": null, "service_documentation": null,
            "shipping_address": null, "shipping_carrier": null, "shipping_date": null,
            "shipping_documentation": null, "shipping_tracking_number": null,
            "uncategorized_file": null, "uncategorized_text": null,
        },
        "evidence_details": {
            "due_by": created + 7 * 86_400,
            "enhanced_eligibility": {},
            "has_evidence": false,
            "past_due": false,
            "submission_count": 0,
            "submission_method": "not_submitted",
        },
        "intended_submission_method": null,
        "is_charge_refundable": false,
        "livemode": false,
        "metadata": {},
        "payment_intent": intent,
        "reason": "fraudulent",
        "status": if won { "won" } else { "needs_response" },
    })
}

fn payout(id: &str, transaction: &str, amount: i64, currency: &str, created: i64) -> Value {
    json!({
        "id": id,
        "object": "payout",
        "amount": amount,
        "application_fee": null,
        "application_fee_amount": null,
        "arrival_date": created + 86_400,
        "automatic": true,
        "balance_transaction": transaction,
        "created": created,
        "currency": currency,
        "description": "STRIPE PAYOUT",
        "destination": null,
        "failure_balance_transaction": null,
        "failure_code": null,
        "failure_message": null,
        "livemode": false,
        "metadata": {},
        "method": "standard",
        "original_payout": null,
        "payout_method": null,
        "reconciliation_status": "completed",
        "reversed_by": null,
        "source_type": "card",
        "statement_descriptor": null,
        "status": "paid",
        "trace_id": null,
        "type": "bank_account",
    })
}

/// Answers `GET /v1/account`.
pub(super) fn account(id: &str) -> Value {
    json!({
        "id": id,
        "object": "account",
        "business_profile": {
            "annual_revenue": null, "estimated_worker_count": null, "mcc": "8931",
            "minority_owned_business_designation": null, "name": "Atelier Camille",
            "product_description": null, "specified_commercial_transactions_act_url": null,
            "support_address": null, "support_email": null, "support_phone": null,
            "support_url": null, "url": null,
        },
        "business_type": "individual",
        "capabilities": {"card_payments": "active", "transfers": "active"},
        "charges_enabled": true,
        "controller": {"type": "account"},
        "country": "FR",
        "created": 1_735_689_600,
        "default_currency": "eur",
        "details_submitted": true,
        "email": "camille@example.com",
        "external_accounts": {
            "object": "list", "data": [], "has_more": false,
            "url": format!("/v1/accounts/{id}/external_accounts"),
        },
        "metadata": {},
        "payouts_enabled": true,
        "tos_acceptance": {"date": 1_735_689_600},
        "type": "standard",
    })
}
