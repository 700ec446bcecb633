//! Reads what the database reports of a run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::failure::CountedFailure;

/// Counts a run's items and lists their results. Results stay the text that the database wrote: an amount never becomes
/// a float.
#[derive(Clone, Debug, Deserialize)]
pub struct RunReport {
    pub counts: Counts,
    /// Counts new or changed movements.
    pub records: u64,
    pub errors: Vec<CountedFailure>,
    /// Holds the first results, as they were settled.
    pub results: Vec<Box<RawValue>>,
    pub results_total: u64,
    /// Counts the alerts that its check has found and that are not planned yet. Unknown to databases that are a migration
    /// behind.
    #[serde(default)]
    pub unplanned: u64,
    /// Counts its mails by lane.
    pub mails: BTreeMap<String, MailCounts>,
}

/// Says whether a run's report would have to wait.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Waits {
    /// Is true while any of its items is queued.
    pub queued: bool,
    /// Is true while a living worker holds one of them.
    pub in_flight: bool,
}

/// Counts a run's mails in one lane.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct MailCounts {
    pub planned: u64,
    pub queued: u64,
    pub sent: u64,
    /// Counts the mails that were not wanted any more, or came too late.
    pub skipped: u64,
    pub failed: u64,
    /// Counts the mails that failed, or wait for another attempt.
    pub erred: u64,
    /// Counts the skipped ones by the reason why they were not sent.
    pub unsent: BTreeMap<String, u64>,
    pub errors: Vec<CountedFailure>,
}

/// Counts a run's items by state.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Counts {
    pub planned: u64,
    pub queued: u64,
    pub done: u64,
    pub partial: u64,
    pub failed: u64,
    pub superseded: u64,
    /// Counts queued items of which a part is stored.
    #[serde(default, skip_serializing)]
    pub begun: u64,
    /// Counts the items that failed, failed in part, or wait for another attempt.
    pub erred: u64,
}
