//! The occasions of a task in a span of time: which were missed, which are to come, which may be made up for.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Opening, Settings, Slot, Task, Via, next_due, paris};

/// One slot, from its first instant to the one at which no cron can claim it any more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Occasion {
    /// Whose.
    pub task: Task,
    /// What a cron claims.
    pub slot: Slot,
    /// From when on the task is due.
    pub opens: DateTime<Utc>,
    /// From when on this slot is over.
    pub closes: DateTime<Utc>,
}

impl Occasion {
    /// Through which door a cron would have asked.
    pub fn via(&self) -> Via {
        door(self.task)
    }
}

/// An occasion that nobody took.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Missed {
    /// What was missed.
    pub occasion: Occasion,
    /// A later run has done what this one would have: nothing is lost.
    pub made_up: bool,
    /// The instant to replay, or why not.
    pub replay: Result<DateTime<Utc>, NoReplay>,
}

/// Why an occasion is not replayed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoReplay {
    /// Beyond `REPLAY_MAX_DAYS`.
    #[error("plus ancien que REPLAY_MAX_DAYS ({max_days} jours)")]
    TooOld {
        /// `REPLAY_MAX_DAYS`.
        max_days: u16,
    },
    /// A reminder belongs into its month.
    #[error("le mois de ce rappel est passé")]
    MonthOver,
}

/// The door through which the crons of every deployment ask for a task. Thresholds are asked for by hand, by the
/// application or by some deployments' crons.
const fn door(task: Task) -> Via {
    match task {
        Task::CheckThresholds => Via::ManualRoute,
        _ => Via::CronRoute,
    }
}

/// The rhythm of a task, for a sentence that begins "dû …".
pub fn rule(task: Task, settings: Settings) -> String {
    task.gate(door(task)).rule(settings)
}

/// An opening as this task's reader thinks of it: a UTC hour, a Paris hour, or a Paris date.
pub fn moment(task: Task, opens: DateTime<Utc>) -> String {
    task.gate(door(task)).moment(opens)
}

/// Every occasion of a task that opens after `after`, without an end.
pub fn occasions(task: Task, after: DateTime<Utc>, settings: Settings) -> impl Iterator<Item = Occasion> {
    let via = door(task);
    let mut last = after;
    std::iter::repeat_with(move || {
        let Opening { slot, opens } = next_due(task, via, last, settings);
        last = opens;
        Occasion { task, slot, opens, closes: task.gate(via).closing(opens, settings) }
    })
}

/// Those that were over by `now` and whose slot is not in `claimed`, the newest first.
pub fn missed(
    task: Task,
    since: DateTime<Utc>,
    now: DateTime<Utc>,
    claimed: &BTreeSet<String>,
    max_days: u16,
    settings: Settings,
) -> Vec<Missed> {
    let all: Vec<Occasion> =
        occasions(task, since, settings).take_while(|occasion| occasion.opens <= now).collect();
    let taken = |occasion: &Occasion| claimed.contains(occasion.slot.as_str());
    let mut missed: Vec<Missed> = all
        .iter()
        .filter(|occasion| occasion.closes <= now && !taken(occasion))
        .map(|occasion| Missed {
            occasion: occasion.clone(),
            made_up: all.iter().any(|later| taken(later) && makes_up(later, occasion)),
            replay: replay(occasion, now, max_days),
        })
        .collect();
    missed.reverse();
    missed
}

/// Whether a run of `later` does what one of `missed` would have done.
fn makes_up(later: &Occasion, missed: &Occasion) -> bool {
    let after = later.opens > missed.opens;
    match missed.task {
        // It reads from the last success; it tells what was not told before.
        Task::SyncIntegrations | Task::CheckThresholds => after,
        // It writes to whoever signed up three to six days ago.
        Task::MarketingDay3 => {
            after && paris::date(later.opens) - paris::date(missed.opens) <= TimeDelta::days(3)
        }
        // Each month is its own.
        Task::MonthlyReminders | Task::MonthlySync => false,
    }
}

/// The instant whose replay claims this slot: its last second, so that a month is read to its end.
pub fn replay(occasion: &Occasion, now: DateTime<Utc>, max_days: u16) -> Result<DateTime<Utc>, NoReplay> {
    let at = (occasion.closes - TimeDelta::seconds(1)).min(now);
    if at < now - TimeDelta::days(max_days.into()) {
        Err(NoReplay::TooOld { max_days })
    } else if occasion.task == Task::MonthlyReminders && paris::month(now) != paris::month(occasion.opens) {
        Err(NoReplay::MonthOver)
    } else {
        Ok(at)
    }
}

/// The occasion of a slot that has opened within the last `max_days`, by its name.
pub fn find(
    task: Task,
    slot: &str,
    now: DateTime<Utc>,
    max_days: u16,
    settings: Settings,
) -> Option<Occasion> {
    // A slot lasts a week at most.
    let since = now - TimeDelta::days(i64::from(max_days) + 8);
    occasions(task, since, settings)
        .take_while(|occasion| occasion.opens <= now)
        .find(|occasion| occasion.slot.as_str() == slot)
}
