//! Says what a mail is about: frozen when its batch is sealed, so that the same mail is rendered again.

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    mail_kind::MailKind,
    schedule::Month,
    urssaf::{ActivitySum, Crossing, TaxProfile},
};

/// Holds what one mail says, besides what all of its kind say. Amounts are cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Facts {
    /// What Pro and Premium bring.
    MarketingDay3 {
        /// As the user typed it: never trusted to be a name.
        first_name: Option<String>,
    },
    /// "Record your turnover of last month."
    MonthlyReminder {
        first_name: Option<String>,
        month: Month,
        /// What is already recorded for the month, typed or imported.
        recorded: i64,
        /// In how many rows.
        entries: u32,
        /// What there is to declare, by activity; `None`: the books cannot be read that far.
        #[serde(default)]
        books: Option<Vec<ActivityTurnover>>,
        /// How the user says to be taxed.
        #[serde(default)]
        profile: TaxProfile,
    },
    /// What was imported for a month.
    MonthlyRecap {
        first_name: Option<String>,
        month: Month,
        total: i64,
        sources: Vec<SourceTotal>,
        /// The month is not over: read up to then.
        provisional_at: Option<DateTime<Utc>>,
        /// Says what the user typed by hand for the same month, if anything.
        typed: Option<i64>,
        /// Currencies that are not in the total.
        uncounted: Vec<String>,
        /// Sources that could not be read.
        unread: Vec<String>,
        /// Something else keeps the figure from being whole.
        partial: bool,
        /// How many sales of a shop may be payments at Stripe, too.
        #[serde(default)]
        maybe_twice: u32,
        /// The month's year as it is recorded, by activity; `None`: the books cannot be read that far.
        #[serde(default)]
        year: Option<Vec<ActivitySum>>,
        /// When the user says that the activity began.
        #[serde(default)]
        created: Option<NaiveDate>,
    },
    /// Steps newly crossed.
    ThresholdAlert {
        first_name: Option<String>,
        year: i32,
        crossings: Vec<Crossing>,
        /// Activities that are not known; their turnover counts in the total only.
        unknown_activities: Vec<String>,
    },
    /// Connect this account again.
    IntegrationTrouble {
        first_name: Option<String>,
        /// `stripe` or `shopify`.
        provider: String,
        /// What the provider's refusal means, in French.
        reason: String,
        /// Up to when everything was read; `None`: nothing ever was.
        read_until: Option<DateTime<Utc>>,
    },
    /// What went wrong since the last digest.
    OperatorDigest {
        day: NaiveDate,
        points: Vec<DigestPoint>,
        /// This deployment's status page.
        status_url: String,
    },
}

/// Represents one thing that went wrong.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DigestPoint {
    /// French, one line.
    pub title: String,
    /// French: what to do, or the reason as the service told it.
    pub detail: String,
    /// How often, where that says something.
    #[serde(default)]
    pub count: u64,
}

/// Represents the turnover of one activity, in cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ActivityTurnover {
    /// As it is spelled in the rows: never trusted to be an activity.
    pub activity: String,
    /// What the user typed for the month.
    pub typed: i64,
    /// What was imported for the month.
    pub imported: i64,
    /// The month's quarter up to the end of the month.
    pub quarter: i64,
}

/// Represents one source's part of a month, in cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SourceTotal {
    /// `stripe` or `shopify`.
    pub source: String,
    /// What was cashed.
    pub gross: i64,
    /// What was given back; zero or negative.
    pub refunds: i64,
}

impl Facts {
    pub const fn kind(&self) -> MailKind {
        match self {
            Self::MarketingDay3 { .. } => MailKind::MarketingDay3,
            Self::MonthlyReminder { .. } => MailKind::MonthlyReminder,
            Self::MonthlyRecap { .. } => MailKind::MonthlyRecap,
            Self::ThresholdAlert { .. } => MailKind::ThresholdAlert,
            Self::IntegrationTrouble { .. } => MailKind::IntegrationTrouble,
            Self::OperatorDigest { .. } => MailKind::OperatorDigest,
        }
    }
}
