//! Counts days as the users live them: Europe/Paris, both clock changes included.

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::{Europe::Paris, Tz};

use super::month::Month;

const MONTHS: [&str; 12] = [
    "janvier",
    "février",
    "mars",
    "avril",
    "mai",
    "juin",
    "juillet",
    "août",
    "septembre",
    "octobre",
    "novembre",
    "décembre",
];

/// Returns what a clock in Paris shows.
pub fn local(at: DateTime<Utc>) -> DateTime<Tz> {
    at.with_timezone(&Paris)
}

/// Returns the date in Paris.
pub fn date(at: DateTime<Utc>) -> NaiveDate {
    local(at).date_naive()
}

/// Returns the month in Paris.
pub fn month(at: DateTime<Utc>) -> Month {
    Month::of(date(at))
}

/// Returns whether it is the last day of the month in Paris.
pub fn is_last_day(at: DateTime<Utc>) -> bool {
    let date = date(at);
    date == Month::of(date).last_day()
}

/// Returns the first instant of a Paris day.
pub fn start_of(date: NaiveDate) -> DateTime<Utc> {
    at_hour(date, 0)
}

/// Returns the first instant of a Paris day whose clock shows `hour` or later: where the spring change skips
/// the hour, the instant of the change; where the autumn change repeats it, the first of the two.
pub(super) fn at_hour(date: NaiveDate, hour: u8) -> DateTime<Utc> {
    let midnight = date.and_time(NaiveTime::MIN);
    (i64::from(hour)..)
        .find_map(|hour| Paris.from_local_datetime(&(midnight + TimeDelta::hours(hour))).earliest())
        .expect("a skipped hour is followed by one that exists")
        .to_utc()
}

/// Writes "2 décembre 2026", "1er décembre 2026".
pub fn french(date: NaiveDate) -> String {
    let day = match date.day() {
        1 => "1er".to_owned(),
        day => day.to_string(),
    };
    format!("{day} {} {}", month_name(date.month()), date.year())
}

/// Writes "30 novembre 2026 à 8 h 05".
pub fn french_minute(at: DateTime<Utc>) -> String {
    let at = local(at);
    format!("{} à {} h {:02}", french(at.date_naive()), at.hour(), at.minute())
}

pub(super) fn month_name(month: u32) -> &'static str {
    MONTHS[month as usize - 1]
}

impl Month {
    /// Returns its first instant, in Paris.
    pub fn start(self) -> DateTime<Utc> {
        start_of(self.first_day())
    }

    /// Returns the first instant that is no longer in it: the next month's [`start`](Self::start).
    pub fn end(self) -> DateTime<Utc> {
        self.next().start()
    }

    /// Writes "novembre 2026".
    pub fn french(self) -> String {
        format!("{} {}", month_name(self.month()), self.year())
    }
}
