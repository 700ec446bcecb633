//! `/api/status`: how everything is, for the operator, and what they may have done about it.
//!
//! The Bearer sees it as JSON or as a page. A browser gets there with a form: the secret, once, for a signed cookie of
//! thirty minutes, which signing out makes worthless at once. `GET` changes nothing. Every action is a `POST`; from a browser it carries the session's token.

mod action;
mod chart;
mod client;
mod ended;
mod notice;
mod page;
mod page_request;
mod query;
mod refused;
mod session;
mod sign_in;
mod user;

use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use tokio::time::Instant;
use vercel_runtime::{AppState, Error};

pub(super) use self::page_request::PageRequest;
use self::{
    action::Action,
    ended::{NOT_VERIFIED, is_ended, sign_out},
    page::Viewer,
    page_request::page_deadline,
    query::Query,
    session::{Keys, Session},
    sign_in::sign_in,
};
use super::{answer::Answer, app::App, form::Form, request};
use crate::{
    crypto::secret,
    operations::{
        facts,
        health::{self, Live},
        own_address,
        view::{Status, slot_days},
    },
    routes::Route,
};

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
        _ => return Answer::wrong_method(Route::Status),
    }
    let query = match Query::read(request.query, request.method == "GET") {
        Ok(query) => query,
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
        return match query.user {
            Some(user) => user::show(app, request, user, &query, token.as_deref(), now).await,
            None => show(app, request, token, query.notice, now).await,
        };
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

/// Tells whether the session was ended; `None` where the database cannot be asked.
async fn is_over(app: &App, session: &Session) -> Option<bool> {
    let supabase = app.parts().ok()?.supabase.as_ref().ok()?;
    is_ended(supabase, session, &page_deadline()).await.ok()
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
        Ok(Action::Find { who }) => return user::find(app, request, &who).await,
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
        Action::ForUser(wanted) => {
            // The form's token goes on into the form of the confirmation.
            return user::act(context, state, request, &wanted, form.value("csrf")).await;
        }
        Action::Find { .. } | Action::SignOut => return Answer::empty(204),
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
    let deadline = health::deadline();
    let own_address = own_address::look(&parts.http, &app.config, &deadline);
    let ((facts, stripe), domain, own_address) = tokio::join!(facts_and_stripe, domain, own_address);
    let health = health::checks(&app.config, facts.as_ref(), &Live { stripe, domain, own_address });
    let status = Status::new(now, &tuning, health, facts.and_then(Result::ok));
    if request.wants_json() {
        return Answer::object(200, &status);
    }
    page::status(&status, &Viewer { token: token.as_deref() }, notice)
}
