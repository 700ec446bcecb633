//! The routes: who may ask, what it costs, and the envelope of the answer.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Request, State as Extract},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Map, Value, json};

use super::{
    API_VERSION, Shared, cost,
    errors::{self, Error},
    execute, lock, oauth,
    state::Shop,
    validate,
};

pub(super) fn router(state: Shared) -> Router {
    Router::new()
        .route("/{shop}/admin/api/{version}/graphql.json", post(graphql))
        .route("/{shop}/admin/oauth/access_token", post(oauth::access_token))
        .fallback(async || errors::http(404))
        .layer(middleware::from_fn_with_state(state.clone(), stamp))
        .with_state(state)
}

/// Every answer carries a request id and the version that gave it.
async fn stamp(Extract(state): Extract<Shared>, request: Request, next: Next) -> Response {
    let (number, version) = {
        let mut state = lock(&state);
        state.requests += 1;
        (state.requests, state.answering_version)
    };
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert("x-request-id", format!("stand-in-{number:08}").parse().expect("ASCII"));
    headers.insert("x-shopify-api-version", version.parse().expect("ASCII"));
    response
}

async fn graphql(
    Extract(state): Extract<Shared>,
    Path((domain, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut state = lock(&state);
    let (now, retired) = (state.now(), state.permanent_retired);
    let Some(shop) = state.shops.get_mut(&domain).filter(|_| version == API_VERSION) else {
        return errors::http(404);
    };
    if let Some(status) = shop.status {
        return errors::http(status);
    }
    let token = headers.get("x-shopify-access-token").and_then(|token| token.to_str().ok());
    if !token.is_some_and(|token| shop.oauth.accepts(token, now)) {
        return errors::http(401);
    }
    if retired && token.is_some_and(|token| shop.oauth.is_permanent(token)) {
        return errors::permanent_token();
    }
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some(query) = request["query"].as_str() else {
        let body = json!({"errors": {"query": "Required parameter missing or invalid"}});
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    };
    let variables = request["variables"].as_object().cloned().unwrap_or_default();
    let answer = answer(shop, query, &variables, request["operationName"].as_str());
    Json(answer.unwrap_or_else(|errors| refusal(&errors))).into_response()
}

fn refusal(errors: &[Error]) -> Value {
    json!({"errors": errors.iter().map(Error::json).collect::<Vec<_>>()})
}

fn answer(
    shop: &mut Shop,
    query: &str,
    variables: &Map<String, Value>,
    operation: Option<&str>,
) -> Result<Value, Vec<Error>> {
    let document = validate::document(query)?;
    let operation = document
        .operations
        .get(operation)
        .map_err(|error| vec![Error::new(error.message().to_string(), "BAD_REQUEST")])?;
    let variables = validate::variables(operation, variables).map_err(|error| vec![error])?;
    let requested = cost::requested(&document, operation, &variables);
    if requested > shop.max_cost {
        return Err(vec![too_dear(requested, shop.max_cost)]);
    }
    if !shop.bucket.take(points(requested)) {
        return Ok(throttled(shop, requested));
    }
    let outcome = execute::run(shop, &document, operation, &variables).map_err(|error| vec![error])?;
    shop.bucket.give_back(points(requested.saturating_sub(outcome.cost)));
    let mut extensions = json!({"cost": costs(shop, requested, Some(outcome.cost))});
    if !outcome.searches.is_empty() {
        extensions["search"] = outcome.searches.into();
    }
    let mut answer = json!({"data": outcome.data, "extensions": extensions});
    if !outcome.errors.is_empty() {
        answer["errors"] = outcome.errors.iter().map(Error::json).collect();
    }
    Ok(answer)
}

fn too_dear(requested: u64, max: u64) -> Error {
    let message = format!(
        "Query cost is {requested}, which exceeds the single query max cost limit ({max}).\n\nSee \
         https://shopify.dev/concepts/about-apis/rate-limits for more information on how the cost of a query \
         is calculated."
    );
    let mut error = Error::new(message, "MAX_COST_EXCEEDED");
    error.extensions["cost"] = requested.into();
    error.extensions["maxCost"] = max.into();
    error.extension("documentation", "https://shopify.dev/api/usage/rate-limits")
}

fn throttled(shop: &mut Shop, requested: u64) -> Value {
    let error = Error::new("Throttled", "THROTTLED")
        .extension("documentation", "https://shopify.dev/api/usage/rate-limits");
    json!({"errors": [error.json()], "extensions": {"cost": costs(shop, requested, None)}})
}

fn costs(shop: &mut Shop, requested: u64, actual: Option<u64>) -> Value {
    json!({
        "requestedQueryCost": requested,
        "actualQueryCost": actual,
        "throttleStatus": {
            "maximumAvailable": shop.bucket.capacity(),
            "currentlyAvailable": shop.bucket.level().floor(),
            "restoreRate": shop.bucket.per_second(),
        },
    })
}

fn points(cost: u64) -> f64 {
    f64::from(u32::try_from(cost).unwrap_or(u32::MAX))
}
