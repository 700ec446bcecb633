//! Plans, posts, reports: the middle of the tasks that only send mails.

use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    call::Call,
    context::Context,
    drain::{Scope, work_until_settled},
    outcome::{RunSummary, TaskError, TaskOutcome},
    planned::{PlanState, Planned},
};
use crate::{
    config_faults::ConfigFaults,
    failure::Failure,
    mail_kind::MailKind,
    schedule::{Month, Slot, Task},
};

/// Says what a mail task wants planned.
pub(super) struct MailPlan<'a> {
    pub(super) task: Task,
    pub(super) kind: MailKind,
    pub(super) slot: Option<&'a Slot>,
    /// Holds the Paris days after sign-up on which the J+3 mail is sent.
    pub(super) days_after_sign_up: Option<&'a RangeInclusive<u32>>,
    /// Is the month that a reminder is about.
    pub(super) month: Option<Month>,
    /// Is the real time; in a dry run the one that is asked about.
    pub(super) now: DateTime<Utc>,
}

/// Writes the mails down, sends what waits and reports.
pub(super) async fn plan_post_report(
    context: &Context,
    call: &Call,
    wanted: MailPlan<'_>,
) -> Result<TaskOutcome, TaskError> {
    // Before anything is planned: mails that nobody can send would only fill the outbox.
    let prices = prices(context).map_err(TaskError::Configuration)?;
    let arguments = json!({
        "p_run_id": Uuid::new_v4(),
        "p_task": wanted.task.as_str(),
        "p_kind": wanted.kind.as_str(),
        "p_slot": wanted.slot.map(Slot::as_str),
        "p_trigger": call.trigger_name(),
        "p_route": call.route,
        "p_as_of": call.at,
        "p_parameters": call.parameters(),
        "p_user_id": call.user_id,
        "p_dry_run": call.dry_run,
        "p_prices": prices,
        "p_first_day": wanted.days_after_sign_up.map(|days| *days.start()),
        "p_last_day": wanted.days_after_sign_up.map(|days| *days.end()),
        "p_month": wanted.month.map(Month::first_day),
        // The month after the one that it is about is the one it belongs into.
        "p_expires_at": wanted.month.map(|month| month.next().end()),
        "p_now": wanted.now,
    });
    let planned: Planned = context.supabase.rpc("jobs_plan_mails", &arguments, &context.deadline).await?;
    if planned.state == PlanState::DryRun {
        return Ok(TaskOutcome::DryRun { plan: planned.plan });
    }
    let joined = planned.joined_note(wanted.slot);
    let Some(run_id) = planned.run_id else {
        return Ok(TaskOutcome::Ran(Box::new(RunSummary::empty(joined))));
    };
    planned.log(wanted.task);
    let round = work_until_settled(context, run_id, Scope::Mails(call.route)).await?;
    let mut summary = RunSummary::new(run_id, joined, round);
    summary.faults.extend(unknown_prices(&planned.plan));
    summary.notices.extend(unreadable_accounts(&planned.plan));
    summary.outline = planned.plan;
    Ok(TaskOutcome::Ran(Box::new(summary)))
}

/// Returns the prices that tell the users' subscriptions apart, or what is missing.
fn prices(context: &Context) -> Result<Value, ConfigFaults> {
    match (&context.config.prices, &context.mailer) {
        (Ok(prices), Ok(_)) => Ok(json!(prices)),
        (prices, mailer) => {
            Err(ConfigFaults::all(prices.as_ref().err().into_iter().chain(mailer.as_ref().err())))
        }
    }
}

/// Accounts with metadata or a name that cannot be read: these are ignored, and their owners are served.
fn unreadable_accounts(plan: &Value) -> Option<Failure> {
    let users = plan["unreadable"].as_u64().filter(|users| *users > 0)?;
    let who = if users == 1 { "1 compte" } else { &format!("{users} comptes") };
    Some(Failure {
        code: "unreadable_account".into(),
        message: format!(
            "Les métadonnées ou le nom de {who} sont illisibles : il n’en est pas tenu compte. La page d’état les nomme."
        ),
    })
}

/// Subscriptions whose price no variable names: their users are left alone, and the operator is told.
fn unknown_prices(plan: &Value) -> Option<Failure> {
    let prices: Vec<&str> =
        plan["unknown_prices"].as_array()?.iter().filter_map(|price| price.as_str()).collect();
    (!prices.is_empty()).then(|| {
        let named: Vec<&str> = prices.iter().map(|price| if price.is_empty() { "aucun" } else { price }).collect();
        Failure {
            code: "unknown_price".into(),
            message: format!(
                "Des abonnements actifs ont un tarif inconnu ({}) : complétez STRIPE_PRICE_PRO ou STRIPE_PRICE_PREMIUM, ou leur forme _YEARLY. Leurs utilisateurs n’ont rien reçu.",
                named.join(", ")
            ),
        }
    })
}
