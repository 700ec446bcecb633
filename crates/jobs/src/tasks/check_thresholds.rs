//! Who has crossed a step of a ceiling, and the alerts about it.
//!
//! SQL pre-filters and adds up, [`urssaf`] decides, SQL plans: each step once for each user and year, held by a
//! primary key. It takes no hint of what changed: a user is told what they were not told before.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use uuid::Uuid;

use super::{
    Call, Context, TaskError, TaskOutcome, Trigger,
    run::{Planned, RunSummary, Work, joined_note, parameters, wait_until_settled},
};
use crate::{
    queue::Failure,
    schedule::{Decision, Slot, Task, gate, paris},
    supabase::SupabaseError,
    urssaf::{self, Crossing, Held, YearBooks},
};

/// Users looked at in one request.
const PAGE: u32 = 20_000;
/// Users whose totals have changed, checked in one go after a sync.
const DUE_PAGE: u32 = 5_000;
/// In an answer.
const NAMED_ACTIVITIES: usize = 10;
/// In a dry run's answer.
const MOST_CANDIDATES: usize = 100;

/// Due once a week for a cron, always for an operator.
pub async fn run(context: &Context, call: &Call) -> TaskOutcome {
    check(context, call).await.into()
}

async fn check(context: &Context, call: &Call) -> Result<TaskOutcome, TaskError> {
    let slot = match (call.trigger, gate(Task::CheckThresholds, call.via, call.at, context.tuning.schedule)) {
        (Trigger::Manual, _) => None,
        (Trigger::Cron, Decision::Due { slot }) => Some(slot),
        (Trigger::Cron, Decision::NotDue(not_due)) => {
            return Ok(TaskOutcome::NotDue { note: not_due.note() });
        }
    };
    if let Err(faults) = &context.post {
        return Err(TaskError::Configuration(faults.clone()));
    }
    let found = find(context, Scope::of(call.user_id), call.at).await?;
    if call.dry_run {
        let mut plan = found.outline();
        plan["candidates"] = json!(found.candidates);
        return Ok(TaskOutcome::DryRun { plan });
    }
    let slot = slot.as_ref().filter(|_| call.claims_slot());
    let run_id = Uuid::new_v4();
    let planned = plan(
        context,
        &found,
        &json!({
            "p_run_id": run_id, "p_append": false,
            "p_task": Task::CheckThresholds.as_str(), "p_slot": slot.map(Slot::as_str),
            "p_trigger": call.trigger_name(), "p_route": call.route, "p_as_of": call.at,
            "p_parameters": parameters(call),
        }),
    )
    .await?;
    drop(found); // thousands of alerts, written down
    let joined = joined_note(&planned, slot);
    let Some(run_id) = planned.run_id else {
        return Ok(TaskOutcome::Ran(Box::new(RunSummary::empty(joined))));
    };
    tracing::info!(task = "check_thresholds", %run_id, joined = joined.is_some(), plan = %planned.plan, "planned");
    // The application calls this after each entry: it shall not wait for others' mails.
    let without_news = call.user_id.is_some() && planned.plan["items"] == 0;
    let work = if without_news { Work::Nothing } else { Work::Mails };
    let settled = wait_until_settled(context, run_id, work).await?;
    let mut summary = RunSummary::new(run_id, joined, settled);
    summary.notices.extend(unknown_activities(&planned.plan));
    summary.outline = planned.plan;
    Ok(TaskOutcome::Ran(Box::new(summary)))
}

/// After a sync: checks the users whose imported totals have changed, in the sync's own run. Without one
/// (`drain-queue`) a run is opened where there is something to tell.
pub(super) async fn check_changed(
    context: &Context,
    run_id: Option<Uuid>,
    route: &str,
) -> Result<(), TaskError> {
    loop {
        let found = find(context, Scope::Changed, context.now).await?;
        if found.due.is_empty() {
            return Ok(());
        }
        let arguments = json!({
            "p_run_id": run_id.unwrap_or_else(Uuid::new_v4),
            "p_append": run_id.is_some() || found.alerts.is_empty(),
            "p_task": Task::CheckThresholds.as_str(), "p_slot": null, "p_trigger": "cron", "p_route": route,
            "p_as_of": context.now, "p_parameters": {},
        });
        plan(context, &found, &arguments).await?;
        if found.due.len() < DUE_PAGE as usize || !context.deadline.may_start_work() {
            return Ok(());
        }
    }
}

/// Whose thresholds are looked at.
#[derive(Clone, Copy)]
enum Scope {
    Everybody,
    User(Uuid),
    Changed,
}

impl Scope {
    fn of(user_id: Option<Uuid>) -> Self {
        user_id.map_or(Self::Everybody, Self::User)
    }
}

/// One page of `threshold_books`.
#[derive(Deserialize)]
struct Page {
    people: Vec<Person>,
    due: Vec<Value>,
    scanned: u64,
    next: Option<Uuid>,
}

#[derive(Deserialize)]
struct Person {
    user_id: Uuid,
    /// Start of activity.
    created: Option<NaiveDate>,
    /// Why no mail may go to them.
    reason: Option<String>,
    held: Vec<HeldStep>,
    years: Vec<YearBooks>,
}

#[derive(Deserialize)]
struct HeldStep {
    year: i32,
    #[serde(flatten)]
    step: Held,
}

#[derive(Serialize)]
struct Alert {
    user_id: Uuid,
    year: i32,
    /// Written out when they are found: thousands of alerts as a `Value` take ten times their space.
    facts: Box<RawValue>,
    used_up: Vec<Held>,
}

/// What an alert's mail is about.
#[derive(Serialize)]
struct AlertFacts<'a> {
    year: i32,
    crossings: &'a [Crossing],
    unknown_activities: &'a [String],
}

/// Of `jobs_plan_alerts`.
#[derive(Serialize)]
struct Arguments<'a> {
    #[serde(flatten)]
    run: &'a Value,
    p_alerts: &'a [Alert],
    p_due: &'a [Value],
    p_outline: Value,
}

/// What a check has found.
#[derive(Default)]
struct Found {
    scanned: u64,
    alerts: Vec<Alert>,
    /// Who would have got an alert, and why not.
    skipped: BTreeMap<String, u64>,
    unknown_activities: BTreeMap<String, u64>,
    candidates: Vec<Value>,
    due: Vec<Value>,
}

impl Found {
    fn outline(&self) -> Value {
        json!({
            "items": self.alerts.len(), "scanned": self.scanned, "skipped": self.skipped,
            "unknown_activities": self.unknown_activities,
        })
    }

    fn look_at(&mut self, person: &Person, years: &[i32]) {
        for &year in years {
            let held: Vec<Held> =
                person.held.iter().filter(|held| held.year == year).map(|held| held.step).collect();
            let assessment = urssaf::assess(&person.years, person.created, year, &held);
            for activity in &assessment.unknown_activities {
                *self.unknown_activities.entry(activity.clone()).or_default() += 1;
            }
            if assessment.crossings.is_empty() {
                continue;
            }
            let outcome = person.reason.as_deref().unwrap_or("due");
            if self.candidates.len() < MOST_CANDIDATES {
                let steps: Vec<Value> = assessment
                    .crossings
                    .iter()
                    .map(|Crossing { threshold, step, .. }| json!({"threshold": threshold, "step": step}))
                    .collect();
                self.candidates.push(
                    json!({"user_id": person.user_id, "outcome": outcome, "year": year, "steps": steps}),
                );
            }
            if person.reason.is_some() {
                *self.skipped.entry(outcome.to_owned()).or_default() += 1;
                continue;
            }
            self.alerts.push(Alert {
                user_id: person.user_id,
                year,
                facts: to_raw_value(&AlertFacts {
                    year,
                    crossings: &assessment.crossings,
                    unknown_activities: &assessment.unknown_activities,
                })
                .expect("plain data"),
                used_up: assessment.used_up,
            });
        }
    }
}

/// Looks through everybody's books, a page at a time.
async fn find(context: &Context, scope: Scope, at: DateTime<Utc>) -> Result<Found, SupabaseError> {
    let years = urssaf::years_checked(paris::date(at));
    let floors: BTreeMap<i32, i64> =
        years.iter().filter_map(|year| Some((*year, urssaf::floor(*year)?))).collect();
    let mut found = Found::default();
    if floors.is_empty() {
        return Ok(found);
    }
    let (user, changed, limit) = match scope {
        Scope::Everybody => (None, false, PAGE),
        Scope::User(user) => (Some(user), false, PAGE),
        Scope::Changed => (None, true, DUE_PAGE),
    };
    let mut after: Option<Uuid> = None;
    loop {
        let arguments = json!({
            "p_after": after, "p_limit": limit, "p_user_id": user, "p_due": changed, "p_floors": floors,
        });
        let page: Page = context.supabase.rpc("threshold_books", &arguments, &context.deadline).await?;
        found.scanned += page.scanned;
        for person in &page.people {
            found.look_at(person, &years);
        }
        found.due.extend(page.due);
        after = page.next;
        // What has changed is checked and marked as checked a page at a time.
        if after.is_none() || changed {
            return Ok(found);
        }
    }
}

/// Writes the alerts down, all in one transaction with the run.
async fn plan(context: &Context, found: &Found, run: &Value) -> Result<Planned, SupabaseError> {
    let arguments = Arguments { run, p_alerts: &found.alerts, p_due: &found.due, p_outline: found.outline() };
    context.supabase.rpc("jobs_plan_alerts", &arguments, &context.deadline).await
}

/// Activities that no ceiling is known for: their turnover counts in the total only.
fn unknown_activities(plan: &Value) -> Option<Failure> {
    let activities = plan["unknown_activities"].as_object().filter(|activities| !activities.is_empty())?;
    // Users write them: cut, and JSON-escaped like every answer.
    let mut named: Vec<String> = activities
        .keys()
        .take(NAMED_ACTIVITIES)
        .map(|name| format!("« {} »", name.chars().take(40).collect::<String>()))
        .collect();
    let others = activities.len().saturating_sub(NAMED_ACTIVITIES);
    if others > 0 {
        named.push(format!("et {others} de plus"));
    }
    Some(Failure {
        code: "unknown_activity".into(),
        message: format!(
            "Des activités sont inconnues ({}) : leur chiffre d’affaires n’est compté que dans le total.",
            named.join(", ")
        ),
    })
}
