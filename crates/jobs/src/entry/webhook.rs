//! `/api/webhooks/resend`: what became of mails that left. Signed by Svix, at least once each.

use chrono::{DateTime, Utc};

use super::answer::{Answer, Fields};
use crate::{
    config::Config,
    crypto::svix::{self, Headers, Refusal},
    email::feedback::Event,
    tasks::Context,
};

/// What a request's headers say.
pub(super) struct Signed {
    pub(super) id: String,
    pub(super) timestamp: String,
    pub(super) signatures: String,
}

/// Verifies a webhook, or answers why it is refused.
pub(super) fn verify(
    config: &Config,
    signed: &Signed,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<Event, Answer> {
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
pub(super) async fn note(context: &Context, id: &str, event: &Event) -> Answer {
    match event.note(id, &context.supabase, &context.deadline).await {
        Ok(new) => Answer::json(200, &Fields::new().with("received", &true).with("new", &new)),
        // Svix comes back.
        Err(error) => {
            let status = if error.is_configuration() { 500 } else { 503 };
            Answer::error(status, &error.user_message())
        }
    }
}
