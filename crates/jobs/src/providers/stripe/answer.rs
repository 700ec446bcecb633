//! What Stripe's status codes and error bodies mean for us ("Errors", "Advanced error handling", "Rate limits").

use serde::Deserialize;

use crate::http::Answer;
use crate::providers::{
    ErrorKind, Provider, ProviderError, ReconnectReason, RefusedReason, Transient, TransientCause,
};

/// Says whose key the request carried: that decides who has to act when it is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Key {
    /// It is the platform's secret key.
    Platform,
    /// It is the access token of one row.
    Row,
}

#[derive(Default, Deserialize)]
struct Body {
    error: Option<Detail>,
}

/// The message can quote a key: it is looked at here, where nothing else tells, and repeated nowhere.
#[derive(Default, Deserialize)]
struct Detail {
    code: Option<String>,
    message: Option<String>,
}

/// Tells what a refusal's sentence says of our own key or of the account, whatever its status.
///
/// Sources: <https://github.com/stripe/stripe-apps/issues/505> (Connect),
/// <https://github.com/stripe/stripe-node/issues/2246> (restricted keys),
/// <https://github.com/Subscribie/subscribie/issues/982> (test accounts).
fn by_sentence(sentence: &str, key: Key) -> Option<ErrorKind> {
    let says = |words: &str| sentence.contains(words);
    if says("only be used with testmode keys") || says("exists in test mode, but a live mode key") {
        return Some(ErrorKind::Refused(RefusedReason::TestMode));
    }
    if key == Key::Row {
        return None;
    }
    if says("Only Stripe Connect platforms") {
        return Some(ErrorKind::OwnPermission { everybody: true });
    }
    // One kind of source may need it and the others not: the other accounts go on.
    (says("rak_") || says("required permissions")).then_some(ErrorKind::OwnPermission { everybody: false })
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
    let detail = body.error.unwrap_or_default();
    let code = detail.code.unwrap_or_default();
    let should_retry = answer.header("stripe-should-retry");
    let transient = |cause| {
        ErrorKind::Transient(Transient {
            cause,
            retry_after: answer.retry_after(),
            retry_now: should_retry != Some("false"),
        })
    };
    let status = answer.status.as_u16();
    let sentence = detail.message.unwrap_or_default();
    if let (400 | 403 | 404, Some(kind)) = (status, by_sentence(&sentence, key))
        && code != "account_invalid"
    {
        return kind;
    }
    match (status, code.as_str()) {
        (_, "account_invalid") => ErrorKind::Reconnect(ReconnectReason::AccessRevoked),
        // A lock shows as 429 without a limit being reached, and is the object's, not the rate's.
        (409, _) | (429, "lock_timeout") => transient(TransientCause::Locked),
        (429, _) => transient(TransientCause::RateLimited),
        (500.., _) => transient(TransientCause::Server(status)),
        _ if should_retry == Some("true") => transient(TransientCause::Server(status)),
        (401, _) if key == Key::Platform => ErrorKind::OwnCredentials,
        (401, _) => ErrorKind::Reconnect(ReconnectReason::TokenRejected),
        (400 | 403, "livemode_mismatch") => ErrorKind::Refused(RefusedReason::TestMode),
        // `more_permissions_required_for_application`, `…_for_session`, no code or no body at all
        // (<https://github.com/stripe/stripe-apps/issues/851>): a permission is lacking, the access is there. One
        // account's refusal stays its own.
        (403, _) => ErrorKind::Refused(RefusedReason::PermissionLacking),
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

    const MORE_PERMISSIONS: &str = r#"{"error":{"type":"invalid_request_error",
        "code":"more_permissions_required_for_application"}}"#;
    const NO_CONNECT: &str = r#"{"error":{"type":"invalid_request_error",
        "message":"Only Stripe Connect platforms can work with other accounts."}}"#;
    const RESTRICTED: &str = r#"{"error":{"type":"invalid_request_error",
        "message":"The provided key 'rk_live_abc' lacks the required permissions: 'rak_charge_read' would do."}}"#;
    const TEST_ACCOUNT: &str = r#"{"error":{"type":"invalid_request_error",
        "message":"The account acct_1 was a test account, and therefore can only be used with testmode keys."}}"#;

    #[rstest]
    #[case(401, "", Key::Platform, "own_credentials")]
    #[case(401, "", Key::Row, "token_rejected")]
    #[case(403, ACCOUNT_INVALID, Key::Platform, "access_revoked")]
    #[case(403, ACCOUNT_INVALID, Key::Row, "access_revoked")]
    #[case(400, ACCOUNT_INVALID, Key::Platform, "access_revoked")]
    #[case(403, r#"{"error":{"code":"other"}}"#, Key::Platform, "permission_lacking")]
    #[case(403, "", Key::Platform, "permission_lacking")]
    #[case(403, "", Key::Row, "permission_lacking")]
    #[case(403, MORE_PERMISSIONS, Key::Row, "permission_lacking")]
    #[case(403, MORE_PERMISSIONS, Key::Platform, "permission_lacking")]
    #[case(
        403,
        r#"{"error":{"code":"more_permissions_required_for_session"}}"#,
        Key::Row,
        "permission_lacking"
    )]
    #[case(403, NO_CONNECT, Key::Platform, "own_permission")]
    #[case(400, NO_CONNECT, Key::Platform, "own_permission")]
    #[case(403, RESTRICTED, Key::Platform, "own_permission")]
    #[case(403, RESTRICTED, Key::Row, "permission_lacking")]
    #[case(403, r#"{"error":{"message":"This is a restricted API key, but the required permissions are not available for use by restricted keys"}}"#,
        Key::Platform, "own_permission")]
    #[case(401, r#"{"error":{"code":"platform_api_key_expired"}}"#, Key::Row, "token_rejected")]
    #[case(400, TEST_ACCOUNT, Key::Platform, "test_mode")]
    #[case(403, TEST_ACCOUNT, Key::Platform, "test_mode")]
    #[case(400, TEST_ACCOUNT, Key::Row, "test_mode")]
    #[case(500, TEST_ACCOUNT, Key::Platform, "server_error")]
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
