//! The rows of an account's ledger: balance transactions of API version 2026-10-28.endive.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::objects::Source;

/// Represents one row of an account's ledger, as the API shows it.
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
    /// Is true of a row that has happened and is not listed yet.
    #[serde(skip)]
    pub hidden: bool,
    /// Holds what the row shows instead, field by field; null takes a field away.
    #[serde(skip)]
    pub oddities: serde_json::Value,
}

/// Represents a part of the fee of a [`BalanceTransaction`].
#[derive(Clone, Debug, Serialize)]
pub struct FeeDetail {
    pub amount: i64,
    pub application: Option<String>,
    pub currency: String,
    pub description: Option<String>,
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// Represents a row to put into a ledger, for what the other builders do not cover.
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
    pub(super) available_on: Option<DateTime<Utc>>,
    pub(super) oddities: serde_json::Value,
}

impl Entry {
    /// Makes a row of type and reporting category `charge` in the `payments` balance, without a
    /// source.
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
            available_on: None,
            oddities: serde_json::Value::Null,
        }
    }

    /// Sets its `available_on`; three days later without this.
    #[must_use]
    pub fn available_on(mut self, at: DateTime<Utc>) -> Self {
        self.available_on = Some(at);
        self
    }

    /// Shows other values in some fields; null takes a field away.
    #[must_use]
    pub fn oddities(mut self, fields: serde_json::Value) -> Self {
        self.oddities = fields;
        self
    }

    /// Sets its `type` and its `reporting_category`.
    #[must_use]
    pub fn kind(mut self, kind: &str, reporting_category: &str) -> Self {
        self.kind = kind.into();
        self.category = reporting_category.into();
        self
    }

    /// Sets its `fee`, which `net` lacks.
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

    /// Sets its `description`.
    #[must_use]
    pub fn description(mut self, description: &str) -> Self {
        self.description = Some(description.into());
        self
    }

    /// Sets the rate at which the customer's currency was converted into the settlement currency.
    #[must_use]
    pub fn exchange_rate(mut self, rate: f64) -> Self {
        self.exchange_rate = Some(rate);
        self
    }

    /// Hides it from lists until [`reveal`](super::StandIn::reveal).
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
            available_on: self.available_on.map_or(created + 3 * 86_400, |at| at.timestamp()),
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
            oddities: self.oddities,
        };
        (row, self.source)
    }
}
