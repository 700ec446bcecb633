//! Until when turnover is declared to the Urssaf.

use chrono::NaiveDate;

use crate::schedule::Month;

/// For who declares each month: the last day of the month after `month`.
pub fn monthly_due(month: Month) -> NaiveDate {
    month.next().last_day()
}

/// For who declares each quarter: 30 April, 31 July, 31 October or 31 January, for the quarter that `month` is in.
pub fn quarterly_due(month: Month) -> NaiveDate {
    let mut last = month;
    while !last.month().is_multiple_of(3) {
        last = last.next();
    }
    last.next().last_day()
}
