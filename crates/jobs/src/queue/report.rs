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
    /// New or changed movements.
    pub records: u64,
    pub errors: Vec<CountedFailure>,
    /// The first results, as they were settled.
    pub results: Vec<Box<RawValue>>,
    pub results_total: u64,
    /// Its mails by lane.
    pub mails: BTreeMap<String, MailCounts>,
}

/// Says whether a run's report would have to wait.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Waits {
    /// Any of its items is queued.
    pub queued: bool,
    /// A living worker holds one of them.
    pub in_flight: bool,
}

/// Counts a run's mails in one lane.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct MailCounts {
    pub planned: u64,
    pub queued: u64,
    pub sent: u64,
    /// They were not wanted any more, or too late.
    pub skipped: u64,
    pub failed: u64,
    /// Failed, or waiting for another attempt.
    pub erred: u64,
    /// Why the skipped ones were not sent.
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
    /// Queued, with a part of it stored.
    #[serde(default, skip_serializing)]
    pub begun: u64,
    /// Failed, failed in part, or waiting for another attempt.
    pub erred: u64,
}
