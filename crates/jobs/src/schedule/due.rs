//! Decides whether a task is due at an instant, and when it is next.

use chrono::{DateTime, Utc};

use super::{
    gate::Gate,
    settings::Settings,
    slot::Slot,
    task::{Task, Via},
};

/// Holds what a gate says about an instant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// The task runs, once for this slot.
    Due {
        /// Is the slot to claim.
        slot: Slot,
    },
    /// The task must not run now.
    NotDue(NotDue),
}

/// Represents a closed gate, and when it opens again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NotDue {
    gate: Gate,
    next: Opening,
    settings: Settings,
}

impl NotDue {
    /// Returns the next occurrence.
    pub fn next(&self) -> &Opening {
        &self.next
    }

    /// Tells the operator: "dû le 2 de chaque mois, prochaine fois le 2 décembre 2026".
    pub fn note(&self) -> String {
        let (rule, at) = (self.gate.describe_rule(self.settings), self.gate.describe_time(self.next.opens));
        format!("{rule}, prochaine fois le {at}")
    }
}

/// Represents a slot and its first instant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Opening {
    /// Is what the first cron to come by claims.
    pub slot: Slot,
    /// The task is due from this instant on.
    pub opens: DateTime<Utc>,
}

/// Decides whether `task` is due at this instant, when asked for through `via`.
pub fn gate(task: Task, via: Via, at: DateTime<Utc>, settings: Settings) -> Decision {
    let gate = task.gate(via);
    match gate.slot_at(at, settings) {
        Some(slot) => Decision::Due { slot },
        None => Decision::NotDue(NotDue { gate, next: next_due(task, via, at, settings), settings }),
    }
}

/// Returns the first slot that opens after `after`. If `after` lies in a slot itself, the one following it.
///
/// Called with its own `opens` again and again, it lists every occurrence: the calendar of the coming
/// months, or the slots that a missed cron should have claimed.
#[expect(clippy::missing_panics_doc, reason = "a gate is open at its own opening, for any instant")]
pub fn next_due(task: Task, via: Via, after: DateTime<Utc>, settings: Settings) -> Opening {
    let gate = task.gate(via);
    let opens = gate.next_opening(after, settings);
    let slot = gate.slot_at(opens, settings).expect("a gate is open at its own opening");
    Opening { slot, opens }
}
