//! What the pages behind a mail's links have in common: a frame, the methods, and what they say when something is wrong.

use std::borrow::Cow;

use askama::Template;

use super::{answer::Answer, app::App};
use crate::{
    config::Config,
    email::{LinkKeys, links},
};

/// Says after how many seconds a mail program may ask again.
const ASK_AGAIN: &str = "300";

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    title: &'a str,
    paragraphs: &'a [Cow<'a, str>],
    button: Option<&'a str>,
    app_url: &'a str,
}

/// Answers a method that neither shows nor changes anything; returns `None` for the others.
pub(super) fn other_method(app: &App, method: &str) -> Option<Answer> {
    match method {
        "GET" | "POST" => None,
        "HEAD" | "OPTIONS" => Some(Answer::empty(204).with_header("allow", app.route.allow())),
        _ => Some(Answer::wrong_method(app.route)),
    }
}

/// Returns what `read` makes of the token in a query, or the page that says what is wrong.
pub(super) fn follow<T>(
    config: &Config,
    query: &str,
    read: impl Fn(&LinkKeys, &str) -> Option<T>,
) -> Result<T, Answer> {
    let keys = config.link_keys.as_ref().map_err(|faults| {
        tracing::error!(%faults, "configuration");
        trouble(config, 500)
    })?;
    let token = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == links::PARAMETER);
    token.and_then(|(_, token)| read(keys, &token)).ok_or_else(|| {
        page(
            config,
            400,
            "Ce lien n’est pas valable",
            &["Il est incomplet ou a été modifié. Ouvrez-le directement depuis le courriel, sans le recopier.".into()],
            None,
        )
    })
}

/// Says that nothing was changed, for a reason of ours.
pub(super) fn trouble(config: &Config, status: u16) -> Answer {
    let told = page(
        config,
        status,
        "Votre demande n’a pas pu être enregistrée",
        &["Le problème vient de nous. Réessayez dans quelques minutes avec le même lien : il reste valable."
            .into()],
        None,
    );
    // A mail program that asked in one click learns that it may ask again, and when.
    if status == 503 { told.with_header("retry-after", ASK_AGAIN) } else { told }
}

/// Shows a page of paragraphs, with one button or none.
pub(super) fn page(
    config: &Config,
    status: u16,
    title: &str,
    paragraphs: &[Cow<str>],
    button: Option<&str>,
) -> Answer {
    let html = Page { title, paragraphs, button, app_url: app_url(config) }.render().unwrap_or_default();
    Answer::page(status, html)
}

/// Returns where the web application is.
pub(super) fn app_url(config: &Config) -> &str {
    config.mail.as_ref().map_or("https://comptalyze.com", |mail| mail.app_url.as_str())
}
