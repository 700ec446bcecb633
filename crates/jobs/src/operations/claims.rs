//! Finds the slots that crons have claimed, and those that nobody did. The status page and the digest look for them in
//! one way.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::{
    deployment_file::DeploymentFile,
    routes::Route,
    schedule::{Missed, Settings, Task, missed},
};

/// Represents a slot that some run has claimed.
#[derive(Debug, Deserialize)]
pub(crate) struct ClaimedSlot {
    task: String,
    slot: String,
}

/// Returns whether the crons of this file run a task.
pub(crate) fn expects(file: DeploymentFile, task: Task) -> bool {
    let crons = file.crons();
    let called = |route: &Route| crons.iter().any(|cron| cron.path == route.path());
    Route::ALL.iter().filter(|route| called(route)).any(|route| route.tasks().contains(&task))
}

/// Returns since when the crons of this file come by: since the one of its daily routes that was called last for the first
/// time. `None` where nothing is known of calls. What no other file schedules is not expected before.
pub(crate) fn in_use_since(
    file: DeploymentFile,
    first_calls: &BTreeMap<String, DateTime<Utc>>,
) -> Option<DateTime<Utc>> {
    let paths = file.crons().into_iter().map(|cron| cron.path);
    paths
        .filter(|path| file.longest_gap(path).is_some())
        .filter_map(|path| first_calls.get(&path).copied())
        .max()
}

/// Returns whether a cron has ever run this task, as far as these claims reach.
pub(crate) fn has_claims(claims: &[ClaimedSlot], task: Task) -> bool {
    claims.iter().any(|claim| claim.task == task.as_str())
}

/// Returns the task's slots since `since` that were over by `now` and that nobody claimed, the newest first.
pub(crate) fn unclaimed(
    claims: &[ClaimedSlot],
    task: Task,
    since: DateTime<Utc>,
    now: DateTime<Utc>,
    settings: Settings,
) -> Vec<Missed> {
    let claimed: BTreeSet<String> =
        claims.iter().filter(|claim| claim.task == task.as_str()).map(|claim| claim.slot.clone()).collect();
    missed(task, since, now, &claimed, settings)
}
