//! Occurrences that were missed, and what may be done about them.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;

use super::{instants, utc};
use crate::schedule::{
    Decision, Missed, Month, NoReplay, Settings, Task, find_occurrence, gate, missed, occurrences, paris,
};

fn all(task: Task, since: &str, now: &str, claimed: &[&str]) -> Vec<Missed> {
    let claimed: BTreeSet<String> = claimed.iter().map(|&slot| slot.to_owned()).collect();
    missed(task, utc(since), utc(now), &claimed, Settings::default())
}

#[track_caller]
fn check(task: Task, since: &str, now: &str, claimed: &[&str], expect: &[&str]) {
    let slots: Vec<String> =
        all(task, since, now, claimed).iter().map(|missed| missed.occurrence.slot.to_string()).collect();
    assert_eq!(slots, expect, "{task} at {now}");
}

#[test]
fn a_sync_hour_is_missed_once_it_is_over() {
    let task = Task::SyncIntegrations;
    let since = "2026-11-22T03:00:00Z";
    check(task, since, "2026-11-22T06:59:59Z", &[], &[]);
    check(task, since, "2026-11-22T07:00:00Z", &[], &["2026-11-22T06Z"]);
    check(task, since, "2026-11-22T07:00:00Z", &["2026-11-22T06Z"], &[]);
    check(task, since, "2026-11-22T20:00:00Z", &["2026-11-22T12Z"], &["2026-11-22T18Z", "2026-11-22T06Z"]);
}

#[test]
fn a_day_is_missed_once_it_is_over_in_paris() {
    let task = Task::MarketingDay3;
    let since = "2026-03-27T12:00:00Z";
    // The clock goes forward on the 29th: that day has 23 hours and ends at 22 h UTC.
    check(task, since, "2026-03-28T22:59:59Z", &[], &[]);
    check(task, since, "2026-03-28T23:00:00Z", &[], &["2026-03-28"]);
    check(task, since, "2026-03-29T21:59:59Z", &["2026-03-28"], &[]);
    check(task, since, "2026-03-29T22:00:00Z", &["2026-03-28"], &["2026-03-29"]);
    // And back on 25 October: 25 hours.
    check(task, "2026-10-24T12:00:00Z", "2026-10-25T22:59:59Z", &[], &[]);
    check(task, "2026-10-24T12:00:00Z", "2026-10-25T23:00:00Z", &[], &["2026-10-25"]);
}

#[test]
fn months_end_when_they_do() {
    // A leap year's February, and the two days around New Year.
    check(Task::MonthlySync, "2028-02-01T00:00:00Z", "2028-02-29T22:59:59Z", &[], &[]);
    check(Task::MonthlySync, "2028-02-01T00:00:00Z", "2028-02-29T23:00:00Z", &[], &["2028-02"]);
    check(Task::MonthlySync, "2026-12-01T00:00:00Z", "2027-01-05T00:00:00Z", &[], &["2026-12"]);
    check(Task::MonthlyReminders, "2026-12-20T00:00:00Z", "2027-01-02T22:59:59Z", &[], &[]);
    check(Task::MonthlyReminders, "2026-12-20T00:00:00Z", "2027-01-02T23:00:00Z", &[], &["2027-01"]);
    check(Task::CheckThresholds, "2026-12-26T00:00:00Z", "2027-01-04T00:00:00Z", &[], &["2026-W53"]);
}

#[test]
fn what_a_later_run_does_as_well_is_made_up() {
    let made_up = |task, since, now, claimed: &[&str]| -> Vec<bool> {
        all(task, since, now, claimed).iter().map(|missed| missed.made_up).collect()
    };
    let sync =
        made_up(Task::SyncIntegrations, "2026-11-22T01:00:00Z", "2026-11-22T20:00:00Z", &["2026-11-22T12Z"]);
    assert_eq!(sync, [false, true]);
    // Four days in a row: whoever signed up six days before the first of them was never written to.
    let day3 = |claimed: &[&str]| {
        made_up(Task::MarketingDay3, "2026-11-10T12:00:00Z", "2026-11-15T12:00:00Z", claimed)
    };
    assert_eq!(day3(&["2026-11-15"]), [true, true, true, false]);
    assert_eq!(day3(&[]), [false, false, false, false]);
    let months = made_up(Task::MonthlySync, "2026-09-01T12:00:00Z", "2026-11-15T12:00:00Z", &["2026-10"]);
    assert_eq!(months, [false]);
}

#[test]
fn a_replay_is_the_last_second_of_its_slot_while_it_is_allowed() {
    let replays = |task, since, now| -> Vec<Result<DateTime<Utc>, NoReplay>> {
        all(task, since, now, &[]).into_iter().map(|missed| missed.replay).collect()
    };
    let month_end = replays(Task::MonthlySync, "2026-09-20T00:00:00Z", "2026-11-10T00:00:00Z");
    assert_eq!(month_end, [Ok(utc("2026-10-31T22:59:59Z")), Err(NoReplay::TooOld { max_days: 35 })]);
    let reminders = |now| replays(Task::MonthlyReminders, "2026-10-20T00:00:00Z", now);
    assert_eq!(reminders("2026-11-30T22:59:59Z"), [Ok(utc("2026-11-02T22:59:59Z"))]);
    assert_eq!(reminders("2026-11-30T23:00:00Z"), [Err(NoReplay::MonthOver)]);
}

#[test]
fn only_real_slots_are_found() {
    let find = |slot| {
        find_occurrence(Task::SyncIntegrations, slot, utc("2026-11-22T20:00:00Z"), Settings::default())
    };
    assert_eq!(find("2026-11-22T18Z").unwrap().opens, utc("2026-11-22T18:00:00Z"));
    for wrong in ["2026-11-22T19Z", "2026-11-23T00Z", "2026-09-01T00Z", "", "2026-11-22"] {
        assert_eq!(find(wrong), None, "{wrong}");
    }
}

#[test]
fn twelve_months_are_twelve_reminders_and_month_ends() {
    let now = utc("2026-11-24T12:00:00Z");
    for task in [Task::MonthlyReminders, Task::MonthlySync] {
        let year: Vec<_> = occurrences(task, now, Settings::default())
            .take(12)
            .map(|occurrence| paris::month(occurrence.opens))
            .collect();
        let first = if task == Task::MonthlySync { paris::month(now) } else { paris::month(now).next() };
        let expected: Vec<Month> =
            std::iter::successors(Some(first), |month| Some(month.next())).take(12).collect();
        assert_eq!(year, expected, "{task}");
    }
}

proptest! {
    /// In any year, summer and winter: a gate is open, under this slot, from the first to the last instant of an
    /// occurrence, and not with this slot any more when it closes.
    #[test]
    fn an_occurrence_is_where_its_gate_is_open(after in instants(), nth in 0_usize..6) {
        for task in Task::ALL {
            let occurrence = occurrences(task, after, Settings::default()).nth(nth).unwrap();
            let via = occurrence.via();
            let due = Decision::Due { slot: occurrence.slot.clone() };
            for at in [occurrence.opens, occurrence.closes - TimeDelta::milliseconds(1)] {
                prop_assert_eq!(&gate(task, via, at, Settings::default()), &due, "{} {}", task, at);
            }
            prop_assert_ne!(gate(task, via, occurrence.closes, Settings::default()), due);
        }
    }
}
