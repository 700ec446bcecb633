//! This module chains invocations of `drain-queue`: each hop works on what is queued and calls the next one while work
//! is left.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use uuid::Uuid;

use crate::{
    failure::Failure,
    http::{NetworkError, fetch},
    routes::Route,
    tasks::{Context, TaskError, drain_until_nothing_waits},
};

/// Names the header that carries a chain's id.
pub const ID_HEADER: &str = "x-jobs-chain";
/// Names the header that says how many hops went before.
pub const HOP_HEADER: &str = "x-jobs-hop";
/// A chain ends here; the next cron goes on. 48 hops of 270 seconds are more than half of six hours.
pub const MOST_HOPS: u32 = 48;

/// Says that items ended as errors, each of which keeps its own reason.
const SOME_FAILED: &str =
    "Des éléments ou des courriels ont échoué ; la page d’état dit lesquels et pourquoi.";

/// Says that the next hop works on what this one had no time for.
const GOES_ON: &str = "Du travail reste dans la file ; l’appel suivant continue.";

/// Says the same of a hop that has ended nothing.
const GOES_ON_WITHOUT_PROGRESS: &str =
    "Rien n’a abouti pendant cet appel, faute de temps ; l’appel suivant continue.";

/// Says what one hop did.
pub struct HopReport {
    pub settled: u64,
    pub errors: u64,
    /// Is true where this hop has left nothing to anybody else.
    pub is_done: bool,
    pub message: Option<String>,
}

/// Works on whatever is queued, in every lane. One chain runs at a time: a hop of another one does nothing.
pub async fn drain_queue(context: &Context, chain: Uuid, hop: u32) -> Result<HopReport, TaskError> {
    let lease = context.tuning.budget.length() + Duration::from_mins(1);
    if !context.queue.hold_chain(chain, lease, &context.deadline).await? {
        tracing::info!(%chain, hop, "another chain is draining");
        let message = "Une autre exécution vide déjà la file.".to_owned();
        return Ok(HopReport { settled: 0, errors: 0, is_done: false, message: Some(message) });
    }
    let drained = drain_until_nothing_waits(context, Route::DrainQueue.path()).await;
    let left = matches!(&drained, Ok(drained) if drained.out_of_time);
    let handoff = if left && hop < MOST_HOPS {
        call_next_hop(context, chain, hop + 1).await
    } else {
        Handoff::NotStarted
    };
    let started = handoff == Handoff::Started;
    // Outcome unknown: keep the lease. The next call may be running; otherwise it expires.
    if handoff == Handoff::NotStarted {
        context.queue.hold_chain(chain, Duration::ZERO, &context.deadline).await?;
    }
    let drained = drained?;
    let arguments = json!({"p_now": context.instant()});
    let closed: u64 = context.supabase.rpc("jobs_close_runs", &arguments, &context.deadline).await?;
    let (settled, failed) = (drained.ended, drained.failed);
    // What passes by itself is no error as long as its lane moves.
    let stalled = settled + failed == 0;
    let standstills = drained.standstills();
    let troubles: Vec<&Failure> = drained
        .blocked
        .iter()
        .chain(&drained.post_blocked)
        .chain(standstills)
        .chain(&drained.faults)
        .collect();
    let errors = failed + drained.attempts_failed + troubles.len() as u64 + u64::from(left && !started);
    tracing::info!(%chain, hop, settled, failed, attempts_failed = drained.attempts_failed, closed, left, goes_on = started, "queue drained");
    let message =
        troubles.into_iter().chain(&drained.attempt_failures).next().map(|one| one.said().to_owned());
    let message = message.or_else(|| (failed > 0).then(|| SOME_FAILED.to_owned()));
    Ok(HopReport {
        settled,
        errors,
        is_done: !left,
        message: message.or_else(|| left.then(|| handoff.left_behind(stalled).to_owned())),
    })
}

/// Says what came of calling the next hop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Handoff {
    /// The next call has begun.
    Started,
    /// The next call was not asked, not reached, or refused, so it did not begin.
    NotStarted,
    /// The answer was lost or says nothing.
    Unknown,
}

impl Handoff {
    /// Returns what becomes of the work that is left; `stalled` where this hop has ended none.
    fn left_behind(self, stalled: bool) -> &'static str {
        match self {
            Self::Started if stalled => GOES_ON_WITHOUT_PROGRESS,
            Self::Started => GOES_ON,
            Self::Unknown => {
                "Du travail reste dans la file ; la suite a été demandée, sans réponse : à défaut, le prochain cron le reprendra."
            }
            Self::NotStarted => "Du travail reste dans la file ; le prochain cron le reprendra.",
        }
    }
}

/// Calls this deployment's `drain-queue`, which goes on with what is queued. Only the configured address ever gets the
/// secret; where none is known (a preview, a developer's machine) the next cron goes on.
pub async fn call_next_hop(context: &Context, chain: Uuid, hop: u32) -> Handoff {
    let (Some(own), Some(secret)) = (&context.config.own_url, &context.config.cron_secret) else {
        tracing::info!("work is left for the next cron");
        return Handoff::NotStarted;
    };
    let (Ok(url), Some(timeout), Ok(bearer)) = (
        own.join(Route::DrainQueue.path()),
        context.deadline.request_timeout(Duration::from_secs(10)),
        bearer(secret),
    ) else {
        tracing::error!(%chain, hop, "no time is left to ask drain-queue to go on");
        return Handoff::NotStarted;
    };
    let request = context
        .http
        .post(url)
        .header(AUTHORIZATION, bearer)
        .header(ID_HEADER, chain.to_string())
        .header(HOP_HEADER, hop);
    // Not repeated after a doubtful answer: the call may have begun a chain already.
    match fetch(request, timeout).await {
        Ok(answer) if answer.status.is_success() => {
            tracing::info!(%chain, hop, "the next invocation goes on");
            Handoff::Started
        }
        Ok(answer) => {
            tracing::error!(%chain, hop, status = answer.status.as_u16(), "drain-queue refused to go on");
            if answer.status.is_server_error() { Handoff::Unknown } else { Handoff::NotStarted }
        }
        Err(error) => {
            tracing::error!(%chain, hop, %error, "drain-queue did not answer");
            if error == NetworkError::Connect { Handoff::NotStarted } else { Handoff::Unknown }
        }
    }
}

fn bearer(secret: &SecretString) -> Result<HeaderValue, reqwest::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.expose_secret()))?;
    value.set_sensitive(true);
    Ok(value)
}
