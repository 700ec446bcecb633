//! Counts instants of this month and the one before, as a French bookkeeper counts them.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, TimeDelta, Timelike, Utc};
use chrono_tz::Europe::Paris;

/// Represents the calendar of a demonstration that takes place now. Days and months are Paris's.
#[derive(Clone, Copy, Debug)]
pub struct Calendar {
    now: DateTime<Utc>,
}

/// Returns the first day of the Paris month that `at` lies in.
pub fn month_of(at: DateTime<Utc>) -> NaiveDate {
    let date = at.with_timezone(&Paris).date_naive();
    date - Days::new(u64::from(date.day0()))
}

/// Writes `2026-11`.
pub fn name(month: NaiveDate) -> String {
    month.format("%Y-%m").to_string()
}

/// Returns an instant by Paris's clocks, none of whose jumps falls on the hours that are used here.
fn paris(date: NaiveDate, hour: u32, minute: u32) -> DateTime<Utc> {
    let time = NaiveTime::from_hms_opt(hour, minute, 0).unwrap_or_default();
    let local = date.and_time(time).and_local_timezone(Paris);
    local.earliest().map_or_else(|| date.and_time(time).and_utc(), |at| at.to_utc())
}

impl Calendar {
    pub fn new(now: DateTime<Utc>) -> Self {
        Self { now }
    }

    /// Returns the instant of the demonstration.
    pub fn now(self) -> DateTime<Utc> {
        self.now
    }

    /// Returns noon so many days ago.
    pub fn days_ago(self, days: u64) -> DateTime<Utc> {
        paris(self.now.with_timezone(&Paris).date_naive() - Days::new(days), 12, 0)
    }

    /// Returns noon of the month's 2nd: on its first day the reminders are still to come, everything else is the same.
    #[must_use]
    pub fn not_before_the_second(self) -> Self {
        let second = self.current_month() + Days::new(1);
        if self.now < paris(second, 0, 0) { Self { now: paris(second, 12, 0) } } else { self }
    }

    /// Returns whether the current month's recap is due.
    pub fn is_last_day(self) -> bool {
        month_of(self.now + TimeDelta::days(1)) > self.current_month()
    }

    /// Returns the first day of the current month.
    pub fn current_month(self) -> NaiveDate {
        month_of(self.now)
    }

    /// Returns the first day of the month before.
    pub fn previous_month(self) -> NaiveDate {
        self.current_month() - Months::new(1)
    }

    /// Returns an instant of the previous month: `day` from 1, counted back from its end where it is not positive
    /// (0 is the last day).
    pub fn previous(self, day: i64, hour: u32, minute: u32) -> DateTime<Utc> {
        let from = if day > 0 { self.previous_month() } else { self.current_month() };
        paris(from + TimeDelta::days(day - 1), hour, minute)
    }

    /// Returns an instant of the current month, so many percent of the way from its beginning to now.
    pub fn current(self, percent: i32) -> DateTime<Utc> {
        let start = paris(self.current_month(), 0, 0);
        let seconds = (self.now - start).num_seconds() * i64::from(percent) / 100;
        start + TimeDelta::seconds(seconds)
    }

    /// Returns an instant a few minutes ago, and of this month.
    pub fn just_now(self) -> DateTime<Utc> {
        (self.now - TimeDelta::minutes(5)).max(self.current(0)).with_nanosecond(0).unwrap_or(self.now)
    }

    /// Returns the last sync hour that is over: 0, 6, 12 or 18 UTC. The current one's slot may be taken by the cron.
    pub fn missed_sync(self) -> DateTime<Utc> {
        let over = self.now - TimeDelta::hours(1);
        let into = TimeDelta::seconds(i64::from(over.num_seconds_from_midnight() % (6 * 3600)));
        (over - into).with_nanosecond(0).unwrap_or(over)
    }

    /// Returns the morning of this month's 2nd.
    pub fn missed_reminders(self) -> DateTime<Utc> {
        let second = paris(self.current_month() + Days::new(1), 9, 0).min(self.now);
        second.with_nanosecond(0).unwrap_or(self.now)
    }

    /// Returns noon of yesterday: offers were due by then.
    pub fn missed_offers(self) -> DateTime<Utc> {
        self.days_ago(1)
    }

    /// Returns an instant late on the last day of the previous month.
    pub fn missed_month_end(self) -> DateTime<Utc> {
        self.previous(0, 23, 30)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("an instant")
    }

    #[test]
    fn months_are_those_of_paris() {
        let calendar = Calendar::new(at("2026-10-31T23:30:00Z"));
        assert_eq!(name(calendar.current_month()), "2026-11");
        assert_eq!(name(calendar.previous_month()), "2026-10");
        // Summer time at the beginning of October, winter time at its end.
        assert_eq!(calendar.previous(1, 0, 10), at("2026-09-30T22:10:00Z"));
        assert_eq!(calendar.previous(0, 23, 30), at("2026-10-31T22:30:00Z"));
        assert_eq!(calendar.current(0), at("2026-10-31T23:00:00Z"));
        assert_eq!(calendar.current(100), at("2026-10-31T23:30:00Z"));
    }

    #[test]
    fn the_missed_sync_is_never_in_the_current_hour() {
        for (now, missed) in [
            ("2026-11-22T18:30:05Z", "2026-11-22T12:00:00Z"),
            ("2026-11-22T19:00:00Z", "2026-11-22T18:00:00Z"),
            ("2026-11-22T00:59:59Z", "2026-11-21T18:00:00Z"),
        ] {
            assert_eq!(Calendar::new(at(now)).missed_sync(), at(missed), "{now}");
        }
    }

    #[test]
    fn the_first_is_played_as_the_second() {
        for (now, played) in [
            ("2026-10-31T23:30:00Z", "2026-11-02T11:00:00Z"), // the 1st in Paris
            ("2026-11-01T22:59:59Z", "2026-11-02T11:00:00Z"),
            ("2026-11-01T23:00:00Z", "2026-11-01T23:00:00Z"),
            ("2026-11-24T08:00:00Z", "2026-11-24T08:00:00Z"),
        ] {
            let calendar = Calendar::new(at(now)).not_before_the_second();
            assert_eq!(calendar.now(), at(played), "{now}");
            let missed = calendar.missed_reminders();
            assert!(missed <= calendar.now() && missed.with_timezone(&Paris).day() == 2, "{now}: {missed}");
        }
        assert!(Calendar::new(at("2026-11-29T23:00:00Z")).is_last_day());
        assert!(!Calendar::new(at("2026-11-29T22:59:59Z")).is_last_day());
        assert!(!Calendar::new(at("2026-11-30T23:00:00Z")).is_last_day());
    }

    #[test]
    fn a_replay_is_never_more_than_35_days_back() {
        let mut now = at("2026-01-01T00:00:00Z");
        while now < at("2028-03-02T00:00:00Z") {
            let age = now - Calendar::new(now).missed_month_end();
            assert!(age > TimeDelta::zero() && age < TimeDelta::days(35), "{now}: {age}");
            now += TimeDelta::hours(7);
        }
    }
}
