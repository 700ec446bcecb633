//! Knows the ceilings of the micro-entreprise and of the VAT franchise, what crossing one means, and what turnover costs.
//! Pure.

mod activity;
mod assess;
mod contributions;
mod declarations;
mod figures;
mod progress;
mod rates;

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

pub use self::activity::Activity;
pub use self::assess::{ActivitySum, Assessment, Held, MixedMonth, YearBooks, assess, years_checked};
pub use self::contributions::{
    Caveat, DeclaredTurnover, Euros, IncomeTax, IncomeTaxAside, PutAside, Receipts, RowAmounts, RowIncomeTax,
    TaxProfile, Trade, declared, put_aside, row_amounts,
};
pub use self::declarations::{monthly_due, quarterly_due};
pub use self::figures::floor;
pub use self::progress::{Progress, by_category, progress};
pub use self::rates::{Category, RATES_KNOWN_UNTIL, Rate, RowRate, acre_end, row_rates};

listed! {
    /// Represents a limit that a year's turnover is held against. The names are stored in `threshold_alerts`: they
    /// never change.
    #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Threshold {
        /// It is the regime's ceiling for all turnover (sales, or mixed).
        MicroTotal,
        /// It is the regime's ceiling for services.
        MicroServices,
        /// It is the base threshold of the VAT franchise for all turnover.
        VatBaseTotal,
        /// It is the base threshold of the VAT franchise for services.
        VatBaseServices,
        /// It is the increased threshold of the VAT franchise for all turnover.
        VatIncreasedTotal,
        /// It is the increased threshold of the VAT franchise for services.
        VatIncreasedServices,
    }
}

/// Represents a step of a threshold that a year's turnover has newly crossed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Crossing {
    pub threshold: Threshold,
    /// Is 80 or 90 (reached), or 100 (exceeded).
    pub step: u8,
    /// Holds what the year counts against this threshold, in cents.
    pub turnover: i64,
    /// Is in cents, in proportion to the days of a creation year.
    pub ceiling: i64,
    /// Is the ceiling of a whole year, where `ceiling` is a part of it.
    pub full_year_ceiling: Option<i64>,
    /// Is set where the step is crossed only if the months with both typed and imported rows are
    /// added up.
    pub doubt: Option<Doubt>,
    pub consequence: Consequence,
}

/// Holds what counts against a threshold, by where it comes from, in cents.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Doubt {
    pub typed: i64,
    pub imported: i64,
}

/// Says what follows from a crossing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Consequence {
    /// It is not exceeded yet.
    Approaching,
    /// The figures have to be looked at first.
    ToVerify,
    /// The regime's ceiling is exceeded, and was not in the year before: nothing changes yet.
    MicroOnce,
    /// The regime's ceiling is exceeded; of the year before nothing is recorded.
    MicroPreviousUnknown,
    /// The regime's ceiling is exceeded two years running: the user is out of the regime from then
    /// on.
    MicroOut { from: NaiveDate },
    /// The base threshold is exceeded: VAT is due from then on.
    VatFrom { from: NaiveDate },
    /// The increased threshold is exceeded: VAT is due from the very date of crossing it.
    VatAtOnce,
}
