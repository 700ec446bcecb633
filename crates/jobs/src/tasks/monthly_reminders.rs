//! "Record your turnover of last month", to the Premium users who wish it.

use super::{
    Call, Context, TaskError, TaskOutcome, Trigger,
    mails::{MailOrder, plan_post_report},
};
use crate::{
    mail_kind::MailKind,
    schedule::{Decision, Task, gate, paris},
};

/// Due on the 2nd, for the month before; replayed only within the same real month.
pub async fn run(context: &Context, call: &Call) -> TaskOutcome {
    remind(context, call).await.into()
}

async fn remind(context: &Context, call: &Call) -> Result<TaskOutcome, TaskError> {
    let slot = match (call.trigger, gate(Task::MonthlyReminders, call.via, call.at, context.tuning.schedule))
    {
        (Trigger::Manual, _) => None,
        (Trigger::Cron, Decision::Due { slot }) => Some(slot),
        (Trigger::Cron, Decision::NotDue(not_due)) => {
            return Ok(TaskOutcome::NotDue { note: not_due.note() });
        }
    };
    let month = paris::month(call.at).previous();
    if !call.dry_run && paris::month(context.now) != month.next() {
        let note =
            format!("trop tard : le rappel pour {} ne part qu’en {}", month.french(), month.next().french());
        return Ok(TaskOutcome::NotDue { note });
    }
    let order = MailOrder {
        task: Task::MonthlyReminders,
        kind: MailKind::MonthlyReminder,
        slot: slot.as_ref().filter(|_| call.claims_slot()),
        month: Some(month),
        now: if call.dry_run { call.at } else { context.now },
    };
    plan_post_report(context, call, order).await
}
