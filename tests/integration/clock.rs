//! The time of day of a test's world: one instant that stands still, for the functions, the stand-ins and the test.
//! Nothing in a test asks the machine what day it is, so that a test says the same on every day.
//!
//! `JOBS_TEST_DATE`, an instant as RFC 3339, lets the whole suite run on another day.

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use jobs::schedule::{Month, paris};

use crate::world::World;

/// A day like any other, shortly before noon in Paris: no task of the calendar is due.
const ORDINARY: &str = "2026-11-28T10:20:00Z";

pub(crate) fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|error| panic!("{text} is no instant: {error}"))
}

/// The instant at which a world begins, unless its test chooses one.
pub(crate) fn today() -> DateTime<Utc> {
    at(&std::env::var("JOBS_TEST_DATE").unwrap_or_else(|_| ORDINARY.to_owned()))
}

/// The parameter that replays an instant.
pub(crate) fn replay(at: DateTime<Utc>) -> String {
    format!("at={}", at.format("%Y-%m-%dT%H:%M:%SZ"))
}

impl World {
    /// An instant of this Paris month that has passed: so many minutes ago, where the month is that old.
    pub(crate) fn earlier(&self, minutes: i64) -> DateTime<Utc> {
        (self.now() - TimeDelta::minutes(minutes)).max(self.month().start())
    }

    /// The Paris month of today.
    pub(crate) fn month(&self) -> Month {
        paris::month(self.now())
    }

    /// The month `n` months before this one.
    pub(crate) fn months_ago(&self, n: usize) -> Month {
        (0..n).fold(self.month(), |month, _| month.previous())
    }

    /// The sync hour that began last.
    pub(crate) fn last_sync_hour(&self) -> DateTime<Utc> {
        let midnight = self.now().date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
        midnight + TimeDelta::hours(i64::from(self.now().hour() / 6 * 6))
    }

    /// Noon of today in Paris from now on: the J+3 mail is due.
    pub(crate) fn midday(&mut self) -> DateTime<Utc> {
        let noon = paris::start_of(paris::date(self.now())) + TimeDelta::hours(12);
        self.set_now(noon);
        noon
    }

    /// SQL in which `$now` stands for this world's instant.
    pub(crate) fn dated(&self, sql: &str) -> String {
        sql.replace("$now", &format!("timestamptz '{}'", self.now().to_rfc3339()))
    }
}
