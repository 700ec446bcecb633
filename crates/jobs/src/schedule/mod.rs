//! When is what due? Pure functions of an instant: nothing here reads a clock or does I/O.
//!
//! [`Task::gate`] says which instants let a task run, and under which slot; [`crate::routes`] says which route asks
//! for which tasks. `tests/integration/deployment.rs` walks a year of every deployment file's crons against both.

mod gate;
mod month;
mod monthly_sync;
mod occasions;
pub mod paris;
mod replay;
#[cfg(test)]
mod tests;
mod window;

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use self::gate::Gate;
pub use self::month::{Month, ParseMonthError};
pub use self::monthly_sync::{FutureMonth, MonthlySync, NoRecap, monthly_sync_month, recap_due};
pub use self::occasions::{
    Missed, NoReplay, Occasion, find as find_occasion, missed, moment, occasions, replay as replay_of, rule,
};
pub use self::replay::{AtError, YEARS, parse_at};
pub use self::window::{DEFAULT_DAYS, Days, InvalidDays, Window};

/// What the crons run. The names are stored in `job_slots` and `job_runs`: they never change.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The offer mailed three days after sign-up.
    MarketingDay3,
    /// Movements of Stripe and Shopify, every six hours.
    SyncIntegrations,
    /// "Record your turnover of last month."
    MonthlyReminders,
    /// A whole month read to its end, and its recap.
    MonthlySync,
    /// URSSAF ceilings and VAT thresholds.
    CheckThresholds,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 5] = [
        Self::MarketingDay3,
        Self::SyncIntegrations,
        Self::MonthlyReminders,
        Self::MonthlySync,
        Self::CheckThresholds,
    ];

    /// The table of gates.
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

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MarketingDay3 => "marketing_day3",
            Self::SyncIntegrations => "sync_integrations",
            Self::MonthlyReminders => "monthly_reminders",
            Self::MonthlySync => "monthly_sync",
            Self::CheckThresholds => "check_thresholds",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that no task has.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unknown task {0:?}")]
pub struct UnknownTask(String);

impl FromStr for Task {
    type Err = UnknownTask;

    fn from_str(name: &str) -> Result<Self, UnknownTask> {
        Self::ALL.into_iter().find(|task| task.as_str() == name).ok_or_else(|| UnknownTask(name.to_owned()))
    }
}

/// Through which door a cron's `GET` asks for a task.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Via {
    /// `/api/cron/*`: the route has its own rhythm and runs a task only where its gate is open.
    CronRoute,
    /// `/api/manual/*` called by a cron: whoever schedules the route chose the moment.
    ManualRoute,
}

/// What the operator may tune.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    marketing_from_hour: u8,
}

/// The latest hour that some cron of every deployment file still comes after, summer and winter: the
/// Pro plan's daily-tasks run once, at 9 h UTC. A later one would keep the mail back for ever.
const LATEST_MARKETING_HOUR: u8 = 10;

/// `MARKETING_FROM_HOUR` is not an hour that every plan's crons serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("MARKETING_FROM_HOUR doit être une heure entre 0 et {LATEST_MARKETING_HOUR}")]
pub struct InvalidHour;

impl Settings {
    /// `marketing_from_hour`: the Paris hour from which the J+3 mail may leave, 0 to 10.
    pub const fn new(marketing_from_hour: u8) -> Result<Self, InvalidHour> {
        if marketing_from_hour <= LATEST_MARKETING_HOUR {
            Ok(Self { marketing_from_hour })
        } else {
            Err(InvalidHour)
        }
    }

    /// The Paris hour from which the J+3 mail may leave.
    pub const fn marketing_from_hour(self) -> u8 {
        self.marketing_from_hour
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { marketing_from_hour: 7 }
    }
}

/// The one occasion that a cron run claims: with the task, the primary key of `job_slots`.
///
/// Of one gate, later slots are greater strings.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Slot(String);

impl Slot {
    /// As stored: `2026-11-22T06Z`, `2026-11-22`, `2026-11` or `2026-W47`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a gate says about an instant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Run, once for this slot.
    Due {
        /// What to claim.
        slot: Slot,
    },
    /// Leave it.
    NotDue(NotDue),
}

/// A closed gate, and when it opens again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NotDue {
    gate: Gate,
    next: Opening,
    settings: Settings,
}

impl NotDue {
    /// The next occasion.
    pub fn next(&self) -> &Opening {
        &self.next
    }

    /// For the operator: "dû le 2 de chaque mois, prochaine fois le 2 décembre 2026".
    pub fn note(&self) -> String {
        let (rule, at) = (self.gate.rule(self.settings), self.gate.moment(self.next.opens));
        format!("{rule}, prochaine fois le {at}")
    }
}

/// A slot and its first instant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Opening {
    /// What the first cron to come by claims.
    pub slot: Slot,
    /// From when on the task is due.
    pub opens: DateTime<Utc>,
}

/// Is `task` due at this instant, when asked for through `via`?
pub fn gate(task: Task, via: Via, at: DateTime<Utc>, settings: Settings) -> Decision {
    let gate = task.gate(via);
    match gate.slot_at(at, settings) {
        Some(slot) => Decision::Due { slot },
        None => Decision::NotDue(NotDue { gate, next: next_due(task, via, at, settings), settings }),
    }
}

/// The first slot that opens after `after`. If `after` lies in a slot itself, the one following it.
///
/// Called with its own `opens` again and again, it lists every occasion: the calendar of the coming
/// months, or the slots that a missed cron should have claimed.
#[expect(clippy::missing_panics_doc, reason = "a gate is open at its own opening, for any instant")]
pub fn next_due(task: Task, via: Via, after: DateTime<Utc>, settings: Settings) -> Opening {
    let gate = task.gate(via);
    let opens = gate.next_opening(after, settings);
    let slot = gate.slot_at(opens, settings).expect("a gate is open at its own opening");
    Opening { slot, opens }
}
