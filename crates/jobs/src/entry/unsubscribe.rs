//! `/api/unsubscribe`: whoever holds a mail's link stops that kind of mail, and nothing else.
//!
//! `GET` shows a page with one button and changes nothing: mail scanners open links. `POST` stops the kind, again
//! and again with the same answer, 200 without a redirect, whatever form body comes with it (RFC 8058).

use std::borrow::Cow;

use askama::Template;
use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;
use vercel_runtime::Error;

use super::{answer::Answer, app::App, body};
use crate::{
    config::Config, crypto::keys::PurposeKey, email::links, mail_kind::MailKind, supabase::SupabaseError,
};

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    title: &'a str,
    paragraphs: &'a [Cow<'a, str>],
    button: Option<&'a str>,
    app_url: &'a str,
}

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
    match method {
        "GET" | "POST" => {}
        "HEAD" | "OPTIONS" => return Answer::empty(204).with_header("allow", app.route.allow()),
        _ => return Answer::error(405, "Méthode non autorisée.").with_header("allow", app.route.allow()),
    }
    match read_request(&app.config, method, query) {
        LinkRequest::Answered(answer) => answer,
        LinkRequest::Stop(user, kind) => {
            // What the form says is not looked at: the link is what counts. Read, so that the connection stays good.
            let _ = body::read(body, LARGEST_FORM).await;
            let Ok(context) = app.context(now, begun) else { return trouble(&app.config, 500) };
            let arguments = json!({"p_user_id": user, "p_kind": kind.as_str()});
            let written = context.supabase.rpc("mail_unsubscribe", &arguments, &context.deadline).await;
            stopped(&app.config, kind, written)
        }
    }
}

/// Says what a request is about.
enum LinkRequest {
    /// There was nothing, or nothing of ours: this page says so.
    Answered(Answer),
    /// A button was pressed, by a person or by their mail program.
    Stop(Uuid, MailKind),
}

/// Reads a request; changes nothing.
fn read_request(config: &Config, method: &str, query: &str) -> LinkRequest {
    let key = match &config.link_key {
        Ok(key) => key,
        Err(faults) => {
            tracing::error!(%faults, "configuration");
            return LinkRequest::Answered(trouble(config, 500));
        }
    };
    let Some((user, kind)) = read(query, key) else {
        return LinkRequest::Answered(page(
            config,
            400,
            "Ce lien n’est pas valable",
            &["Il est incomplet ou a été modifié. Ouvrez-le directement depuis le courriel, sans le recopier.".into()],
            None,
        ));
    };
    match method {
        "POST" => LinkRequest::Stop(user, kind),
        _ => LinkRequest::Answered(page(
            config,
            200,
            "Ne plus recevoir ces courriels ?",
            &[
                format!("Vous ne recevrez plus {}.", kind.refused_as()).into(),
                "Vos autres courriels ne changent pas.".into(),
            ],
            Some("Me désabonner"),
        )),
    }
}

/// Returns whom and what a query's link names.
fn read(query: &str, key: &PurposeKey) -> Option<(Uuid, MailKind)> {
    let (_, token) = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == links::PARAMETER)?;
    links::read(key, &token)
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

/// Says that nothing was changed, for a reason of ours.
fn trouble(config: &Config, status: u16) -> Answer {
    page(
        config,
        status,
        "Votre demande n’a pas pu être enregistrée",
        &["Le problème vient de nous. Réessayez dans quelques minutes avec le même lien : il reste valable."
            .into()],
        None,
    )
}

fn page(config: &Config, status: u16, title: &str, paragraphs: &[Cow<str>], button: Option<&str>) -> Answer {
    let app_url = config.mail.as_ref().map_or("https://comptalyze.com", |mail| mail.app_url.as_str());
    let html = Page { title, paragraphs, button, app_url }.render().unwrap_or_default();
    Answer::page(status, html)
}
