//! Reads a whole month of every user's integrations to its end, with its totals by source.

use super::{
    call::Call,
    context::Context,
    due::{month_of, occasion},
    outcome::{TaskError, TaskOutcome},
    second_chance,
    sync::{SyncPlan, plan_drain_report},
};
use crate::{
    queue::WorkItem,
    schedule::{Task, paris, recap_due},
};

/// Runs the task, which is due on the last day of the Paris month, or for the month an operator names. Where nobody took
/// the last day, a cron of the first days after makes it up.
pub async fn run(context: &Context, call: &Call) -> TaskOutcome {
    sync(context, call).await.into()
}

async fn sync(context: &Context, call: &Call) -> Result<TaskOutcome, TaskError> {
    let due = match occasion(Task::MonthlySync, context, call).await? {
        Ok(due) => due,
        Err(not_due) => return second_chance::run(context, call, not_due.note()).await,
    };
    let month = match &due.made_up {
        Some(missed) => paris::month(missed.opens),
        None => match month_of(call) {
            Ok(month) => month,
            Err(not_due) => return Ok(TaskOutcome::NotDue { note: not_due.note() }),
        },
    };
    if let Err(faults) = &context.integrations {
        return Err(TaskError::Configuration(faults.clone()));
    }
    let recap = recap_due(month, call.at);
    let wanted = SyncPlan {
        task: Task::MonthlySync,
        slot: due.slot.as_ref(),
        // Months before the first sync were typed by hand: only a month that is named is written over them.
        work: WorkItem::SyncMonth {
            month: month.to_string(),
            count_month: call.month.is_some(),
            // Planned only where it can be sent: else a later run mails it, for it was never planned.
            recap: recap.is_ok() && context.mailer.is_ok(),
        },
    };
    let mut outcome = plan_drain_report(context, call, wanted).await?;
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
    Ok(outcome.making_up(due.made_up))
}
