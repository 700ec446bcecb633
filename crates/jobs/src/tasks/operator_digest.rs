//! Tells the operator, once a day and only when there is something: what failed, was missed, is stuck, or is unknown.
//!
//! Asked after each orchestrator's run, so that each notices when the other has not run.

use chrono::{TimeDelta, Timelike};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    call::{Call, Trigger},
    context::Context,
    drain::send_mails,
    outcome::TaskError,
};
use crate::{
    operations::{
        digest::{Troubles, points, wrong_address},
        own_address::{self, OwnAddress},
        waiting::WAITS_TOO_LONG,
    },
    providers::OUTAGE,
    routes::Route,
    schedule::paris,
};

/// A day's digest leaves from this Paris hour on: not in the night, and after the first crons of the day.
const FROM_HOUR: u32 = 7;
/// A digest tells what happened since the last one, but of this long at most: a first one does not tell of years.
const LONGEST_LOOK_BACK: TimeDelta = TimeDelta::days(8);
/// It tells of this long at least.
const SHORTEST_LOOK_BACK: TimeDelta = TimeDelta::days(1);
/// The arithmetic of missed crons looks at slots and calls of so long ago.
const SLOTS_SINCE: TimeDelta = TimeDelta::days(60);
const CALLS_SINCE: TimeDelta = TimeDelta::days(30);
/// A digest that could not leave for so long is old news.
const OPEN: TimeDelta = TimeDelta::days(3);

/// Plans and sends the day's digest, where there is one. Best effort: the orchestrator's own answer does not depend
/// on it.
pub async fn tell(context: &Context, call: &Call) {
    let wanted = call.trigger == Trigger::Cron && !call.dry_run && !call.replay && call.user_id.is_none();
    let Some(address) = context.config.operator_email.as_deref().filter(|_| wanted) else { return };
    if paris::local(context.now).hour() < FROM_HOUR || context.mailer.is_err() {
        return;
    }
    if let Err(error) = plan(context, call, address).await {
        tracing::error!(%error, "the operator's digest failed");
    }
}

async fn plan(context: &Context, call: &Call, address: &str) -> Result<(), TaskError> {
    let arguments = json!({
        "p_first_since": context.now - LONGEST_LOOK_BACK, "p_latest_since": context.now - SHORTEST_LOOK_BACK,
        "p_stuck_before": context.now - WAITS_TOO_LONG, "p_slots_since": context.now - SLOTS_SINCE,
        "p_calls_since": context.now - CALLS_SINCE, "p_outage": OUTAGE, "p_now": context.now,
    });
    let troubles: Troubles = context.supabase.rpc("jobs_troubles", &arguments, &context.deadline).await?;
    let mut points = points(&troubles, call.route, context.now, context.tuning.schedule, context.tuning.file);
    let own = own_address::look(&context.http, &context.config, &context.deadline).await;
    points.extend(own.and_then(OwnAddress::fault).map(|fault| wrong_address(&fault)));
    if points.is_empty() {
        return Ok(());
    }
    let jobs_url = context.config.mail.as_ref().map_or("", |mail| mail.jobs_url.as_str());
    let day = paris::date(context.now);
    let arguments = json!({
        "p_run_id": Uuid::new_v4(), "p_route": call.route, "p_now": context.now,
        "p_expires_at": context.now + OPEN,
        "p_facts": {"to": address, "day": day, "points": points, "status_url": format!("{jobs_url}{}", Route::Status.path())},
    });
    let planned: Value = context.supabase.rpc("jobs_plan_digest", &arguments, &context.deadline).await?;
    if planned["state"] == "planned" {
        tracing::info!(points = points.len(), "the operator is told");
        send_mails(context).await?;
    }
    Ok(())
}
