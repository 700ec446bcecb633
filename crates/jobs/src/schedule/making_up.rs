//! Decides until when an occasion that was missed is still made up by the cron whose occasion it was.
//!
//! The gate does not open a second time: on other days the task is as closed as ever, and only an occasion that nobody
//! took is looked for. Whether nobody took it, the database says.

use std::ops::RangeInclusive;

use chrono::{DateTime, Datelike, Days, Utc};

use super::{
    month::Month, monthly_sync::LAST_SECOND_CHANCE, occurrence::Occurrence, paris, slot::Slot, task::Task,
};

/// Reminders of the 2nd are made up on these days of the same month: later, the declaration is due or made.
pub const REMINDERS_MADE_UP: RangeInclusive<u32> = 3..=7;

/// A month that was not read on its last day is made up on these days of the month after, as one that failed is.
pub const MONTH_MADE_UP: RangeInclusive<u32> = 1..=LAST_SECOND_CHANCE;

/// Returns the occasion of `task` whose day is over at `at` and whose window is not. The tasks that are due every day or
/// week need none: their next occasion does the work of the one before.
pub fn occasion_to_make_up(task: Task, at: DateTime<Utc>) -> Option<Occurrence> {
    let today = paris::date(at);
    let (day, month) = match task {
        Task::MonthlyReminders if REMINDERS_MADE_UP.contains(&today.day()) => {
            let month = Month::of(today);
            (month.first_day() + Days::new(1), month)
        }
        Task::MonthlySync if MONTH_MADE_UP.contains(&today.day()) => {
            let month = Month::of(today).previous();
            (month.last_day(), month)
        }
        _ => return None,
    };
    let slot = Slot::new(month.to_string());
    Some(Occurrence { task, slot, opens: paris::start_of(day), closes: paris::start_of(day + Days::new(1)) })
}

/// Returns the last day on which an occasion is made up, for an occasion of a task that has such days.
pub fn made_up_until(occasion: &Occurrence) -> Option<DateTime<Utc>> {
    let month = paris::month(occasion.opens);
    let last = match occasion.task {
        Task::MonthlyReminders => month.first_day() + Days::new(u64::from(*REMINDERS_MADE_UP.end())),
        Task::MonthlySync => month.next().first_day() + Days::new(u64::from(*MONTH_MADE_UP.end())),
        _ => return None,
    };
    Some(paris::start_of(last))
}

/// Says in French what is made up: « rattrape le passage du 2 décembre 2026, que personne n’avait pris ».
pub fn describe_making_up(occasion: &Occurrence) -> String {
    format!(
        "rattrape le passage du {}, qu’aucun cron n’avait pris",
        paris::french(paris::date(occasion.opens))
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::schedule::{Decision, Settings, Via, gate};

    #[rstest]
    // From the midnight after the 2nd to the end of the 7th, in winter and in summer.
    #[case::on_its_day(Task::MonthlyReminders, "2026-12-02T22:59:59Z", None)]
    #[case::the_day_after(Task::MonthlyReminders, "2026-12-02T23:00:00Z", Some("2026-12"))]
    #[case::the_last_moment(Task::MonthlyReminders, "2026-12-07T22:59:59Z", Some("2026-12"))]
    #[case::too_late(Task::MonthlyReminders, "2026-12-07T23:00:00Z", None)]
    #[case::summer(Task::MonthlyReminders, "2026-07-02T22:00:00Z", Some("2026-07"))]
    #[case::summer_ends(Task::MonthlyReminders, "2026-07-07T22:00:00Z", None)]
    #[case::before(Task::MonthlyReminders, "2026-12-01T12:00:00Z", None)]
    #[case::last_day(Task::MonthlySync, "2026-11-30T22:59:59Z", None)]
    #[case::first(Task::MonthlySync, "2026-11-30T23:00:00Z", Some("2026-11"))]
    #[case::fifth(Task::MonthlySync, "2026-12-05T22:59:59Z", Some("2026-11"))]
    #[case::sixth(Task::MonthlySync, "2026-12-05T23:00:00Z", None)]
    #[case::new_year(Task::MonthlySync, "2027-01-01T07:00:00Z", Some("2026-12"))]
    #[case::leap_february(Task::MonthlySync, "2028-03-01T07:00:00Z", Some("2028-02"))]
    // The clock goes back on 31 October 2027: a last day of 25 hours.
    #[case::long_day(Task::MonthlySync, "2027-10-31T22:59:59Z", None)]
    #[case::after_the_long_day(Task::MonthlySync, "2027-10-31T23:00:00Z", Some("2027-10"))]
    #[case::daily(Task::SyncIntegrations, "2026-12-03T07:00:00Z", None)]
    #[case::weekly(Task::CheckThresholds, "2026-12-03T07:00:00Z", None)]
    #[case::offers(Task::MarketingDay3, "2026-12-03T03:00:00Z", None)]
    fn windows(#[case] task: Task, #[case] at: &str, #[case] slot: Option<&str>) {
        let found = occasion_to_make_up(task, at.parse().unwrap());
        assert_eq!(found.as_ref().map(|occasion| occasion.slot.as_str()), slot);
    }

    proptest! {
        /// What is made up is a day that its gate was open on, that is over, and whose slot is that day's.
        #[test]
        fn it_is_an_occasion_of_the_past(seconds in 0..4_102_444_800_i64, reminders: bool) {
            let at = DateTime::from_timestamp(seconds, 0).unwrap();
            let task = if reminders { Task::MonthlyReminders } else { Task::MonthlySync };
            if let Some(occasion) = occasion_to_make_up(task, at) {
                prop_assert!(occasion.closes <= at);
                prop_assert!(at < made_up_until(&occasion).unwrap());
                let settings = Settings::default();
                let slot = occasion.slot.clone();
                prop_assert_eq!(gate(task, Via::CronRoute, occasion.opens, settings), Decision::Due { slot });
                let closed = matches!(gate(task, Via::CronRoute, at, settings), Decision::NotDue(_));
                prop_assert!(closed);
            }
        }
    }
}
