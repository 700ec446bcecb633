//! Says what an alert adds to its steps: on what its figures rest, and what is not in them.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use crate::{
    schedule::Month,
    urssaf::{Consequence, Threshold},
};

/// Holds what an alert says beside its steps. Amounts are cents.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct AlertRemarks {
    /// Liberal professions are among the services.
    pub liberal: bool,
    /// What is typed for months to come: planned, not counted.
    pub planned: i64,
    /// The day on which the user says that the activity began, and a month with turnover before it.
    pub contradiction: Option<(NaiveDate, Month)>,
    /// Money that is not counted, because it is not in euros.
    pub uncounted: Vec<Uncounted>,
    /// Activities of imported money that nobody has said.
    pub assumed: Vec<Assumed>,
}

/// Represents what came in in another currency.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Uncounted {
    /// As the provider names it.
    pub currency: String,
    /// In the currency's minor units.
    pub amount: i64,
}

/// Represents an integration whose activity was assumed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Assumed {
    /// `stripe` or `shopify`.
    pub provider: String,
    /// As the rows spell it.
    pub activity: String,
}

/// Represents something that an alert has said of a year and that does not hold any more.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Retracted {
    pub year: i32,
    /// Is the ceiling that was said to be exceeded.
    #[serde(default)]
    pub threshold: Option<Threshold>,
    /// Is what was said to follow.
    #[serde(default)]
    pub consequence: Option<Consequence>,
}
