//! The routes: who is calling, for which account, and what they get.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{OriginalUri, Path, Request, State as Extract},
    http::{HeaderMap, Method, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::Value;

use super::{API_VERSION, Shared, errors::Refusal, list, lock, objects, state::PLATFORM, state::State};

pub(super) fn router(state: Shared) -> Router {
    Router::new()
        .route("/v1/account", get(account))
        .route("/v1/balance_transactions", get(balance_transactions))
        .route("/v1/balance_transactions/{id}", get(balance_transaction))
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(state.clone(), stamp))
        .with_state(state)
}

/// Every answer carries a request id; over the rate limit there is no other answer.
async fn stamp(Extract(state): Extract<Shared>, request: Request, next: Next) -> Response {
    let (id, over) = {
        let mut state = lock(&state);
        state.requests += 1;
        let whose =
            if state.limits.tell_accounts_apart() { asked_for(&state, request.headers()) } else { "" };
        let whose = whose.to_owned();
        let over = state.limits.refuse(&whose);
        (format!("req_StandIn{:08}", state.requests), over)
    };
    // As `stripe-node` reads it: https://github.com/stripe/stripe-node/blob/master/src/RequestSender.ts
    let named = request.headers().get("stripe-account").cloned();
    let mut response = match over {
        Some(reason) => Refusal::too_many(reason).into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert("request-id", id.parse().expect("ASCII"));
    headers.insert("stripe-version", API_VERSION.parse().expect("ASCII"));
    if let Some(named) = named {
        headers.insert("stripe-account", named);
    }
    response
}

async fn account(
    Extract(state): Extract<Shared>,
    headers: HeaderMap,
    OriginalUri(uri): OriginalUri,
) -> Result<Json<Value>, Refusal> {
    let state = lock(&state);
    let account = caller(&state, &headers)?;
    if let Some((name, _)) = list::pairs(uri.query()).next() {
        return Err(Refusal::unknown_parameter(&name));
    }
    Ok(Json(objects::account(account)))
}

async fn balance_transactions(
    Extract(state): Extract<Shared>,
    headers: HeaderMap,
    OriginalUri(uri): OriginalUri,
) -> Result<Response, Refusal> {
    let mut state = lock(&state);
    let account = caller(&state, &headers)?.to_owned();
    let params = list::Params::parse(uri.query())?;
    let asked = (account, uri.query().unwrap_or_default().to_owned());
    let known = state.pages.as_ref().and_then(|pages| pages.get(&asked));
    let page = match known {
        Some(page) => page.clone(),
        None => Bytes::from(list::page(state.account(&asked.0), &params)?.to_string()),
    };
    if let Some(pages) = &mut state.pages {
        pages.insert(asked, page.clone());
    }
    Ok(([(header::CONTENT_TYPE, "application/json")], page).into_response())
}

async fn balance_transaction(
    Extract(state): Extract<Shared>,
    headers: HeaderMap,
    Path(id): Path<String>,
    OriginalUri(uri): OriginalUri,
) -> Result<Json<Value>, Refusal> {
    let state = lock(&state);
    let account = caller(&state, &headers)?;
    list::single(state.account(account), &id, uri.query()).map(Json)
}

async fn unknown(method: Method, OriginalUri(uri): OriginalUri) -> Refusal {
    Refusal::unknown_url(method.as_str(), uri.path())
}

/// Returns the account for which a request counts: the one that it names, or the one that its key
/// was issued for.
fn asked_for<'a>(state: &'a State, headers: &'a HeaderMap) -> &'a str {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    text("stripe-account").unwrap_or_else(|| {
        let key = text(header::AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        let own = state.accounts.values().find(|account| Some(account.token.as_str()) == key);
        own.map_or(PLATFORM, |account| account.id.as_str())
    })
}

/// The account a request reads, if its key may read it.
fn caller<'a>(state: &'a State, headers: &'a HeaderMap) -> Result<&'a str, Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let key = text(header::AUTHORIZATION.as_str())
        .and_then(|value| value.strip_prefix("Bearer "))
        .filter(|key| !key.is_empty())
        .ok_or_else(Refusal::no_key)?;
    let named = text("stripe-account");
    let account = if key == state.secret_key {
        let named = named.unwrap_or(PLATFORM);
        let known = state.accounts.get(named).filter(|account| !account.revoked);
        known.map(|account| account.id.as_str()).ok_or_else(|| Refusal::no_access(key, named))?
    } else {
        let own = state
            .accounts
            .values()
            .find(|account| account.token == key && !account.revoked)
            .ok_or_else(|| Refusal::bad_key(key))?;
        if let Some(other) = named.filter(|named| *named != own.id) {
            return Err(Refusal::no_access(key, other));
        }
        own.id.as_str()
    };
    let version = text("stripe-version");
    if version != Some(API_VERSION) && !state.any_version {
        return Err(Refusal::version(version));
    }
    Ok(account)
}
