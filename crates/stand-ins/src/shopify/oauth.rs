//! `POST /admin/oauth/access_token`: expiring access tokens and the refresh tokens that replace them.

use std::collections::HashMap;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State as Extract},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{Shared, lock, state::RefreshReuse};

const ACCESS_SECONDS: i64 = 3_600;
const REFRESH_SECONDS: i64 = 7_776_000;

/// Represents a pair as Shopify issues it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub access_token: String,
    pub refresh_token: String,
    /// Says when the access token ends.
    pub expires_at: DateTime<Utc>,
    /// Says when the refresh token ends.
    pub refresh_expires_at: DateTime<Utc>,
}

/// Holds the tokens of one shop.
#[derive(Default)]
pub(super) struct Oauth {
    /// Maps each access token to its end; `None` where it does not expire.
    access: HashMap<String, Option<DateTime<Utc>>>,
    refresh: HashMap<String, Refresh>,
    pub(super) refreshes: usize,
    pub(super) omits_lifetimes: bool,
    /// Holds what permanent tokens were exchanged for.
    exchanged: HashMap<String, Tokens>,
}

struct Refresh {
    ends: DateTime<Utc>,
    used: bool,
    /// Is the token that this one replaced.
    replaces: Option<String>,
}

impl Oauth {
    pub(super) fn add_permanent(&mut self, token: &str) {
        self.access.insert(token.into(), None);
    }

    pub(super) fn issue(&mut self, now: DateTime<Utc>) -> Tokens {
        self.issue_for(now, None)
    }

    /// A user has connected the shop: the pair from before is worth nothing any more.
    pub(super) fn acquire(&mut self, now: DateTime<Utc>) -> Tokens {
        self.access.retain(|_, ends| ends.is_none());
        self.refresh.clear();
        self.issue(now)
    }

    /// Gives a permanent token for a pair, which a repeated request gets again.
    fn cycle(&mut self, token: &str, now: DateTime<Utc>) -> Option<Tokens> {
        if let Some(tokens) = self.exchanged.get(token) {
            return Some(tokens.clone());
        }
        self.access.get(token).filter(|ends| ends.is_none())?;
        self.access.remove(token);
        let tokens = self.issue(now);
        self.exchanged.insert(token.into(), tokens.clone());
        Some(tokens)
    }

    fn issue_for(&mut self, now: DateTime<Utc>, replaces: Option<String>) -> Tokens {
        let tokens = Tokens {
            access_token: format!("shpat_{}", uuid::Uuid::new_v4().simple()),
            refresh_token: format!("shprt_{}", uuid::Uuid::new_v4().simple()),
            expires_at: now + TimeDelta::seconds(ACCESS_SECONDS),
            refresh_expires_at: now + TimeDelta::seconds(REFRESH_SECONDS),
        };
        self.access.insert(tokens.access_token.clone(), Some(tokens.expires_at));
        let refresh = Refresh { ends: tokens.refresh_expires_at, used: false, replaces };
        self.refresh.insert(tokens.refresh_token.clone(), refresh);
        tokens
    }

    pub(super) fn accepts(&self, token: &str, now: DateTime<Utc>) -> bool {
        self.access.get(token).is_some_and(|ends| ends.is_none_or(|ends| now < ends))
    }

    pub(super) fn is_permanent(&self, token: &str) -> bool {
        self.access.get(token).is_some_and(Option::is_none)
    }

    pub(super) fn expire_access_tokens(&mut self) {
        self.access.clear();
    }

    pub(super) fn revoke_all(&mut self) {
        self.access.clear();
        self.refresh.clear();
    }

    /// Exchanges a refresh token; the access token from before stays good until it ends.
    fn exchange(&mut self, token: &str, now: DateTime<Utc>, reuse: RefreshReuse) -> Option<Tokens> {
        let refresh = self.refresh.get_mut(token).filter(|refresh| now < refresh.ends)?;
        if refresh.used && reuse == RefreshReuse::Refused {
            return None;
        }
        refresh.used = true;
        if let Some(replaced) = refresh.replaces.take() {
            self.refresh.remove(&replaced);
        }
        self.refreshes += 1;
        Some(self.issue_for(now, Some(token.into())))
    }
}

fn refused(status: StatusCode, error: &str, description: &str) -> Response {
    (status, Json(json!({"error": error, "error_description": description}))).into_response()
}

pub(super) async fn access_token(
    Extract(state): Extract<Shared>,
    Path(domain): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let form = fields(&headers, &body);
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    let mut state = lock(&state);
    let (now, reuse) = (state.now(), state.refresh_reuse);
    if !state.shops.contains_key(&domain) {
        return (StatusCode::NOT_FOUND, Json(json!({"errors": "Not Found"}))).into_response();
    }
    if field("client_id") != state.client_id || field("client_secret") != state.client_secret {
        let description = "The client application is not known, or its secret is wrong.";
        return refused(StatusCode::UNAUTHORIZED, "invalid_client", description);
    }
    // As the vendor's own library asks
    // (<https://app.unpkg.com/@shopify/shopify-api@12.2.0/files/dist/cjs/lib/auth/oauth/migrate-to-expiring-token.js>).
    let offline = "urn:shopify:params:oauth:token-type:offline-access-token";
    let exchange = field("grant_type") == "urn:ietf:params:oauth:grant-type:token-exchange"
        && field("subject_token_type") == offline
        && field("requested_token_type") == offline
        && field("expiring") == "1";
    if !exchange && field("grant_type") != "refresh_token" {
        let description = "The stand-in only knows how to refresh, and to exchange a permanent token.";
        return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type", description);
    }
    let oauth = &mut state.shop(&domain).oauth;
    let omits = oauth.omits_lifetimes;
    let tokens = if exchange {
        oauth.cycle(field("subject_token"), now)
    } else {
        oauth.exchange(field("refresh_token"), now, reuse)
    };
    match tokens {
        Some(tokens) if omits => Json(json!({
            "access_token": tokens.access_token, "refresh_token": tokens.refresh_token, "scope": "read_orders",
        }))
        .into_response(),
        Some(tokens) => Json(json!({
            "access_token": tokens.access_token,
            "expires_in": ACCESS_SECONDS,
            "refresh_token": tokens.refresh_token,
            "refresh_token_expires_in": REFRESH_SECONDS,
            "scope": "read_orders,read_shopify_payments_disputes",
        }))
        .into_response(),
        None => refused(
            StatusCode::UNAUTHORIZED,
            "invalid_request",
            "The refresh token is unknown, has expired or was used before.",
        ),
    }
}

/// Returns the body's fields, whether it came as JSON or as a form.
fn fields(headers: &HeaderMap, body: &[u8]) -> HashMap<String, String> {
    let json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| kind.starts_with("application/json"));
    if !json {
        return form_urlencoded::parse(body).into_owned().collect();
    }
    let Ok(Value::Object(object)) = serde_json::from_slice(body) else { return HashMap::new() };
    object.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect()
}
