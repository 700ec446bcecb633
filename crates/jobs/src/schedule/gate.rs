//! Knows the six rhythms: whether one is open at an instant, when it opens next, and how to say so in French.

use chrono::{DateTime, Datelike, Days, NaiveDate, TimeDelta, Timelike, Utc};

use super::{
    month::Month,
    paris,
    settings::Settings,
    slot::Slot,
    task::{Task, Via},
};

/// Says when a task may run.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Gate {
    /// It is open in any minute of the UTC hours 0, 6, 12 and 18 (a Hobby plan fires anywhere
    /// within the hour).
    SyncHours,
    /// Always open; the slot is the sync hour that began the six-hour period. A scheduler that is an
    /// hour late therefore catches the slot up if it was missed and joins it if it was not, and one
    /// that calls every hour does the work once a period.
    SixHourPeriods,
    /// It is open on every Paris day from `Settings::marketing_from_hour` on.
    DailyFromHour,
    /// It is open on the second Paris day of a month.
    SecondOfMonth,
    /// It is open on the last Paris day of a month.
    LastDayOfMonth,
    /// It is always open; there is one slot per ISO week of the Paris date.
    IsoWeeks,
}

impl Task {
    /// Returns the gate of a task: this is the table of gates.
    pub const fn gate(self, via: Via) -> Gate {
        match (self, via) {
            (Self::MarketingDay3, _) => Gate::DailyFromHour,
            (Self::SyncIntegrations, Via::CronRoute) => Gate::SyncHours,
            (Self::SyncIntegrations, Via::ManualRoute) => Gate::SixHourPeriods,
            (Self::MonthlyReminders, _) => Gate::SecondOfMonth,
            (Self::MonthlySync, _) => Gate::LastDayOfMonth,
            (Self::CheckThresholds, _) => Gate::IsoWeeks,
        }
    }
}

/// So many hours lie between two syncs.
const PERIOD: u32 = 6;

impl Gate {
    /// Returns the slot that `at` lies in, if the gate is open then.
    pub(super) fn slot_at(self, at: DateTime<Utc>, settings: Settings) -> Option<Slot> {
        let date = paris::date(at);
        match self {
            Self::SyncHours => at.hour().is_multiple_of(PERIOD).then(|| hour_slot(period(at))),
            Self::SixHourPeriods => Some(hour_slot(period(at))),
            Self::DailyFromHour => (at >= daily_opening(date, settings)).then(|| Slot::new(date.to_string())),
            Self::SecondOfMonth => (date.day() == 2).then(|| Slot::new(Month::of(date).to_string())),
            Self::LastDayOfMonth => {
                let month = Month::of(date);
                (date == month.last_day()).then(|| Slot::new(month.to_string()))
            }
            Self::IsoWeeks => {
                let week = date.iso_week();
                Some(Slot::new(format!("{:04}-W{:02}", week.year(), week.week())))
            }
        }
    }

    /// Returns the first instant after `after` at which a slot begins.
    pub(super) fn next_opening(self, after: DateTime<Utc>, settings: Settings) -> DateTime<Utc> {
        let date = paris::date(after);
        // Today's or this month's opening while it is still to come, else the one after.
        let first_after = |this: DateTime<Utc>, following: DateTime<Utc>| {
            if this > after { this } else { following }
        };
        match self {
            Self::SyncHours | Self::SixHourPeriods => period(after) + TimeDelta::hours(i64::from(PERIOD)),
            Self::DailyFromHour => {
                let tomorrow = date + Days::new(1);
                first_after(daily_opening(date, settings), daily_opening(tomorrow, settings))
            }
            Self::SecondOfMonth => {
                let second = |month: Month| paris::start_of(month.first_day() + Days::new(1));
                let month = Month::of(date);
                first_after(second(month), second(month.next()))
            }
            Self::LastDayOfMonth => {
                let last = |month: Month| paris::start_of(month.last_day());
                let month = Month::of(date);
                first_after(last(month), last(month.next()))
            }
            Self::IsoWeeks => {
                let monday = date - Days::new(u64::from(date.weekday().num_days_from_monday()));
                paris::start_of(monday + Days::new(7))
            }
        }
    }

    /// Returns the first instant at which the slot that opened at `opens` is over.
    pub(super) fn closing(self, opens: DateTime<Utc>, settings: Settings) -> DateTime<Utc> {
        match self {
            Self::SyncHours => opens + TimeDelta::hours(1),
            Self::SixHourPeriods | Self::IsoWeeks => self.next_opening(opens, settings),
            Self::DailyFromHour | Self::SecondOfMonth | Self::LastDayOfMonth => {
                paris::start_of(paris::date(opens) + Days::new(1))
            }
        }
    }

    /// Returns the rule, for a sentence that begins "dû …".
    pub(super) fn describe_rule(self, settings: Settings) -> String {
        match self {
            Self::SyncHours | Self::SixHourPeriods => "dû à 0 h, 6 h, 12 h et 18 h UTC".to_owned(),
            Self::DailyFromHour => {
                format!("dû chaque jour à partir de {} h (heure de Paris)", settings.marketing_from_hour())
            }
            Self::SecondOfMonth => "dû le 2 de chaque mois".to_owned(),
            Self::LastDayOfMonth => "dû le dernier jour de chaque mois".to_owned(),
            Self::IsoWeeks => "dû une fois par semaine".to_owned(),
        }
    }

    /// Returns an opening as this rhythm's reader thinks of it: a UTC hour, a Paris hour, or a Paris date.
    pub(super) fn describe_time(self, opens: DateTime<Utc>) -> String {
        match self {
            Self::SyncHours | Self::SixHourPeriods => {
                format!("{} à {} h UTC", paris::french(opens.date_naive()), opens.hour())
            }
            Self::DailyFromHour => {
                let local = paris::local(opens);
                format!("{} à {} h", paris::french(local.date_naive()), local.hour())
            }
            Self::SecondOfMonth | Self::LastDayOfMonth | Self::IsoWeeks => paris::french(paris::date(opens)),
        }
    }
}

/// Returns the beginning of the six-hour period that `at` lies in.
fn period(at: DateTime<Utc>) -> DateTime<Utc> {
    let into = at.num_seconds_from_midnight() % (PERIOD * 3600);
    // A leap second (nanosecond ≥ 10⁹) is dropped with the rest of the fraction.
    DateTime::from_timestamp(at.timestamp() - i64::from(into), 0)
        .expect("earlier than a representable instant")
}

fn hour_slot(hour: DateTime<Utc>) -> Slot {
    Slot::new(hour.format("%Y-%m-%dT%HZ").to_string())
}

fn daily_opening(date: NaiveDate, settings: Settings) -> DateTime<Utc> {
    paris::at_hour(date, settings.marketing_from_hour())
}
