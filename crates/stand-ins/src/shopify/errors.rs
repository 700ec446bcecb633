//! Shopify's refusals: over HTTP a string, from GraphQL a list.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::faults::Fault;

/// Represents a GraphQL error.
#[derive(Clone, Debug)]
pub(super) struct Error {
    pub(super) message: String,
    pub(super) path: Vec<Value>,
    pub(super) location: Option<(usize, usize)>,
    pub(super) extensions: Value,
}

impl Error {
    pub(super) fn new(message: impl Into<String>, code: &str) -> Self {
        Self { message: message.into(), path: Vec::new(), location: None, extensions: json!({"code": code}) }
    }

    pub(super) fn at(mut self, path: &[Value]) -> Self {
        self.path = path.to_vec();
        self
    }

    pub(super) fn extension(mut self, name: &str, value: &str) -> Self {
        self.extensions[name] = value.into();
        self
    }

    /// Shopify can do this and the stand-in cannot.
    pub(super) fn not_here(what: &str) -> Self {
        Self::new(format!("The Shopify stand-in does not know {what}"), "STAND_IN_LIMIT")
    }

    pub(super) fn json(&self) -> Value {
        let mut error = json!({"message": self.message, "extensions": self.extensions});
        if let Some((line, column)) = self.location {
            error["locations"] = json!([{"line": line, "column": column}]);
        }
        if !self.path.is_empty() {
            error["path"] = Value::Array(self.path.clone());
        }
        error
    }
}

/// Returns what Shopify says with this HTTP status.
fn text(status: u16) -> &'static str {
    match status {
        401 => "[API] Invalid API key or access token (unrecognized login or wrong password)",
        402 => "Unavailable Shop",
        403 => "Forbidden",
        404 => "Not Found",
        423 => "Locked",
        // A security rejection (<https://github.com/Shopify/shopify-api-js/issues/1030>).
        430 => "Shopify Security Rejection",
        429 => {
            "Exceeded 2 calls per second for api client. Reduce request rates to resume uninterrupted service."
        }
        _ => "Internal Server Error",
    }
}

/// Makes an HTTP-level answer.
pub(super) fn http(status: u16) -> Response {
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (code, Json(json!({"errors": text(status)}))).into_response();
    if status == 429 {
        response.headers_mut().insert("retry-after", "2.0".parse().expect("ASCII"));
    }
    response
}

/// Refuses a token that does not expire (<https://github.com/chatwoot/chatwoot/issues/14462>).
pub(super) fn permanent_token() -> Response {
    let message = "[API] Non-expiring access tokens are no longer accepted for the Admin API. Start using expiring offline \
                   tokens: https://shopify.dev/docs/apps/build/authentication-authorization/access-tokens/\
                   offline-access-tokens#expiring-vs-non-expiring-offline-tokens";
    (StatusCode::FORBIDDEN, Json(json!({"errors": message}))).into_response()
}

/// Makes a fault: an HTTP-level refusal, as Shopify words it.
pub fn http_error(status: u16) -> Fault {
    let mut headers = vec![("content-type".to_owned(), "application/json; charset=utf-8".to_owned())];
    if status == 429 {
        headers.push(("retry-after".into(), "2.0".into()));
    }
    Fault::Answer { status, headers, body: json!({"errors": text(status)}).to_string() }
}

/// Makes a fault: the application is not approved for protected customer data
/// (<https://github.com/Shopify/shopify-api-js/issues/748>).
pub fn not_approved(object: &str) -> Fault {
    let message = format!(
        "This app is not approved to access the {object} object. See \
         https://shopify.dev/docs/apps/launch/protected-customer-data for more details."
    );
    Fault::json(200, &json!({"errors": [Error::new(message, "ACCESS_DENIED").json()]}))
}

/// Makes a fault: HTTP 200 with a GraphQL error of this code and no data (`INTERNAL_SERVER_ERROR`,
/// `THROTTLED`, `TIMEOUT`…).
pub fn graphql_error(code: &str) -> Fault {
    let message = match code {
        "THROTTLED" => "Throttled",
        "INTERNAL_SERVER_ERROR" => "Internal error. Looks like something went wrong on our end.",
        _ => "The operation failed.",
    };
    Fault::json(200, &json!({"errors": [Error::new(message, code).json()]}))
}
