//! Reads what the planning functions of the database answer.

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::schedule::{Slot, Task};

/// Holds what planning functions answer.
#[derive(Deserialize)]
pub(super) struct Planned {
    pub(super) state: PlanState,
    pub(super) run_id: Option<Uuid>,
    pub(super) trigger: Option<String>,
    #[serde(default)]
    pub(super) plan: Value,
    /// More was found than one transaction plans. Unknown to databases that are a migration behind.
    #[serde(default)]
    pub(super) left: bool,
}

#[derive(Clone, Copy, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum PlanState {
    Planned,
    Repeated,
    Joined,
    DryRun,
}

impl Planned {
    /// Takes in a further part of the same plan.
    pub(super) fn add(&mut self, part: &Self) {
        let items = |plan: &Value| plan["items"].as_u64().unwrap_or_default();
        self.plan["items"] = json!(items(&self.plan) + items(&part.plan));
        self.left = part.left;
    }

    /// Writes « déjà planifié par cron pour 2026-11-22T06Z », where it was.
    pub(super) fn joined_note(&self, slot: Option<&Slot>) -> Option<String> {
        (self.state == PlanState::Joined).then(|| {
            let by = self.trigger.as_deref().unwrap_or("une exécution passée");
            format!("déjà planifié par {by} pour {}", slot.map(Slot::as_str).unwrap_or_default())
        })
    }

    /// Logs that a run of `task` is planned or joined.
    pub(super) fn log(&self, task: Task) {
        let run_id = self.run_id.map(|id| id.to_string());
        let joined = self.state == PlanState::Joined;
        tracing::info!(task = task.as_str(), run_id, joined, plan = %self.plan, "planned");
    }
}
