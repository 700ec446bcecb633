//! Describes one occurrence of a task.

use chrono::{DateTime, Utc};

use super::{
    slot::Slot,
    task::{Task, Via},
};

/// Represents one slot, from its first instant to the one at which no cron can claim it any more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Occurrence {
    /// The task that is due.
    pub task: Task,
    /// The slot that a cron claims.
    pub slot: Slot,
    /// The task is due from this instant on.
    pub opens: DateTime<Utc>,
    /// The slot is over from this instant on.
    pub closes: DateTime<Utc>,
}

impl Occurrence {
    /// Returns the door through which a cron would have asked.
    pub fn via(&self) -> Via {
        door(self.task)
    }
}

/// Returns the door through which crons ask for a task.
pub(super) const fn door(task: Task) -> Via {
    if task.is_scheduled_everywhere() { Via::CronRoute } else { Via::ManualRoute }
}
