//! Movements of Stripe and Shopify, every six hours or when an operator asks.

use super::{
    Call, Context, TaskError, TaskOutcome, Trigger,
    run::{Order, plan_drain_report},
};
use crate::{
    queue::WorkItem,
    schedule::{Days, Decision, Task, gate},
};

/// Due at the sync hours for a cron, always for an operator.
pub async fn run(context: &Context, call: &Call) -> TaskOutcome {
    sync(context, call).await.into()
}

async fn sync(context: &Context, call: &Call) -> Result<TaskOutcome, TaskError> {
    let slot = match call.trigger {
        Trigger::Manual => None,
        Trigger::Cron => match gate(Task::SyncIntegrations, call.via, call.at, context.tuning.schedule) {
            Decision::Due { slot } => Some(slot),
            Decision::NotDue(not_due) => return Ok(TaskOutcome::NotDue { note: not_due.note() }),
        },
    };
    // Before anything is planned: work that nobody can do would only fill the queue.
    if let Err(faults) = &context.integrations {
        return Err(TaskError::Configuration(faults.clone()));
    }
    let order = Order {
        task: Task::SyncIntegrations,
        slot: slot.as_ref().filter(|_| call.claims_slot()),
        work: WorkItem::SyncIntegration { days: call.days.map(Days::get) },
    };
    plan_drain_report(context, call, order).await
}
