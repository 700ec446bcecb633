//! Names one occurrence of a task.

use std::fmt;

use serde::Serialize;

/// Represents the one occurrence that a cron run claims: with the task it is the primary key of
/// `job_slots`.
///
/// Later slots of one gate are greater strings.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Slot(String);

impl Slot {
    pub(super) fn new(name: String) -> Self {
        Self(name)
    }

    /// Returns the name as it is stored: `2026-11-22T06Z`, `2026-11-22`, `2026-11` or `2026-W47`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
