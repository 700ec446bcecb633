//! Plan, drain, report: the middle of every task that works on integrations.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use super::{Call, Context, TaskError, TaskOutcome};
use crate::{
    integrations::SyncWorker,
    queue::{CountedError, Counts, Failure, Lane, LaneReport, RunReport, WorkItem, drain},
    schedule::{Slot, Task},
    supabase::SupabaseError,
};

/// At most this many results in an answer; `resultsTotal` says how many there are.
const MOST_RESULTS: usize = 1_000;
/// Pauses between two looks at items that other workers hold.
const FIRST_LOOK: Duration = Duration::from_millis(300);
const LONGEST_LOOK: Duration = Duration::from_secs(3);

/// A run as reported from its items.
#[derive(Debug)]
pub struct RunSummary {
    pub run_id: Option<Uuid>,
    /// The slot was planned before; this call only helped to work on it.
    pub joined: Option<String>,
    pub counts: Counts,
    /// New or changed movements.
    pub records: u64,
    /// What hit items, counted.
    pub troubles: Vec<CountedError>,
    /// What hit a whole lane: one message for all its items.
    pub blocked: Vec<Failure>,
    pub results: Vec<Box<RawValue>>,
    pub results_total: u64,
    /// The budget was over before the queue was empty.
    pub out_of_time: bool,
}

impl RunSummary {
    /// Items that ended well.
    pub fn worked(&self) -> u64 {
        self.counts.done + self.counts.partial
    }

    /// Items in trouble (failed, in part, or to be tried again), and lanes that could not work at all.
    pub fn errors(&self) -> u64 {
        self.counts.erred + self.blocked.len() as u64
    }

    /// Items still in the queue.
    pub fn remaining(&self) -> u64 {
        self.counts.queued
    }

    /// As in `sync_logs.status`.
    pub fn log_status(&self) -> &'static str {
        let whole = self.counts.partial == 0 && self.counts.superseded == 0 && self.remaining() == 0;
        if self.errors() == 0 && whole {
            "success"
        } else if self.worked() == 0 && self.errors() > 0 {
            "error"
        } else {
            "partial"
        }
    }
}

/// What `jobs_plan_sync` answers.
#[derive(Deserialize)]
struct Planned {
    state: PlanState,
    run_id: Option<Uuid>,
    trigger: Option<String>,
    #[serde(default)]
    plan: Value,
}

#[derive(Clone, Copy, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
enum PlanState {
    Planned,
    Repeated,
    Joined,
    DryRun,
}

/// What a sync task plans.
pub(super) struct Order<'a> {
    pub(super) task: Task,
    pub(super) slot: Option<&'a Slot>,
    pub(super) work: WorkItem,
}

/// Writes the work down, works on it and reports.
pub(super) async fn plan_drain_report(
    context: &Context,
    call: &Call,
    order: Order<'_>,
) -> Result<TaskOutcome, TaskError> {
    let planned = plan(context, call, &order).await?;
    if planned.state == PlanState::DryRun {
        return Ok(TaskOutcome::DryRun { plan: planned.plan });
    }
    let joined = (planned.state == PlanState::Joined).then(|| {
        let by = planned.trigger.as_deref().unwrap_or("une exécution passée");
        format!("déjà planifié par {by} pour {}", order.slot.map(Slot::as_str).unwrap_or_default())
    });
    let Some(run_id) = planned.run_id else {
        // The run of this slot is older than what is kept.
        return Ok(TaskOutcome::Ran(Box::new(RunSummary::empty(joined))));
    };
    tracing::info!(task = order.task.as_str(), %run_id, joined = joined.is_some(), plan = %planned.plan, "planned");
    let (report, lanes) = drain_until_settled(context, run_id).await?;
    Ok(TaskOutcome::Ran(Box::new(RunSummary::new(run_id, joined, report, lanes))))
}

async fn plan(context: &Context, call: &Call, order: &Order<'_>) -> Result<Planned, TaskError> {
    let work =
        serde_json::to_value(&order.work).map_err(|error| SupabaseError::Encoding(error.to_string()))?;
    let arguments = json!({
        "p_run_id": Uuid::new_v4(),
        "p_task": order.task.as_str(),
        "p_kind": work["kind"], "p_payload": work["payload"],
        "p_slot": order.slot.map(Slot::as_str),
        "p_trigger": call.trigger_name(),
        "p_route": call.route,
        "p_as_of": call.at,
        "p_parameters": parameters(call),
        "p_user_id": call.user_id,
        "p_dry_run": call.dry_run,
    });
    Ok(context.supabase.rpc("jobs_plan_sync", &arguments, &context.deadline).await?)
}

fn parameters(call: &Call) -> Value {
    let mut parameters = json!({});
    if let Some(user_id) = call.user_id {
        parameters["user_id"] = json!(user_id);
    }
    if let Some(days) = call.days {
        parameters["days"] = json!(days.get());
    }
    if let Some(month) = call.month {
        parameters["month"] = json!(month.to_string());
    }
    if call.force {
        parameters["force"] = json!(true);
    }
    parameters
}

/// Works all lanes empty, side by side, so that a slow provider does not keep another waiting. All, whatever was
/// planned: what an earlier run left behind goes on with the next one.
pub async fn drain_lanes(context: &Context) -> Result<Vec<LaneReport>, TaskError> {
    let clients = context.integrations.clone().map_err(TaskError::Configuration)?;
    let drains = Lane::ALL.map(|lane| {
        let worker = std::sync::Arc::new(SyncWorker::new(clients.clone(), context.now));
        async move {
            let report =
                drain(&context.queue, lane, context.tuning.concurrency, worker, context.deadline).await?;
            tracing::info!(
                lane = lane.as_str(),
                settled = report.settled,
                given_back = report.given_back,
                out_of_time = report.out_of_time,
                blocked = report.blocked.as_ref().map(|failure| failure.code.as_str()),
                "lane drained"
            );
            Ok(report)
        }
    });
    // Every lane is worked to its end before a fault of one of them is raised.
    join_all(drains).await.into_iter().collect()
}

/// Drains, then waits for what other invocations hold of this run, as long as the budget allows.
async fn drain_until_settled(
    context: &Context,
    run_id: Uuid,
) -> Result<(RunReport, Vec<LaneReport>), TaskError> {
    let mut pause = FIRST_LOOK;
    let mut looked_again = false;
    let mut seen: Vec<LaneReport> = Vec::new();
    loop {
        let drained = drain_lanes(context).await?;
        let stopped = drained.iter().any(|lane| lane.stopped);
        seen.extend(drained);
        let report = context.queue.report(run_id, MOST_RESULTS, &context.deadline).await?;
        // A claim that is about to commit hides its items from ours and does not show yet: look twice.
        let held = report.in_flight > 0 || (report.counts.queued > 0 && !looked_again);
        looked_again = report.in_flight == 0;
        let wait = held && !stopped && context.deadline.may_start_work();
        if !wait || context.deadline.sleep(pause).await.is_err() {
            return Ok((report, seen));
        }
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}

impl RunSummary {
    fn empty(joined: Option<String>) -> Self {
        Self {
            run_id: None,
            joined,
            counts: Counts::default(),
            records: 0,
            troubles: Vec::new(),
            blocked: Vec::new(),
            results: Vec::new(),
            results_total: 0,
            out_of_time: false,
        }
    }

    fn new(run_id: Uuid, joined: Option<String>, report: RunReport, lanes: Vec<LaneReport>) -> Self {
        let out_of_time = lanes.iter().any(|lane| lane.out_of_time);
        let mut blocked: Vec<Failure> = Vec::new();
        // Only what still keeps items of this run waiting is told; the same lane may have been drained twice.
        if report.counts.queued > 0 {
            for failure in lanes.into_iter().filter_map(|lane| lane.blocked) {
                if !blocked.contains(&failure) {
                    blocked.push(failure);
                }
            }
        }
        Self {
            run_id: Some(run_id),
            joined,
            counts: report.counts,
            records: report.records,
            troubles: report.errors,
            blocked,
            results: report.results,
            results_total: report.results_total,
            out_of_time,
        }
    }
}
