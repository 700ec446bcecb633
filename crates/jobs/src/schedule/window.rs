//! Decides how far back a sync of integrations reads.
//!
//! Every window begins at a Paris midnight, so that a month read from its 1st is read from its very
//! first instant. Reading too much costs a request; movements are keyed and count once.

use std::num::NonZeroU16;
use std::str::FromStr;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::paris;

/// `POST` reads so many days without `days=`.
pub const DEFAULT_DAYS: Days = Days(NonZeroU16::new(30).unwrap());

/// A sync reads a year and a day at most: enough for the year-end, little enough for one run.
pub const MOST_DAYS: u16 = 366;

/// Movements that the provider shows late are looked for this long before the last success.
const OVERLAP: TimeDelta = TimeDelta::days(3);

/// Once a day a cron looks this far back for what shows later than that: sales that were made
/// offline, or imported. A first sync looks as far, and is such a read, too.
const LATE_ROWS: TimeDelta = TimeDelta::days(30);

/// A debit counts when its money is there, up to 14 business days after it was sent, and is listed by the day on which it was
/// sent. Some days more are for holidays.
const LONGEST_DEBIT: TimeDelta = TimeDelta::days(30);

/// Represents the number of days of `days=`: 1 to 366.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Days(NonZeroU16);

impl Days {
    /// Returns the number of days.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

/// `days=` is not a number from 1 to 366.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("le nombre de jours va de 1 à {MOST_DAYS}")]
pub struct InvalidDays;

impl FromStr for Days {
    type Err = InvalidDays;

    fn from_str(text: &str) -> Result<Self, InvalidDays> {
        // `parse` alone would take `+30`.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<NonZeroU16>()
            .ok()
            .filter(|days| digits && days.get() <= MOST_DAYS)
            .map(Self)
            .ok_or(InvalidDays)
    }
}

/// Represents a half-open span of time: `from <= t < to`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Window {
    /// Is the first instant inside.
    pub from: DateTime<Utc>,
    /// Is the first instant after it.
    pub to: DateTime<Utc>,
}

impl Window {
    /// Returns whether the instant lies inside.
    pub fn contains(&self, instant: DateTime<Utc>) -> bool {
        self.from <= instant && instant < self.to
    }

    /// Returns the same window for a provider that stamps whole seconds: a row stamped `s` lies inside exactly if
    /// `s >= from` and `s < to`, so both bounds round up.
    pub(crate) fn in_whole_seconds(self) -> Self {
        let round_up = |instant: DateTime<Utc>| {
            let floor = instant.trunc_subsecs(0);
            if floor == instant { floor } else { floor + TimeDelta::seconds(1) }
        };
        Self { from: round_up(self.from), to: round_up(self.to) }
    }

    /// Returns what a `POST` reads: the last `days` days.
    pub fn requested(at: DateTime<Utc>, days: Days, last_success: Option<DateTime<Utc>>) -> Self {
        Self::back_to(at - TimeDelta::days(days.get().into()), at, last_success.is_none())
    }

    /// Returns what a cron reads: everything since the last success and the three days before it.
    /// A replay of a day before the last success reads three days before that day.
    pub fn since(at: DateTime<Utc>, last_success: Option<DateTime<Utc>>) -> Self {
        match last_success {
            Some(success) => Self::back_to(success.min(at) - OVERLAP, at, false),
            None => Self::requested(at, DEFAULT_DAYS, None),
        }
    }

    /// Returns the window of a sync at `at`: at least `days` back where they are asked for, and never leaving a hole
    /// behind the last success, however old it is.
    pub fn for_sync(at: DateTime<Utc>, days: Option<Days>, last_success: Option<DateTime<Utc>>) -> Self {
        let since = Self::since(at, last_success);
        match days {
            Some(days) => Self { from: Self::requested(at, days, last_success).from.min(since.from), to: at },
            None => since,
        }
    }

    /// Returns the same window, which reaches back to `from` at least.
    #[must_use]
    pub fn reaching(self, from: DateTime<Utc>) -> Self {
        Self { from: self.from.min(from), ..self }
    }

    /// Returns since when a debit may have been sent whose money came at `from` or later.
    pub fn sends_begin(from: DateTime<Utc>) -> DateTime<Utc> {
        paris::start_of(paris::date(from - LONGEST_DEBIT))
    }

    /// Returns the same window, which reaches far back where no window of this Paris day has done
    /// so: the last one ended at `deep_read_to`.
    #[must_use]
    pub fn deepened_daily(self, deep_read_to: Option<DateTime<Utc>>) -> Self {
        let is_done = deep_read_to.is_some_and(|done| paris::date(done) >= paris::date(self.to));
        if is_done { self } else { self.reaching(self.deep_from()) }
    }

    /// Tells whether it reaches back far enough to find rows that show late.
    pub fn is_deep(&self) -> bool {
        self.from <= self.deep_from()
    }

    fn deep_from(&self) -> DateTime<Utc> {
        paris::start_of(paris::date(self.to - LATE_ROWS))
    }

    /// A first sync reaches back to the beginning of the month at least.
    fn back_to(from: DateTime<Utc>, to: DateTime<Utc>, first_sync: bool) -> Self {
        let from = paris::start_of(paris::date(from));
        let from = if first_sync { from.min(paris::month(to).start()) } else { from };
        Self { from, to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_half_open() {
        let window = Window { from: DateTime::UNIX_EPOCH, to: DateTime::from_timestamp(10, 0).unwrap() };
        assert!(window.contains(window.from));
        assert!(!window.contains(window.to));
    }

    #[test]
    fn far_back_once_a_day() {
        let instant = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let window = Window { from: instant("2026-11-15T23:00:00Z"), to: instant("2026-11-18T18:00:00Z") };
        let deep = window.deepened_daily(Some(instant("2026-11-17T22:59:59Z")));
        assert_eq!(deep, Window { from: instant("2026-10-18T22:00:00Z"), ..window });
        assert!(deep.is_deep() && !window.is_deep());
        assert_eq!(window.deepened_daily(Some(instant("2026-11-17T23:00:00Z"))), window);
        assert_eq!(window.deepened_daily(None), deep);
        let year = window.reaching(instant("2026-01-01T00:00:00Z"));
        assert_eq!(year.deepened_daily(None), year);
    }

    #[test]
    fn whole_seconds_keep_the_same_stamps_inside() {
        let instant = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let window =
            Window { from: instant("2026-11-01T00:00:00Z"), to: instant("2026-11-21T10:00:00.001Z") };
        let rounded = window.in_whole_seconds();
        assert_eq!((rounded.from, rounded.to), (window.from, instant("2026-11-21T10:00:01Z")));
        assert_eq!(rounded.in_whole_seconds(), rounded);
    }
}
