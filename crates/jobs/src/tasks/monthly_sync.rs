//! A whole month of every user's integrations, read to its end, with its totals by source.

use super::{
    Call, Context, TaskError, TaskOutcome, Trigger,
    run::{Order, plan_drain_report},
};
use crate::{
    queue::WorkItem,
    schedule::{Decision, Month, MonthlySync, NotDue, Task, gate, recap_due},
};

/// Which month a call means, or when it will be due. A future month is refused before (`entry`).
pub fn month_of(call: &Call) -> Result<Month, Box<NotDue>> {
    match crate::schedule::monthly_sync_month(call.at, call.force, call.month) {
        Ok(MonthlySync::Run(month)) => Ok(month),
        Ok(MonthlySync::NotDue(not_due)) => Err(Box::new(not_due)),
        Err(future) => Ok(future.current),
    }
}

/// Due on the last day of the Paris month, or for the month an operator names.
pub async fn run(context: &Context, call: &Call) -> TaskOutcome {
    sync(context, call).await.into()
}

async fn sync(context: &Context, call: &Call) -> Result<TaskOutcome, TaskError> {
    let month = match month_of(call) {
        Ok(month) => month,
        Err(not_due) => return Ok(TaskOutcome::NotDue { note: not_due.note() }),
    };
    let slot = match (call.trigger, gate(Task::MonthlySync, call.via, call.at, context.tuning.schedule)) {
        (Trigger::Cron, Decision::Due { slot }) => Some(slot),
        _ => None,
    };
    if let Err(faults) = &context.integrations {
        return Err(TaskError::Configuration(faults.clone()));
    }
    let recap = recap_due(month, call.at);
    let order = Order {
        task: Task::MonthlySync,
        slot: slot.as_ref().filter(|_| call.claims_slot()),
        // Months before the first sync were typed by hand: only a month that is named is written over them.
        work: WorkItem::SyncMonth {
            month: month.to_string(),
            count_month: call.month.is_some(),
            // Planned only where it can be sent: else a later run mails it, for it was never planned.
            recap: recap.is_ok() && context.mailer.is_ok(),
        },
    };
    let mut outcome = plan_drain_report(context, call, order).await?;
    if let Err(why) = recap {
        match &mut outcome {
            TaskOutcome::Ran(run) => run.no_recap = Some(why.to_string()),
            TaskOutcome::DryRun { plan } => {
                if let Some(plan) = plan.as_object_mut() {
                    plan.insert("note".into(), why.to_string().into());
                }
            }
            TaskOutcome::NotDue { .. } | TaskOutcome::Failed(_) => {}
        }
    }
    Ok(outcome)
}
