//! Signing in with the secret: counted before it is looked at, however many try at once.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::{page, session::Keys};
use crate::{
    crypto::secret,
    entry::{answer::Answer, app::App},
    routes::Route,
    words,
};

/// So many tries with a wrong secret are let in from one address …
const MOST_TRIES: u32 = 10;
/// … and so many from all addresses together: far more, so that a stranger does not lock the
/// operator out …
const MOST_TRIES_TOGETHER: u32 = 300;
/// … within so many seconds.
const TRIES_SECONDS: u32 = 15 * 60;

/// Holds what `jobs_sign_in` answers.
#[derive(Deserialize)]
struct Try {
    allowed: bool,
    retry_after: Option<u64>,
    /// Is carried by a session that begins now.
    epoch: Option<u64>,
}

const WRONG: &str = "Ce n’est pas le bon secret.";

/// Checks the secret from the form: the try is counted before the secret is looked at, however many come at once.
pub(super) async fn sign_in(
    app: &App,
    keys: Option<&Keys>,
    address: Option<IpAddr>,
    given: &str,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer {
    let broken = || {
        page::sign_in(
            503,
            Some(
                "Les essais ne peuvent pas être comptés, car la base de données ne répond pas comme attendu. Demandez cette page avec l’en-tête Authorization : elle dit ce qui manque.",
            ),
        )
    };
    // Without a secret of ours no other is the right one.
    let Some(keys) = keys else { return page::sign_in(401, Some(WRONG)) };
    let Ok(context) = app.context(now, begun) else { return broken() };
    let id = Uuid::new_v4();
    let arguments = json!({
        "p_try": id, "p_address": keys.address_hash(address), "p_most": MOST_TRIES,
        "p_most_together": MOST_TRIES_TOGETHER, "p_seconds": TRIES_SECONDS, "p_now": now,
    });
    let counted: Try = match context.supabase.rpc("jobs_sign_in", &arguments, &context.deadline).await {
        Ok(counted) => counted,
        Err(_) => return broken(),
    };
    if !counted.allowed {
        let seconds = counted.retry_after.unwrap_or(TRIES_SECONDS.into());
        let message = format!(
            "Trop d’essais. Réessayez dans {}, ou demandez cette page avec l’en-tête Authorization.",
            words::counted(seconds.div_ceil(60), "minute", "minutes")
        );
        return page::sign_in(429, Some(&message)).with_header("retry-after", seconds.to_string());
    }
    if !secret::matches(app.config.cron_secret.as_ref(), given.trim()) {
        tracing::warn!("a wrong secret was typed into the sign-in form");
        return page::sign_in(401, Some(WRONG));
    }
    // Where this fails, the right secret has used up one try.
    let _: Result<(), _> =
        context.supabase.rpc("jobs_signed_in", &json!({"p_try": id}), &context.deadline).await;
    match counted.epoch.and_then(|epoch| keys.open(epoch, now)) {
        Some(session) => Answer::see_other(Route::Status.path()).with_header("set-cookie", session.cookie()),
        None => page::sign_in(500, Some("La session n’a pas pu être ouverte.")),
    }
}
