//! Works on what is queued, whoever planned it: data, then what follows from it.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use uuid::Uuid;

use super::{context::Context, outcome::TaskError, round::Round, thresholds};
use crate::{
    email::MailReport,
    integrations::{Clients, SyncWorker},
    lane::Lane,
    queue::drain,
    supabase::SupabaseError,
};

/// An answer holds so many results at most; `resultsTotal` says how many there are.
const MOST_RESULTS: usize = 1_000;
/// The results of one answer have so many bytes together, at most.
const MOST_RESULT_BYTES: usize = 1024 * 1024;
/// These are the pauses between two looks at items that other workers hold.
const FIRST_LOOK: Duration = Duration::from_millis(300);
const LONGEST_LOOK: Duration = Duration::from_secs(3);

/// Works all lanes empty, side by side, so that a slow provider does not keep another waiting. It works on all of
/// them, whatever was planned: what an earlier run left behind goes on with the next one.
async fn drain_lanes(context: &Context, clients: &Arc<Clients>) -> Result<Round, TaskError> {
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
            Ok((lane, report))
        }
    });
    // Every lane is worked to its end before a fault of one of them is raised.
    let lanes: Result<Vec<_>, SupabaseError> = join_all(drains).await.into_iter().collect();
    Ok(Round::of_lanes(lanes?))
}

/// Works on the data, then on what follows from it: thresholds of those whose totals changed, and mails. Mails that
/// are not configured are a fault of their part; the data is worked on all the same.
async fn drain_everything(context: &Context, run_id: Option<Uuid>, route: &str) -> Result<Round, TaskError> {
    let mut round = match &context.integrations {
        Ok(clients) => drain_lanes(context, clients).await?,
        Err(faults) => Round::fault("configuration", faults.to_string()),
    };
    round.add(follow_up(context, run_id, route).await?);
    Ok(round)
}

/// Checks the thresholds of those whose totals changed, and sends all mails that wait. A check that fails is recorded, and
/// keeps no mail from leaving.
async fn follow_up(context: &Context, run_id: Option<Uuid>, route: &str) -> Result<Round, TaskError> {
    if let Err(faults) = &context.mailer {
        return Ok(Round::fault("mail_configuration", faults.to_string()));
    }
    let mut round = Round::default();
    if context.deadline.may_start_work()
        && let Err(error) = thresholds::check_changed(context, run_id, route).await
    {
        round.add(Round::fault("follow_up", error.user_message()));
    }
    round.add(send_mails(context).await?);
    Ok(round)
}

/// Repeats until a full round finds nothing: other invocations may enqueue work while this one drains, and rely on it
/// to pick that up.
pub async fn drain_until_nothing_waits(context: &Context, route: &str) -> Result<Round, TaskError> {
    let mut all = reconcile(context, route).await;
    // First the mails that earlier invocations planned: their recaps and alerts do not wait for all data to be read.
    // If sending fails, the fault is recorded and data is worked on all the same.
    let first = follow_up(context, None, route).await;
    all.add(first.unwrap_or_else(|error| Round::fault("follow_up", error.user_message())));
    loop {
        let round = drain_everything(context, None, route).await?;
        let moved = round.ended + round.failed > 0;
        all.add(round);
        if !moved || all.stopped || all.out_of_time {
            return Ok(all);
        }
    }
}

/// Says what to work on until a run is settled.
#[derive(Clone, Copy)]
pub(super) enum Scope<'a> {
    /// The call waits for data and mails of this route.
    Everything(&'a str),
    /// The call waits for mails, those of this route among them.
    Mails(&'a str),
    /// Nothing was planned, so there is nothing to wait for, and others' work is not the caller's.
    Nothing,
}

/// Brings back what was lost, before the work begins: the record says what waits, and the queue carries it. If this
/// fails, the fault is recorded, and what the queue carries is worked on all the same.
async fn reconcile(context: &Context, route: &str) -> Round {
    loop {
        match context.queue.reconcile(route, context.now, &context.deadline).await {
            Ok(back) => {
                if back.messages + back.mails > 0 {
                    tracing::warn!(messages = back.messages, mails = back.mails, "what was lost came back");
                }
                if !back.unplanned {
                    return Round::default();
                }
                if !context.deadline.may_start_work() {
                    return Round { out_of_time: true, ..Round::default() };
                }
            }
            Err(error) => return Round::fault("reconcile", error.user_message()),
        }
    }
}

/// Works, then waits for what other invocations hold of this run, as long as the budget allows.
pub(super) async fn work_until_settled(
    context: &Context,
    run_id: Uuid,
    scope: Scope<'_>,
) -> Result<Round, TaskError> {
    let mut all = match scope {
        Scope::Everything(route) | Scope::Mails(route) => reconcile(context, route).await,
        Scope::Nothing => Round::default(),
    };
    let mut pause = FIRST_LOOK;
    let mut looked_again = false;
    loop {
        let round = match scope {
            Scope::Everything(route) => drain_everything(context, Some(run_id), route).await?,
            Scope::Mails(_) => send_mails(context).await?,
            Scope::Nothing => Round::default(),
        };
        let may_wait =
            !matches!(scope, Scope::Nothing) && !round.stopped && context.deadline.may_start_work();
        all.add(round);
        if !may_wait {
            break;
        }
        let waits = context.queue.run_waits(run_id, &context.deadline).await?;
        // A claim in an uncommitted transaction is invisible here, so check once more before giving up.
        let held = waits.in_flight || (waits.queued && !looked_again);
        looked_again = !waits.in_flight;
        if !held || context.deadline.sleep(pause).await.is_err() {
            break;
        }
        pause = (pause * 2).min(LONGEST_LOOK);
    }
    // Adds up all items of the run, a hundred thousand maybe: once.
    all.report = Some(
        context
            .queue
            .report(run_id, MOST_RESULTS, MOST_RESULT_BYTES, context.instant(), &context.deadline)
            .await?,
    );
    Ok(all)
}

/// Sends what waits in the outbox, of whatever run.
pub(super) async fn send_mails(context: &Context) -> Result<Round, TaskError> {
    let mailer = context.mailer.as_ref().map_err(|faults| TaskError::Configuration(faults.clone()))?;
    let report = mailer.drain(context.deadline).await?;
    log_outbox(&report);
    Ok(Round::from(report))
}

fn log_outbox(report: &MailReport) {
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
