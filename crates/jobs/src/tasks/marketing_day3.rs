//! The J+3 mail: what Pro and Premium bring, to free users who signed up three to six days ago.

use serde_json::json;

use super::{
    Call, Context, TaskError, TaskOutcome, Trigger,
    mails::{MailOrder, plan_post_report},
};
use crate::{
    config::Faults,
    mail_kind::MailKind,
    schedule::{Decision, Task, gate},
};

/// Due every Paris day from an hour on.
pub async fn run(context: &Context, call: &Call) -> TaskOutcome {
    mail(context, call).await.into()
}

async fn mail(context: &Context, call: &Call) -> Result<TaskOutcome, TaskError> {
    let slot = match (call.trigger, gate(Task::MarketingDay3, call.via, call.at, context.tuning.schedule)) {
        (Trigger::Manual, _) => None,
        (Trigger::Cron, Decision::Due { slot }) => Some(slot),
        (Trigger::Cron, Decision::NotDue(not_due)) => {
            return Ok(TaskOutcome::NotDue { note: not_due.note() });
        }
    };
    let order = MailOrder {
        task: Task::MarketingDay3,
        kind: MailKind::MarketingDay3,
        slot: slot.as_ref().filter(|_| call.claims_slot()),
        month: None,
        // A replay makes up for a run, it does not write to those who signed up long ago.
        now: if call.dry_run { call.at } else { context.now },
    };
    plan_post_report(context, call, order).await
}

/// The arguments that tell plans apart, or what is missing.
pub(super) fn prices(context: &Context) -> Result<serde_json::Value, Faults> {
    match (&context.config.prices, &context.mailer) {
        (Ok(prices), Ok(_)) => Ok(json!(prices)),
        (prices, mailer) => Err(Faults::all(prices.as_ref().err().into_iter().chain(mailer.as_ref().err()))),
    }
}
