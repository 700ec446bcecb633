//! Says what a mail is about: frozen when its batch is sealed, so that the same mail is rendered again.

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};

use super::remarks::{AlertRemarks, Assumed, Retracted};
use crate::{
    mail_kind::MailKind,
    schedule::Month,
    urssaf::{ActivitySum, Consequence, Crossing, State, TaxProfile},
};

/// Holds what one mail says, besides what all of its kind say. Amounts are cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Facts {
    /// It presents what the Pro and Premium plans bring, three days after sign-up.
    MarketingDay3 {
        /// Is written as the user typed it: never trusted to be a name.
        first_name: Option<String>,
    },
    /// It asks a user to record last month's turnover.
    MonthlyReminder {
        first_name: Option<String>,
        month: Month,
        /// Holds what is already recorded for the month, typed or imported.
        recorded: i64,
        /// Counts the rows in which the month's turnover is recorded.
        entries: u32,
        /// Holds what there is to declare, by activity; `None`: the books cannot be read that far.
        #[serde(default)]
        books: Option<Vec<ActivityTurnover>>,
        /// Says how the user says to be taxed.
        #[serde(default)]
        profile: TaxProfile,
        /// Lists the year's months that may count twice.
        #[serde(default)]
        mixed: Vec<MonthTwice>,
        /// Says what the user has confirmed of the month, where it has both typed and imported rows.
        #[serde(default)]
        verdict: Option<BooksVerdict>,
        /// Says what a recap of the month named, and what its total is now.
        #[serde(default)]
        definitive: Option<Definitive>,
        /// Names the currencies of the quarter's money that no figure has.
        #[serde(default)]
        uncounted: Vec<String>,
        /// Is the Paris day of the mail.
        #[serde(default)]
        today: Option<NaiveDate>,
        /// Lists the quarter's months whose figures are not whole.
        #[serde(default)]
        incomplete: Vec<IncompleteMonth>,
        /// Lists the integrations whose activity nobody has said.
        #[serde(default)]
        assumed: Vec<Assumed>,
        /// Lists what earlier alerts have said and does not hold any more.
        #[serde(default)]
        retracted: Vec<Retracted>,
    },
    /// It says what was imported for a month.
    MonthlyRecap {
        first_name: Option<String>,
        month: Month,
        total: i64,
        sources: Vec<SourceTotal>,
        /// Says up to when the month was read; `None` where it is over.
        provisional_at: Option<DateTime<Utc>>,
        /// Says what the user typed by hand for the same month, if anything.
        typed: Option<i64>,
        /// Names the currencies of money that is not in the total.
        uncounted: Vec<String>,
        /// Names the sources (`stripe`, `shopify`) that could not be read.
        unread: Vec<String>,
        /// Names those of them whose user has nothing to mend: it passes by itself, or is ours.
        #[serde(default)]
        not_theirs: Vec<String>,
        /// Lists the sources that were replaced or disconnected before the month's end.
        #[serde(default)]
        ended: Vec<UnreadSource>,
        /// Something else keeps the figure from being whole.
        partial: bool,
        /// Says how many sales and refunds of a shop may be Stripe's, too.
        #[serde(default)]
        maybe_twice: u32,
        /// Counts payments that a platform passed on, which may have kept a part of them.
        #[serde(default)]
        passed_on: u32,
        /// Holds the turnover recorded in the month's year, by activity; `None` where the books
        /// cannot be read that far.
        #[serde(default)]
        year: Option<Vec<ActivitySum>>,
        /// Says when the user says that the activity began.
        #[serde(default)]
        created: Option<NaiveDate>,
        /// Holds the day that the user says and a month with turnover before it: then the activity began on no known day.
        #[serde(default)]
        contradiction: Option<(NaiveDate, Month)>,
        /// Lists the year's months that may count twice.
        #[serde(default)]
        mixed: Vec<MonthTwice>,
        /// Says what the user has confirmed of the month, where it has both typed and imported rows.
        #[serde(default)]
        verdict: Option<BooksVerdict>,
        /// Holds what was imported for the month, by activity.
        #[serde(default)]
        activities: Vec<ActivityTotal>,
        /// Says what is typed for the months after, which the year does not count.
        #[serde(default)]
        ahead: Option<i64>,
        /// Lists the year's months of which nothing is recorded, since the activity or the connection began.
        #[serde(default)]
        empty: Vec<Month>,
        /// Lists the integrations whose activity nobody has said.
        #[serde(default)]
        assumed: Vec<Assumed>,
        /// Lists what earlier alerts have said and does not hold any more.
        #[serde(default)]
        retracted: Vec<Retracted>,
    },
    /// It tells the definitive total of a month of which a recap has named another one.
    DefinitiveMonth {
        first_name: Option<String>,
        month: Month,
        definitive: Definitive,
        /// Holds the month where its figures are not whole, although it was read to its end.
        #[serde(default)]
        incomplete: Vec<IncompleteMonth>,
        /// Names the currencies of money that is not in the total.
        #[serde(default)]
        uncounted: Vec<String>,
    },
    /// It tells which steps of a threshold a year's turnover has newly crossed.
    ThresholdAlert {
        first_name: Option<String>,
        year: i32,
        crossings: Vec<Crossing>,
        /// Lists activities that are not known; their turnover counts in the total only.
        unknown_activities: Vec<String>,
        /// What follows from the year; `None` in a mail that an older version planned.
        #[serde(default)]
        state: Option<State>,
        /// The day on which that was so.
        #[serde(default)]
        as_of: Option<NaiveDate>,
        #[serde(default)]
        remarks: AlertRemarks,
        /// Lists what follows and is told without a step.
        #[serde(default)]
        consequences: Vec<Consequence>,
        /// Lists what earlier alerts have said and does not hold any more.
        #[serde(default)]
        retracted: Vec<Retracted>,
    },
    /// It asks a user to connect an account again.
    IntegrationTrouble {
        first_name: Option<String>,
        /// Is `stripe` or `shopify`.
        provider: String,
        /// Holds what the provider's refusal means, in French.
        reason: String,
        /// Says up to when everything was read; `None` where nothing ever was.
        read_until: Option<DateTime<Utc>>,
    },
    /// It tells the operator what went wrong since the last digest.
    OperatorDigest {
        day: NaiveDate,
        points: Vec<DigestPoint>,
        /// Holds the address of this deployment's status page.
        status_url: String,
    },
}

/// Represents one thing that went wrong.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DigestPoint {
    /// Is one line of French.
    pub title: String,
    /// Says in French what to do, or repeats the reason as the service told it.
    pub detail: String,
    /// Says how often, where that says something.
    #[serde(default)]
    pub count: u64,
}

/// Represents the turnover of one activity, in cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ActivityTurnover {
    /// Is written as the rows spell it: never trusted to be an activity.
    pub activity: String,
    /// Holds what the user typed for the month.
    pub typed: i64,
    /// Holds what was imported for the month.
    pub imported: i64,
    /// Holds the turnover of the month's quarter up to the end of the month.
    pub quarter: i64,
}

/// Represents a month with both typed and imported rows of which the user has confirmed nothing, in cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MonthTwice {
    pub month: Month,
    pub typed: i64,
    pub imported: i64,
}

/// Says what a user has confirmed of a month with both typed and imported rows. The names are stored in
/// `book_confirmations`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BooksVerdict {
    /// They are different money: both count.
    Distinct,
    /// They are the same money: the greater side counts.
    Same,
}

/// Represents what was imported for one activity, in cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ActivityTotal {
    /// Is the activity as the books spell it.
    pub activity: String,
    pub total: i64,
}

/// Holds what a recap said of a month, and what is true now that the month was read to its end. Cents.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Definitive {
    /// Is the total that the recap named.
    pub mailed: i64,
    /// Says when the recap left.
    pub mailed_at: Option<DateTime<Utc>>,
    /// Says that the recap called its total provisional.
    pub provisional: bool,
    pub total: i64,
}

/// Says what keeps a month's figures from being whole.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct IncompleteMonth {
    pub month: Month,
    /// Lists the sources that were not read to the month's end.
    pub unread: Vec<UnreadSource>,
    /// Says how many sales and refunds of a shop may be Stripe's, too.
    pub maybe_twice: u32,
    /// Counts payments that a platform passed on, which may have kept a part of them.
    pub passed_on: u32,
    /// Something else is missing.
    pub partial: bool,
}

/// Represents a source of which a part of a month was not read.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct UnreadSource {
    /// Is `stripe` or `shopify`.
    pub source: String,
    /// Is the instant from which on nothing was read; `None` where the hole lies elsewhere.
    pub since: Option<DateTime<Utc>>,
    /// Nothing of the month was read.
    pub wholly: bool,
    /// The account was replaced by another one.
    pub is_former: bool,
    /// The account was disconnected.
    #[serde(default)]
    pub is_disconnected: bool,
}

/// Represents one source's part of a month, in cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SourceTotal {
    /// Is `stripe` or `shopify`.
    pub source: String,
    /// Holds what was cashed.
    pub gross: i64,
    /// Holds what was given back; zero or negative.
    pub refunds: i64,
}

impl Facts {
    pub const fn kind(&self) -> MailKind {
        match self {
            Self::MarketingDay3 { .. } => MailKind::MarketingDay3,
            Self::MonthlyReminder { .. } => MailKind::MonthlyReminder,
            Self::MonthlyRecap { .. } => MailKind::MonthlyRecap,
            Self::DefinitiveMonth { .. } => MailKind::DefinitiveMonth,
            Self::ThresholdAlert { .. } => MailKind::ThresholdAlert,
            Self::IntegrationTrouble { .. } => MailKind::IntegrationTrouble,
            Self::OperatorDigest { .. } => MailKind::OperatorDigest,
        }
    }

    /// Returns the year of whose books the mail may ask what is there twice, if it is about books: that of its month, or
    /// the one in which an alert's doubt lies.
    pub fn books_year(&self) -> Option<i32> {
        match self {
            Self::MonthlyReminder { month, .. } | Self::MonthlyRecap { month, .. } => Some(month.year()),
            Self::ThresholdAlert { year, state, .. } => {
                Some(state.and_then(|state| state.doubtful).unwrap_or(*year))
            }
            Self::DefinitiveMonth { .. }
            | Self::MarketingDay3 { .. }
            | Self::IntegrationTrouble { .. }
            | Self::OperatorDigest { .. } => None,
        }
    }
}
