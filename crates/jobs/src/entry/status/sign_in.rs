//! Signing in with the secret: counted before it is looked at, however many try at once.

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

/// Tries with a wrong secret, of all callers together …
const MOST_TRIES: u32 = 10;
/// … in this long.
const TRIES_SECONDS: u32 = 15 * 60;
#[derive(Deserialize)]
struct Try {
    allowed: bool,
    retry_after: Option<u64>,
}

/// The secret from the form: counted before it is looked at, however many come at once.
pub(super) async fn sign_in(
    app: &App,
    keys: Option<&Keys>,
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
    let Ok(context) = app.context(now, begun) else { return broken() };
    let id = Uuid::new_v4();
    let arguments = json!({"p_try": id, "p_most": MOST_TRIES, "p_seconds": TRIES_SECONDS});
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
        return page::sign_in(401, Some("Ce n’est pas le bon secret."));
    }
    // Where this fails, the right secret has used up one try.
    let _: Result<(), _> =
        context.supabase.rpc("jobs_signed_in", &json!({"p_try": id}), &context.deadline).await;
    match keys.and_then(|keys| keys.open(now)) {
        Some(session) => Answer::see_other(Route::Status.path()).with_header("set-cookie", session.cookie()),
        None => page::sign_in(500, Some("La session n’a pas pu être ouverte.")),
    }
}
