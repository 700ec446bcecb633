//! Sends the J+3 mail: what Pro and Premium bring, to free users who signed up three to six days ago.

use super::{
    call::Call,
    context::Context,
    due::due_slot,
    mails::{MailPlan, plan_post_report},
    outcome::{TaskError, TaskOutcome},
};
use crate::{
    email::objections,
    mail_kind::MailKind,
    schedule::{DAYS_AFTER_SIGN_UP, Task},
};

/// Runs the task, which is due every Paris day from an hour on.
pub async fn run(context: &Context, call: &Call) -> TaskOutcome {
    mail(context, call).await.into()
}

async fn mail(context: &Context, call: &Call) -> Result<TaskOutcome, TaskError> {
    let slot = match due_slot(Task::MarketingDay3, call, context.tuning.schedule) {
        Ok(slot) => slot,
        Err(not_due) => return Ok(TaskOutcome::NotDue { note: not_due.note() }),
    };
    if let (Ok(keys), false) = (&context.config.link_keys, call.dry_run) {
        objections::keep(keys, None, context.now, &context.supabase, &context.deadline).await?;
    }
    let wanted = MailPlan {
        task: Task::MarketingDay3,
        kind: MailKind::MarketingDay3,
        slot: slot.as_ref(),
        days_after_sign_up: Some(&DAYS_AFTER_SIGN_UP),
        month: None,
        // A replay makes up for a run, it does not write to those who signed up long ago.
        now: if call.dry_run { call.at } else { context.now },
    };
    plan_post_report(context, call, wanted).await
}
