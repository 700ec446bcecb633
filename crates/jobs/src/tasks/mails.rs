//! Plan, post, report: the middle of the tasks that only send mails.

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use super::{
    Call, Context, TaskError, TaskOutcome,
    marketing_day3::prices,
    run::{PlanState, Planned, RunSummary, Settled, Work, joined_note, parameters, wait_until_settled},
};
use crate::{
    email::MailReport,
    failure::Failure,
    mail_kind::MailKind,
    schedule::{Month, Slot, Task},
};

/// What a mail task plans.
pub(super) struct MailOrder<'a> {
    pub(super) task: Task,
    pub(super) kind: MailKind,
    pub(super) slot: Option<&'a Slot>,
    pub(super) month: Option<Month>,
    /// The real time; in a dry run the one that is asked about.
    pub(super) now: DateTime<Utc>,
}

/// Writes the mails down, sends what waits and reports.
pub(super) async fn plan_post_report(
    context: &Context,
    call: &Call,
    order: MailOrder<'_>,
) -> Result<TaskOutcome, TaskError> {
    // Before anything is planned: mails that nobody can send would only fill the outbox.
    let prices = prices(context).map_err(TaskError::Configuration)?;
    let arguments = json!({
        "p_run_id": Uuid::new_v4(),
        "p_task": order.task.as_str(),
        "p_kind": order.kind.as_str(),
        "p_slot": order.slot.map(Slot::as_str),
        "p_trigger": call.trigger_name(),
        "p_route": call.route,
        "p_as_of": call.at,
        "p_parameters": parameters(call),
        "p_user_id": call.user_id,
        "p_dry_run": call.dry_run,
        "p_prices": prices,
        "p_month": order.month.map(Month::first_day),
        "p_now": order.now,
    });
    let planned: Planned = context.supabase.rpc("jobs_plan_mails", &arguments, &context.deadline).await?;
    if planned.state == PlanState::DryRun {
        return Ok(TaskOutcome::DryRun { plan: planned.plan });
    }
    let joined = joined_note(&planned, order.slot);
    let Some(run_id) = planned.run_id else {
        return Ok(TaskOutcome::Ran(Box::new(RunSummary::empty(joined))));
    };
    tracing::info!(task = order.task.as_str(), %run_id, joined = joined.is_some(), plan = %planned.plan, "planned");
    let settled = wait_until_settled(context, run_id, Work::Mails).await?;
    let mut summary = RunSummary::new(run_id, joined, settled);
    summary.faults.extend(unknown_prices(&planned.plan));
    summary.outline = planned.plan;
    Ok(TaskOutcome::Ran(Box::new(summary)))
}

/// Sends what waits in the outbox, of whatever run.
pub(super) async fn post(context: &Context) -> Result<Settled, TaskError> {
    let mailer = context.mailer.as_ref().map_err(|faults| TaskError::Configuration(faults.clone()))?;
    let report = mailer.drain(context.deadline).await?;
    log(&report);
    Ok(Settled::from(report))
}

fn log(report: &MailReport) {
    tracing::info!(
        sent = report.sent,
        failed = report.failed,
        skipped = report.skipped,
        given_back = report.given_back,
        out_of_time = report.out_of_time,
        blocked = report.blocked.as_ref().map(|failure| failure.code.as_str()),
        "outbox drained"
    );
}

/// Subscriptions whose price no variable names: their users are left alone, and the operator is told.
fn unknown_prices(plan: &serde_json::Value) -> Option<Failure> {
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
