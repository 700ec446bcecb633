//! `/api/unsubscribe`: whoever holds a mail's link stops that kind of mail, and nothing else.
//!
//! `GET` shows a page with one button and changes nothing: mail scanners open links. `POST` stops the kind, again
//! and again with the same answer, 200 without a redirect, whatever form body comes with it (RFC 8058).

use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::time::Instant;
use vercel_runtime::Error;

use super::{
    answer::Answer,
    app::App,
    body,
    link_page::{follow, other_method, page, trouble},
};
use crate::{
    config::Config,
    email::{links, objections},
    mail_kind::MailKind,
    supabase::SupabaseError,
};

/// A form of ours or a mail program's is no larger.
const LARGEST_FORM: usize = 64 * 1024;

/// Answers a request. It brings no secret: the link in its query is signed.
pub(super) async fn answer<B>(
    app: &App,
    method: &str,
    query: &str,
    body: B,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    if let Some(answer) = other_method(app, method) {
        return answer;
    }
    let (user, kind) = match follow(&app.config, query, links::read_unsubscribe) {
        Ok(link) => link,
        Err(answer) => return answer,
    };
    if method != "POST" {
        return asked(&app.config, kind);
    }
    // What the form says is not looked at: the link is what counts. Read, so that the connection stays good.
    let _ = body::read(body, LARGEST_FORM).await;
    let Ok(context) = app.context(now, begun) else { return trouble(&app.config, 500) };
    let arguments = json!({"p_user_id": user, "p_kind": kind.as_str()});
    let written = context.supabase.rpc("mail_unsubscribe", &arguments, &context.deadline).await;
    // The account may be gone before the next cron notes it.
    if let (MailKind::MarketingDay3, Ok(true), Ok(keys)) = (kind, &written, &app.config.link_keys) {
        let kept = objections::keep(keys, Some(user), now, &context.supabase, &context.deadline).await;
        if let Err(error) = kept {
            tracing::warn!(%error, "the objection is kept with the next offers");
        }
    }
    stopped(&app.config, kind, written)
}

/// Shows the page before the button.
fn asked(config: &Config, kind: MailKind) -> Answer {
    page(
        config,
        200,
        "Ne plus recevoir ces courriels ?",
        &[
            format!("Vous ne recevrez plus {}.", kind.refused_as()).into(),
            "Vos autres courriels ne changent pas.".into(),
        ],
        Some("Me désabonner"),
    )
}

/// Shows the page after the button, the same the second time.
fn stopped(config: &Config, kind: MailKind, written: Result<bool, SupabaseError>) -> Answer {
    match written {
        // Whoever has no account any more gets no mail either.
        Ok(_) => page(
            config,
            200,
            "C’est noté",
            &[
                format!("Vous ne recevrez plus {}.", kind.refused_as()).into(),
                "Vous pouvez changer d’avis dans les préférences de votre compte.".into(),
            ],
            None,
        ),
        Err(error) if error.is_configuration() => trouble(config, 500),
        Err(_) => trouble(config, 503),
    }
}
