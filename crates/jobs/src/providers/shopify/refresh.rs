//! New tokens for old ("Offline access tokens": an access token lives an hour, its refresh token 90 days).

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;

use super::answer::by_status;
use crate::http::Answer;
use crate::providers::{ErrorKind, Provider, ProviderError, ReconnectReason, RefusedReason};

/// Represents a fresh pair. Store it before its first use: using the new access token ends the old
/// refresh token.
#[derive(Clone, Debug)]
pub struct TokenPair {
    /// Goes into the header `X-Shopify-Access-Token`.
    pub access_token: SecretString,
    /// Says how long the access token lives from now on.
    pub expires_in: Duration,
    /// Pays for the next refresh.
    pub refresh_token: SecretString,
    /// Says how long the refresh token lives from now on, where the answer says so.
    pub refresh_token_expires_in: Option<Duration>,
    /// Lists the granted scopes, comma-separated.
    pub scope: String,
}

/// An access token lives so long, by Shopify's documentation, where the answer does not say it.
const DOCUMENTED_LIFETIME: Duration = Duration::from_hours(1);

/// Nothing but the two tokens is needed: who refuses the rest throws the only good pair away
/// (<https://github.com/Shopify/shopify-app-js/issues/3400>).
#[derive(Deserialize)]
struct Body {
    access_token: String,
    refresh_token: String,
    #[serde(default)]
    expires_in: Value,
    #[serde(default)]
    refresh_token_expires_in: Value,
    #[serde(default)]
    scope: Value,
}

fn seconds(value: &Value) -> Option<Duration> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).map(Duration::from_secs)
}

#[derive(Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    error: String,
}

pub(super) fn read(answer: &Answer) -> Result<TokenPair, ProviderError> {
    let result = match refusal(answer) {
        Some(kind) => Err(kind),
        None => pair(&answer.body).ok_or(ErrorKind::Refused(RefusedReason::InvalidAnswer("token pair"))),
    };
    result.map_err(|kind| ProviderError::new(Provider::Shopify, kind).of(answer))
}

/// Returns whether a refusal's sentence says that our application is not known, under a code that is also a spent token's
/// (<https://github.com/gnikyt/laravel-shopify/issues/104>, <https://github.com/Shopify/shopify-api-ruby/issues/326>). It may
/// come as a page instead of an object.
fn says_it_is_ours(body: &str) -> bool {
    ["Could not find Shopify API application", "does not support oauth", "invalid_client"]
        .iter()
        .any(|words| body.contains(words))
}

/// 401 `invalid_request` and 400 `invalid_grant` are both seen for a refresh token that is spent; a bad client
/// secret is our own trouble and not the merchant's.
fn refusal(answer: &Answer) -> Option<ErrorKind> {
    let kind = by_status(answer)?;
    if !matches!(answer.status.as_u16(), 400 | 401) {
        return Some(kind);
    }
    let refusal: Refusal = serde_json::from_slice(&answer.body).unwrap_or_default();
    if says_it_is_ours(&String::from_utf8_lossy(&answer.body)) {
        return Some(ErrorKind::OwnCredentials);
    }
    Some(match refusal.error.as_str() {
        "invalid_client" | "unauthorized_client" | "application_cannot_be_found" => ErrorKind::OwnCredentials,
        "invalid_grant" | "invalid_token" => ErrorKind::Reconnect(ReconnectReason::RefreshRejected),
        _ if answer.status == 401 => ErrorKind::Reconnect(ReconnectReason::RefreshRejected),
        _ => ErrorKind::Refused(RefusedReason::BadRequest),
    })
}

fn pair(body: &[u8]) -> Option<TokenPair> {
    // As an object: a list would be read as one, field by field.
    let body: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).ok()?;
    let body: Body = serde_json::from_value(body.into()).ok()?;
    let usable = [&body.access_token, &body.refresh_token].iter().all(|token| !token.trim().is_empty());
    usable.then(|| TokenPair {
        access_token: body.access_token.into(),
        expires_in: seconds(&body.expires_in).unwrap_or(DOCUMENTED_LIFETIME),
        refresh_token: body.refresh_token.into(),
        refresh_token_expires_in: seconds(&body.refresh_token_expires_in),
        scope: body.scope.as_str().unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::StatusCode;
    use reqwest::header::HeaderMap;
    use rstest::rstest;
    use secrecy::ExposeSecret;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;

    fn parse(status: u16, body: &str) -> Result<TokenPair, ProviderError> {
        let status = StatusCode::from_u16(status).unwrap();
        read(&Answer { status, headers: HeaderMap::new(), body: body.as_bytes().to_vec() })
    }

    const PAIR: &str = r#"{"access_token":"shpat_new","expires_in":3600,"refresh_token":"shprt_new",
        "refresh_token_expires_in":7776000,"scope":"read_orders"}"#;

    #[test]
    fn a_pair() {
        let pair = parse(200, PAIR).unwrap();
        assert_eq!(pair.access_token.expose_secret(), "shpat_new");
        assert_eq!(pair.refresh_token.expose_secret(), "shprt_new");
        assert_eq!(pair.expires_in, Duration::from_hours(1));
        assert_eq!(pair.refresh_token_expires_in, Some(Duration::from_hours(90 * 24)));
        assert_eq!(pair.scope, "read_orders");
        assert!(!format!("{pair:?}").contains("shp"), "debug hides the tokens");
    }

    #[rstest]
    #[case(json!({}), 3_600, None)]
    #[case(json!({"expires_in": null, "refresh_token_expires_in": 60}), 3_600, Some(60))]
    #[case(json!({"expires_in": "120", "refresh_token_expires_in": "x", "scope": null}), 120, None)]
    #[case(json!({"expires_in": -1, "refresh_token_expires_in": -1, "scope": ["read_orders"]}), 3_600, None)]
    fn a_pair_is_never_lost_for_what_stands_beside_it(
        #[case] beside: Value,
        #[case] lives: u64,
        #[case] refresh_lives: Option<u64>,
    ) {
        let mut body = beside;
        body["access_token"] = "shpat_new".into();
        body["refresh_token"] = "shprt_new".into();
        let pair = parse(200, &body.to_string()).unwrap();
        assert_eq!(pair.access_token.expose_secret(), "shpat_new");
        assert_eq!(pair.expires_in.as_secs(), lives);
        assert_eq!(pair.refresh_token_expires_in.map(|span| span.as_secs()), refresh_lives);
    }

    proptest! {
        /// Whatever is wrong with it: a pair of two tokens, or an error that repeats neither.
        #[test]
        fn a_damaged_pair_is_refused_or_whole(
            status in 100_u16..1000,
            body in damaged(serde_json::from_str(PAIR).unwrap()),
            good: bool,
        ) {
            match parse(if good { 200 } else { status }, &body.to_string()) {
                Ok(pair) => {
                    prop_assert_eq!(Some(pair.access_token.expose_secret()), body["access_token"].as_str());
                    prop_assert_eq!(Some(pair.refresh_token.expose_secret()), body["refresh_token"].as_str());
                    prop_assert!(!pair.access_token.expose_secret().trim().is_empty());
                }
                Err(error) => {
                    let said = format!("{error} {error:?} {}", error.user_message());
                    prop_assert!(!said.contains("_new"));
                }
            }
        }
    }

    #[rstest]
    #[case(401, r#"{"error":"invalid_request"}"#, "refresh_rejected")]
    #[case(401, "", "refresh_rejected")]
    #[case(400, r#"{"error":"invalid_grant"}"#, "refresh_rejected")]
    #[case(
        401,
        r#"{"error":"invalid_request","error_description":"This request requires an active refresh_token"}"#,
        "refresh_rejected"
    )]
    #[case(401, r#"{"error":"invalid_request","error_description":"Could not find Shopify API application with api_key x"}"#,
        "own_credentials")]
    #[case(
        400,
        "<p>Oauth error invalid_request: Could not find Shopify API application with api_key</p>",
        "own_credentials"
    )]
    #[case(
        400,
        "<p>Oauth error invalid_request: The Shopify API application does not support oauth</p>",
        "own_credentials"
    )]
    #[case(400, "<p>Oauth error invalid_client</p>", "own_credentials")]
    #[case(400, r#"{"error":"invalid_client"}"#, "own_credentials")]
    #[case(401, r#"{"error":"invalid_client"}"#, "own_credentials")]
    #[case(400, r#"{"error":"application_cannot_be_found"}"#, "own_credentials")]
    #[case(400, r#"{"error":"invalid_request"}"#, "bad_request")]
    #[case(400, "<html>", "bad_request")]
    #[case(402, "", "frozen_shop")]
    #[case(404, "", "unknown_account")]
    #[case(429, "", "rate_limited")]
    #[case(430, "<html>", "rate_limited")]
    #[case(503, "", "server_error")]
    #[case(302, "", "unknown_account")]
    #[case(200, "<html>", "invalid_answer")]
    #[case(200, "{}", "invalid_answer")]
    #[case(
        200,
        r#"{"access_token":"a","expires_in":1,"refresh_token":null,"refresh_token_expires_in":1}"#,
        "invalid_answer"
    )]
    #[case(
        200,
        r#"{"access_token":"","expires_in":1,"refresh_token":"b","refresh_token_expires_in":1}"#,
        "invalid_answer"
    )]
    fn refusals(#[case] status: u16, #[case] body: &str, #[case] code: &str) {
        assert_eq!(parse(status, body).unwrap_err().code(), code);
    }
}
