//! `/api/status`: how everything is, for the operator, and what they may have done about it.
//!
//! The Bearer sees it as JSON or as a page. A browser gets there with a form: the secret, once, for a signed cookie of
//! thirty minutes, which signing out makes worthless at once. `GET` changes nothing. Every action is a `POST`; from a browser it carries the session's token.

mod action;
mod chart;
mod client;
mod ended;
mod page;
mod session;
mod sign_in;

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use reqwest::header::{self, HeaderMap, HeaderName};
use tokio::time::Instant;
use vercel_runtime::{AppState, Error};

use self::{
    action::{Action, NOTICES},
    ended::{NOT_VERIFIED, is_ended, sign_out},
    page::Viewer,
    session::{Keys, Session},
    sign_in::sign_in,
};
use super::{answer::Answer, app::App, form::Form, request};
use crate::{
    crypto::secret,
    deadline::Deadline,
    operations::{
        facts,
        health::{self, Live},
        view::{Status, slot_days},
    },
    routes::Route,
};

/// A request, as far as it matters here.
pub(super) struct PageRequest<'a> {
    method: &'a str,
    query: &'a str,
    authorization: Option<String>,
    cookies: String,
    accept: String,
    /// The client's address, as the platform says it.
    address: Option<IpAddr>,
}

impl<'a> PageRequest<'a> {
    pub(super) fn new(method: &'a str, query: &'a str, headers: &HeaderMap) -> Self {
        let header = |name: HeaderName| {
            let values = headers.get_all(name).iter();
            values.filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join("; ")
        };
        Self {
            method,
            query,
            authorization: headers.contains_key(header::AUTHORIZATION).then(|| header(header::AUTHORIZATION)),
            cookies: header(header::COOKIE),
            accept: header(header::ACCEPT),
            address: client::address(headers),
        }
    }
}

impl PageRequest<'_> {
    /// Browsers name HTML among others; whoever wants JSON names it alone.
    fn wants_json(&self) -> bool {
        self.accept.contains("application/json") && !self.accept.contains("text/html")
    }

    /// An error in the form that the caller reads.
    fn refuse(&self, status: u16, message: &str) -> Answer {
        if self.wants_json() { Answer::error(status, message) } else { page::message(status, message) }
    }
}

/// Tells who asks.
enum Caller {
    Bearer,
    Browser(Session),
    Nobody,
}

/// Answers a request.
pub(super) async fn answer<B>(
    app: &App,
    request: &PageRequest<'_>,
    body: B,
    state: AppState,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    let answered = respond(app, request, body, &state, now, begun).await;
    answered.with_header("vary", "Accept, Authorization, Cookie")
}

async fn respond<B>(
    app: &App,
    request: &PageRequest<'_>,
    body: B,
    state: &AppState,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    match request.method {
        "GET" | "POST" => {}
        "HEAD" | "OPTIONS" => return Answer::empty(204).with_header("allow", Route::Status.allow()),
        _ => {
            return Answer::error(405, "Méthode non autorisée.").with_header("allow", Route::Status.allow());
        }
    }
    let notice = match notice(request) {
        Ok(notice) => notice,
        Err(complaint) => return request.refuse(400, &complaint),
    };
    let keys = app.config.cron_secret.as_ref().map(Keys::new);
    if keys.is_none() {
        tracing::error!("CRON_SECRET is not set: nobody is let in");
    }
    let caller = match &request.authorization {
        Some(header) => {
            if !secret::matches(app.config.cron_secret.as_ref(), request::bearer(header).unwrap_or_default())
            {
                return request::unauthorized();
            }
            Caller::Bearer
        }
        None => match keys.as_ref().and_then(|keys| keys.read(&request.cookies, now)) {
            Some(session) => match is_over(app, &session).await {
                Some(false) => Caller::Browser(session),
                Some(true) => Caller::Nobody,
                None => return request.refuse(503, NOT_VERIFIED),
            },
            None => Caller::Nobody,
        },
    };
    if request.method == "GET" {
        let token = match (&caller, &keys) {
            (Caller::Nobody, _) if request.wants_json() => return request::unauthorized(),
            (Caller::Nobody, _) => return page::sign_in(200, None),
            (Caller::Browser(session), Some(keys)) => Some(keys.form_token(session)),
            _ => None,
        };
        return show(app, request, token, notice, now).await;
    }

    let Some(form) = Form::read(body).await else {
        return request.refuse(400, "Formulaire illisible ou trop grand.");
    };
    match (caller, &keys) {
        (Caller::Bearer, _) => act(app, request, None, &form, state, now, begun).await,
        (Caller::Browser(session), Some(keys)) if form.value("secret").is_none() => {
            if !keys.is_own_form(&session, form.value("csrf").unwrap_or_default()) {
                return request
                    .refuse(403, "Ce formulaire n’est plus valable : rouvrez la page et recommencez.");
            }
            act(app, request, Some(&session), &form, state, now, begun).await
        }
        (_, keys) => match form.value("secret") {
            Some(given) => sign_in(app, keys.as_ref(), request.address, given, now, begun).await,
            None if request.wants_json() => request::unauthorized(),
            None => page::sign_in(401, Some("La session est terminée : connectez-vous à nouveau.")),
        },
    }
}

/// Whether the session was ended; `None` where the database cannot be asked.
async fn is_over(app: &App, session: &Session) -> Option<bool> {
    let supabase = app.parts().ok()?.supabase.as_ref().ok()?;
    is_ended(supabase, session, &page_deadline()).await.ok()
}

/// How long the page asks the database: longer than a live check does.
fn page_deadline() -> Deadline {
    let end = Instant::now() + 4 * health::TIMEOUT;
    Deadline::new(end, end)
}

/// What the page is to say, after an action. Never a secret: that would be in logs by now.
fn notice(request: &PageRequest) -> Result<Option<&'static str>, String> {
    let mut notice = None;
    for (name, value) in form_urlencoded::parse(request.query.as_bytes()) {
        notice = match name.as_ref() {
            "secret" => {
                return Err("Le secret ne se met jamais dans l’adresse : elle reste dans les journaux. Changez CRON_SECRET s’il vient d’y être écrit.".into());
            }
            "fait" if request.method == "GET" => {
                NOTICES.iter().find(|(known, _)| *known == value).map(|(_, text)| *text)
            }
            // The name is the caller's: cut, and escaped like every text.
            name => {
                return Err(format!("Paramètre inconnu : {}.", name.chars().take(40).collect::<String>()));
            }
        };
    }
    Ok(notice)
}

/// Does what a form or a caller asks for.
async fn act(
    app: &App,
    request: &PageRequest<'_>,
    session: Option<&Session>,
    form: &Form,
    state: &AppState,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer {
    let bearer = request.authorization.is_some();
    let asked = match action::read(|name| form.value(name).map(str::to_owned)) {
        Ok(Action::SignOut) => {
            let supabase = app.parts().ok().and_then(|parts| parts.supabase.as_ref().ok());
            return sign_out(supabase, session, &page_deadline()).await;
        }
        Ok(asked) => asked,
        Err(refused) => return request.refuse(refused.status, &refused.message),
    };
    let context = match app.context(now, begun) {
        Ok(context) => context,
        Err(answer) => {
            return request.refuse(
                answer.status(),
                answer.complaint().unwrap_or("Erreur interne ; voir les journaux."),
            );
        }
    };
    let begun = match asked {
        Action::Replay { task, slot } => action::replay(context, state, task, &slot),
        Action::Retry { lane } => action::retry(context, state, lane).await,
        Action::SignOut => return Answer::empty(204),
    };
    match begun {
        Ok(begun) if bearer => Answer::json(202, &begun.fields),
        Ok(begun) => Answer::see_other(format!("{}?fait={}", Route::Status.path(), begun.notice)),
        Err(refused) => request.refuse(refused.status, &refused.message),
    }
}

/// Looks at everything at once and tells it.
async fn show(
    app: &App,
    request: &PageRequest<'_>,
    token: Option<String>,
    notice: Option<&str>,
    now: DateTime<Utc>,
) -> Answer {
    let parts = match app.parts() {
        Ok(parts) => parts,
        Err(message) => return request.refuse(500, &message),
    };
    let tuning = app.config.tuning.as_ref().copied().unwrap_or_default();
    // Stripe is asked of an account that the database knows.
    let facts_and_stripe = async {
        let facts = match &parts.supabase {
            Ok(supabase) => Some(facts::ask(supabase, now, slot_days(&tuning), &page_deadline()).await),
            Err(_) => None,
        };
        let known = facts.as_ref().and_then(|facts| facts.as_ref().ok());
        let account = known.and_then(|facts| facts.integrations.stripe_account.as_deref());
        let stripe = match &parts.integrations {
            Ok(clients) => Some(clients.check_stripe(account, &health::deadline()).await),
            Err(_) => None,
        };
        (facts, stripe)
    };
    let domain = async { Some(app.mailer(parts, now).ok()?.domain(health::TIMEOUT).await) };
    let ((facts, stripe), domain) = tokio::join!(facts_and_stripe, domain);
    let health = health::checks(&app.config, facts.as_ref(), &Live { stripe, domain });
    let status = Status::new(now, &tuning, health, facts.and_then(Result::ok));
    if request.wants_json() {
        return Answer::object(200, &status);
    }
    page::status(&status, &Viewer { token: token.as_deref() }, notice)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn request<'a>(query: &'a str, accept: &str) -> PageRequest<'a> {
        PageRequest {
            method: "GET",
            query,
            authorization: None,
            cookies: String::new(),
            accept: accept.to_owned(),
            address: None,
        }
    }

    #[rstest]
    #[case("", Ok(None))]
    #[case("fait=rejeu", Ok(Some("Le rejeu est lancé.")))]
    // Only our own words are shown.
    #[case("fait=%3Cscript%3E", Ok(None))]
    #[case("secret=abc", Err("dans l’adresse"))]
    #[case("fait=rejeu&secret=", Err("dans l’adresse"))]
    #[case("page=2", Err("page"))]
    fn the_address(#[case] query: &str, #[case] expected: Result<Option<&str>, &str>) {
        match (notice(&request(query, "")), expected) {
            (Ok(said), Ok(expected)) => {
                assert!(said.unwrap_or_default().starts_with(expected.unwrap_or_default()), "{said:?}");
                assert_eq!(said.is_some(), expected.is_some());
            }
            (Err(said), Err(expected)) => {
                assert!(said.contains(expected) && !said.contains("abc"), "{said}");
            }
            (said, expected) => panic!("{said:?} instead of {expected:?}"),
        }
    }

    #[rstest]
    #[case("application/json", true)]
    #[case("application/json, */*;q=0.5", true)]
    #[case("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false)]
    #[case("text/html, application/json", false)]
    #[case("*/*", false)]
    #[case("", false)]
    fn who_wants_json(#[case] accept: &str, #[case] json: bool) {
        assert_eq!(request("", accept).wants_json(), json);
    }
}
