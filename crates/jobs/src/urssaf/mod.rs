//! Knows the ceilings of the micro-entreprise and of the VAT franchise, what crossing one means, and what turnover costs.
//! Pure.

mod activity;
mod assess;
mod books;
mod check;
mod consequence;
mod contributions;
mod declarations;
mod figures;
mod news;
mod passing;
mod progress;
mod rates;
mod verdict;

use serde::{Deserialize, Serialize};

pub use self::activity::Activity;
pub use self::assess::{Assessment, Crossing, Doubt, Telling, Told, ToldAs, assess, years_checked};
pub use self::books::{ActivitySum, BookRow, DaySum, UserBooks, YearBooks};
pub use self::check::{ToldInYear, YearCheck, check};
pub use self::consequence::Consequence;
pub use self::contributions::{
    Caveat, DeclaredTurnover, Euros, IncomeTax, IncomeTaxAside, PutAside, Receipts, RowAmounts, RowIncomeTax,
    TaxProfile, Trade, declared, put_aside, row_amounts,
};
pub use self::declarations::{monthly_due, quarterly_due};
pub use self::figures::{exceeding_floor, floor};
pub use self::news::{ConsequenceNews, ToldConsequence};
pub use self::passing::{Outlook, Passed};
pub use self::progress::{Progress, VatPassed, by_category, progress, vat_passed, without_repetition};
pub use self::rates::{Category, RATES_KNOWN_UNTIL, Rate, RowRate, acre_end, row_rates};
pub use self::verdict::{Before, Gap, Micro, State, Vat, Verdict};

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
