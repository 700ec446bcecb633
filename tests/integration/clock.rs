//! The time of day of a test's world: one instant that stands still, for the functions, the stand-ins and the test.
//! Nothing in a test asks the machine what day it is, so that a test says the same on every day.
//!
//! `JOBS_TEST_DATE`, an instant as RFC 3339, lets the whole suite run on another day.

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use jobs::schedule::{Month, paris};

use crate::world::World;

/// Makes a test of each day on which something turns, out of a function of an instant: the first, the second and the
/// last days of months, the turn of the year, both changes of the clock, the leap day.
macro_rules! on_played_days {
    ($test:path) => {
        $crate::clock::on_played_days! {$test:
            on_a_first_in_paris_that_is_none_in_utc "2026-11-30T23:10:00Z",
            on_a_first "2026-12-01T10:20:00Z",
            on_a_second_at_seven "2026-12-02T07:00:00Z",
            on_a_27th "2026-11-27T18:00:00Z",
            on_a_28th "2026-11-28T10:20:00Z",
            on_a_29th "2026-11-29T00:05:00Z",
            on_a_last_day_of_thirty "2026-11-30T12:00:00Z",
            on_a_new_years_eve "2026-12-31T07:00:00Z",
            half_an_hour_before_a_new_year_in_utc "2026-12-31T23:30:00Z",
            on_a_new_years_day "2027-01-01T10:20:00Z",
            in_the_hour_that_spring_skips "2027-03-28T01:00:00Z",
            in_the_hour_that_autumn_repeats "2027-10-31T00:30:00Z",
            on_a_leap_day "2028-02-29T07:00:00Z",
        }
    };
    ($test:path: $($name:ident $at:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() -> anyhow::Result<()> {
                $test($crate::clock::at($at)).await
            }
        )*
    };
}
pub(crate) use on_played_days;

/// This is a Wednesday like any other, shortly before noon in Paris: no task of the calendar is
/// due.
const ORDINARY: &str = "2026-11-18T10:20:00Z";

pub(crate) fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|error| panic!("{text} is no instant: {error}"))
}

/// Returns the instant at which a world begins, unless its test chooses one.
pub(crate) fn today() -> DateTime<Utc> {
    at(&std::env::var("JOBS_TEST_DATE").unwrap_or_else(|_| ORDINARY.to_owned()))
}

/// Returns the parameter that replays an instant.
pub(crate) fn replay(at: DateTime<Utc>) -> String {
    format!("at={}", at.format("%Y-%m-%dT%H:%M:%SZ"))
}

impl World {
    /// Returns an instant of this Paris month that has passed: so many minutes ago, where the month
    /// is that old.
    pub(crate) fn earlier(&self, minutes: i64) -> DateTime<Utc> {
        (self.now() - TimeDelta::minutes(minutes)).max(self.month().start())
    }

    /// Returns the Paris month of today.
    pub(crate) fn month(&self) -> Month {
        paris::month(self.now())
    }

    /// Returns the month `n` months before this one.
    pub(crate) fn months_ago(&self, n: usize) -> Month {
        (0..n).fold(self.month(), |month, _| month.previous())
    }

    /// Returns the sync hour that began last.
    pub(crate) fn last_sync_hour(&self) -> DateTime<Utc> {
        let midnight = self.now().date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
        midnight + TimeDelta::hours(i64::from(self.now().hour() / 6 * 6))
    }

    /// Sets the clock to noon of today in Paris: the J+3 mail is due.
    pub(crate) fn midday(&mut self) -> DateTime<Utc> {
        let noon = paris::start_of(paris::date(self.now())) + TimeDelta::hours(12);
        self.set_now(noon);
        noon
    }

    /// Returns SQL in which `$now` stands for this world's instant.
    pub(crate) fn dated(&self, sql: &str) -> String {
        sql.replace("$now", &format!("timestamptz '{}'", self.now().to_rfc3339()))
    }
}
