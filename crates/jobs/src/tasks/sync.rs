//! Plans, drains, reports: the middle of the tasks that work on integrations.

use serde_json::json;
use uuid::Uuid;

use super::{
    call::Call,
    context::Context,
    drain::{Scope, work_until_settled},
    outcome::{RunSummary, TaskError, TaskOutcome},
    planned::{PlanState, Planned},
};
use crate::{
    failure::Failure,
    providers::{OUTAGE, Outage},
    queue::WorkItem,
    schedule::{MOST_DAYS, Slot, Task},
    supabase::SupabaseError,
};

/// Says what a sync task wants planned.
pub(super) struct SyncPlan<'a> {
    pub(super) task: Task,
    pub(super) slot: Option<&'a Slot>,
    pub(super) work: WorkItem,
}

/// Writes the work down, works on it and reports.
pub(super) async fn plan_drain_report(
    context: &Context,
    call: &Call,
    wanted: SyncPlan<'_>,
) -> Result<TaskOutcome, TaskError> {
    let planned = plan(context, call, &wanted).await?;
    if planned.state == PlanState::DryRun {
        return Ok(TaskOutcome::DryRun { plan: planned.plan });
    }
    let joined = planned.joined_note(wanted.slot);
    let Some(run_id) = planned.run_id else {
        // The run of this slot is older than what is kept.
        return Ok(TaskOutcome::Ran(Box::new(RunSummary::empty(joined))));
    };
    planned.log(wanted.task);
    let round = work_until_settled(context, run_id, Scope::Everything(call.route)).await?;
    let mut summary = RunSummary::new(run_id, joined, round);
    summary.outline = planned.plan;
    // What stopped a lane is told already.
    if summary.counts.failed >= u64::from(OUTAGE.least) {
        summary.faults.extend(outages(context).await);
    }
    Ok(TaskOutcome::Ran(Box::new(summary)))
}

/// Returns what tells the operator of providers where many fail alike. Where nobody can say, that is a fault, too: the
/// work is done and answered.
async fn outages(context: &Context) -> Vec<Failure> {
    let arguments = json!({"p_rule": OUTAGE, "p_now": context.now});
    let found: Result<Vec<Outage>, SupabaseError> =
        context.supabase.rpc("integration_outages", &arguments, &context.deadline).await;
    match found {
        Ok(found) => {
            let alike = found.iter().filter(|outage| outage.failing.is_some());
            alike.map(|outage| Failure::new("outage", outage.message())).collect()
        }
        Err(error) => vec![Failure::new("outages_unknown", error.user_message())],
    }
}

async fn plan(context: &Context, call: &Call, wanted: &SyncPlan<'_>) -> Result<Planned, TaskError> {
    let work =
        serde_json::to_value(&wanted.work).map_err(|error| SupabaseError::Encoding(error.to_string()))?;
    let arguments = json!({
        "p_run_id": Uuid::new_v4(),
        "p_task": wanted.task.as_str(),
        "p_kind": work["kind"], "p_payload": work["payload"],
        "p_slot": wanted.slot.map(Slot::as_str),
        "p_trigger": call.trigger_name(),
        "p_route": call.route,
        "p_as_of": call.at,
        "p_parameters": call.parameters(),
        "p_user_id": call.user_id,
        "p_dry_run": call.dry_run,
        "p_most_days": MOST_DAYS,
        "p_now": context.now,
    });
    Ok(context.supabase.rpc("jobs_plan_sync", &arguments, &context.deadline).await?)
}
