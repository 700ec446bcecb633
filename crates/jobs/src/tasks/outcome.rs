//! Defines what a task answers: plain data.

use std::collections::BTreeMap;

use serde_json::{Value, value::RawValue};
use uuid::Uuid;

use crate::{
    config_faults::ConfigFaults,
    failure::{CountedFailure, Failure},
    lane::Lane,
    queue::{Counts, MailCounts},
    schedule::Occurrence,
    supabase::SupabaseError,
};

/// Holds what a task answers.
#[derive(Debug)]
pub enum TaskOutcome {
    /// The task is not due; the note says when it is.
    NotDue { note: String },
    /// A run was planned or joined, drained, and reported.
    Ran(Box<RunSummary>),
    /// Nothing was written: this is what would have been planned.
    DryRun { plan: Value },
    /// The task failed as a whole.
    Failed(TaskError),
}

/// Says why a task failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A variable of this task is missing or wrong.
    #[error("{0}")]
    Configuration(ConfigFaults),
    /// The database did not do its part.
    #[error(transparent)]
    Database(#[from] SupabaseError),
    /// The task panicked, which is a bug.
    #[error("the task panicked")]
    Panicked,
}

impl TaskError {
    /// Returns the message for an operator: French, harmless, with what to do.
    pub fn user_message(&self) -> String {
        match self {
            Self::Configuration(faults) => faults.to_string(),
            Self::Database(error) => error.user_message(),
            Self::Panicked => "Erreur interne ; voir les journaux.".into(),
        }
    }

    /// Returns 500 where somebody has to mend it, 503 where it may pass.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::Configuration(_) | Self::Panicked => 500,
            Self::Database(error) if error.is_configuration() => 500,
            Self::Database(_) => 503,
        }
    }
}

impl TaskOutcome {
    /// Returns the same outcome, which says which missed occasion this call made up. Where another call was faster, it
    /// has made it up.
    pub(super) fn making_up(mut self, missed: Option<Occurrence>) -> Self {
        match (&mut self, missed) {
            (Self::Ran(run), Some(missed)) if run.joined.is_none() => run.made_up = Some(missed),
            (Self::DryRun { plan: Value::Object(plan) }, Some(missed)) => {
                plan.insert("madeUp".into(), missed.slot.as_str().into());
            }
            _ => {}
        }
        self
    }
}

impl From<Result<TaskOutcome, TaskError>> for TaskOutcome {
    fn from(result: Result<TaskOutcome, TaskError>) -> Self {
        result.unwrap_or_else(Self::Failed)
    }
}

/// Represents a run as reported from its items.
#[derive(Debug, Default)]
pub struct RunSummary {
    pub run_id: Option<Uuid>,
    /// The slot was planned before; this call only helped to work on it.
    pub joined: Option<String>,
    /// Counts its data: integrations, months.
    pub counts: Counts,
    /// Counts new or changed movements.
    pub records: u64,
    /// Counts what hit items of data.
    pub troubles: Vec<CountedFailure>,
    /// Lists what stopped a whole lane: one message stands for all its items.
    pub blocked: Vec<Failure>,
    /// Lists what kept a part of the task from doing anything.
    pub faults: Vec<Failure>,
    /// Lists what somebody should know, though it is no error.
    pub notices: Vec<Failure>,
    pub results: Vec<Box<RawValue>>,
    pub results_total: u64,
    /// A lane of data moved nothing: all that was tried there has failed.
    pub only_failed: bool,
    /// Counts alerts that were found and are not planned yet.
    pub unplanned: u64,
    /// Counts its mails, by lane.
    pub mails: BTreeMap<String, MailCounts>,
    /// Names the occasion that nobody took on its day and that this call made up.
    pub made_up: Option<Occurrence>,
    /// Says why a month's recap is not mailed.
    pub no_recap: Option<String>,
    /// Counts months that had failed and were planned again with this call.
    pub taken_up: u64,
    /// Says what became of them, where the task itself is about something else: their own monitor is told.
    pub months: Option<Box<TaskOutcome>>,
    /// Holds the plan, as the database described it.
    pub outline: Value,
    /// The budget was over before the queue was empty.
    pub out_of_time: bool,
}

impl RunSummary {
    /// Counts the items of data that ended well.
    pub fn worked(&self) -> u64 {
        self.counts.done + self.counts.partial
    }

    /// Counts the mails that left.
    pub fn sent(&self) -> u64 {
        self.mails.values().map(|mails| mails.sent).sum()
    }

    /// Counts the mails of this lane that left.
    pub fn sent_in(&self, lane: Lane) -> u64 {
        self.mails.get(lane.as_str()).map_or(0, |mails| mails.sent)
    }

    /// Counts items in trouble (failed, in part, or to be tried again), lanes that could not work at all, and parts
    /// that could not begin.
    pub fn errors(&self) -> u64 {
        let mails: u64 = self.mails.values().map(|mails| mails.erred).sum();
        self.counts.erred + mails + (self.blocked.len() + self.faults.len()) as u64
    }

    /// Counts the items that are still in the queue, or on their way into it.
    pub fn remaining(&self) -> u64 {
        self.unplanned + self.counts.queued + self.mails.values().map(|mails| mails.queued).sum::<u64>()
    }

    /// Returns the value of `sync_logs.status`.
    pub fn log_status(&self) -> &'static str {
        let whole = self.counts.partial == 0 && self.counts.superseded == 0 && self.remaining() == 0;
        if self.errors() == 0 && whole {
            "success"
        } else if self.worked() + self.sent() == 0 && self.errors() > 0 {
            "error"
        } else {
            "partial"
        }
    }
}
