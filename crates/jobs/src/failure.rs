//! Defines the three words for what goes wrong, and what each means:
//!
//! - a *fault* is something wrong with the configuration, by the name of its variable (`config::Faults`);
//! - a [`Failure`] is why work did not succeed, classified once where it is seen: an item, a mail, a lane, a part of a
//!   task. [`CountedFailure`] is the same failure of many items;
//! - *problems* are how an answer lists both for its caller.
//!
//! An error type (`SupabaseError`, `ProviderError`, …) is what a call returns; it becomes a failure when it is
//! recorded.

use serde::{Deserialize, Serialize};

/// Represents a classified failure, as operators see it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// A stable name, for counting.
    pub code: String,
    /// A sentence in French that is safe to show to everybody.
    pub message: String,
}

impl Failure {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

/// Represents one failure, counted once for all the items it hit.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CountedFailure {
    pub code: Option<String>,
    pub message: Option<String>,
    pub count: u64,
}
