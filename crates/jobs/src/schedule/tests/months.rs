//! Tests months and days of Paris.

use chrono::{Datelike, NaiveDate, TimeDelta};
use proptest::prelude::*;

use super::{instants, utc};
use crate::schedule::{Month, paris};

fn month(text: &str) -> Month {
    text.parse().expect("a month")
}

#[track_caller]
fn check(text: &str, start: &str, end: &str, days: u32, french: &str) {
    let month = month(text);
    assert_eq!(month.start(), utc(start), "start of {text}");
    assert_eq!(month.end(), utc(end), "end of {text}");
    assert_eq!(month.days(), days, "days of {text}");
    assert_eq!(month.french(), french);
    assert_eq!(month.to_string(), text);
}

#[test]
fn a_month_runs_from_paris_midnight_to_paris_midnight() {
    check("2026-11", "2026-10-31T23:00:00Z", "2026-11-30T23:00:00Z", 30, "novembre 2026");
    check("2026-03", "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z", 31, "mars 2026");
    check("2026-10", "2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z", 31, "octobre 2026");
    check("2028-02", "2028-01-31T23:00:00Z", "2028-02-29T23:00:00Z", 29, "février 2028");
    check("2100-02", "2100-01-31T23:00:00Z", "2100-02-28T23:00:00Z", 28, "février 2100");
    check("2000-02", "2000-01-31T23:00:00Z", "2000-02-29T23:00:00Z", 29, "février 2000");
    // Changes on the last day of a month.
    check("2024-03", "2024-02-29T23:00:00Z", "2024-03-31T22:00:00Z", 31, "mars 2024");
    check("2027-10", "2027-09-30T22:00:00Z", "2027-10-31T23:00:00Z", 31, "octobre 2027");
}

#[test]
fn a_year_ends() {
    assert_eq!(month("2026-12").next(), month("2027-01"));
    assert_eq!(month("2027-01").previous(), month("2026-12"));
    assert!(month("2026-12") < month("2027-01"));
    assert_eq!(paris::month(utc("2026-12-31T23:30:00Z")), month("2027-01"));
    assert_eq!(paris::month(utc("2026-12-31T22:30:00Z")), month("2026-12"));
}

#[test]
fn only_four_digits_a_dash_and_two_digits_are_a_month() {
    for text in
        ["2026-13", "2026-00", "2026-1", "26-01", "2026", "", "2026-11-01", " 2026-11", "2026-11 ", "+026-11"]
    {
        assert!(text.parse::<Month>().is_err(), "{text:?}");
    }
    for text in ["2026/11", "2026-+1", "２０２６-11", "20260-1", "-026-11", "2026--1", "novembre 2026"] {
        assert!(text.parse::<Month>().is_err(), "{text:?}");
    }
    assert_eq!(Month::new(2026, 13), None);
    assert_eq!(serde_json::from_str::<Month>(r#""2026-11""#).unwrap(), month("2026-11"));
    assert_eq!(serde_json::to_string(&month("2026-11")).unwrap(), r#""2026-11""#);
    assert!(serde_json::from_str::<Month>(r#""2026-13""#).is_err());
}

#[test]
fn days_of_23_and_25_hours() {
    let length = |date: &str| {
        let date: NaiveDate = date.parse().unwrap();
        (paris::start_of(date.succ_opt().unwrap()) - paris::start_of(date)).num_hours()
    };
    assert_eq!(length("2026-03-29"), 23);
    assert_eq!(length("2026-10-25"), 25);
    assert_eq!(length("2026-11-22"), 24);
}

#[test]
fn dates_in_french() {
    let french = |date: &str| paris::french(date.parse().unwrap());
    assert_eq!(french("2026-12-02"), "2 décembre 2026");
    assert_eq!(french("2026-08-01"), "1er août 2026");
}

proptest! {
    #[test]
    fn an_instant_lies_in_its_month_and_day(at in instants()) {
        let month = paris::month(at);
        prop_assert!((month.start()..month.end()).contains(&at));
        prop_assert_eq!(paris::month(month.end()), month.next());
        prop_assert_eq!(paris::month(month.end() - TimeDelta::seconds(1)), month);
        prop_assert_eq!(month.next().previous(), month);
        prop_assert_eq!(month.to_string().parse(), Ok(month));
        prop_assert_eq!((month.last_day().day(), month.first_day().day()), (month.days(), 1));

        let date = paris::date(at);
        prop_assert!((paris::start_of(date)..paris::start_of(date.succ_opt().unwrap())).contains(&at));
    }
}
