//! Sends "Record your turnover of last month" to the Premium users who wish it.

use super::{
    call::Call,
    context::Context,
    due::occasion,
    mails::{MailPlan, plan_post_report},
    outcome::{TaskError, TaskOutcome},
};
use crate::{
    mail_kind::MailKind,
    schedule::{Task, paris},
};

/// Runs the task, which is due on the 2nd, for the month before; replayed only within the same real month. Where nobody
/// took the 2nd, a cron of the days after makes it up.
pub async fn run(context: &Context, call: &Call) -> TaskOutcome {
    remind(context, call).await.into()
}

async fn remind(context: &Context, call: &Call) -> Result<TaskOutcome, TaskError> {
    let due = match occasion(Task::MonthlyReminders, context, call).await? {
        Ok(due) => due,
        Err(not_due) => return Ok(TaskOutcome::NotDue { note: not_due.note() }),
    };
    let month = paris::month(call.at).previous();
    if !call.dry_run && paris::month(context.now) != month.next() {
        let note =
            format!("trop tard : le rappel pour {} ne part qu’en {}", month.french(), month.next().french());
        return Ok(TaskOutcome::NotDue { note });
    }
    let wanted = MailPlan {
        task: Task::MonthlyReminders,
        kind: MailKind::MonthlyReminder,
        slot: due.slot.as_ref(),
        days_after_sign_up: None,
        month: Some(month),
        now: if call.dry_run { call.at } else { context.now },
    };
    let outcome = plan_post_report(context, call, wanted).await?;
    Ok(outcome.making_up(due.made_up))
}
