//! Gives the months that failed on their last day their next chance, with each cron of the days that follow.
//!
//! Everybody's month is read on one morning: what one refusal of that hour took from a user comes back with the next
//! cron, whichever it is, and the recap leaves then, once.

use chrono::{DateTime, Timelike, Utc};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    call::Call,
    context::Context,
    drain::{Scope, work_until_settled},
    outcome::{RunSummary, TaskError, TaskOutcome},
};
use crate::{integrations::users_codes, schedule::LAST_SECOND_CHANCE, supabase::SupabaseError};

/// Crons within so many hours are one occasion.
const OCCASION_HOURS: u32 = 6;

/// Ends the name of the second occasion of a cron, after its sync.
const MENDED: &str = "+";

/// Says what was taken up again.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TakenUp {
    run_id: Option<Uuid>,
    pub(super) items: u64,
}

/// Plans the failed months anew, for a cron that claims slots. Nothing is written where none has failed.
pub(super) async fn plan(context: &Context, call: &Call) -> Result<TakenUp, SupabaseError> {
    plan_as(context, call, occasion(call.at)).await
}

/// Plans those that a sync of this call has found to be readable again: a refusal that only its user can mend is over.
pub(super) async fn plan_mended(context: &Context, call: &Call) -> Result<TakenUp, SupabaseError> {
    plan_as(context, call, format!("{}{MENDED}", occasion(call.at))).await
}

async fn plan_as(context: &Context, call: &Call, occasion: String) -> Result<TakenUp, SupabaseError> {
    if !call.claims_slot() || call.replay || context.integrations.is_err() {
        return Ok(TakenUp::default());
    }
    let arguments = json!({
        "p_run_id": Uuid::new_v4(), "p_occasion": occasion, "p_route": call.route, "p_last_day": LAST_SECOND_CHANCE,
        "p_users_codes": users_codes(), "p_recap": context.mailer.is_ok(), "p_as_of": call.at, "p_now": context.now,
    });
    context.supabase.rpc("jobs_retake_months", &arguments, &context.deadline).await
}

/// Plans them and works on them; where there are none, the task is not due, as `note` says.
pub(super) async fn run(context: &Context, call: &Call, note: String) -> Result<TaskOutcome, TaskError> {
    let taken_up = plan(context, call).await?;
    let outcome = work(context, call, &taken_up).await?;
    Ok(outcome.unwrap_or(TaskOutcome::NotDue { note }))
}

/// Works until the months that were taken up are settled, and reports of them; `None` where there are none.
pub(super) async fn work(
    context: &Context,
    call: &Call,
    taken_up: &TakenUp,
) -> Result<Option<TaskOutcome>, TaskError> {
    let Some(run_id) = taken_up.run_id.filter(|_| taken_up.items > 0) else { return Ok(None) };
    let round = work_until_settled(context, run_id, Scope::Everything(call.route)).await?;
    let mut summary = RunSummary::new(run_id, None, round);
    summary.taken_up = taken_up.items;
    Ok(Some(TaskOutcome::Ran(Box::new(summary))))
}

/// Names the occasion of a cron: `2026-12-01T06Z`.
fn occasion(at: DateTime<Utc>) -> String {
    format!("{}T{:02}Z", at.date_naive(), at.hour() / OCCASION_HOURS * OCCASION_HOURS)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("2026-11-30T12:00:00Z", "2026-11-30T12Z")]
    #[case("2026-12-01T07:03:00Z", "2026-12-01T06Z")]
    #[case("2026-12-01T23:59:59Z", "2026-12-01T18Z")]
    fn occasions_are_the_quarters_of_a_day(#[case] at: &str, #[case] name: &str) {
        assert_eq!(occasion(at.parse().unwrap()), name);
    }
}
