//! Which tasks a route runs. They run side by side and fail alone: one task's trouble, even a panic, leaves
//! the others their whole budget.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use reqwest::header::{AUTHORIZATION, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::{
    failure::Failure,
    http::{NetworkError, fetch},
    ping::{Signal, ping},
    routes::Route,
    schedule::{Decision, Task, gate},
    tasks::{
        Call, Context, TaskError, TaskOutcome, Trigger, check_thresholds, drain_until_nothing_waits,
        marketing_day3, month_of, monthly_reminders, monthly_sync, sync_integrations,
    },
};

/// Header of a chain of drain-queue invocations: its id.
pub const CHAIN_HEADER: &str = "x-jobs-chain";
/// Header of a chain of drain-queue invocations: how many went before.
pub const HOP_HEADER: &str = "x-jobs-hop";
/// A chain ends here; the next cron goes on. 48 hops of 270 seconds are more than half of six hours.
pub const MOST_HOPS: u32 = 48;

/// One call forgets 20,000 rows of a sort at most; 100,000 users leave 100,000 and more a cron.
const MOST_PRUNES: u32 = 50;
/// After this long the rest is left to the next cron: somebody waits for the answer.
const PRUNING: Duration = Duration::from_secs(15);

/// Runs the tasks side by side; answers each one's outcome in the given order.
pub async fn run(context: &Context, call: &Call, tasks: &[Task]) -> Vec<(Task, TaskOutcome)> {
    let running: Vec<_> = tasks
        .iter()
        .map(|&task| {
            let (context, call) = (context.clone(), call.clone());
            (task, tokio::spawn(async move { run_task(&context, &call, task).await }))
        })
        .collect();
    let mut outcomes = Vec::with_capacity(running.len());
    for (task, handle) in running {
        outcomes.push((task, handle.await.unwrap_or(TaskOutcome::Failed(TaskError::Panicked))));
    }
    let out_of_time =
        outcomes.iter().any(|(_, outcome)| matches!(outcome, TaskOutcome::Ran(run) if run.out_of_time));
    if out_of_time {
        go_on(context, Uuid::new_v4(), 1).await;
    }
    outcomes
}

/// Runs a task between its pings.
async fn run_task(context: &Context, call: &Call, task: Task) -> TaskOutcome {
    let begun = Instant::now();
    // One user's run or a dry one says nothing of the task.
    let whole = call.user_id.is_none() && !call.dry_run && is_due(context, call, task);
    let monitor = context.config.operator.pings.get(&task).filter(|_| whole);
    let outcome = match monitor {
        None => work(context, call, task).await,
        Some(address) => {
            let tell = |signal, words: String| async move {
                ping(&context.http, address, signal, &words, &context.deadline).await;
            };
            let ((), outcome) = tokio::join!(tell(Signal::Start, String::new()), work(context, call, task));
            match trouble(&outcome) {
                None => tell(Signal::Success, summary(&outcome)).await,
                Some(reason) => tell(Signal::Fail, reason).await,
            }
            outcome
        }
    };
    log(task, &outcome, begun.elapsed());
    outcome
}

async fn work(context: &Context, call: &Call, task: Task) -> TaskOutcome {
    match task {
        Task::SyncIntegrations => sync_integrations::run(context, call).await,
        Task::MonthlySync => monthly_sync::run(context, call).await,
        Task::MarketingDay3 => marketing_day3::run(context, call).await,
        Task::MonthlyReminders => monthly_reminders::run(context, call).await,
        Task::CheckThresholds => check_thresholds::run(context, call).await,
    }
}

/// Whether the task is about to do something: a monitor is not told of a gate that is closed.
fn is_due(context: &Context, call: &Call, task: Task) -> bool {
    match (task, call.trigger) {
        (Task::MonthlySync, _) => month_of(call).is_ok(),
        (_, Trigger::Manual) => true,
        (_, Trigger::Cron) => {
            matches!(gate(task, call.via, call.at, context.tuning.schedule), Decision::Due { .. })
        }
    }
}

/// What a monitor is told of a task that did not go well.
fn trouble(outcome: &TaskOutcome) -> Option<String> {
    match outcome {
        TaskOutcome::Failed(error) => Some(error.user_message()),
        TaskOutcome::Ran(run) if run.errors() > 0 => {
            let of_mails = run.mails.values().flat_map(|mails| &mails.errors);
            let counted =
                run.troubles.iter().chain(of_mails).filter_map(|trouble| trouble.message.as_deref());
            let said = run.blocked.iter().chain(&run.faults).map(|failure| failure.message.as_str());
            let mut lines = vec![summary(outcome)];
            lines.extend(said.chain(counted).map(ToOwned::to_owned));
            Some(lines.join("\n"))
        }
        _ => None,
    }
}

fn summary(outcome: &TaskOutcome) -> String {
    match outcome {
        TaskOutcome::Ran(run) => format!(
            "éléments : {}, courriels : {}, erreurs : {}, restants : {}",
            run.worked(),
            run.sent(),
            run.errors(),
            run.remaining()
        ),
        TaskOutcome::NotDue { note } => note.clone(),
        TaskOutcome::DryRun { .. } | TaskOutcome::Failed(_) => String::new(),
    }
}

/// One line for each task, readable alone.
fn log(task: Task, outcome: &TaskOutcome, took: Duration) {
    let (task, duration_ms) = (task.as_str(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    match outcome {
        TaskOutcome::NotDue { note } => {
            tracing::info!(task, duration_ms, note, "task not due");
        }
        TaskOutcome::DryRun { plan } => {
            tracing::info!(task, duration_ms, %plan, "task dry run");
        }
        TaskOutcome::Failed(error) => {
            tracing::error!(task, duration_ms, %error, "task failed");
        }
        TaskOutcome::Ran(run) => tracing::info!(
            task,
            duration_ms,
            run_id = run.run_id.map(|id| id.to_string()),
            joined = run.joined.is_some(),
            records = run.records,
            errors = run.errors(),
            remaining = run.remaining(),
            counts = %json!(run.counts),
            troubles = %json!(run.troubles),
            mails = %json!(run.mails),
            blocked = %json!(run.blocked),
            faults = %json!(run.faults),
            "task done"
        ),
    }
}

/// What a drain-queue invocation did.
pub struct Drained {
    pub settled: u64,
    pub errors: u64,
    pub message: Option<String>,
}

/// Works on whatever is queued, in every lane. One chain at a time: another one's invocation does nothing.
pub async fn drain_queue(context: &Context, chain: Uuid, hop: u32) -> Result<Drained, TaskError> {
    let lease = Duration::from_secs(context.tuning.budget_seconds + 60);
    if !context.queue.hold_chain(chain, lease, &context.deadline).await? {
        tracing::info!(%chain, hop, "another chain is draining");
        let message = "Une autre exécution vide déjà la file.".to_owned();
        return Ok(Drained { settled: 0, errors: 0, message: Some(message) });
    }
    let drained = drain_until_nothing_waits(context, Route::DrainQueue.path()).await;
    let left = matches!(&drained, Ok(drained) if drained.out_of_time);
    let next = if left && hop < MOST_HOPS { go_on(context, chain, hop + 1).await } else { Next::Nobody };
    let goes_on = next == Next::GoesOn;
    // Where nobody knows, the next one may have begun: it holds the chain, or the lease ends by itself.
    if next == Next::Nobody {
        context.queue.hold_chain(chain, Duration::ZERO, &context.deadline).await?;
    }
    let drained = drained?;
    let closed: u64 = context.supabase.rpc("jobs_close_runs", &json!({}), &context.deadline).await?;
    let troubles: Vec<&Failure> =
        drained.blocked.iter().chain(&drained.post_blocked).chain(&drained.faults).collect();
    let (settled, failed) = (drained.ended, drained.failed);
    tracing::info!(%chain, hop, settled, failed, closed, left, goes_on, "queue drained");
    let message = troubles.first().map(|failure| failure.message.clone());
    Ok(Drained {
        settled,
        errors: failed + troubles.len() as u64 + u64::from(left && !goes_on),
        message: message.or_else(|| (left && !goes_on).then(|| next.left_behind().to_owned())),
    })
}

/// What came of asking for the next invocation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    GoesOn,
    /// Not asked, not reached, or refused: it did not begin.
    Nobody,
    /// The answer was lost or says nothing.
    Unknown,
}

impl Next {
    /// What becomes of the work that is left.
    fn left_behind(self) -> &'static str {
        match self {
            Self::Unknown => {
                "Du travail reste dans la file ; la suite a été demandée, sans réponse : à défaut, le prochain cron le reprendra."
            }
            Self::GoesOn | Self::Nobody => "Du travail reste dans la file ; le prochain cron le reprendra.",
        }
    }
}

/// Asks this deployment to go on with what is queued. Only the configured address ever gets the secret; where
/// none is known (a preview, a developer's machine) the next cron goes on.
async fn go_on(context: &Context, chain: Uuid, hop: u32) -> Next {
    let (Some(own), Some(secret)) = (&context.config.own_url, &context.config.cron_secret) else {
        tracing::info!("work is left for the next cron");
        return Next::Nobody;
    };
    let (Ok(url), Some(timeout), Ok(bearer)) = (
        own.join(Route::DrainQueue.path()),
        context.deadline.request_timeout(Duration::from_secs(10)),
        bearer(secret),
    ) else {
        tracing::error!(%chain, hop, "no time is left to ask drain-queue to go on");
        return Next::Nobody;
    };
    let request = context
        .http
        .post(url)
        .header(AUTHORIZATION, bearer)
        .header(CHAIN_HEADER, chain.to_string())
        .header(HOP_HEADER, hop);
    // Not repeated after a doubtful answer: the call may have begun a chain already.
    match fetch(request, timeout).await {
        Ok(answer) if answer.status.is_success() => {
            tracing::info!(%chain, hop, "the next invocation goes on");
            Next::GoesOn
        }
        Ok(answer) => {
            tracing::error!(%chain, hop, status = answer.status.as_u16(), "drain-queue refused to go on");
            if answer.status.is_server_error() { Next::Unknown } else { Next::Nobody }
        }
        Err(error) => {
            tracing::error!(%chain, hop, %error, "drain-queue did not answer");
            if error == NetworkError::Connect { Next::Nobody } else { Next::Unknown }
        }
    }
}

fn bearer(secret: &SecretString) -> Result<HeaderValue, reqwest::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.expose_secret()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What one call of `jobs_prune` forgot, by sort.
#[derive(Deserialize)]
struct Pruned {
    /// There is more. Unknown to databases that are a migration behind.
    #[serde(default)]
    left: bool,
    #[serde(flatten)]
    forgotten: BTreeMap<String, u64>,
}

/// Forgets what is older than it is kept, slice by slice. Best effort, at the end: what is left when time is over
/// waits for the next cron.
pub async fn prune(context: &Context) {
    let begun = Instant::now();
    let mut forgotten: BTreeMap<String, u64> = BTreeMap::new();
    let mut left = true;
    for call in 0..MOST_PRUNES {
        if call > 0 && (begun.elapsed() > PRUNING || !context.deadline.may_start_work()) {
            break;
        }
        let pruned: Result<Pruned, _> =
            context.supabase.rpc("jobs_prune", &json!({}), &context.deadline).await;
        let Ok(pruned) = pruned else { return };
        for (sort, rows) in pruned.forgotten {
            *forgotten.entry(sort).or_default() += rows;
        }
        left = pruned.left;
        if !left {
            break;
        }
    }
    tracing::info!(forgotten = %json!(forgotten), left, "old logs and runs forgotten");
}
