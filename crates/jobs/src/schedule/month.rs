//! Counts calendar months of Paris: the unit in which turnover is declared.

use std::fmt;
use std::str::FromStr;

use chrono::{Datelike, Days, Months, NaiveDate};
use serde::{Deserialize, Serialize};

/// Represents a year and a month. It is written `2026-11`, in the database too.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Month {
    /// Is kept as a date: it is one already checked, and its arithmetic is chrono's.
    first: NaiveDate,
}

impl Month {
    /// Returns `None` unless `month` is 1 to 12.
    pub fn new(year: i32, month: u32) -> Option<Self> {
        NaiveDate::from_ymd_opt(year, month, 1).map(|first| Self { first })
    }

    /// Returns the month that a date lies in.
    pub fn of(date: NaiveDate) -> Self {
        Self { first: date - Days::new(date.day0().into()) }
    }

    /// Returns the year.
    pub fn year(self) -> i32 {
        self.first.year()
    }

    /// Returns the number of the month, 1 to 12.
    pub fn month(self) -> u32 {
        self.first.month()
    }

    /// Returns the month before.
    #[must_use]
    pub fn previous(self) -> Self {
        Self { first: self.first - Months::new(1) }
    }

    /// Returns the month after.
    #[must_use]
    pub fn next(self) -> Self {
        Self { first: self.first + Months::new(1) }
    }

    /// Returns the first day.
    pub fn first_day(self) -> NaiveDate {
        self.first
    }

    /// Returns the last day, the 28th to the 31st.
    pub fn last_day(self) -> NaiveDate {
        self.next().first - Days::new(1)
    }

    /// Returns how many days the month has, 28 to 31.
    pub fn days(self) -> u32 {
        self.last_day().day()
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year(), self.month())
    }
}

/// The text is not a month written `YYYY-MM`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("le mois s’écrit AAAA-MM, par exemple 2026-11")]
pub struct ParseMonthError;

impl FromStr for Month {
    type Err = ParseMonthError;

    fn from_str(text: &str) -> Result<Self, ParseMonthError> {
        // By hand: `%Y-%m` would let `+2026-1` and ` 2026-11` through.
        let number = |digits: &str| {
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u16>().ok()).flatten()
        };
        match text.split_once('-') {
            Some((year, month)) if year.len() == 4 && month.len() == 2 => number(year)
                .zip(number(month))
                .and_then(|(year, month)| Self::new(year.into(), month.into()))
                .ok_or(ParseMonthError),
            _ => Err(ParseMonthError),
        }
    }
}

impl TryFrom<String> for Month {
    type Error = ParseMonthError;

    fn try_from(text: String) -> Result<Self, ParseMonthError> {
        text.parse()
    }
}

impl From<Month> for String {
    fn from(month: Month) -> Self {
        month.to_string()
    }
}
