//! Refusals in Resend's form, as answers of the proxy and as faults for tests to put in.
//!
//! Names, statuses and messages are those of <https://resend.com/docs/api-reference/errors>.

use axum::{
    Json,
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use serde_json::{Value, json};

use crate::faults::Fault;

/// Says why a request is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    status: u16,
    name: &'static str,
    pub(super) message: String,
    retry_after: Option<u32>,
}

impl Refusal {
    pub(super) fn new(status: u16, name: &'static str, message: impl Into<String>) -> Self {
        Self { status, name, message: message.into(), retry_after: None }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(422, "validation_error", message)
    }

    pub(super) fn missing(field: &str) -> Self {
        Self::new(422, "missing_required_field", format!("Missing `{field}` field."))
    }

    pub(super) fn concurrent() -> Self {
        let message = "Another request with the same idempotency key is currently in progress.";
        Self::new(409, "concurrent_idempotent_requests", message)
    }

    pub(super) fn daily_quota() -> Self {
        Self::new(429, "daily_quota_exceeded", "You have reached your daily email sending quota.")
    }

    pub(super) fn monthly_quota() -> Self {
        Self::new(429, "monthly_quota_exceeded", "You have reached your monthly email sending quota.")
    }

    pub(super) fn rate_limit(per_second: u32, retry_after: u32) -> Self {
        let message = format!(
            "Too many requests. You can only make {per_second} requests per second. See rate limit response \
             headers for more information. Or contact support to increase rate limit."
        );
        Self { retry_after: Some(retry_after), ..Self::new(429, "rate_limit_exceeded", message) }
    }

    /// Is the service's own fault.
    pub(super) fn application_error(error: &anyhow::Error) -> Self {
        Self::new(500, "application_error", format!("{error:#}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(error(self.status, self.name, &self.message))).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        refuse(refusal.status, refusal.name, &refusal.message)
    }
}

fn error(status: u16, name: &str, message: &str) -> Value {
    json!({"statusCode": status, "name": name, "message": message})
}

/// Makes an error in Resend's form.
pub fn refuse(status: u16, name: &str, message: &str) -> Fault {
    Fault::json(status, &error(status, name, message))
}

/// Refuses for too many requests a second: the headers say when to come back.
pub fn rate_limited(retry_after_seconds: u32) -> Fault {
    let refusal = Refusal::rate_limit(5, retry_after_seconds);
    let seconds = retry_after_seconds.to_string();
    let headers = [
        ("content-type", "application/json"),
        ("ratelimit-limit", "5"),
        ("ratelimit-remaining", "0"),
        ("ratelimit-reset", &seconds),
        ("retry-after", &seconds),
    ];
    Fault::Answer {
        status: 429,
        headers: headers.map(|(name, value)| (name.into(), value.into())).to_vec(),
        body: error(429, refusal.name, &refusal.message).to_string(),
    }
}

/// The day's mails are used up: the same status as a rate limit, but no use in waiting a second.
pub fn daily_quota_exceeded() -> Fault {
    Refusal::daily_quota().into()
}

/// The month's mails are used up.
pub fn monthly_quota_exceeded() -> Fault {
    Refusal::monthly_quota().into()
}

/// Another request with the same idempotency key is still under way.
pub fn concurrent_idempotent_requests() -> Fault {
    Refusal::concurrent().into()
}

/// Returns what a key that may only send gets from everything but `POST /emails` and `POST
/// /emails/batch`: from `/usage` too.
pub fn restricted_api_key() -> Fault {
    refuse(401, "restricted_api_key", "This API key is restricted to only send emails")
}
