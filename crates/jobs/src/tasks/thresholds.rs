//! Finds who has crossed a step of a ceiling, and plans the alerts about it.
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

use super::{context::Context, outcome::TaskError, planned::Planned};
use crate::{
    schedule::{Task, paris},
    supabase::SupabaseError,
    urssaf::{self, Crossing, Held, YearBooks},
};

/// One request looks at so many users at most.
const PAGE: u32 = 20_000;
/// One answer holds so many bytes of books: they are bounded by their size, however many users are above a ceiling.
const PAGE_BYTES: u32 = 4 * 1024 * 1024;
/// After a sync, so many users whose totals have changed are checked in one go.
const DUE_PAGE: u32 = 5_000;
/// A dry run's answer names so many candidates at most.
const MOST_CANDIDATES: usize = 100;

/// Checks, after a sync, the users whose imported totals have changed, in the sync's own run. Without one
/// (`drain-queue`) a run is opened where there is something to tell.
pub(super) async fn check_changed(
    context: &Context,
    run_id: Option<Uuid>,
    route: &str,
) -> Result<(), TaskError> {
    loop {
        let new_run = Uuid::new_v4();
        let into = run_id.unwrap_or(new_run);
        let found = find(context, Subjects::Changed, context.now, Some(into)).await?;
        if found.due.is_empty() {
            return Ok(());
        }
        let arguments = json!({
            "p_run_id": into,
            "p_append": run_id.is_some() || found.alerts == 0,
            "p_task": Task::CheckThresholds.as_str(), "p_slot": null, "p_trigger": "cron", "p_route": route,
            "p_as_of": context.now, "p_parameters": {}, "p_now": context.now,
        });
        plan(context, &found, &arguments).await?;
        if !found.more || !context.deadline.may_start_work() {
            return Ok(());
        }
    }
}

/// Holds the users whose thresholds are looked at.
#[derive(Clone, Copy)]
pub(super) enum Subjects {
    Everybody,
    User(Uuid),
    Changed,
}

impl Subjects {
    pub(super) fn of(user_id: Option<Uuid>) -> Self {
        user_id.map_or(Self::Everybody, Self::User)
    }
}

/// Represents one page of `threshold_books`.
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
    /// The day on which their activity began.
    created: Option<NaiveDate>,
    /// Why no mail may go to them.
    reason: Option<String>,
    /// Says what of their books cannot be read; then there are no years.
    flaw: Option<String>,
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

/// Bounds how many different activities that no ceiling is known for an outline names: users write them.
const MOST_ACTIVITIES: usize = 100;

/// Says what an alert's mail is about.
#[derive(Serialize)]
struct AlertFacts<'a> {
    year: i32,
    crossings: &'a [Crossing],
    unknown_activities: &'a [String],
}

/// Holds the arguments of `jobs_plan_alerts`.
#[derive(Serialize)]
struct Arguments<'a> {
    #[serde(flatten)]
    run: &'a Value,
    p_due: &'a [Value],
    p_outline: Value,
}

/// Holds what a check has found.
#[derive(Default)]
pub(super) struct Found {
    scanned: u64,
    /// How many alerts; they are noted page by page.
    alerts: usize,
    /// Users whose books cannot be read, by what is wrong with them.
    left_out: BTreeMap<String, u64>,
    /// Counts who would have got an alert, by the reason why they do not.
    skipped: BTreeMap<String, u64>,
    /// The first ones, with how many users have each.
    unknown_activities: BTreeMap<String, u64>,
    /// More of them, which are not named.
    more_activities: bool,
    pub(super) candidates: Vec<Value>,
    due: Vec<Value>,
    /// More users are marked as changed.
    more: bool,
}

impl Found {
    pub(super) fn outline(&self) -> Value {
        json!({
            "items": self.alerts, "scanned": self.scanned, "skipped": self.skipped,
            "unknown_activities": self.unknown_activities, "more_activities": self.more_activities, "left_out": self.left_out,
        })
    }

    fn note_activity(&mut self, activity: &str) {
        if let Some(users) = self.unknown_activities.get_mut(activity) {
            *users += 1;
        } else if self.unknown_activities.len() < MOST_ACTIVITIES {
            self.unknown_activities.insert(activity.to_owned(), 1);
        } else {
            self.more_activities = true;
        }
    }

    /// Answers the alerts that are due to a person.
    fn look_at(&mut self, person: &Person, years: &[i32]) -> Vec<Alert> {
        let mut alerts = Vec::new();
        if let Some(flaw) = &person.flaw {
            *self.left_out.entry(flaw.clone()).or_default() += 1;
            return alerts;
        }
        for &year in years {
            let held: Vec<Held> =
                person.held.iter().filter(|held| held.year == year).map(|held| held.step).collect();
            let assessment = urssaf::assess(&person.years, person.created, year, &held);
            for activity in &assessment.unknown_activities {
                self.note_activity(activity);
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
            alerts.push(Alert {
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
        self.alerts += alerts.len();
        alerts
    }
}

/// Looks through the books of these users, a page at a time, and notes the alerts for the run that is to plan them;
/// without one nothing is written.
pub(super) async fn find(
    context: &Context,
    subjects: Subjects,
    at: DateTime<Utc>,
    run_id: Option<Uuid>,
) -> Result<Found, SupabaseError> {
    let years = urssaf::years_checked(paris::date(at));
    let floors: BTreeMap<i32, i64> =
        years.iter().filter_map(|year| Some((*year, urssaf::floor(*year)?))).collect();
    let mut found = Found::default();
    if floors.is_empty() {
        return Ok(found);
    }
    let (user, changed, most) = match subjects {
        Subjects::Everybody => (None, false, PAGE),
        Subjects::User(user) => (Some(user), false, PAGE),
        Subjects::Changed => (None, true, DUE_PAGE),
    };
    let mut limit = most;
    let mut after: Option<Uuid> = None;
    loop {
        let arguments = json!({
            "p_after": after, "p_limit": limit, "p_user_id": user, "p_due": changed, "p_floors": floors,
            "p_bytes": PAGE_BYTES, "p_noted_at": run_id.map(|_| at), "p_now": context.now,
        });
        let page: Page = context.supabase.rpc("threshold_books", &arguments, &context.deadline).await?;
        found.scanned += page.scanned;
        let alerts: Vec<Alert> =
            page.people.iter().flat_map(|person| found.look_at(person, &years)).collect();
        if let Some(run_id) = run_id.filter(|_| !alerts.is_empty()) {
            let arguments = json!({"p_run_id": run_id, "p_alerts": alerts, "p_now": context.now});
            context.supabase.rpc::<()>("jobs_note_alerts", &arguments, &context.deadline).await?;
        }
        found.due.extend(page.due);
        after = page.next;
        // What has changed is checked and marked as checked a page at a time.
        if after.is_none() || changed {
            found.more = after.is_some();
            return Ok(found);
        }
        // A page that ended early has added up users in vain: the next one asks for about as many as fit.
        limit = u32::try_from(page.scanned * 2).unwrap_or(most).clamp(1_000, most);
    }
}

/// Plans what was noted for the run, all in one transaction with it.
pub(super) async fn plan(context: &Context, found: &Found, run: &Value) -> Result<Planned, SupabaseError> {
    let arguments = Arguments { run, p_due: &found.due, p_outline: found.outline() };
    context.supabase.rpc("jobs_plan_alerts", &arguments, &context.deadline).await
}
