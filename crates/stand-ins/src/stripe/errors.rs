//! Stripe's refusals, word for word where their wording is known.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::faults::Fault;

/// Represents an error answer.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: Value,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(status: StatusCode, code: Option<&str>, message: &str) -> Self {
        let mut error = json!({"type": "invalid_request_error", "message": message});
        if let Some(code) = code {
            error["code"] = code.into();
            error["doc_url"] =
                format!("https://stripe.com/docs/error-codes/{}", code.replace('_', "-")).into();
        }
        Self { status, error, headers: Vec::new() }
    }

    fn param(mut self, param: &str) -> Self {
        self.error["param"] = param.into();
        self
    }

    pub(super) fn no_key() -> Self {
        let message = "You did not provide an API key. You need to provide your API key in the Authorization \
                       header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY'). See \
                       https://stripe.com/docs/api#authentication for details, or we can help at \
                       https://support.stripe.com/.";
        Self::new(StatusCode::UNAUTHORIZED, None, message)
    }

    pub(super) fn bad_key(key: &str) -> Self {
        let message = format!("Invalid API Key provided: {}", masked(key));
        Self::new(StatusCode::UNAUTHORIZED, None, &message)
    }

    pub(super) fn no_access(key: &str, account: &str) -> Self {
        let message = format!(
            "The provided key '{}' does not have access to account '{account}' (or that account does not \
             exist). Application access may have been revoked.",
            masked(key)
        );
        Self::new(StatusCode::FORBIDDEN, Some("account_invalid"), &message)
    }

    pub(super) fn version(got: Option<&str>) -> Self {
        let message = match got {
            Some(version) => format!("Invalid Stripe API version: {version}"),
            None => "This stand-in wants a pinned Stripe-Version header.".into(),
        };
        Self::new(StatusCode::BAD_REQUEST, None, &message)
    }

    pub(super) fn unknown_url(method: &str, path: &str) -> Self {
        let message = format!(
            "Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs or we can help \
             at https://support.stripe.com/."
        );
        Self::new(StatusCode::NOT_FOUND, None, &message)
    }

    pub(super) fn unknown_parameter(name: &str) -> Self {
        let message = format!("Received unknown parameter: {name}");
        Self::new(StatusCode::BAD_REQUEST, Some("parameter_unknown"), &message).param(name)
    }

    pub(super) fn bad_value(name: &str, message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, None, message).param(name)
    }

    pub(super) fn bad_integer(name: &str, value: &str) -> Self {
        let message = format!("Invalid integer: {value}");
        Self::new(StatusCode::BAD_REQUEST, Some("parameter_invalid_integer"), &message).param(name)
    }

    pub(super) fn no_such_transaction(param: &str, id: &str) -> Self {
        let message = format!("No such balance transaction: '{id}'");
        Self::new(StatusCode::BAD_REQUEST, Some("resource_missing"), &message).param(param)
    }

    /// Stripe can do this and the stand-in cannot: better no answer than a wrong one.
    pub(super) fn not_here(what: &str) -> Self {
        let message = format!("The Stripe stand-in does not know {what}");
        Self::new(StatusCode::NOT_IMPLEMENTED, None, &message)
    }

    pub(super) fn too_many(reason: &'static str) -> Self {
        let mut refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, Some("rate_limit"), TOO_MANY);
        refusal
            .headers
            .push((HeaderName::from_static("stripe-rate-limited-reason"), HeaderValue::from_static(reason)));
        refusal
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({"error": self.error}))).into_response();
        response.headers_mut().extend(self.headers);
        response
    }
}

const TOO_MANY: &str = "Request rate limit exceeded. Learn more about rate limits here \
                        https://stripe.com/docs/rate-limits.";

/// Masks a key: `sk_test_` and the last four characters stay legible.
fn masked(key: &str) -> String {
    let tail = key.chars().count().saturating_sub(4);
    key.chars()
        .enumerate()
        .map(|(at, c)| if at < 8 && key.starts_with("sk_") || at >= tail { c } else { '*' })
        .collect()
}

/// Makes a fault: two requests fought for the same object. No reason header, to be tried again.
pub fn lock_timeout() -> Fault {
    let message = "This object cannot be accessed right now because another API request or Stripe process is \
                   currently accessing it.";
    fault(429, "invalid_request_error", Some("lock_timeout"), message, &[("stripe-should-retry", "true")])
}

/// Makes a fault: the account is over the limit, for this `Stripe-Rate-Limited-Reason`.
pub fn rate_limited(reason: &str) -> Fault {
    let headers = [("stripe-rate-limited-reason", reason)];
    fault(429, "invalid_request_error", Some("rate_limit"), TOO_MANY, &headers)
}

/// Makes a fault: the token of an application may not read its account, or not yet, while other
/// endpoints answer it (<https://github.com/stripe/stripe-apps/issues/1027>,
/// <https://github.com/stripe/stripe-apps/issues/851>). `whose`: `application` or `session`.
pub fn more_permissions(whose: &str) -> Fault {
    let code = format!("more_permissions_required_for_{whose}");
    let message = "The provided key does not have the required permissions for this endpoint.";
    fault(403, "invalid_request_error", Some(&code), message, &[])
}

/// Makes a fault: our account is no platform any more
/// (<https://github.com/stripe/stripe-apps/issues/505>).
pub fn no_connect() -> Fault {
    let message = "Only Stripe Connect platforms can work with other accounts. If you specified a client_id \
                   parameter, make sure it's correct.";
    fault(403, "invalid_request_error", None, message, &[])
}

/// Makes a fault: a restricted key lacks this permission, and no code says it
/// (<https://github.com/stripe/stripe-node/issues/2246>).
pub fn restricted(permission: &str) -> Fault {
    let message = format!(
        "The provided key 'rk_live_*********abcd' does not have the required permissions for this endpoint. \
         Having the '{permission}' permission would allow this request to continue."
    );
    fault(403, "invalid_request_error", None, &message, &[])
}

/// Makes a fault: a live key was used for a test account
/// (<https://github.com/Subscribie/subscribie/issues/982>).
pub fn test_account(account: &str) -> Fault {
    let message = format!(
        "The account {account} was a test account created with a testmode key, and therefore can only be used with \
         testmode keys."
    );
    fault(400, "invalid_request_error", None, &message, &[])
}

/// Makes a fault: Stripe failed, and says whether trying again makes sense.
pub fn server_error(should_retry: bool) -> Fault {
    let retry = if should_retry { "true" } else { "false" };
    fault(500, "api_error", None, "An unknown error occurred", &[("stripe-should-retry", retry)])
}

fn fault(status: u16, kind: &str, code: Option<&str>, message: &str, headers: &[(&str, &str)]) -> Fault {
    let mut error = json!({"type": kind, "message": message});
    if let Some(code) = code {
        error["code"] = code.into();
    }
    let mut all = vec![
        ("content-type".to_owned(), "application/json".to_owned()),
        ("request-id".to_owned(), "req_fault".to_owned()),
    ];
    all.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Fault::Answer { status, headers: all, body: json!({"error": error}).to_string() }
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn masks_all_but_prefix_and_tail() {
        assert_eq!(masked("sk_test_abcdefgh1234"), "sk_test_********1234");
        assert_eq!(masked("wrong-key"), "*****-key");
        assert_eq!(masked("abc"), "abc");
    }
}
