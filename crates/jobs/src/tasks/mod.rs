//! The tasks, one file each, and what they share: how they are called and what they answer.
//!
//! A task decides with pure functions whether it is due, writes its work down (plan), works the queue
//! (drain) and reports from the items, whoever drained them. It reads no clock and no environment.

pub mod check_thresholds;
mod mails;
pub mod marketing_day3;
pub mod monthly_reminders;
pub mod monthly_sync;
pub mod operator_digest;
mod run;
pub mod sync_integrations;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use self::{
    monthly_sync::month_of,
    run::{RunSummary, drain_until_nothing_waits},
};
use crate::{
    config::{Config, Faults, Tuning},
    deadline::Deadline,
    email::Mailer,
    integrations::Clients,
    queue::Queue,
    schedule::{Days, Month, Via},
    supabase::{Supabase, SupabaseError},
};

/// What an invocation works with.
#[derive(Clone)]
pub struct Context {
    pub config: Arc<Config>,
    pub tuning: Tuning,
    pub http: reqwest::Client,
    pub supabase: Supabase,
    pub queue: Queue,
    /// What the integrations need, or all that is wrong with their configuration.
    pub integrations: Result<Arc<Clients>, Faults>,
    /// What sending mails needs, or all that is wrong with its configuration.
    pub mailer: Result<Arc<Mailer>, Faults>,
    /// The real time at which the invocation began, also in a replay.
    pub now: DateTime<Utc>,
    pub deadline: Deadline,
}

/// Who asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trigger {
    /// A scheduler's `GET`: bound to gates and slots.
    Cron,
    /// An operator's `POST`: runs now and claims no slot.
    Manual,
}

/// One call of a route, checked.
#[derive(Clone, Debug)]
pub struct Call {
    /// Path of the route.
    pub route: &'static str,
    pub via: Via,
    pub trigger: Trigger,
    /// The instant to work for.
    pub at: DateTime<Utc>,
    /// `at` was asked for: a replay.
    pub replay: bool,
    pub dry_run: bool,
    pub user_id: Option<Uuid>,
    pub force: bool,
    pub month: Option<Month>,
    pub days: Option<Days>,
}

impl Call {
    /// Whether this call claims slots: a scheduler's whole run does, whatever an operator asks for does not.
    pub fn claims_slot(&self) -> bool {
        self.trigger == Trigger::Cron
            && !self.force
            && self.month.is_none()
            && self.user_id.is_none()
            && !self.dry_run
    }

    /// As in `job_runs.trigger`.
    pub fn trigger_name(&self) -> &'static str {
        match (self.replay, self.trigger) {
            (true, _) => "replay",
            (false, Trigger::Cron) => "cron",
            (false, Trigger::Manual) => "manual",
        }
    }

    /// As in `sync_logs.sync_type`.
    pub fn log_type(&self) -> &'static str {
        if self.dry_run { "dry_run" } else { self.trigger_name() }
    }
}

/// What a task answers.
#[derive(Debug)]
pub enum TaskOutcome {
    /// Not now; the note says when.
    NotDue { note: String },
    /// Planned or joined, drained, reported.
    Ran(Box<RunSummary>),
    /// What would have been planned.
    DryRun { plan: serde_json::Value },
    /// Failed as a whole.
    Failed(TaskError),
}

/// Why a task failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A variable of this task is missing or wrong.
    #[error("{0}")]
    Configuration(Faults),
    /// The database did not do its part.
    #[error(transparent)]
    Database(#[from] SupabaseError),
    /// A bug: the task panicked.
    #[error("the task panicked")]
    Panicked,
}

impl TaskError {
    /// French, harmless, with what to do.
    pub fn user_message(&self) -> String {
        match self {
            Self::Configuration(faults) => faults.to_string(),
            Self::Database(error) => error.user_message(),
            Self::Panicked => "Erreur interne ; voir les journaux.".into(),
        }
    }

    /// 500 where somebody has to mend it, 503 where it may pass.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::Configuration(_) | Self::Panicked => 500,
            Self::Database(error) if error.is_configuration() => 500,
            Self::Database(_) => 503,
        }
    }
}

impl From<Result<TaskOutcome, TaskError>> for TaskOutcome {
    fn from(result: Result<TaskOutcome, TaskError>) -> Self {
        result.unwrap_or_else(Self::Failed)
    }
}
