//! `/api/webhooks/resend`: what became of mails that left. Signed by Svix, at least once each.

use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use reqwest::header::HeaderMap;
use tokio::time::Instant;
use vercel_runtime::Error;

use super::{
    answer::{Answer, Fields},
    app::App,
    body,
};
use crate::{
    config::Config,
    crypto::svix::{self, Headers, Refusal},
    email::feedback::Event,
    tasks::Context,
};

/// An event of the mail service with a whole list of recipients is no larger.
const LARGEST_EVENT: usize = 256 * 1024;

/// Holds the headers that sign a request.
pub(super) struct Signed {
    id: String,
    timestamp: String,
    signatures: String,
}

impl Signed {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let header = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        Self {
            id: header("svix-id"),
            timestamp: header("svix-timestamp"),
            signatures: header("svix-signature"),
        }
    }
}

/// Answers a request. It brings no secret: its body is signed.
pub(super) async fn answer<B>(
    app: &App,
    method: &str,
    signed: &Signed,
    body: B,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    match method {
        "POST" => {}
        "HEAD" | "OPTIONS" => return Answer::empty(204).with_header("allow", app.route.allow()),
        _ => return Answer::wrong_method(app.route),
    }
    let Some(body) = body::read(body, LARGEST_EVENT).await else {
        return Answer::error(400, "Corps illisible ou trop grand.");
    };
    let event = match verify(&app.config, signed, &body, now) {
        Ok(event) => event,
        Err(answer) => return answer,
    };
    match app.context(now, begun) {
        Ok(context) => note(&context, &signed.id, &event).await,
        Err(answer) => answer,
    }
}

/// Verifies a webhook, or answers why it is refused.
fn verify(config: &Config, signed: &Signed, body: &[u8], now: DateTime<Utc>) -> Result<Event, Answer> {
    let secret = config.webhook_secret.as_ref().map_err(|faults| {
        tracing::error!(%faults, "configuration");
        Answer::error(500, &faults.to_string())
    })?;
    let headers = Headers { id: &signed.id, timestamp: &signed.timestamp, signatures: &signed.signatures };
    svix::verify(secret, headers, body, now).map_err(|refusal| {
        tracing::warn!(%refusal, "webhook refused");
        match refusal {
            Refusal::Secret => {
                Answer::error(500, "RESEND_WEBHOOK_SECRET est illisible : recopiez-le depuis Resend.")
            }
            Refusal::OutOfTime => Answer::error(401, "Horodatage refusé : trop ancien ou dans le futur."),
            Refusal::Malformed | Refusal::Forged => Answer::error(401, "Signature refusée."),
        }
    })?;
    serde_json::from_slice(body)
        .map_err(|_| Answer::error(400, "Corps illisible : ce n’est pas un événement de Resend."))
}

/// Stores a verified event.
async fn note(context: &Context, id: &str, event: &Event) -> Answer {
    match event.note(id, context.now, &context.supabase, &context.deadline).await {
        Ok(new) => Answer::json(200, &Fields::new().with("received", &true).with("new", &new)),
        // Svix comes back.
        Err(error) => {
            let status = if error.is_configuration() { 500 } else { 503 };
            Answer::error(status, &error.user_message())
        }
    }
}
