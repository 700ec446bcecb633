//! Gates, slots, and what comes next.

use chrono::{DateTime, Datelike, Days, NaiveDate, TimeDelta, Timelike, Utc, Weekday};
use proptest::prelude::*;

use super::{hours_of, instants, utc};
use crate::schedule::{Decision, Month, Settings, Task, Via, gate, next_due, paris};

const CRON: Via = Via::CronRoute;
const MANUAL: Via = Via::ManualRoute;

fn slot(task: Task, via: Via, at: DateTime<Utc>, settings: Settings) -> Option<String> {
    match gate(task, via, at, settings) {
        Decision::Due { slot } => Some(slot.to_string()),
        Decision::NotDue(_) => None,
    }
}

#[track_caller]
fn check(task: Task, via: Via, at: &str, expect: &str) {
    let told = match gate(task, via, utc(at), Settings::default()) {
        Decision::Due { slot } => slot.to_string(),
        Decision::NotDue(not_due) => not_due.note(),
    };
    assert_eq!(told, expect, "{task} at {at}");
}

#[test]
fn names_are_stable() {
    let names = Task::ALL.map(Task::as_str);
    assert_eq!(
        names,
        ["marketing_day3", "sync_integrations", "monthly_reminders", "monthly_sync", "check_thresholds"]
    );
    for task in Task::ALL {
        assert_eq!(task.as_str().parse(), Ok(task));
        assert_eq!(serde_json::to_value(task).unwrap(), task.as_str());
    }
    assert!("sync".parse::<Task>().is_err());
}

#[test]
fn sync_runs_at_four_utc_hours() {
    let task = Task::SyncIntegrations;
    check(task, CRON, "2026-11-22T06:00:00Z", "2026-11-22T06Z");
    check(task, CRON, "2026-11-22T06:59:59.999Z", "2026-11-22T06Z");
    check(task, CRON, "2026-11-22T00:00:00Z", "2026-11-22T00Z");
    check(task, CRON, "2026-03-29T12:30:00Z", "2026-03-29T12Z");
    check(
        task,
        CRON,
        "2026-11-22T07:00:00Z",
        "dû à 0 h, 6 h, 12 h et 18 h UTC, prochaine fois le 22 novembre 2026 à 12 h UTC",
    );
    check(
        task,
        CRON,
        "2026-12-31T23:59:59Z",
        "dû à 0 h, 6 h, 12 h et 18 h UTC, prochaine fois le 1er janvier 2027 à 0 h UTC",
    );
}

#[test]
fn a_late_cron_of_the_manual_sync_keeps_the_slot_it_was_meant_for() {
    let task = Task::SyncIntegrations;
    check(task, MANUAL, "2026-11-22T06:00:00Z", "2026-11-22T06Z");
    check(task, MANUAL, "2026-11-22T07:20:00Z", "2026-11-22T06Z");
    check(task, MANUAL, "2026-11-22T11:59:59Z", "2026-11-22T06Z");
    check(task, MANUAL, "2026-11-22T12:00:00Z", "2026-11-22T12Z");
}

#[test]
fn reminders_run_on_the_second() {
    let task = Task::MonthlyReminders;
    check(task, CRON, "2026-12-02T07:00:00Z", "2026-12");
    // 00:30 and 23:30 in Paris, winter and summer.
    check(task, CRON, "2026-12-01T23:30:00Z", "2026-12");
    check(task, CRON, "2026-12-02T22:30:00Z", "2026-12");
    check(task, CRON, "2026-07-01T22:30:00Z", "2026-07");
    check(task, CRON, "2026-07-02T21:30:00Z", "2026-07");
    let december = "dû le 2 de chaque mois, prochaine fois le 2 décembre 2026";
    check(task, CRON, "2026-11-22T07:00:00Z", december);
    check(task, CRON, "2026-12-01T22:59:59Z", december);
    check(task, CRON, "2026-12-02T23:00:00Z", "dû le 2 de chaque mois, prochaine fois le 2 janvier 2027");
}

#[test]
fn the_monthly_sync_runs_on_the_last_day() {
    let task = Task::MonthlySync;
    for via in [CRON, MANUAL] {
        check(task, via, "2026-11-30T07:00:00Z", "2026-11");
        check(task, via, "2026-11-29T23:30:00Z", "2026-11");
        check(task, via, "2026-11-30T22:30:00Z", "2026-11");
        check(task, via, "2028-02-29T07:00:00Z", "2028-02");
        check(task, via, "2027-02-28T07:00:00Z", "2027-02");
        // The autumn change may fall on 31 October, the spring change on 31 March.
        check(task, via, "2027-10-31T22:59:59Z", "2027-10");
        check(task, via, "2024-03-30T23:00:00Z", "2024-03");
        check(task, via, "2024-03-31T21:59:59Z", "2024-03");
        let leap = "dû le dernier jour de chaque mois, prochaine fois le 29 février 2028";
        check(task, via, "2028-02-28T07:00:00Z", leap);
        check(task, via, "2028-01-31T23:00:00Z", leap);
    }
}

#[test]
fn the_day_3_mail_waits_for_the_morning() {
    let task = Task::MarketingDay3;
    check(task, CRON, "2026-11-22T06:00:00Z", "2026-11-22");
    check(task, CRON, "2026-11-22T22:59:59Z", "2026-11-22");
    check(task, CRON, "2026-07-14T05:00:00Z", "2026-07-14");
    // The morning of the spring change begins an hour sooner in UTC, that of the autumn change later.
    check(task, CRON, "2026-03-29T05:00:00Z", "2026-03-29");
    check(task, CRON, "2026-10-25T06:00:00Z", "2026-10-25");
    check(
        task,
        CRON,
        "2026-10-25T05:59:59Z",
        "dû chaque jour à partir de 7 h (heure de Paris), prochaine fois le 25 octobre 2026 à 7 h",
    );
    check(
        task,
        CRON,
        "2026-11-22T23:00:00Z",
        "dû chaque jour à partir de 7 h (heure de Paris), prochaine fois le 23 novembre 2026 à 7 h",
    );
}

#[test]
fn the_day_3_mail_at_an_hour_that_the_clock_skips_or_repeats() {
    let settings = Settings::new(2).unwrap();
    let slot = |at: &str| slot(Task::MarketingDay3, CRON, utc(at), settings);
    // 29 March 2026: 01:59:59 is followed by 03:00:00.
    assert_eq!(slot("2026-03-29T00:59:59Z"), None);
    assert_eq!(slot("2026-03-29T01:00:00Z").as_deref(), Some("2026-03-29"));
    // 25 October 2026: 02:00 to 02:59 happens twice, and stays due all along.
    assert_eq!(slot("2026-10-24T23:59:59Z"), None);
    assert_eq!(slot("2026-10-25T00:00:00Z").as_deref(), Some("2026-10-25"));
    assert_eq!(slot("2026-10-25T01:00:00Z").as_deref(), Some("2026-10-25"));
    assert!(Settings::new(11).is_err());
}

#[test]
fn thresholds_run_once_an_iso_week() {
    let task = Task::CheckThresholds;
    check(task, MANUAL, "2026-11-16T10:00:00Z", "2026-W47");
    check(task, MANUAL, "2026-11-22T22:59:59Z", "2026-W47");
    check(task, MANUAL, "2026-11-22T23:00:00Z", "2026-W48");
    // An ISO week belongs to the year of its Thursday.
    check(task, MANUAL, "2027-01-03T10:00:00Z", "2026-W53");
    check(task, MANUAL, "2024-12-30T10:00:00Z", "2025-W01");
}

/// Returns summer time as the directive says it, without the zone database: from 01:00 UTC on the
/// last Sunday of March to 01:00 UTC on the last Sunday of October (since 1996).
fn paris_by_the_directive(at: DateTime<Utc>) -> NaiveDate {
    let change = |month: u32| {
        let last = NaiveDate::from_ymd_opt(at.year(), month, 31).unwrap();
        let sunday = last - Days::new(u64::from(last.weekday().days_since(Weekday::Sun)));
        sunday.and_hms_opt(1, 0, 0).unwrap().and_utc()
    };
    let offset = if (change(3)..change(10)).contains(&at) { 2 } else { 1 };
    (at + TimeDelta::hours(offset)).date_naive()
}

#[test]
fn every_half_hour_of_a_leap_year_and_of_an_ordinary_one() {
    let settings = Settings::default();
    for at in [2026, 2028].into_iter().flat_map(hours_of) {
        for at in [at, at + TimeDelta::minutes(30)] {
            let date = paris_by_the_directive(at);
            let tomorrow = date + Days::new(1);
            let due = |task, via| slot(task, via, at, settings);
            let month = || date.format("%Y-%m").to_string();

            assert_eq!(paris::date(at), date, "{at}");
            assert_eq!(due(Task::SyncIntegrations, CRON).is_some(), [0, 6, 12, 18].contains(&at.hour()));
            assert_eq!(due(Task::MonthlyReminders, CRON), (date.day() == 2).then(month), "{at}");
            assert_eq!(due(Task::MonthlySync, CRON), (tomorrow.day() == 1).then(month), "{at}");
            assert_eq!(due(Task::CheckThresholds, CRON), Some(date.format("%G-W%V").to_string()), "{at}");
            assert_eq!(paris::is_last_day(at), tomorrow.day() == 1, "{at}");
        }
    }
}

#[test]
fn each_month_has_one_second_and_one_last_day() {
    let settings = Settings::default();
    let mut day = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
    let (mut seconds, mut lasts) = (Vec::new(), Vec::new());
    while day.year() <= 2099 {
        for minute in ["00:30", "23:30"] {
            let local = format!("{day}T{minute}:00").parse::<chrono::NaiveDateTime>().unwrap();
            let at = local.and_local_timezone(chrono_tz::Europe::Paris).earliest().unwrap().to_utc();
            seconds.extend(slot(Task::MonthlyReminders, CRON, at, settings));
            lasts.extend(slot(Task::MonthlySync, CRON, at, settings));
        }
        day = day + Days::new(1);
    }
    let months: Vec<String> = (1970..=2099)
        .flat_map(|year| (1..=12).map(move |month| Month::new(year, month).unwrap().to_string()))
        .flat_map(|month| [month.clone(), month])
        .collect();
    assert_eq!(seconds, months);
    assert_eq!(lasts, months);
}

fn tasks() -> impl Strategy<Value = (Task, Via)> {
    (prop::sample::select(Task::ALL.to_vec()), prop::sample::select(vec![CRON, MANUAL]))
}

fn settings() -> impl Strategy<Value = Settings> {
    (0..=10_u8).prop_map(|hour| Settings::new(hour).unwrap())
}

proptest! {
    #[test]
    fn next_due_is_due_and_nothing_before_it_is(
        (task, via) in tasks(),
        at in instants(),
        settings in settings(),
        fraction in 0.0..1.0_f64,
    ) {
        let own = slot(task, via, at, settings);
        let next = next_due(task, via, at, settings);
        prop_assert!(next.opens > at);
        prop_assert_eq!(slot(task, via, next.opens, settings), Some(next.slot.to_string()));

        let gap = (next.opens - at).num_seconds();
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
        let within = TimeDelta::seconds((gap as f64 * fraction) as i64);
        for between in [at + within, next.opens - TimeDelta::seconds(1)] {
            let slot = slot(task, via, between, settings);
            prop_assert!(slot.is_none() || slot == own, "{slot:?} at {between}, next {next:?}");
        }
    }

    #[test]
    fn slots_are_unique_and_ascend((task, via) in tasks(), at in instants(), settings in settings()) {
        let mut before = next_due(task, via, at, settings);
        for _ in 0..40 {
            let next = next_due(task, via, before.opens, settings);
            prop_assert!(next.opens > before.opens);
            prop_assert!(next.slot > before.slot, "{next:?} after {before:?}");
            before = next;
        }
    }

    #[test]
    fn a_note_names_an_opening_that_is_due((task, via) in tasks(), at in instants(), settings in settings()) {
        if let Decision::NotDue(not_due) = gate(task, via, at, settings) {
            prop_assert_eq!(not_due.next(), &next_due(task, via, at, settings));
            prop_assert!(not_due.note().starts_with("dû "));
        }
    }

    #[test]
    fn paris_keeps_the_directive(at in instants()) {
        if at.year() >= 1996 {
            prop_assert_eq!(paris::date(at), paris_by_the_directive(at));
        }
    }
}
