//! Holds a user's months and the movements of one of them, as the database tells them. Amounts are cents.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::coded::Coded;
use crate::{providers::Provider, schedule::Month};

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Months {
    pub(crate) total: u64,
    pub(crate) shown: Vec<MonthRow>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct MonthRow {
    pub(crate) month: Month,
    pub(crate) movements: u64,
    pub(crate) uncounted: u64,
    /// The movements say so, as they were added up last.
    pub(crate) computed: Option<i64>,
    /// The books say so: of imported rows, and of typed ones.
    pub(crate) imported: Option<i64>,
    pub(crate) typed: Option<i64>,
    pub(crate) flaw: Option<Coded>,
    pub(crate) is_edited: bool,
    pub(crate) worth: Option<String>,
    pub(crate) recap: Option<Coded>,
    pub(crate) recapped: Option<DateTime<Utc>>,
}

/// Represents a month that is opened.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct OpenMonth {
    pub(crate) month: Month,
    /// The movements that count.
    pub(crate) total: i64,
    pub(crate) counted: u64,
    pub(crate) sources: Vec<Source>,
    pub(crate) uncounted: Vec<Uncounted>,
    pub(crate) worth: Worth,
    pub(crate) recorded: Option<Recorded>,
    pub(crate) rows: Vec<Row>,
    pub(crate) totals: Vec<Total>,
    pub(crate) recap: Option<Recap>,
    pub(crate) movements_total: u64,
    pub(crate) movements: Vec<Movement>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Source {
    pub(crate) provider: Provider,
    pub(crate) gross: i64,
    pub(crate) refunds: i64,
}

/// Counts movements that do not count, by reason and currency.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Uncounted {
    pub(crate) reason: Coded,
    pub(crate) currency: Option<String>,
    pub(crate) count: u64,
    pub(crate) amount: Option<i64>,
}

/// Says what the month's figure is worth, and what it lacks.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Worth {
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) flaws: BTreeMap<String, u64>,
}

/// Says what the books have in this month.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Recorded {
    pub(crate) typed: Option<i64>,
    pub(crate) imported: Option<i64>,
    pub(crate) entries: u64,
    pub(crate) flaw: Option<Coded>,
}

/// Represents a row of the books.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Row {
    pub(crate) activity: Option<String>,
    /// It is missing where it is no number.
    pub(crate) amount: Option<i64>,
    pub(crate) is_imported: bool,
    pub(crate) written_at: Option<DateTime<Utc>>,
}

/// Represents a row of the books that is ours, or was until the user edited it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Total {
    pub(crate) activity: String,
    pub(crate) computed: Option<i64>,
    pub(crate) recorded: Option<i64>,
    /// The user has deleted it.
    pub(crate) is_gone: bool,
    pub(crate) edited_at: Option<DateTime<Utc>>,
}

/// Says what the month's recap told.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Recap {
    pub(crate) status: Coded,
    pub(crate) reason: Option<Coded>,
    pub(crate) settled_at: Option<DateTime<Utc>>,
    pub(crate) total: Option<i64>,
    pub(crate) provisional_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Movement {
    pub(crate) provider: Provider,
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) kind: String,
    pub(crate) source_kind: Option<String>,
    pub(crate) at: Option<DateTime<Utc>>,
    pub(crate) amount: Option<i64>,
    pub(crate) currency: Option<String>,
    pub(crate) state: Option<String>,
    pub(crate) method: Option<String>,
    /// Says why it does not count.
    pub(crate) reason: Option<Coded>,
    /// Stripe reports the same money under this id.
    pub(crate) twin: Option<String>,
    pub(crate) original_amount: Option<String>,
    pub(crate) original_currency: Option<String>,
    pub(crate) first_seen_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
}
