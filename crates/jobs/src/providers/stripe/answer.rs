//! What Stripe's status codes and error bodies mean for us ("Errors", "Advanced error handling", "Rate limits").

use serde::Deserialize;

use crate::http::Answer;
use crate::providers::{
    ErrorKind, Provider, ProviderError, ReconnectReason, RefusedReason, Transient, TransientCause,
};

/// Whose key the request carried: it decides who has to act when it is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Key {
    /// The platform's secret key.
    Platform,
    /// The access token of one row.
    Row,
}

#[derive(Default, Deserialize)]
struct Body {
    error: Option<Detail>,
}

/// The message is left out on purpose: it can quote a key.
#[derive(Deserialize)]
struct Detail {
    code: Option<String>,
}

/// An answer with status 200, or why there is none.
pub(super) fn check(answer: Answer, key: Key) -> Result<Answer, ProviderError> {
    if answer.status == 200 {
        return Ok(answer);
    }
    Err(ProviderError::new(Provider::Stripe, classify(&answer, key)).of(&answer))
}

fn classify(answer: &Answer, key: Key) -> ErrorKind {
    let body: Body = serde_json::from_slice(&answer.body).unwrap_or_default();
    let code = body.error.and_then(|error| error.code).unwrap_or_default();
    let should_retry = answer.header("stripe-should-retry");
    let transient = |cause| {
        ErrorKind::Transient(Transient {
            cause,
            retry_after: answer.retry_after(),
            retry_now: should_retry != Some("false"),
        })
    };
    let status = answer.status.as_u16();
    match (status, code.as_str()) {
        (_, "account_invalid") => ErrorKind::Reconnect(ReconnectReason::AccessRevoked),
        // A lock shows as 429 without a limit being reached, and is the object's, not the rate's.
        (409, _) | (429, "lock_timeout") => transient(TransientCause::Locked),
        (429, _) => transient(TransientCause::RateLimited),
        (500.., _) => transient(TransientCause::Server(status)),
        _ if should_retry == Some("true") => transient(TransientCause::Server(status)),
        (401, _) if key == Key::Platform => ErrorKind::OwnCredentials,
        (401, _) => ErrorKind::Reconnect(ReconnectReason::TokenRejected),
        (403, _) if key == Key::Row => ErrorKind::Reconnect(ReconnectReason::AccessRevoked),
        // A restricted platform key, or a rule of this account: one account must not stop the others.
        (403, _) => ErrorKind::Refused(RefusedReason::MissingScope),
        (404, _) => ErrorKind::Refused(RefusedReason::Unknown),
        (..=399, _) => ErrorKind::Refused(RefusedReason::InvalidAnswer("status")),
        _ => ErrorKind::Refused(RefusedReason::BadRequest),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use reqwest::StatusCode;
    use reqwest::header::{HeaderMap, HeaderName};
    use rstest::rstest;

    use super::*;
    use crate::damage::damaged;
    use crate::retry::{RetryDecision, Retryable};

    fn error(status: u16, headers: &[(&'static str, &str)], body: &str, key: Key) -> ProviderError {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        let status = StatusCode::from_u16(status).unwrap();
        check(Answer { status, headers, body: body.as_bytes().to_vec() }, key).unwrap_err()
    }

    const ACCOUNT_INVALID: &str = r#"{"error":{"type":"invalid_request_error","code":"account_invalid",
        "message":"The provided key 'sk_live_abc' does not have access"}}"#;

    #[rstest]
    #[case(401, "", Key::Platform, "own_credentials")]
    #[case(401, "", Key::Row, "token_rejected")]
    #[case(403, ACCOUNT_INVALID, Key::Platform, "access_revoked")]
    #[case(403, ACCOUNT_INVALID, Key::Row, "access_revoked")]
    #[case(400, ACCOUNT_INVALID, Key::Platform, "access_revoked")]
    #[case(403, r#"{"error":{"code":"other"}}"#, Key::Platform, "missing_scope")]
    #[case(403, "", Key::Row, "access_revoked")]
    #[case(404, "", Key::Platform, "unknown_account")]
    #[case(400, r#"{"error":{"code":"parameter_unknown"}}"#, Key::Platform, "bad_request")]
    #[case(402, "", Key::Platform, "bad_request")]
    #[case(409, "", Key::Platform, "locked")]
    #[case(429, "", Key::Platform, "rate_limited")]
    #[case(429, r#"{"error":{"code":"lock_timeout"}}"#, Key::Platform, "locked")]
    #[case(500, "<html>", Key::Platform, "server_error")]
    #[case(503, r#"{"error":null}"#, Key::Platform, "server_error")]
    #[case(599, r#"{"error":{"code":7}}"#, Key::Platform, "server_error")]
    #[case(302, "", Key::Platform, "invalid_answer")]
    #[case(204, "", Key::Platform, "invalid_answer")]
    fn statuses(#[case] status: u16, #[case] body: &str, #[case] key: Key, #[case] expected: &str) {
        let error = error(status, &[("request-id", "req_abc123")], body, key);
        assert_eq!(error.code(), expected);
        assert_eq!(error.request_id.as_deref(), Some("req_abc123"));
        assert!(!format!("{error} {error:?} {}", error.user_message()).contains("sk_live"));
    }

    #[rstest]
    #[case(503, "false", RetryDecision::No)]
    #[case(503, "true", RetryDecision::After(None))]
    #[case(400, "true", RetryDecision::After(None))]
    #[case(400, "false", RetryDecision::No)]
    #[case(409, "false", RetryDecision::No)]
    fn should_retry_wins(#[case] status: u16, #[case] header: &str, #[case] expected: RetryDecision) {
        let error = error(status, &[("stripe-should-retry", header)], "", Key::Platform);
        assert_eq!(error.retry(), expected);
    }

    #[test]
    fn a_refused_retry_still_lets_the_item_wait() {
        let error = error(503, &[("stripe-should-retry", "false")], "", Key::Platform);
        assert!(matches!(error.kind, ErrorKind::Transient(_)));
    }

    #[test]
    fn retry_after_is_kept() {
        let error = error(429, &[("retry-after", "7")], "", Key::Platform);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        assert!(!error.counts_as_attempt());
    }

    proptest! {
        /// Whatever comes with whatever status: only a 200 is an answer, and nothing of the body is repeated.
        #[test]
        fn no_refusal_panics_or_repeats_its_body(
            status in 100_u16..1000,
            body in damaged(serde_json::from_str(ACCOUNT_INVALID).unwrap()),
            retry_after in "\\PC{0,12}|[0-9]{1,30}(\\.[0-9]{1,5})?|-1|1e999",
            row: bool,
        ) {
            let key = if row { Key::Row } else { Key::Platform };
            let mut headers = HeaderMap::new();
            if let Ok(value) = retry_after.parse() {
                headers.insert("retry-after", value);
            }
            let status = StatusCode::from_u16(status).unwrap();
            match check(Answer { status, headers, body: body.to_string().into_bytes() }, key) {
                Ok(_) => prop_assert_eq!(status, 200),
                Err(error) => {
                    prop_assert_ne!(status, 200);
                    let said = format!("{error} {error:?} {}", error.user_message());
                    prop_assert!(!said.contains("sk_live") && !said.contains("script"), "{}", said);
                    prop_assert!(error.retry_after().is_none_or(|wait| wait <= crate::http::LONGEST_RETRY_AFTER));
                }
            }
        }
    }

    #[test]
    fn a_request_id_that_is_none_is_not_logged() {
        assert_eq!(error(500, &[("request-id", "a b; drop")], "", Key::Platform).request_id, None);
    }
}
