//! What Resend sends to a webhook: bodies and signatures.
//!
//! Bodies after <https://resend.com/docs/webhooks/event-types>, signatures after
//! <https://docs.svix.com/receiving/verifying-payloads/how-manual>. Nothing here sends them.

use anyhow::{Context, Result};
use axum::http::HeaderMap;
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::Uuid;

/// Makes a fresh signing secret, as Resend shows it once: `whsec_` and Base64.
pub fn signing_secret() -> String {
    let bytes = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
    format!("whsec_{}", STANDARD.encode(&bytes[..24]))
}

/// Returns the headers of a webhook whose body is exactly this. `id` stays the same when it is
/// delivered again; `timestamp`, in Unix seconds, does not.
///
/// # Errors
/// When `secret` is not `whsec_` and Base64, or `id` is no header value.
pub fn svix_headers(secret: &str, id: &str, timestamp: i64, body: &str) -> Result<HeaderMap> {
    let key = secret.strip_prefix("whsec_").context("a signing secret starts with whsec_")?;
    let key = STANDARD.decode(key).context("a signing secret is Base64")?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).context("no key for the signature")?;
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "application/json".parse()?);
    headers.insert("svix-id", id.parse()?);
    headers.insert("svix-timestamp", timestamp.into());
    headers.insert("svix-signature", format!("v1,{signature}").parse()?);
    Ok(headers)
}

/// Says what kind of bounce it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounce {
    /// The address does not exist, or is suppressed. Sub-types: `General`, `NoEmail`, `Suppressed`,
    /// `OnAccountSuppressionList`.
    Permanent,
    /// It may work later. Sub-types: `General`, `MailboxFull`, `MessageTooLarge`, `ContentRejected`,
    /// `AttachmentRejected`.
    Transient,
    /// The answer of the other server says neither. Sub-type: `Undetermined`.
    Undetermined,
}

/// Makes `email.delivered`: the other server has the mail `email_id`.
pub fn delivered(email_id: &str, to: &str) -> Value {
    event("email.delivered", email_id, to)
}

/// Makes `email.complained`: the recipient called the mail spam.
pub fn complained(email_id: &str, to: &str) -> Value {
    event("email.complained", email_id, to)
}

/// Makes `email.bounced`, with one of the sub-types of its kind.
///
/// Resend passes on the sub-types of Amazon SES. The types of `resend-rs` 0.35.1 know only `Suppressed` and
/// `MessageRejected`, and cannot read the others.
pub fn bounced(email_id: &str, to: &str, bounce: Bounce, sub_type: &str) -> Value {
    let mut event = event("email.bounced", email_id, to);
    event["data"]["bounce"] = json!({
        "type": format!("{bounce:?}"),
        "subType": sub_type,
        "message": "The recipient's mail server did not take the email.",
    });
    event
}

/// Makes `email.failed`: accepted, and not sent, for instance because of `reached_daily_quota`
/// (<https://resend.com/docs/webhooks/emails/failed>).
pub fn failed(email_id: &str, to: &str, reason: &str) -> Value {
    let mut event = event("email.failed", email_id, to);
    event["data"]["failed"] = json!({"reason": reason});
    event
}

/// Makes `email.suppressed`: the address is on the list of those that get nothing.
pub fn suppressed(email_id: &str, to: &str) -> Value {
    let mut event = event("email.suppressed", email_id, to);
    event["data"]["suppressed"] = json!({
        "message": "Resend has suppressed sending to this address.", "type": "OnAccountSuppressionList",
    });
    event
}

/// Makes `email.delivery_delayed`: the other server did not take it yet, and will be asked again.
pub fn delayed(email_id: &str, to: &str) -> Value {
    event("email.delivery_delayed", email_id, to)
}

/// Makes `suppression.removed`: the address is off the list (<https://resend.com/docs/webhooks/suppressions/removed>).
pub fn suppression_removed(email: &str) -> Value {
    json!({
        "type": "suppression.removed",
        "created_at": HAPPENED,
        "data": {"id": Uuid::new_v4(), "email": email, "origin": "bounce", "source_id": null, "created_at": HAPPENED},
    })
}

/// The events say that they happened then: nobody decides by it, unlike by the signature's time.
const HAPPENED: &str = "2026-11-22T23:41:12.126Z";

fn event(kind: &str, email_id: &str, to: &str) -> Value {
    json!({
        "type": kind,
        "created_at": HAPPENED,
        "data": {
            "created_at": HAPPENED,
            "email_id": email_id,
            "message_id": format!("<{email_id}@example.com>"),
            "from": "Comptalyze <bonjour@example.com>",
            "to": [to],
            "subject": "Déclarez votre chiffre d’affaires",
            "tags": {},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This is the example of Svix's documentation.
    #[test]
    fn signs_as_svix_does() -> Result<()> {
        let (secret, id) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek");
        let headers = svix_headers(secret, id, 1_614_265_330, r#"{"test": 2432232314}"#)?;
        assert_eq!(headers["svix-id"], id);
        assert_eq!(headers["svix-timestamp"], "1614265330");
        assert_eq!(headers["svix-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(svix_headers(&signing_secret(), id, 0, "").is_ok());
        assert!(svix_headers("re_secret", id, 0, "").is_err());
        Ok(())
    }
}
