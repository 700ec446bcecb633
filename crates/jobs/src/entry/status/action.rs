//! What an operator may have done: a missed slot replayed, a lane's work retried. Both begin at once and go on after
//! the answer.

use serde_json::{Value, json};
use uuid::Uuid;
use vercel_runtime::AppState;

use super::{refused::Refused, user::Wanted};
use crate::{
    chain,
    entry::{answer::Fields, log, shape},
    lane::Lane,
    operations::facts::FAILURES_SINCE,
    orchestrator,
    routes::Route,
    schedule::{Occurrence, Task, find_occurrence, replay_of},
    tasks::{Call, Context, Trigger},
};

/// Says what a form or a caller asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Action {
    Replay {
        task: Task,
        slot: String,
    },
    Retry {
        lane: Lane,
    },
    /// Finds a user by id or address.
    Find {
        who: String,
    },
    /// Something for one user.
    ForUser(Wanted),
    SignOut,
}

/// Represents an action that was started.
pub(super) struct Started {
    /// The word by which the page finds its text in [`NOTICES`](super::notice::NOTICES).
    pub(super) notice: &'static str,
    /// Holds the answer to a caller.
    pub(super) fields: Fields,
}

/// Reads a form. An error names the field.
pub(super) fn read(value: impl Fn(&str) -> Option<String>) -> Result<Action, Refused> {
    let bad = |message: &str| Refused::new(400, message);
    match value("action").as_deref() {
        Some("replay") => {
            let task = value("task")
                .and_then(|task| task.parse().ok())
                .ok_or_else(|| bad("Champ task : tâche inconnue."))?;
            let slot = value("slot").ok_or_else(|| bad("Champ slot : absent."))?;
            Ok(Action::Replay { task, slot })
        }
        Some("retry") => {
            let lane = value("lane").and_then(|lane| Lane::from_stored(&lane));
            Ok(Action::Retry { lane: lane.ok_or_else(|| bad("Champ lane : file inconnue."))? })
        }
        Some("find") => match value("who").filter(|who| !who.trim().is_empty()) {
            Some(who) => Ok(Action::Find { who }),
            None => Err(bad("Champ who : un identifiant ou une adresse entière est attendu.")),
        },
        Some("sign-out") => Ok(Action::SignOut),
        _ => match Wanted::read(value) {
            Some(wanted) => wanted.map(Action::ForUser),
            None => {
                Err(bad("Champ action : replay, retry, find ou une action pour un utilisateur est attendu."))
            }
        },
    }
}

/// Replays a slot through the code of its cron, which claims it: it is planned once, whoever asks again.
pub(super) fn replay(context: Context, state: &AppState, task: Task, slot: &str) -> Result<Started, Refused> {
    let Some((call, occurrence)) = replay_call(&context, task, slot)? else {
        return Err(Refused::new(400, "Champ slot : ce créneau n’existe pas, ou il est trop ancien."));
    };
    let fields = Fields::new()
        .with("message", "Rejeu lancé")
        .with("task", &task)
        .with("slot", &occurrence.slot)
        .with("at", &call.at);
    state.wait_until(async move {
        let outcomes = orchestrator::run(&context, &call, &[task]).await;
        let verdict = shape::verdict(&outcomes);
        let details = json!({"at": call.at, "task": task, "slot": occurrence.slot});
        leave_row(
            &context,
            call.log_type(),
            verdict.status,
            verdict.records,
            verdict.error.as_deref(),
            &details,
        )
        .await;
    });
    Ok(Started { notice: "rejeu", fields })
}

fn replay_call(context: &Context, task: Task, slot: &str) -> Result<Option<(Call, Occurrence)>, Refused> {
    let (now, tuning) = (context.now, &context.tuning);
    let Some(occurrence) = find_occurrence(task, slot, now, tuning.schedule) else {
        return Ok(None);
    };
    let at = replay_of(&occurrence, now, tuning.schedule)
        .map_err(|why| Refused::new(409, format!("Ce créneau ne peut plus être rejoué : {why}.")))?;
    let call = Call {
        route: Route::Status.path(),
        via: occurrence.via(),
        trigger: Trigger::Cron,
        at,
        replay: true,
        dry_run: false,
        user_id: None,
        force: false,
        month: None,
        days: None,
    };
    Ok(Some((call, occurrence)))
}

/// Retries a lane, then works on all of them as `drain-queue` does.
pub(super) async fn retry(context: Context, state: &AppState, lane: Lane) -> Result<Started, Refused> {
    let arguments = json!({
        "p_run_id": Uuid::new_v4(), "p_lane": lane, "p_route": Route::Status.path(),
        "p_failed_since": context.now - FAILURES_SINCE, "p_now": context.now,
    });
    let retried: Value =
        context.supabase.rpc("jobs_retry", &arguments, &context.deadline).await.map_err(|error| {
            Refused::new(if error.is_configuration() { 500 } else { 503 }, error.user_message())
        })?;
    let count = |name: &str| retried[name].as_u64().unwrap_or_default();
    let (woken, mails, planned) = (count("woken"), count("mails"), count("planned"));
    state.wait_until(async move {
        let drained = chain::drain_queue(&context, Uuid::new_v4(), 0).await;
        let (status, error) = match &drained {
            Ok(drained) if drained.errors == 0 => ("success", None),
            Ok(drained) => ("partial", drained.message.clone()),
            Err(error) => ("error", Some(error.user_message())),
        };
        let details = json!({"retry": lane, "woken": woken, "mails": mails, "planned": planned});
        leave_row(&context, "manual", status, 0, error.as_deref(), &details).await;
    });
    let fields = Fields::new()
        .with("message", "Reprise lancée")
        .with("lane", &lane)
        .with("woken", &woken)
        .with("mails", &mails)
        .with("planned", &planned);
    Ok(Started { notice: if woken + mails + planned == 0 { "rien" } else { "reprise" }, fields })
}

async fn leave_row(
    context: &Context,
    kind: &str,
    status: &str,
    records: u64,
    error: Option<&str>,
    details: &Value,
) {
    log::call(context, Route::Status.path(), kind, status, records, error, details).await;
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn asked(form: &[(&str, &str)]) -> Result<Action, u16> {
        let value =
            |name: &str| form.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        read(value).map_err(|refused| refused.status)
    }

    #[rstest]
    #[case(&[("action", "sign-out")], Ok(Action::SignOut))]
    #[case(&[("action", "retry"), ("lane", "stripe")], Ok(Action::Retry { lane: Lane::Stripe }))]
    #[case(
        &[("action", "replay"), ("task", "monthly_sync"), ("slot", "2026-10")],
        Ok(Action::Replay { task: Task::MonthlySync, slot: "2026-10".into() })
    )]
    #[case(&[("action", "retry"), ("lane", "q_jobs_stripe; drop")], Err(400))]
    #[case(&[("action", "retry")], Err(400))]
    #[case(&[("action", "replay"), ("task", "x"), ("slot", "2026-10")], Err(400))]
    #[case(&[("action", "replay"), ("task", "monthly_sync")], Err(400))]
    #[case(&[("action", "delete")], Err(400))]
    #[case(&[("action", "find"), ("who", " ")], Err(400))]
    #[case(&[("action", "find"), ("who", "a@b.fr")], Ok(Action::Find { who: "a@b.fr".into() }))]
    #[case(&[("action", "resend-mails")], Err(400))]
    #[case(&[], Err(400))]
    fn a_form_is_read_or_refused(#[case] form: &[(&str, &str)], #[case] expected: Result<Action, u16>) {
        assert_eq!(asked(form), expected);
    }
}
