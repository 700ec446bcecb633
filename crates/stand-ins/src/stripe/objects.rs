//! The JSON shapes of API version 2026-10-28.endive: balance transactions and what they point to.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};

/// One row of an account's ledger, as the API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct BalanceTransaction {
    pub id: String,
    pub object: &'static str,
    pub amount: i64,
    pub available_on: i64,
    pub balance_type: String,
    pub created: i64,
    pub currency: String,
    pub description: Option<String>,
    pub exchange_rate: Option<f64>,
    pub fee: i64,
    pub fee_details: Vec<FeeDetail>,
    pub net: i64,
    pub reporting_category: String,
    pub source: Option<String>,
    pub status: &'static str,
    #[serde(rename = "type")]
    pub kind: String,
    /// Happened, but not listed yet.
    #[serde(skip)]
    pub hidden: bool,
}

/// Part of the fee of a [`BalanceTransaction`].
#[derive(Clone, Debug, Serialize)]
pub struct FeeDetail {
    pub amount: i64,
    pub application: Option<String>,
    pub currency: String,
    pub description: Option<String>,
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// A row to put into a ledger, for what the other builders do not cover.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(super) at: DateTime<Utc>,
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) fee: i64,
    pub(super) kind: String,
    pub(super) category: String,
    pub(super) balance_type: String,
    pub(super) description: Option<String>,
    pub(super) exchange_rate: Option<f64>,
    pub(super) source: Option<(String, Source)>,
    pub(super) late: bool,
}

impl Entry {
    /// A row of type and reporting category `charge` in the `payments` balance, without a source.
    pub fn new(at: DateTime<Utc>, amount: i64, currency: &str) -> Self {
        Self {
            at,
            amount,
            currency: currency.to_lowercase(),
            fee: 0,
            kind: "charge".into(),
            category: "charge".into(),
            balance_type: "payments".into(),
            description: None,
            exchange_rate: None,
            source: None,
            late: false,
        }
    }

    /// Its `type` and its `reporting_category`.
    #[must_use]
    pub fn kind(mut self, kind: &str, reporting_category: &str) -> Self {
        self.kind = kind.into();
        self.category = reporting_category.into();
        self
    }

    /// Its `fee`, which `net` lacks.
    #[must_use]
    pub fn fee(mut self, fee: i64) -> Self {
        self.fee = fee;
        self
    }

    /// The balance it belongs to: `payments`, `issuing`, `risk_reserved`…
    #[must_use]
    pub fn balance_type(mut self, balance_type: &str) -> Self {
        self.balance_type = balance_type.into();
        self
    }

    /// Its `description`.
    #[must_use]
    pub fn description(mut self, description: &str) -> Self {
        self.description = Some(description.into());
        self
    }

    /// The rate at which the customer's currency was converted into the settlement currency.
    #[must_use]
    pub fn exchange_rate(mut self, rate: f64) -> Self {
        self.exchange_rate = Some(rate);
        self
    }

    /// Not listed until [`reveal`](super::StandIn::reveal).
    #[must_use]
    pub fn late(mut self) -> Self {
        self.late = true;
        self
    }

    pub(super) fn source(mut self, id: &str, source: Source) -> Self {
        self.source = Some((id.into(), source));
        self
    }

    pub(super) fn into_row(self, id: String) -> (BalanceTransaction, Option<(String, Source)>) {
        let created = self.at.timestamp();
        let fee_details = if self.fee == 0 {
            Vec::new()
        } else {
            vec![FeeDetail {
                amount: self.fee,
                application: None,
                currency: self.currency.clone(),
                description: Some("Stripe processing fees".into()),
                kind: "stripe_fee",
            }]
        };
        let row = BalanceTransaction {
            id,
            object: "balance_transaction",
            amount: self.amount,
            available_on: created + 3 * 86_400,
            balance_type: self.balance_type,
            created,
            currency: self.currency,
            description: self.description,
            exchange_rate: self.exchange_rate,
            fee: self.fee,
            fee_details,
            net: self.amount - self.fee,
            reporting_category: self.category,
            source: self.source.as_ref().map(|(id, _)| id.clone()),
            status: "available",
            kind: self.kind,
            hidden: self.late,
        };
        (row, self.source)
    }
}

/// What a row points to, in its own currency: the customer's, which need not be the settlement currency.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Charge { intent: String, amount: i64, currency: String, created: i64 },
    Refund { charge: String, intent: String, amount: i64, currency: String, created: i64, failed: bool },
    Dispute { charge: String, intent: String, amount: i64, currency: String, created: i64, won: bool },
    Payout { amount: i64, currency: String, created: i64 },
    Topup { amount: i64, currency: String, created: i64 },
}

impl Source {
    /// As `expand[]=data.source` shows it.
    pub(super) fn json(&self, id: &str, transaction: &str) -> Value {
        match self {
            Self::Charge { intent, amount, currency, created } => {
                charge(id, transaction, intent, *amount, currency, *created)
            }
            Self::Refund { charge, intent, amount, currency, created, failed } => json!({
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
                "source_transfer_reversal": null,
                "status": if *failed { "failed" } else { "succeeded" },
                "transfer_reversal": null,
            }),
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

fn charge(id: &str, transaction: &str, intent: &str, amount: i64, currency: &str, created: i64) -> Value {
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
        "paid": true,
        "payment_intent": intent,
        "payment_method_details": {"type": "card"},
        "refunded": false,
        "status": "succeeded",
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

/// The fields that the API shows as null.
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

/// `GET /v1/account`.
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
