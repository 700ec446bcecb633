//! Decides which month a call of the monthly sync means.

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    due::{Decision, NotDue, gate},
    month::Month,
    paris,
    settings::Settings,
    task::{Task, Via},
};

/// Says what the monthly sync is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MonthlySync {
    /// The task syncs this month.
    Run(Month),
    /// It is not the last day, and nobody insisted.
    NotDue(NotDue),
}

/// `month=` names a month that has not begun.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{} n’a pas encore commencé : le mois demandé va au plus jusqu’à {}", month.french(), current.french())]
pub struct FutureMonth {
    /// Is the month asked for.
    pub month: Month,
    /// Is the last one that can be asked for.
    pub current: Month,
}

/// Decides which month is synced:
/// - `month`: that month, on any day, if it has begun;
/// - else, on a month's last day: that month, with or without `force`;
/// - else, with `force`: the last completed month;
/// - else nothing.
pub fn monthly_sync_month(
    at: DateTime<Utc>,
    force: bool,
    month: Option<Month>,
) -> Result<MonthlySync, FutureMonth> {
    let current = paris::month(at);
    if let Some(month) = month {
        return if month > current {
            Err(FutureMonth { month, current })
        } else {
            Ok(MonthlySync::Run(month))
        };
    }
    Ok(match gate(Task::MonthlySync, Via::ManualRoute, at, Settings::default()) {
        Decision::Due { .. } => MonthlySync::Run(current),
        Decision::NotDue(_) if force => MonthlySync::Run(current.previous()),
        Decision::NotDue(not_due) => MonthlySync::NotDue(not_due),
    })
}

/// Represents a month whose recap is not mailed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoRecap {
    /// Its last day has not come.
    #[error("données seules : le récapitulatif part le dernier jour du mois")]
    TooEarly,
    /// Somebody puts old figures right, which is no news for their user.
    #[error("données seules : mois ancien, sans récapitulatif")]
    TooOld,
}

/// Returns whether a sync of `month` at `at` is followed by its recap: from its last day on, to the end of the month
/// after.
pub fn recap_due(month: Month, at: DateTime<Utc>) -> Result<(), NoRecap> {
    if at < paris::start_of(month.last_day()) {
        Err(NoRecap::TooEarly)
    } else if month < paris::month(at).previous() {
        Err(NoRecap::TooOld)
    } else {
        Ok(())
    }
}

/// A month that failed on its last day is taken up again until this day of the month after.
pub const LAST_SECOND_CHANCE: u32 = 5;

/// A recap waits for an integration that could not be read, for a reason that may pass, until this day of the month after:
/// then it leaves with what was read, and names the rest.
pub const RECAP_WAITS_UNTIL: u32 = 2;

/// Returns when the last chance of a failed month is over.
pub fn second_chances_end(month: Month) -> DateTime<Utc> {
    paris::start_of(month.next().first_day() + TimeDelta::days(LAST_SECOND_CHANCE.into()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_fifth_of_the_month_after_is_the_last_chance() {
        let end = second_chances_end("2026-11".parse().unwrap());
        assert_eq!(end.to_rfc3339(), "2026-12-05T23:00:00+00:00");
    }

    #[rstest]
    #[case("2026-11", "2026-11-29T22:59:59Z", Err(NoRecap::TooEarly))]
    #[case("2026-11", "2026-11-29T23:00:00Z", Ok(()))] // the 30th in Paris
    #[case("2026-10", "2026-10-30T21:59:59Z", Err(NoRecap::TooEarly))] // winter time since the 25th
    #[case("2026-10", "2026-10-30T23:00:00Z", Ok(()))]
    #[case("2026-11", "2026-12-31T22:59:59Z", Ok(()))]
    #[case("2026-11", "2026-12-31T23:00:00Z", Err(NoRecap::TooOld))]
    #[case("2026-12", "2026-11-30T12:00:00Z", Err(NoRecap::TooEarly))]
    fn recaps_leave_from_the_last_day_to_the_end_of_the_month_after(
        #[case] month: &str,
        #[case] at: &str,
        #[case] due: Result<(), NoRecap>,
    ) {
        assert_eq!(recap_due(month.parse().unwrap(), at.parse().unwrap()), due);
    }
}
