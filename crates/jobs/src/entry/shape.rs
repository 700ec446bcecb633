//! The answers of each route, made of the outcomes of its tasks (DESIGN §1, Answers).

use chrono::{DateTime, SecondsFormat, Utc};

use super::{
    answer::{Answer, Fields},
    route::Route,
};
use crate::{
    schedule::{Task, paris},
    tasks::{Call, RunSummary, TaskError, TaskOutcome, Trigger, month_of},
};

/// What the log of the call says of all its tasks together.
pub(super) struct Verdict {
    /// As in `sync_logs.status`.
    pub(super) status: &'static str,
    pub(super) records: u64,
    pub(super) error: Option<String>,
}

/// The answer of a route that ran tasks.
pub(super) fn answer(route: Route, call: &Call, outcomes: &[(Task, TaskOutcome)]) -> Answer {
    let status = outcomes
        .iter()
        .filter_map(|(_, outcome)| match outcome {
            TaskOutcome::Failed(TaskError::NotYet) if tolerated(call, outcomes) => None,
            // One task of several failed as a whole: a 500, with the others' results.
            TaskOutcome::Failed(_) if outcomes.len() > 1 => Some(500),
            TaskOutcome::Failed(error) => Some(error.http_status()),
            _ => None,
        })
        .max()
        .unwrap_or(200);
    let of = |task: Task| outcomes.iter().find(|(of, _)| *of == task).map(|(_, outcome)| outcome);
    let fields = match (route, outcomes) {
        (Route::DailyOrchestrator, _) => Fields::new()
            .with("message", "Orchestrator quotidien terminé")
            .with("timestamp", &timestamp(call.at))
            .with(
                "results",
                &Fields::new()
                    .with_some(
                        "marketingEmails",
                        of(Task::MarketingDay3).map(|outcome| part(outcome, "sent")).as_ref(),
                    )
                    .with_some(
                        "syncIntegrations",
                        of(Task::SyncIntegrations).map(|outcome| part(outcome, "synced")).as_ref(),
                    ),
            ),
        (Route::MonthlyOrchestrator, _) => Fields::new()
            .with("message", "Orchestrator mensuel terminé")
            .with("timestamp", &timestamp(call.at))
            .with("dayOfMonth", &chrono::Datelike::day(&paris::date(call.at)))
            .with("isLastDayOfMonth", &paris::is_last_day(call.at))
            .with(
                "results",
                &Fields::new()
                    .with_some(
                        "reminders",
                        of(Task::MonthlyReminders).map(|outcome| part(outcome, "sent")).as_ref(),
                    )
                    .with_some(
                        "monthlySync",
                        of(Task::MonthlySync).map(|outcome| part(outcome, "synced")).as_ref(),
                    ),
            ),
        (_, [(_, TaskOutcome::Failed(TaskError::NotYet))]) if tolerated(call, outcomes) => {
            part(&outcomes[0].1, "sent")
        }
        (_, [(_, TaskOutcome::Failed(error))]) => Fields::new().with("error", &error.user_message()),
        (Route::SyncIntegrations, [(_, outcome)]) => sync_integrations(outcome),
        (Route::MonthlySync, [(_, outcome)]) => monthly_sync(call, outcome),
        (_, [(_, outcome)]) => part(outcome, "sent"),
        _ => Fields::new(),
    };
    Answer::json(status, &fields)
}

/// A task that is announced for later is said so: to a scheduler, which cannot help it, and beside others. An
/// operator who asks for it alone gets a 501.
fn tolerated(call: &Call, outcomes: &[(Task, TaskOutcome)]) -> bool {
    outcomes.len() > 1 || call.trigger == Trigger::Cron
}

/// `2026-11-22T07:00:03.120Z`
fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A task's part in an orchestrator's answer; `worked` names its counter (`sent`, `synced`).
fn part(outcome: &TaskOutcome, worked: &'static str) -> Fields {
    let fields = Fields::new();
    match outcome {
        TaskOutcome::Ran(run) => details(
            fields
                .with(worked, &run.worked())
                .with("errors", &run.errors())
                .with("skipped", &run.joined.is_some()),
            run,
        ),
        TaskOutcome::NotDue { note } => {
            fields.with(worked, &0).with("errors", &0).with("skipped", &true).with("note", note)
        }
        TaskOutcome::DryRun { plan } => {
            fields.with(worked, &0).with("errors", &0).with("skipped", &true).with("dryRun", plan)
        }
        TaskOutcome::Failed(error @ TaskError::NotYet) => fields
            .with(worked, &0)
            .with("errors", &0)
            .with("skipped", &true)
            .with("note", &error.user_message()),
        TaskOutcome::Failed(error) => fields
            .with(worked, &0)
            .with("errors", &1)
            .with("skipped", &false)
            .with("error", &error.user_message()),
    }
}

/// What every report of a run says besides its counters.
fn details(fields: Fields, run: &RunSummary) -> Fields {
    let remaining = run.remaining();
    fields
        .with_some("note", run.joined.as_ref())
        .with("records", &run.records)
        .with_some("remaining", (remaining > 0).then_some(&remaining))
        .with_some("partial", (run.counts.partial > 0).then_some(&run.counts.partial))
        .with_some("superseded", (run.counts.superseded > 0).then_some(&run.counts.superseded))
        .with_some("problems", problems(run).as_ref())
        .with_some("runId", run.run_id.as_ref())
}

/// What went wrong, each trouble once, the most frequent first.
fn problems(run: &RunSummary) -> Option<Vec<Fields>> {
    let blocked = run.blocked.iter().map(|failure| {
        Fields::new().with("code", &failure.code).with("message", &failure.message).with("blocking", &true)
    });
    let counted = run.troubles.iter().map(|trouble| {
        Fields::new()
            .with_some("code", trouble.code.as_ref())
            .with_some("message", trouble.message.as_ref())
            .with("count", &trouble.count)
    });
    let problems: Vec<Fields> = blocked.chain(counted).collect();
    (!problems.is_empty()).then_some(problems)
}

fn sync_integrations(outcome: &TaskOutcome) -> Fields {
    let fields = Fields::new();
    match outcome {
        TaskOutcome::Ran(run) => details(
            fields
                .with("message", "Synchronisation terminée")
                .with("totalSynced", &run.records)
                .with("errors", &run.errors())
                .with_some("skipped", run.joined.is_some().then_some(&true))
                .with("results", &run.results)
                .with("resultsTotal", &run.results_total),
            run,
        ),
        TaskOutcome::NotDue { note } => {
            fields.with("message", "Synchronisation non due").with("skipped", &true).with("note", note)
        }
        TaskOutcome::DryRun { plan } => {
            fields.with("message", "Essai : rien n’a été écrit").with("dryRun", plan)
        }
        TaskOutcome::Failed(error) => fields.with("error", &error.user_message()),
    }
}

fn monthly_sync(call: &Call, outcome: &TaskOutcome) -> Fields {
    let fields = Fields::new();
    match outcome {
        TaskOutcome::Ran(run) => details(
            fields
                .with("message", "Sync mensuel terminé")
                .with_some("month", month_of(call).ok().map(crate::schedule::Month::french).as_ref())
                .with("totalUsers", &run.counts.planned)
                .with("errors", &run.errors())
                .with_some("skipped", run.joined.is_some().then_some(&true))
                .with("results", &run.results)
                .with("resultsTotal", &run.results_total),
            run,
        ),
        TaskOutcome::NotDue { note } => fields
            .with("message", "Pas le dernier jour du mois")
            .with(
                "hint",
                "Ajoutez force=true pour le dernier mois terminé, ou month=AAAA-MM pour un mois précis.",
            )
            .with("date", &paris::date(call.at).to_string())
            .with("skipped", &true)
            .with("note", note),
        TaskOutcome::DryRun { plan } => fields
            .with("message", "Essai : rien n’a été écrit")
            .with_some("month", month_of(call).ok().map(crate::schedule::Month::french).as_ref())
            .with("dryRun", plan),
        TaskOutcome::Failed(error) => fields.with("error", &error.user_message()),
    }
}

/// Sums the tasks up for `sync_logs`: never a success where a part failed.
pub(super) fn verdict(call: &Call, outcomes: &[(Task, TaskOutcome)]) -> Verdict {
    let mut verdict = Verdict { status: "success", records: 0, error: None };
    let (mut failed, mut well) = (0, 0);
    for (task, outcome) in outcomes {
        match outcome {
            TaskOutcome::Failed(TaskError::NotYet) if tolerated(call, outcomes) => {}
            TaskOutcome::Failed(error) => {
                failed += 1;
                verdict.error.get_or_insert_with(|| format!("{task} : {}", error.user_message()));
            }
            TaskOutcome::Ran(run) => {
                verdict.records += run.records;
                match run.log_status() {
                    "success" => well += 1,
                    "error" => failed += 1,
                    _ => {
                        failed += 1;
                        well += 1;
                    }
                }
                let first = run.blocked.first().map(|failure| failure.message.clone());
                let first =
                    first.or_else(|| run.troubles.first().and_then(|trouble| trouble.message.clone()));
                if let (None, Some(message)) = (&verdict.error, first) {
                    verdict.error = Some(format!("{task} : {message}"));
                }
            }
            TaskOutcome::NotDue { .. } | TaskOutcome::DryRun { .. } => well += 1,
        }
    }
    verdict.status = match (failed, well) {
        (0, _) => "success",
        (_, 0) => "error",
        _ => "partial",
    };
    verdict
}
