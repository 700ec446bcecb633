//! What Supabase puts in front of PostgREST: the gateway that knows the API keys.
//!
//! | `apikey` | `Authorization` | Runs as |
//! |---|---|---|
//! | none, or unknown | any | 401 |
//! | `sb_secret_…` | none | `service_role`; 401 for a browser |
//! | `sb_publishable_…` | none | `anon` |
//! | a legacy key | none | the role of that key |
//! | any known key | `Bearer` and a token | the role of the token |
//! | any known key | `Bearer sb_…` | 401: those keys are no tokens |
//!
//! For a secret key the gateway makes a short-lived token of its own. Where its clock is ahead of PostgREST's, the token is
//! refused although the key is good: 401 `PGRST303`, "JWT issued at future", gone with a later request
//! (<https://github.com/supabase/supabase/issues/49655>, <https://github.com/supabase/supabase/issues/50651>; code and body as
//! in <https://github.com/PostgREST/postgrest/issues/5172>). [`Gateway::run_ahead`] does that.
//!
//! Not here: the key as a parameter of the query, and anything but `/rest/v1`.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header, uri::PathAndQuery},
    response::IntoResponse,
};
use serde_json::json;

use crate::faults::{self, InjectedFaults, Server};
use processes::{keys::Keys, proxy::Upstream};

const PREFIX: &str = "/rest/v1";

/// Represents a running gateway; it stops when this is dropped.
pub struct Gateway {
    server: Server,
    keys: Keys,
    ahead: Arc<AtomicUsize>,
}

impl Gateway {
    /// Starts a gateway in front of the PostgREST that listens on `port`.
    pub async fn start(keys: &Keys, port: u16) -> Result<Self> {
        let ahead = Arc::new(AtomicUsize::new(0));
        let project = Project { keys: keys.clone(), postgrest: Upstream::new(port), ahead: ahead.clone() };
        let router = Router::new().fallback(pass_on).with_state(project);
        let server = faults::serve(router, None).await.context("cannot start the gateway")?;
        Ok(Self { server, keys: keys.clone(), ahead })
    }

    /// Returns what goes into `SUPABASE_URL`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Makes the gateway's clock run ahead for the next `requests` with a secret key: their tokens are refused.
    pub fn run_ahead(&self, requests: usize) {
        self.ahead.store(requests, Ordering::SeqCst);
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    pub fn faults(&self) -> &InjectedFaults {
        self.server.faults()
    }
}

#[derive(Clone)]
struct Project {
    keys: Keys,
    postgrest: Upstream,
    ahead: Arc<AtomicUsize>,
}

/// Says why a request does not get through.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    NoKey,
    UnknownKey,
    SecretInBrowser,
    /// The token that the gateway made is of the future, by PostgREST's clock.
    IssuedAtFuture,
    NoRoute,
    NotAnswering,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> axum::response::Response {
        let (status, body) = match self {
            Self::NoKey => (
                StatusCode::UNAUTHORIZED,
                json!({
                    "message": "No API key found in request",
                    "hint": "No `apikey` request header or url param was found.",
                }),
            ),
            Self::UnknownKey => (
                StatusCode::UNAUTHORIZED,
                json!({
                    "message": "Invalid API key",
                    "hint": "Double check your Supabase `anon` or `service_role` API key.",
                }),
            ),
            Self::SecretInBrowser => (
                StatusCode::UNAUTHORIZED,
                json!({
                    "message": "Forbidden use of secret API key in browser",
                    "hint": "Secret API keys can only be used in a protected environment and should never be \
                             used in a browser. Delete this secret API key immediately.",
                }),
            ),
            Self::IssuedAtFuture => (
                StatusCode::UNAUTHORIZED,
                json!({"code": "PGRST303", "details": null, "hint": null, "message": "JWT issued at future"}),
            ),
            Self::NoRoute => {
                (StatusCode::NOT_FOUND, json!({"message": "no Route matched with those values"}))
            }
            Self::NotAnswering => (
                StatusCode::BAD_GATEWAY,
                json!({"message": "An invalid response was received from the upstream server"}),
            ),
        };
        (status, Json(body)).into_response()
    }
}

async fn pass_on(State(project): State<Project>, request: Request<Body>) -> Result<Response<Body>, Refusal> {
    let mut request = request;
    *request.uri_mut() = inner(request.uri()).ok_or(Refusal::NoRoute)?;
    if let Some(token) = project.token(request.headers())? {
        let bearer = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Refusal::UnknownKey)?;
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
    }
    project.postgrest.send(request).await.map_err(|_| Refusal::NotAnswering)
}

/// Returns the path that PostgREST knows.
fn inner(uri: &Uri) -> Option<Uri> {
    let rest = uri.path_and_query().map(PathAndQuery::as_str)?.strip_prefix(PREFIX)?;
    match rest.chars().next() {
        None => Some(Uri::from_static("/")),
        Some('/') => rest.parse().ok(),
        Some('?') => format!("/{rest}").parse().ok(),
        Some(_) => None,
    }
}

impl Project {
    /// Tells whether this request's token is one of those that come too early.
    fn is_ahead(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        self.ahead.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok()
    }

    /// Returns the token to give the request; `None` where it goes on with the one it has.
    fn token(&self, headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
        let key = headers.get("apikey").and_then(|key| key.to_str().ok()).ok_or(Refusal::NoKey)?;
        let Keys { secret, publishable, service_role, anon, .. } = &self.keys;
        let browser =
            headers.get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"Mozilla/"));
        let token = match key {
            _ if key == secret && browser => return Err(Refusal::SecretInBrowser),
            _ if key == secret && self.is_ahead() => return Err(Refusal::IssuedAtFuture),
            _ if key == secret || key == service_role => service_role,
            _ if key == publishable || key == anon => anon,
            _ => return Err(Refusal::UnknownKey),
        };
        // With a token of its own a request runs as that; PostgREST refuses what is not one.
        Ok((!headers.contains_key(header::AUTHORIZATION)).then_some(token.as_str()))
    }
}
