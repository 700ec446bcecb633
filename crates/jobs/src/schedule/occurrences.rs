//! This module lists the occurrences of a task: which were missed, which are to come, which may be replayed.

use std::{collections::BTreeSet, ops::RangeInclusive};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    due::{Opening, next_due},
    making_up::made_up_until,
    occurrence::{Occurrence, door},
    paris,
    settings::Settings,
    task::Task,
};

/// The J+3 mail is sent on these Paris days after sign-up. There are several, so that a missed cron costs nobody
/// theirs.
pub const DAYS_AFTER_SIGN_UP: RangeInclusive<u32> = 3..=6;

/// Represents an occurrence that nobody took.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Missed {
    pub occurrence: Occurrence,
    /// A later run has done what this one would have: nothing is lost.
    pub made_up: bool,
    /// Until this instant a cron that comes by makes it up by itself.
    pub made_up_until: Option<DateTime<Utc>>,
    /// Is the instant to replay, or says why there is none.
    pub replay: Result<DateTime<Utc>, NoReplay>,
}

/// Says why an occurrence is not replayed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoReplay {
    /// It was longer ago than `REPLAY_MAX_DAYS`.
    #[error("plus ancien que REPLAY_MAX_DAYS ({max_days} jours)")]
    TooOld {
        /// Is `REPLAY_MAX_DAYS`.
        max_days: u16,
    },
    /// A reminder belongs into its month.
    #[error("le mois de ce rappel est passé")]
    MonthOver,
}

/// Returns the rhythm of a task, for a sentence that begins "dû …".
pub fn describe_rule(task: Task, settings: Settings) -> String {
    task.gate(door(task)).describe_rule(settings)
}

/// Returns an opening as this task's reader thinks of it: a UTC hour, a Paris hour, or a Paris date.
pub fn describe_time(task: Task, opens: DateTime<Utc>) -> String {
    task.gate(door(task)).describe_time(opens)
}

/// Returns every occurrence of a task that opens after `after`, without an end.
pub fn occurrences(task: Task, after: DateTime<Utc>, settings: Settings) -> impl Iterator<Item = Occurrence> {
    let via = door(task);
    let mut last = after;
    std::iter::repeat_with(move || {
        let Opening { slot, opens } = next_due(task, via, last, settings);
        last = opens;
        Occurrence { task, slot, opens, closes: task.gate(via).closing(opens, settings) }
    })
}

/// Returns those that were over by `now` and whose slot is not in `claimed`, the newest first.
pub fn missed(
    task: Task,
    since: DateTime<Utc>,
    now: DateTime<Utc>,
    claimed: &BTreeSet<String>,
    settings: Settings,
) -> Vec<Missed> {
    let all: Vec<Occurrence> =
        occurrences(task, since, settings).take_while(|occurrence| occurrence.opens <= now).collect();
    let taken = |occurrence: &Occurrence| claimed.contains(occurrence.slot.as_str());
    let mut missed: Vec<Missed> = all
        .iter()
        .filter(|occurrence| occurrence.closes <= now && !taken(occurrence))
        .map(|occurrence| Missed {
            occurrence: occurrence.clone(),
            made_up: all.iter().any(|later| taken(later) && covers(later, occurrence)),
            made_up_until: made_up_until(occurrence).filter(|end| now < *end),
            replay: replay(occurrence, now, settings),
        })
        .collect();
    missed.reverse();
    missed
}

/// Returns whether a run of `later` does what one of `missed` would have done.
fn covers(later: &Occurrence, missed: &Occurrence) -> bool {
    let after = later.opens > missed.opens;
    match missed.task {
        // It reads from the last success; it tells what was not told before.
        Task::SyncIntegrations | Task::CheckThresholds => after,
        // It writes to whoever signed up so many days ago: a run that is not too late reaches the same people.
        Task::MarketingDay3 => {
            let (first, last) = (*DAYS_AFTER_SIGN_UP.start(), *DAYS_AFTER_SIGN_UP.end());
            after
                && paris::date(later.opens) - paris::date(missed.opens)
                    <= TimeDelta::days((last - first).into())
        }
        // Each month is its own.
        Task::MonthlyReminders | Task::MonthlySync => false,
    }
}

/// Returns the instant whose replay claims this slot: its last second, so that a month is read to its end.
pub fn replay(
    occurrence: &Occurrence,
    now: DateTime<Utc>,
    settings: Settings,
) -> Result<DateTime<Utc>, NoReplay> {
    let max_days = settings.replay_max_days();
    let at = (occurrence.closes - TimeDelta::seconds(1)).min(now);
    if at < now - TimeDelta::days(max_days.into()) {
        Err(NoReplay::TooOld { max_days })
    } else if occurrence.task == Task::MonthlyReminders && paris::month(now) != paris::month(occurrence.opens)
    {
        Err(NoReplay::MonthOver)
    } else {
        Ok(at)
    }
}

/// Returns the occurrence of a slot that has opened within the days that a replay may reach back, by its name.
pub fn find(task: Task, slot: &str, now: DateTime<Utc>, settings: Settings) -> Option<Occurrence> {
    // A slot lasts a week at most.
    let since = now - TimeDelta::days(i64::from(settings.replay_max_days()) + 8);
    occurrences(task, since, settings)
        .take_while(|occurrence| occurrence.opens <= now)
        .find(|occurrence| occurrence.slot.as_str() == slot)
}
