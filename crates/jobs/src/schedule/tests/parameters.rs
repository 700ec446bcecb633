//! Tests `at=`, `month=`, `force=`, `days=`, and how far back a sync reads.

use crate::schedule::{
    AtError, DEFAULT_DAYS, Days, FutureMonth, Month, MonthlySync, Window, monthly_sync_month, parse_at,
};

use super::utc;

fn month(text: &str) -> Month {
    text.parse().expect("a month")
}

#[track_caller]
fn check_month(at: &str, force: bool, asked: Option<&str>, expect: Option<&str>) {
    let plan = match monthly_sync_month(utc(at), force, asked.map(month)) {
        Ok(MonthlySync::Run(month)) => Some(month.to_string()),
        Ok(MonthlySync::NotDue(_)) => None,
        Err(refused) => Some(refused.to_string()),
    };
    assert_eq!(plan.as_deref(), expect, "at {at}, force {force}, month {asked:?}");
}

#[test]
fn the_month_that_a_call_means() {
    // The last day: the month that ends, forced or not.
    check_month("2026-11-30T07:00:00Z", false, None, Some("2026-11"));
    check_month("2026-11-30T07:00:00Z", true, None, Some("2026-11"));
    // Another day: nothing, or with force the last completed month.
    check_month("2026-11-22T07:00:00Z", false, None, None);
    check_month("2026-11-22T07:00:00Z", true, None, Some("2026-10"));
    check_month("2026-12-01T07:00:00Z", true, None, Some("2026-11"));
    check_month("2027-01-01T07:00:00Z", true, None, Some("2026-12"));
    // Half past midnight in Paris on the 1st is no longer the last day.
    check_month("2026-11-30T23:30:00Z", false, None, None);
    check_month("2026-11-30T23:30:00Z", true, None, Some("2026-11"));
    // A month asked for, whatever the day.
    check_month("2026-11-22T07:00:00Z", false, Some("2026-11"), Some("2026-11"));
    check_month("2026-11-22T07:00:00Z", false, Some("2025-01"), Some("2025-01"));
    check_month("2026-11-30T07:00:00Z", true, Some("2026-10"), Some("2026-10"));
    check_month("2026-11-30T23:30:00Z", false, Some("2026-12"), Some("2026-12"));
}

#[test]
fn a_month_that_has_not_begun_is_refused() {
    let refused = monthly_sync_month(utc("2026-11-30T22:59:59Z"), true, Some(month("2026-12")));
    let expected = FutureMonth { month: month("2026-12"), current: month("2026-11") };
    assert_eq!(refused, Err(expected));
    assert_eq!(
        expected.to_string(),
        "décembre 2026 n’a pas encore commencé : le mois demandé va au plus jusqu’à novembre 2026"
    );
}

#[test]
fn at_is_past_recent_and_well_written() {
    let now = utc("2026-11-22T12:00:00Z");
    let at = |text: &str, dry_run: bool| parse_at(text, now, dry_run, 35);

    assert_eq!(at("2026-11-22T07:00:00Z", false), Ok(utc("2026-11-22T07:00:00Z")));
    assert_eq!(at("2026-11-22T08:00:00+01:00", false), Ok(utc("2026-11-22T07:00:00Z")));
    assert_eq!(at("2026-11-22T12:00:00Z", false), Ok(now));
    assert_eq!(at("2026-11-22T12:00:01Z", false), Err(AtError::Future));
    assert_eq!(at("2026-10-18T12:00:00Z", false), Ok(utc("2026-10-18T12:00:00Z")));
    assert_eq!(at("2026-10-18T11:59:59Z", false), Err(AtError::TooOld { max_days: 35 }));

    assert_eq!(at("2027-11-22T12:00:00Z", true), Ok(utc("2027-11-22T12:00:00Z")));
    assert_eq!(at("2020-11-22T12:00:00Z", true), Ok(utc("2020-11-22T12:00:00Z")));
    assert_eq!(at("9999-11-22T12:00:00Z", true), Err(AtError::OutOfCalendar));
    assert_eq!(at("1969-12-31T23:59:59Z", true), Err(AtError::OutOfCalendar));

    for text in ["", "hier", "2026-11-22", "2026-11-22T07:00:00", "2026-02-30T07:00:00Z", "1763794800"] {
        assert_eq!(at(text, false), Err(AtError::Malformed), "{text:?}");
    }
    // A `+` that the caller forgot to write as %2B arrives as a space.
    assert_eq!(at("2026-11-22T08:00:00 01:00", false), Err(AtError::Malformed));
}

#[test]
fn days_go_from_1_to_366() {
    for (text, days) in [("1", 1), ("30", 30), ("366", 366), ("007", 7)] {
        assert_eq!(text.parse::<Days>().map(Days::get), Ok(days));
    }
    for text in ["0", "367", "-1", "+1", "1.5", "", " 1", "99999", "trente"] {
        assert!(text.parse::<Days>().is_err(), "{text:?}");
    }
    assert_eq!(DEFAULT_DAYS.get(), 30);
}

#[track_caller]
fn check_window(window: Window, from: &str) {
    assert_eq!(window.from, utc(from));
}

#[test]
fn how_far_back_a_sync_reads() {
    let at = utc("2026-11-22T12:00:00Z");
    let days = |text: &str| text.parse::<Days>().unwrap();
    let success = Some(utc("2026-11-22T06:00:30Z"));

    // Asked for: whole Paris days.
    check_window(Window::requested(at, DEFAULT_DAYS, success), "2026-10-22T22:00:00Z");
    check_window(Window::requested(at, days("2"), success), "2026-11-19T23:00:00Z");
    // A first sync holds the whole month.
    check_window(Window::requested(at, days("2"), None), "2026-10-31T23:00:00Z");
    check_window(Window::requested(at, DEFAULT_DAYS, None), "2026-10-22T22:00:00Z");
    check_window(Window::since(at, None), "2026-10-22T22:00:00Z");
    // A cron goes on where the last success was, with three days to spare, however long ago.
    check_window(Window::since(at, success), "2026-11-18T23:00:00Z");
    check_window(Window::since(at, Some(utc("2026-08-01T06:00:00Z"))), "2026-07-28T22:00:00Z");
    // The replay of an earlier day.
    check_window(Window::since(utc("2026-11-10T12:00:00Z"), success), "2026-11-06T23:00:00Z");
    assert_eq!(Window::since(at, success).to, at);
}

#[test]
fn a_first_cron_holds_its_month_on_any_day() {
    for day in 1..=31 {
        let at = utc(&format!("2026-10-{day:02}T18:00:00Z"));
        assert!(Window::since(at, None).from <= month("2026-10").start(), "{at}");
    }
}
