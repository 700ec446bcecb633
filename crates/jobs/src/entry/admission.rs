//! Letting a caller in: by the secret, with parameters that the route knows, and nothing in the body.

use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::time::Instant;
use vercel_runtime::Error;

use super::{
    answer::Answer,
    app::App,
    body, log,
    request::{self, Admission, Incoming, admit},
};
use crate::tasks::Call;

/// No route that runs tasks takes a body: this is enough to see that there is none.
const LARGEST_BODY: usize = 1024;

/// Says what a caller who was let in asks for.
pub(super) enum Admitted {
    Run(Box<Call>),
    Drain,
}

/// Lets a call in, or answers why not. Whoever knows the secret leaves a trace, also of a mistake.
pub(super) async fn let_in<B>(
    app: &App,
    incoming: &Incoming<'_>,
    body: B,
    now: DateTime<Utc>,
    begun: Instant,
) -> Result<Admitted, Answer>
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    // A broken configuration is said as such, not as a bad parameter.
    let replay_max_days =
        app.config.tuning.as_ref().map_or(u16::MAX, |tuning| tuning.schedule.replay_max_days());
    if app.config.cron_secret.is_none() {
        tracing::error!("CRON_SECRET is not set: nobody is let in");
    }
    let refusal = match admit(app.route, incoming, app.config.cron_secret.as_ref(), replay_max_days, now) {
        Admission::Refuse(answer) => answer,
        admitted if !is_empty(body).await => {
            drop(admitted);
            request::parameters_in_body()
        }
        Admission::Run(call) => return Ok(Admitted::Run(call)),
        Admission::Drain => return Ok(Admitted::Drain),
    };
    if refusal.status() == 400
        && let Ok(context) = app.context(now, begun)
    {
        let (path, kind) = (app.route.path(), app.route.log_type());
        log::call(&context, path, kind, "error", 0, refusal.complaint(), &json!({})).await;
    }
    Err(refusal)
}

/// Tells whether a request's body says nothing. One that does not end is one that says something.
async fn is_empty<B>(body: B) -> bool
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    body::read(body, LARGEST_BODY).await.is_some_and(|bytes| request::says_nothing(&bytes))
}
