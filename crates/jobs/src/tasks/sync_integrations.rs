//! Reads the movements of Stripe and Shopify, every six hours or when an operator asks.

use super::{
    call::Call,
    context::Context,
    due::due_slot,
    outcome::{RunSummary, TaskError, TaskOutcome},
    second_chance::{self, TakenUp},
    sync::{SyncPlan, plan_drain_report},
};
use crate::{
    failure::Failure,
    queue::WorkItem,
    schedule::{Days, Task},
};

/// Runs the task, which is due at the sync hours for a cron, always for an operator.
pub async fn run(context: &Context, call: &Call) -> TaskOutcome {
    sync(context, call).await.into()
}

async fn sync(context: &Context, call: &Call) -> Result<TaskOutcome, TaskError> {
    let slot = match due_slot(Task::SyncIntegrations, call, context.tuning.schedule) {
        Ok(slot) => slot,
        Err(not_due) => return Ok(TaskOutcome::NotDue { note: not_due.note() }),
    };
    // Before anything is planned: work that nobody can do would only fill the queue.
    if let Err(faults) = &context.integrations {
        return Err(TaskError::Configuration(faults.clone()));
    }
    let wanted = SyncPlan {
        task: Task::SyncIntegrations,
        slot: slot.as_ref(),
        work: WorkItem::SyncIntegration { days: call.days.map(Days::get) },
    };
    // Before the lanes are drained: this run works on them, too. If that fails, the sync is made all the same.
    let taken_up = second_chance::plan(context, call).await;
    let mut outcome = plan_drain_report(context, call, wanted).await?;
    if let TaskOutcome::Ran(run) = &mut outcome {
        match taken_up {
            Ok(taken_up) => {
                take_up(context, call, run, &taken_up).await;
                match second_chance::plan_mended(context, call).await {
                    Ok(mended) => take_up(context, call, run, &mended).await,
                    Err(error) => run.faults.push(Failure::new("second_chance", error.user_message())),
                }
            }
            Err(error) => run.faults.push(Failure::new("second_chance", error.user_message())),
        }
    }
    Ok(outcome)
}

/// Works on months that were taken up again. Their own monitor hears of the first of them, which include what failed anew.
async fn take_up(context: &Context, call: &Call, run: &mut RunSummary, taken_up: &TakenUp) {
    run.taken_up += taken_up.items;
    let outcome = second_chance::work(context, call, taken_up).await;
    let outcome = outcome.unwrap_or_else(|error| Some(TaskOutcome::Failed(error)));
    if let Some(TaskOutcome::Ran(months)) = &outcome {
        run.out_of_time |= months.out_of_time;
    }
    if run.months.is_none() {
        run.months = outcome.map(Box::new);
    }
}
