//! Holds the calendar against independent arithmetic from 1970 to 2099.

mod gates;
mod months;
mod occurrences;
mod parameters;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().expect("an instant")
}

/// Draws any second of the tested calendar.
fn instants() -> impl Strategy<Value = DateTime<Utc>> {
    let (first, last) = (utc("1970-01-01T00:00:00Z"), utc("2099-12-31T22:59:59Z"));
    (first.timestamp()..=last.timestamp()).prop_map(|second| DateTime::from_timestamp(second, 0).unwrap())
}

fn hours_of(year: i32) -> impl Iterator<Item = DateTime<Utc>> {
    let first = utc(&format!("{year}-01-01T00:00:00Z"));
    (0..366 * 24).map(move |hour| first + TimeDelta::hours(hour))
}
