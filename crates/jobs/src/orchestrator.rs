//! Runs a route's tasks side by side. They fail alone: one task's trouble, even a panic, leaves the others their whole
//! budget.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use crate::{
    chain::call_next_hop,
    email::MAIL_REFUSED,
    failure::Failure,
    integrations::{TOKEN_UNREADABLE, is_a_providers_own, is_the_users_to_mend},
    ping::{Signal, ping},
    providers::OUTAGE,
    schedule::Task,
    tasks::{
        Call, Context, RunSummary, TaskError, TaskOutcome, check_thresholds, due_slot, marketing_day3,
        monthly_reminders, monthly_sync, sync_integrations,
    },
};

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
        call_next_hop(context, Uuid::new_v4(), 1).await;
    }
    outcomes
}

/// Runs a task between its pings.
async fn run_task(context: &Context, call: &Call, task: Task) -> TaskOutcome {
    let begun = Instant::now();
    // A monitor is told of whole runs only: not of one user's, not of a dry one.
    let whole = call.user_id.is_none() && !call.dry_run;
    let monitor = context.config.monitors.get(&task).filter(|_| whole);
    let is_due = due_slot(task, call, context.tuning.schedule).is_ok();
    let work = without_panic(dispatch(context, call, task));
    let outcome = match monitor.filter(|_| is_due) {
        None => work.await,
        Some(address) => {
            let start = ping(&context.http, address, Signal::Start, "", &context.deadline);
            tokio::join!(start, work).1
        }
    };
    if let Some(address) = monitor.filter(|_| is_due || makes_good(&outcome)) {
        tell_end(context, address, &outcome).await;
    }
    if let TaskOutcome::Ran(run) = &outcome
        && let Some(months) = &run.months
        && let Some(address) = context.config.monitors.get(&Task::MonthlySync).filter(|_| whole)
    {
        tell_end(context, address, months).await;
    }
    log(task, &outcome, begun.elapsed());
    outcome
}

/// Makes a panic a failed task, so that its monitor hears of the end, too.
async fn without_panic(work: impl Future<Output = TaskOutcome>) -> TaskOutcome {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or(TaskOutcome::Failed(TaskError::Panicked))
}

/// Returns whether a task that was not due did something all the same, or failed at it: only now it shows whether a
/// missed occasion, or months that had failed, are made up.
fn makes_good(outcome: &TaskOutcome) -> bool {
    match outcome {
        TaskOutcome::Ran(run) => run.made_up.is_some() || run.taken_up > 0,
        TaskOutcome::Failed(_) => true,
        TaskOutcome::NotDue { .. } | TaskOutcome::DryRun { .. } => false,
    }
}

/// Tells a monitor how a task has ended.
async fn tell_end(context: &Context, address: &Url, outcome: &TaskOutcome) {
    let (signal, words) = match trouble(outcome) {
        None => (Signal::Success, summary(outcome)),
        Some(reason) => (Signal::Fail, reason),
    };
    ping(&context.http, address, signal, &words, &context.deadline).await;
}

async fn dispatch(context: &Context, call: &Call, task: Task) -> TaskOutcome {
    match task {
        Task::SyncIntegrations => sync_integrations::run(context, call).await,
        Task::MonthlySync => monthly_sync::run(context, call).await,
        Task::MarketingDay3 => marketing_day3::run(context, call).await,
        Task::MonthlyReminders => monthly_reminders::run(context, call).await,
        Task::CheckThresholds => check_thresholds::run(context, call).await,
    }
}

/// Returns what a monitor is told of a task that did not go well. It may wake somebody at night: what one user has to
/// mend, by connecting again, is no failure of the task.
fn trouble(outcome: &TaskOutcome) -> Option<String> {
    match outcome {
        TaskOutcome::Failed(error) => Some(error.user_message()),
        TaskOutcome::Ran(run) if run.errors() > for_users(run) => {
            let of_mails = run.mails.values().flat_map(|mails| &mails.errors);
            let counted =
                run.troubles.iter().chain(of_mails).filter_map(|trouble| trouble.message.as_deref());
            let said = run.blocked.iter().chain(&run.faults).map(Failure::said);
            let mut lines = vec![summary(outcome)];
            lines.extend(said.chain(counted).map(ToOwned::to_owned));
            Some(lines.join("\n"))
        }
        _ => None,
    }
}

/// Counts errors of a run that nobody who runs the deployment can mend.
fn for_users(run: &RunSummary) -> u64 {
    let of = |is: &dyn Fn(&str) -> bool| -> u64 {
        let counted = run.troubles.iter().filter(|failure| failure.code.as_deref().is_some_and(is));
        counted.map(|failure| failure.count).sum()
    };
    // A token that cannot be read is its user's own, unless that of most is: then ENCRYPTION_KEY has changed.
    let unread = of(&|code| code == TOKEN_UNREADABLE);
    let settled = run.worked() + run.counts.failed;
    let are_single = |count: u64| count * 100 <= settled * u64::from(OUTAGE.percent);
    // Nor is a provider's own failure with single accounts, as long as others of it are read: the next sync reads them
    // again.
    let passing = of(&is_a_providers_own);
    // So is an address that the mail service does not take, unless it takes almost none: then it is what we write.
    let of_mails = run.mails.values().flat_map(|mails| &mails.errors);
    let refused: u64 =
        of_mails.filter(|failure| failure.code.as_deref() == Some(MAIL_REFUSED)).map(|one| one.count).sum();
    let are_few = refused < u64::from(OUTAGE.least)
        || refused * 100 <= (run.sent() + refused) * u64::from(OUTAGE.percent);
    of(&is_the_users_to_mend)
        + if are_single(unread) { unread } else { 0 }
        + if are_single(passing) && !run.only_failed { passing } else { 0 }
        + if are_few { refused } else { 0 }
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

/// Logs one line for each task, readable alone.
fn log(task: Task, outcome: &TaskOutcome, took: Duration) {
    let (task, duration_ms) = (task.as_str(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    match outcome {
        TaskOutcome::NotDue { note } => {
            tracing::info!(task, duration_ms, note, "task not due");
        }
        TaskOutcome::DryRun { plan } => {
            tracing::info!(task, duration_ms, plan = %in_numbers(plan), "task dry run");
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

/// Returns an outline without what it lists: the platform's log is no place for ids, nor for what users wrote.
fn in_numbers(plan: &Value) -> Value {
    let Value::Object(fields) = plan else { return Value::Null };
    let counted = fields.iter().map(|(name, value)| {
        let count = match value {
            Value::Array(list) => json!(list.len()),
            Value::Object(users) if name == "unknown_activities" => json!(users.len()),
            _ => value.clone(),
        };
        (name.clone(), count)
    });
    Value::Object(counted.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_is_logged_in_numbers() {
        let plan = json!({
            "items": 2, "skipped": {"unsubscribed": 1}, "unknown_activities": {"Ma vie privée": 3, "b": 1},
            "candidates": [{"user_id": Uuid::nil(), "steps": [{"threshold": "vat_total", "step": 100}]}],
        });
        let logged = in_numbers(&plan);
        let expected =
            json!({"items": 2, "skipped": {"unsubscribed": 1}, "unknown_activities": 2, "candidates": 1});
        assert_eq!(logged, expected);
    }

    #[tokio::test]
    async fn a_panic_is_a_failed_task_that_a_monitor_hears_of() {
        let outcome = without_panic(async { panic!("a bug") }).await;
        assert!(matches!(outcome, TaskOutcome::Failed(TaskError::Panicked)), "{outcome:?}");
        assert!(makes_good(&outcome) && trouble(&outcome).is_some());
    }
}
