//! Describes one call of a route: who asked, for when, and for what.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::schedule::{Days, Month, Via};

/// Tells who asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trigger {
    /// A scheduler's `GET` is bound to gates and slots.
    Cron,
    /// An operator's `POST` runs now and claims no slot.
    Manual,
}

/// Represents one call of a route, after its parameters were checked.
#[derive(Clone, Debug)]
pub struct Call {
    /// Is the path of the route.
    pub route: &'static str,
    pub via: Via,
    pub trigger: Trigger,
    /// Is the instant to work for.
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
    /// Returns whether this call claims slots: a scheduler's whole run does, whatever an operator asks for does not.
    pub fn claims_slot(&self) -> bool {
        self.trigger == Trigger::Cron
            && !self.force
            && self.month.is_none()
            && self.user_id.is_none()
            && !self.dry_run
    }

    /// Returns the value of `job_runs.trigger`.
    pub fn trigger_name(&self) -> &'static str {
        match (self.replay, self.trigger) {
            (true, _) => "replay",
            (false, Trigger::Cron) => "cron",
            (false, Trigger::Manual) => "manual",
        }
    }

    /// Returns the value of `sync_logs.sync_type`.
    pub fn log_type(&self) -> &'static str {
        if self.dry_run { "dry_run" } else { self.trigger_name() }
    }

    /// Returns what was asked for, as in `job_runs.parameters`.
    pub fn parameters(&self) -> Value {
        let mut parameters = json!({});
        if let Some(user_id) = self.user_id {
            parameters["user_id"] = json!(user_id);
        }
        if let Some(days) = self.days {
            parameters["days"] = json!(days.get());
        }
        if let Some(month) = self.month {
            parameters["month"] = json!(month.to_string());
        }
        if self.force {
            parameters["force"] = json!(true);
        }
        parameters
    }
}
