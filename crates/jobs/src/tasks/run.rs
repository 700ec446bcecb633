//! Plan, drain, report: what the tasks have in common, and the middle of those that work on integrations.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use super::{Call, Context, TaskError, TaskOutcome, check_thresholds, mails::post};
use crate::{
    email::MailReport,
    failure::{CountedFailure, Failure},
    integrations::{Clients, SyncWorker},
    lane::Lane,
    queue::{Counts, LaneReport, MailCounts, RunReport, WorkItem, drain},
    schedule::{Slot, Task},
    supabase::SupabaseError,
};

/// At most this many results in an answer; `resultsTotal` says how many there are.
const MOST_RESULTS: usize = 1_000;
/// Pauses between two looks at items that other workers hold.
const FIRST_LOOK: Duration = Duration::from_millis(300);
const LONGEST_LOOK: Duration = Duration::from_secs(3);

/// A run as reported from its items.
#[derive(Debug, Default)]
pub struct RunSummary {
    pub run_id: Option<Uuid>,
    /// The slot was planned before; this call only helped to work on it.
    pub joined: Option<String>,
    /// Its data: integrations, months.
    pub counts: Counts,
    /// New or changed movements.
    pub records: u64,
    /// What hit items of data, counted.
    pub troubles: Vec<CountedFailure>,
    /// What hit a whole lane: one message for all its items.
    pub blocked: Vec<Failure>,
    /// What a part of the task could not do at all.
    pub faults: Vec<Failure>,
    /// What somebody should know, and no error.
    pub notices: Vec<Failure>,
    pub results: Vec<Box<RawValue>>,
    pub results_total: u64,
    /// Its mails, by lane.
    pub mails: BTreeMap<String, MailCounts>,
    /// Why a month's recap is not mailed.
    pub no_recap: Option<String>,
    /// What planning said.
    pub outline: Value,
    /// The budget was over before the queue was empty.
    pub out_of_time: bool,
}

impl RunSummary {
    /// Items of data that ended well.
    pub fn worked(&self) -> u64 {
        self.counts.done + self.counts.partial
    }

    /// Mails that left.
    pub fn sent(&self) -> u64 {
        self.mails.values().map(|mails| mails.sent).sum()
    }

    /// Items in trouble (failed, in part, or to be tried again), lanes that could not work at all, and parts that
    /// could not begin.
    pub fn errors(&self) -> u64 {
        let mails: u64 = self.mails.values().map(|mails| mails.erred).sum();
        self.counts.erred + mails + (self.blocked.len() + self.faults.len()) as u64
    }

    /// Items still in the queue.
    pub fn remaining(&self) -> u64 {
        self.counts.queued + self.mails.values().map(|mails| mails.queued).sum::<u64>()
    }

    /// As in `sync_logs.status`.
    pub fn log_status(&self) -> &'static str {
        let whole = self.counts.partial == 0 && self.counts.superseded == 0 && self.remaining() == 0;
        if self.errors() == 0 && whole {
            "success"
        } else if self.worked() + self.sent() == 0 && self.errors() > 0 {
            "error"
        } else {
            "partial"
        }
    }
}

/// What planning functions answer.
#[derive(Deserialize)]
pub(super) struct Planned {
    pub(super) state: PlanState,
    pub(super) run_id: Option<Uuid>,
    trigger: Option<String>,
    #[serde(default)]
    pub(super) plan: Value,
}

#[derive(Clone, Copy, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum PlanState {
    Planned,
    Repeated,
    Joined,
    DryRun,
}

/// "déjà planifié par cron pour 2026-11-22T06Z", where it was.
pub(super) fn joined_note(planned: &Planned, slot: Option<&Slot>) -> Option<String> {
    (planned.state == PlanState::Joined).then(|| {
        let by = planned.trigger.as_deref().unwrap_or("une exécution passée");
        format!("déjà planifié par {by} pour {}", slot.map(Slot::as_str).unwrap_or_default())
    })
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
    let joined = joined_note(&planned, order.slot);
    let Some(run_id) = planned.run_id else {
        // The run of this slot is older than what is kept.
        return Ok(TaskOutcome::Ran(Box::new(RunSummary::empty(joined))));
    };
    tracing::info!(task = order.task.as_str(), %run_id, joined = joined.is_some(), plan = %planned.plan, "planned");
    let settled = wait_until_settled(context, run_id, Work::Everything(call.route)).await?;
    let mut summary = RunSummary::new(run_id, joined, settled);
    summary.outline = planned.plan;
    Ok(TaskOutcome::Ran(Box::new(summary)))
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

pub(super) fn parameters(call: &Call) -> Value {
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

/// What a round of draining left behind.
#[derive(Debug, Default)]
pub struct Settled {
    report: Option<RunReport>,
    pub ended: u64,
    pub failed: u64,
    /// What hit a lane of data.
    pub blocked: Vec<Failure>,
    /// What hit the mails.
    pub post_blocked: Option<Failure>,
    /// What could not begin.
    pub faults: Vec<Failure>,
    pub out_of_time: bool,
    /// A lane was left before its end: waiting for it is of no use.
    stopped: bool,
}

impl Settled {
    fn lanes(lanes: Vec<LaneReport>) -> Self {
        let mut all = Self::default();
        for lane in lanes {
            all.ended += lane.settled;
            all.failed += lane.failed;
            all.out_of_time |= lane.out_of_time;
            all.stopped |= lane.stopped;
            all.blocked.extend(lane.blocked);
        }
        all
    }

    fn fault(code: &str, message: String) -> Self {
        Self { faults: vec![Failure { code: code.into(), message }], ..Self::default() }
    }

    /// Takes another round in; the same trouble is told once.
    fn add(&mut self, other: Self) {
        self.ended += other.ended;
        self.failed += other.failed;
        self.out_of_time |= other.out_of_time;
        self.stopped |= other.stopped;
        for (all, new) in [(&mut self.blocked, other.blocked), (&mut self.faults, other.faults)] {
            for failure in new {
                if !all.contains(&failure) {
                    all.push(failure);
                }
            }
        }
        self.post_blocked = other.post_blocked.or(self.post_blocked.take());
    }
}

impl From<MailReport> for Settled {
    fn from(report: MailReport) -> Self {
        Self {
            ended: report.sent + report.skipped,
            failed: report.failed,
            stopped: report.blocked.is_some(),
            post_blocked: report.blocked,
            out_of_time: report.out_of_time,
            ..Self::default()
        }
    }
}

/// Works all lanes empty, side by side, so that a slow provider does not keep another waiting. All, whatever was
/// planned: what an earlier run left behind goes on with the next one.
async fn drain_lanes(context: &Context, clients: &Arc<Clients>) -> Result<Settled, TaskError> {
    let drains = Lane::data().map(|lane| {
        let worker = Arc::new(SyncWorker::new(clients.clone(), context.now));
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
    let lanes: Result<Vec<_>, SupabaseError> = join_all(drains).await.into_iter().collect();
    Ok(Settled::lanes(lanes?))
}

/// Works on the data, then on what follows from it: thresholds of those whose totals changed, and mails. Mails that
/// are not configured are a fault of their part; the data is worked on all the same.
async fn drain_everything(
    context: &Context,
    run_id: Option<Uuid>,
    route: &str,
) -> Result<Settled, TaskError> {
    let mut settled = match &context.integrations {
        Ok(clients) => drain_lanes(context, clients).await?,
        Err(faults) => Settled::fault("configuration", faults.to_string()),
    };
    settled.add(follow_up(context, run_id, route).await?);
    Ok(settled)
}

/// Thresholds of those whose totals changed, and all mails that wait.
async fn follow_up(context: &Context, run_id: Option<Uuid>, route: &str) -> Result<Settled, TaskError> {
    if let Err(faults) = &context.mailer {
        return Ok(Settled::fault("mail_configuration", faults.to_string()));
    }
    if context.deadline.may_start_work() {
        check_thresholds::check_changed(context, run_id, route).await?;
    }
    post(context).await
}

/// Works on everything until a look finds nothing: others leave work behind while a slow provider or the mails keep
/// this invocation, and are told that a chain is at work already.
pub async fn drain_until_nothing_waits(context: &Context, route: &str) -> Result<Settled, TaskError> {
    // First what the invocations before have made: their recaps and alerts do not wait for all data to be read. Nor
    // does data wait for what keeps these back: that is told.
    let first = follow_up(context, None, route).await;
    let mut all = first.unwrap_or_else(|error| Settled::fault("follow_up", error.user_message()));
    loop {
        let round = drain_everything(context, None, route).await?;
        let moved = round.ended + round.failed > 0;
        all.add(round);
        if !moved || all.stopped || all.out_of_time {
            return Ok(all);
        }
    }
}

/// What there is to do until a run is settled.
#[derive(Clone, Copy)]
pub(super) enum Work<'a> {
    /// Data and mails; by this route.
    Everything(&'a str),
    Mails,
    /// Nothing was planned, and nobody shall wait for others' work.
    Nothing,
}

/// Works, then waits for what other invocations hold of this run, as long as the budget allows.
pub(super) async fn wait_until_settled(
    context: &Context,
    run_id: Uuid,
    work: Work<'_>,
) -> Result<Settled, TaskError> {
    let mut pause = FIRST_LOOK;
    let mut looked_again = false;
    let mut all = Settled::default();
    loop {
        let round = match work {
            Work::Everything(route) => drain_everything(context, Some(run_id), route).await?,
            Work::Mails => post(context).await?,
            Work::Nothing => Settled::default(),
        };
        let may_wait = !round.stopped && context.deadline.may_start_work();
        all.add(round);
        if !may_wait {
            break;
        }
        let waits = context.queue.run_waits(run_id, &context.deadline).await?;
        // A claim that is about to commit hides its items from ours and does not show yet: look twice.
        let held = waits.in_flight || (waits.queued && !looked_again);
        looked_again = !waits.in_flight;
        if !held || context.deadline.sleep(pause).await.is_err() {
            break;
        }
        pause = (pause * 2).min(LONGEST_LOOK);
    }
    // Adds up all items of the run, a hundred thousand maybe: once.
    all.report = Some(context.queue.report(run_id, MOST_RESULTS, &context.deadline).await?);
    Ok(all)
}

impl RunSummary {
    pub(super) fn empty(joined: Option<String>) -> Self {
        Self { joined, ..Self::default() }
    }

    pub(super) fn new(run_id: Uuid, joined: Option<String>, settled: Settled) -> Self {
        let mut summary = Self {
            run_id: Some(run_id),
            joined,
            out_of_time: settled.out_of_time,
            faults: settled.faults,
            ..Self::default()
        };
        let Some(report) = settled.report else { return summary };
        // Only what still keeps items of this run waiting is told.
        if report.counts.queued > 0 {
            summary.blocked = settled.blocked;
        }
        if report.mails.values().any(|mails| mails.queued > 0) {
            summary.blocked.extend(settled.post_blocked);
        }
        summary.counts = report.counts;
        summary.records = report.records;
        summary.troubles = report.errors;
        summary.results = report.results;
        summary.results_total = report.results_total;
        summary.mails = report.mails;
        summary
    }
}
