//! Finds who has crossed a step of a ceiling, and plans the alerts about it.
//!
//! SQL pre-filters and adds up, [`urssaf`] decides, SQL plans: each step once for each user and year, held by a
//! primary key. It takes no hint of what changed: a user is told what they were not told before, and what does not hold
//! any more is withdrawn.

mod details;
mod found;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use self::found::{Alert, Found, Pending, Person};
use super::{context::Context, outcome::TaskError, planned::Planned};
use crate::{
    schedule::{Task, paris},
    supabase::SupabaseError,
    urssaf,
};

/// Nobody's turnover reaches it: of a year without known ceilings nothing follows.
const NOBODY: i64 = 1_000_000_000_000_000;
/// One request looks at so many users at most.
const PAGE: u32 = 20_000;
/// One answer holds so many bytes of books: they are bounded by their size, however many users are above a ceiling.
const PAGE_BYTES: u32 = 4 * 1024 * 1024;
/// After a sync, so many users whose totals have changed are checked in one go.
const DUE_PAGE: u32 = 5_000;

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

/// Holds the arguments of `jobs_plan_alerts`.
#[derive(Serialize)]
struct Arguments<'a> {
    #[serde(flatten)]
    run: &'a Value,
    p_due: &'a [Value],
    p_outline: Value,
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
    let mut floors: BTreeMap<i32, i64> =
        years.iter().filter_map(|year| Some((*year, urssaf::floor(*year)?))).collect();
    let mut found = Found::default();
    let Some((&first, _)) = floors.first_key_value() else { return Ok(found) };
    // The year before explains: whoever was above a ceiling in it may owe VAT now, whatever this year brings.
    floors.insert(first - 1, urssaf::exceeding_floor(first - 1).unwrap_or(NOBODY));
    let (user, changed, most) = match subjects {
        Subjects::Everybody => (None, false, PAGE),
        Subjects::User(user) => (Some(user), false, PAGE),
        Subjects::Changed => (None, true, DUE_PAGE),
    };
    let mut limit = most;
    let mut least = 1_000;
    let mut after: Option<Uuid> = None;
    loop {
        let arguments = json!({
            "p_after": after, "p_limit": limit, "p_user_id": user, "p_due": changed, "p_floors": floors,
            "p_bytes": PAGE_BYTES, "p_noted_at": run_id.map(|_| at), "p_now": context.now,
        });
        let page: Page = match context.supabase.rpc("threshold_books", &arguments, &context.deadline).await {
            // Some of these users have very much in their books: fewer of them at once.
            Err(error) if error.asks_too_much() && limit > 1 => {
                limit = (limit / 10).max(1);
                least = 1;
                continue;
            }
            page => page?,
        };
        found.scanned += page.scanned;
        let pending: Vec<Pending> =
            page.people.into_iter().flat_map(|person| found.look_at(person, &years, at)).collect();
        if let Some(run_id) = run_id.filter(|_| !pending.is_empty()) {
            note(context, run_id, pending).await?;
        }
        found.due.extend(page.due);
        after = page.next;
        // What has changed is checked and marked as checked a page at a time.
        if after.is_none() || changed {
            found.more = after.is_some();
            return Ok(found);
        }
        // A page that ended early has added up users in vain: the next one asks for about as many as fit.
        limit = u32::try_from(page.scanned * 2).unwrap_or(most).clamp(least, most);
    }
}

/// Notes what a page has found, with what is asked about it, for the plan of the run.
async fn note(context: &Context, run_id: Uuid, pending: Vec<Pending>) -> Result<(), SupabaseError> {
    let asked: Vec<_> = pending.iter().filter_map(Pending::asks).collect();
    let mut details = details::fetch(context, &asked).await?;
    let alerts: Vec<Alert> = pending
        .into_iter()
        .map(|pending| {
            let details = details.remove(&pending.key()).unwrap_or_default();
            pending.alert(details)
        })
        .collect();
    let arguments = json!({"p_run_id": run_id, "p_alerts": alerts, "p_now": context.now});
    context.supabase.rpc::<()>("jobs_note_alerts", &arguments, &context.deadline).await
}

/// Plans what was noted for the run, part by part, the first one in one transaction with the run. What is left, for the
/// time is over or a part failed, is planned by whoever works next: the database keeps it.
pub(super) async fn plan(context: &Context, found: &Found, run: &Value) -> Result<Planned, SupabaseError> {
    let arguments = Arguments { run, p_due: &found.due, p_outline: found.outline() };
    let mut planned: Planned =
        context.supabase.rpc("jobs_plan_alerts", &arguments, &context.deadline).await?;
    let mut further = run.clone();
    further["p_append"] = json!(true);
    let arguments = Arguments { run: &further, p_due: &[], p_outline: json!({}) };
    while planned.left && context.deadline.may_start_work() {
        let part: Result<Planned, _> =
            context.supabase.rpc("jobs_plan_alerts", &arguments, &context.deadline).await;
        let Ok(part) = part else { break };
        planned.add(&part);
    }
    Ok(planned)
}
