//! The answers of each route, made of the outcomes of its tasks.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};

use super::answer::{Answer, Fields};
use crate::{
    failure::Failure,
    lane::Lane,
    queue::MailCounts,
    routes::Route,
    schedule::{Month, Task, describe_making_up, paris},
    tasks::{Call, RunSummary, TaskOutcome, month_of},
    words::{capitalized, counted_in_answers},
};

/// Holds what the log of the call says of all its tasks together.
pub(super) struct Verdict {
    /// Is a value of `sync_logs.status`.
    pub(super) status: &'static str,
    pub(super) records: u64,
    pub(super) error: Option<String>,
}

/// Returns the answer of a route that ran tasks.
pub(super) fn answer(route: Route, call: &Call, outcomes: &[(Task, TaskOutcome)]) -> Answer {
    let status = outcomes
        .iter()
        .filter_map(|(_, outcome)| match outcome {
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
        (_, [(_, TaskOutcome::Failed(error))]) => Fields::new().with("error", &error.user_message()),
        (Route::SyncIntegrations, [(_, outcome)]) => sync_integrations(outcome),
        (Route::MonthlySync, [(_, outcome)]) => monthly_sync(call, outcome),
        (Route::CheckThresholds, [(_, outcome)]) => check_thresholds(outcome),
        (Route::SendReminders, [(_, outcome)]) => send_reminders(outcome),
        (Route::DailyTasks, [(_, outcome)]) => Fields::new()
            .with("success", &well(outcome))
            .with("results", &Fields::new().with("upgradeEmails", &part(outcome, "sent"))),
        (_, [(_, outcome)]) => part(outcome, "sent"),
        _ => Fields::new(),
    };
    Answer::json(status, &fields)
}

/// Writes an instant as in `2026-11-22T07:00:03.120Z`.
fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Returns a task's part in an orchestrator's answer; `worked` names its counter (`sent`,
/// `synced`).
fn part(outcome: &TaskOutcome, worked: &'static str) -> Fields {
    part_after(Fields::new(), outcome, worked)
}

fn part_after(fields: Fields, outcome: &TaskOutcome, worked: &'static str) -> Fields {
    match outcome {
        TaskOutcome::Ran(run) => details(
            fields
                .with(worked, &if worked == "sent" { own_mails(run) } else { run.worked() })
                .with("errors", &run.errors())
                .with("skipped", &run.joined.is_some()),
            run,
            if worked == "sent" { Counters::Mails } else { Counters::Data },
        ),
        TaskOutcome::NotDue { note } => {
            fields.with(worked, &0).with("errors", &0).with("skipped", &true).with("note", note)
        }
        TaskOutcome::DryRun { plan } => {
            fields.with(worked, &0).with("errors", &0).with("skipped", &true).with("dryRun", plan)
        }
        TaskOutcome::Failed(error) => fields
            .with(worked, &0)
            .with("errors", &1)
            .with("skipped", &false)
            .with("error", &error.user_message()),
    }
}

/// Counts what a task that only sends has sent. A run of reminders also puts recaps right: these are counted beside.
fn own_mails(run: &RunSummary) -> u64 {
    run.sent() - run.sent_in(Lane::Recaps)
}

/// Says what a task is there for: it decides what its report has to say.
#[derive(Clone, Copy, PartialEq)]
enum Counters {
    Data,
    Mails,
}

/// Returns what every report of a run says besides its counters.
fn details(fields: Fields, run: &RunSummary, work: Counters) -> Fields {
    let remaining = run.remaining();
    let sends = work == Counters::Mails;
    // Why people got nothing is a question about mails; how much was new, one about data.
    let excluded = run.outline.get("skipped").filter(|reasons| sends && *reasons != &serde_json::json!({}));
    let fields = fields
        .with_some("note", note(run).as_ref())
        .with_some("madeUp", run.made_up.as_ref().map(|missed| &missed.slot))
        .with_some("records", (!sends).then_some(&run.records))
        .with_some("checked", run.outline.get("scanned"))
        .with_some("excluded", excluded)
        .with_some("remaining", (remaining > 0).then_some(&remaining))
        .with_some("monthsTakenUp", (run.taken_up > 0).then_some(&run.taken_up))
        .with_some("partial", (run.counts.partial > 0).then_some(&run.counts.partial))
        .with_some("superseded", (run.counts.superseded > 0).then_some(&run.counts.superseded));
    let fields = Lane::mails().map(Lane::as_str).fold(fields, |fields, lane| {
        // Beside data: mails alone are the answer's own counters, but for what puts recaps right.
        let beside = run.mails.get(lane).filter(|_| !sends || lane == Lane::Recaps.as_str());
        fields.with_some(lane, beside.map(mails).as_ref())
    });
    let unsent: BTreeMap<&str, u64> = run.mails.values().flat_map(|mails| &mails.unsent).fold(
        BTreeMap::new(),
        |mut all, (reason, count)| {
            *all.entry(reason.as_str()).or_default() += count;
            all
        },
    );
    fields
        .with_some("unsent", (!unsent.is_empty()).then_some(&unsent))
        .with_some("problems", problems(run).as_ref())
        .with_some("runId", run.run_id.as_ref())
}

/// Returns what a reader has to know of a run: who else had planned it, what it makes up, why no recap follows.
fn note(run: &RunSummary) -> Option<String> {
    let made_up = run.made_up.as_ref().map(describe_making_up);
    let notes: Vec<String> =
        [run.joined.clone(), made_up, run.no_recap.clone()].into_iter().flatten().collect();
    (!notes.is_empty()).then(|| notes.join(" ; "))
}

/// Returns one lane's mails, beside the data they came from.
fn mails(mails: &MailCounts) -> Fields {
    Fields::new()
        .with("sent", &mails.sent)
        .with("errors", &mails.erred)
        .with_some("remaining", (mails.queued > 0).then_some(&mails.queued))
}

/// Returns what went wrong, each trouble once, the most frequent first.
fn problems(run: &RunSummary) -> Option<Vec<Fields>> {
    let said = |failure: &Failure| Fields::new().with("code", &failure.code).with("message", failure.said());
    let blocked = run.blocked.iter().chain(&run.faults).map(|failure| said(failure).with("blocking", &true));
    let notices = run.notices.iter().map(|failure| said(failure).with("warning", &true));
    let of_mails = run.mails.values().flat_map(|mails| &mails.errors);
    let counted = run.troubles.iter().chain(of_mails).map(|trouble| {
        Fields::new()
            .with_some("code", trouble.code.as_ref())
            .with_some("message", trouble.message.as_ref())
            .with("count", &trouble.count)
    });
    let problems: Vec<Fields> = blocked.chain(counted).chain(notices).collect();
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
            Counters::Data,
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

/// Tells whether nothing went wrong.
fn well(outcome: &TaskOutcome) -> bool {
    match outcome {
        TaskOutcome::Ran(run) => run.errors() == 0,
        TaskOutcome::Failed(_) => false,
        TaskOutcome::NotDue { .. } | TaskOutcome::DryRun { .. } => true,
    }
}

fn send_reminders(outcome: &TaskOutcome) -> Fields {
    let message = match outcome {
        TaskOutcome::Ran(run) => {
            let (sent, errors) = (own_mails(run), run.errors());
            let sent = counted_in_answers(sent, "envoyé", "envoyés");
            format!("Rappels mensuels : {sent}, {}", counted_in_answers(errors, "erreur", "erreurs"))
        }
        TaskOutcome::NotDue { .. } => "Rappels mensuels non dus".to_owned(),
        TaskOutcome::DryRun { .. } => "Essai : rien n’a été envoyé".to_owned(),
        TaskOutcome::Failed(error) => return Fields::new().with("error", &error.user_message()),
    };
    part_after(Fields::new().with("message", &message), outcome, "sent")
}

fn check_thresholds(outcome: &TaskOutcome) -> Fields {
    let message = match outcome {
        TaskOutcome::Ran(run) => {
            let (sent, errors) = (run.sent(), run.errors());
            let sent = counted_in_answers(sent, "alerte envoyée", "alertes envoyées");
            format!("Vérification terminée : {sent}, {}", counted_in_answers(errors, "erreur", "erreurs"))
        }
        TaskOutcome::NotDue { .. } => "Vérification non due".to_owned(),
        TaskOutcome::DryRun { .. } => "Essai : rien n’a été envoyé".to_owned(),
        TaskOutcome::Failed(error) => return Fields::new().with("error", &error.user_message()),
    };
    part_after(Fields::new().with("message", &message), outcome, "sent")
}

fn monthly_sync(call: &Call, outcome: &TaskOutcome) -> Fields {
    let fields = Fields::new();
    match outcome {
        TaskOutcome::Ran(run) => details(
            fields
                .with("message", "Sync mensuel terminé")
                .with_some("month", month(call, run).map(Month::french).as_ref())
                .with("totalUsers", &run.counts.planned)
                .with("errors", &run.errors())
                .with_some("skipped", run.joined.is_some().then_some(&true))
                .with("results", &run.results)
                .with("resultsTotal", &run.results_total),
            run,
            Counters::Data,
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

/// Returns the month that a run of the monthly sync has read.
fn month(call: &Call, run: &RunSummary) -> Option<Month> {
    let made_up = run.made_up.as_ref().map(|missed| paris::month(missed.opens));
    made_up.or_else(|| month_of(call).ok())
}

/// Sums the tasks up for `sync_logs`: never a success where a part failed.
pub(super) fn verdict(outcomes: &[(Task, TaskOutcome)]) -> Verdict {
    let mut verdict = Verdict { status: "success", records: 0, error: None };
    let (mut failed, mut well) = (0, 0);
    for (task, outcome) in outcomes {
        match outcome {
            TaskOutcome::Failed(error) => {
                failed += 1;
                verdict.error.get_or_insert_with(|| {
                    format!("{} : {}", capitalized(task.french()), error.user_message())
                });
            }
            TaskOutcome::Ran(run) => {
                verdict.records += run.records + run.sent();
                match run.log_status() {
                    "success" => well += 1,
                    "error" => failed += 1,
                    _ => {
                        failed += 1;
                        well += 1;
                    }
                }
                let first =
                    run.blocked.iter().chain(&run.faults).next().map(|failure| failure.said().to_owned());
                let first = first.or_else(|| {
                    let of_mails = run.mails.values().flat_map(|mails| &mails.errors);
                    run.troubles.iter().chain(of_mails).find_map(|trouble| trouble.message.clone())
                });
                if let (None, Some(message)) = (&verdict.error, first) {
                    verdict.error = Some(format!("{} : {message}", capitalized(task.french())));
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
