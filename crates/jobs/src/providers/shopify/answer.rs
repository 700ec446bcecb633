//! What Shopify's status codes, `errors` and `extensions` mean for us ("Response codes", "GraphQL errors",
//! "API limits", "API search syntax").

use serde_json::Value;

use super::bucket::Cost;
use crate::http::Answer;
use crate::providers::{
    ErrorKind, Provider, ProviderError, ReconnectReason, RefusedReason, Transient, TransientCause,
};

/// Returns the `data` of an answer, and what the query cost where it says so.
pub(super) fn read(answer: &Answer) -> (Result<Value, ProviderError>, Option<Cost>) {
    let mut body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let cost = Cost::read(&body["extensions"]["cost"]);
    let result = match by_status(answer) {
        Some(kind) => Err(kind),
        None => data(&mut body, cost),
    };
    (result.map_err(|kind| ProviderError::new(Provider::Shopify, kind).of(answer)), cost)
}

/// Says that Shopify has not approved our application for protected customer data, for no shop
/// (<https://github.com/Shopify/shopify-api-js/issues/748>, <https://github.com/PipedreamHQ/pipedream/issues/7845>).
fn is_not_approved(sentence: &str) -> bool {
    sentence.contains("not approved to access") || sentence.contains("protected-customer-data")
}

/// Says that Shopify takes no token any more that does not expire: of no public application from 2027 on, of none that was
/// created since April 2026 (<https://github.com/chatwoot/chatwoot/issues/14462>,
/// <https://github.com/Shopify/shopify-app-js/issues/3234>).
fn is_permanent_token(sentence: &str) -> bool {
    sentence.contains("Non-expiring access tokens are no longer accepted")
}

/// Returns what a refusal's sentence says of our application, whoever's shop it is.
fn by_sentence(sentence: &str) -> Option<ErrorKind> {
    if is_not_approved(sentence) {
        return Some(ErrorKind::NotApproved);
    }
    is_permanent_token(sentence).then_some(ErrorKind::PermanentToken)
}

/// Returns what the status says; `None` for 200. The body of a refusal is a string (`errors`) or a
/// page of HTML; only that of a 401 or 403 adds something.
pub(super) fn by_status(answer: &Answer) -> Option<ErrorKind> {
    let transient =
        |cause| ErrorKind::Transient(Transient { cause, retry_after: answer.retry_after(), retry_now: true });
    let status = answer.status.as_u16();
    if let (401 | 403, Some(kind)) = (status, by_sentence(&String::from_utf8_lossy(&answer.body))) {
        return Some(kind);
    }
    Some(match status {
        200 => return None,
        401 => ErrorKind::Reconnect(ReconnectReason::TokenRejected),
        // 423: locked by Shopify, which only its support lifts.
        402 | 423 => ErrorKind::Refused(RefusedReason::FrozenShop),
        403 => ErrorKind::Refused(RefusedReason::MissingScope),
        // Gone, or moved: our token does not follow.
        404 | 300..=399 => ErrorKind::Refused(RefusedReason::Unknown),
        409 => transient(TransientCause::Locked),
        // 430: a security rejection of a shared address, which passes
        // (<https://github.com/kirillplatonov/shopify_graphql/issues/38>).
        429 | 430 => transient(TransientCause::RateLimited),
        500.. => transient(TransientCause::Server(status)),
        ..=299 => ErrorKind::Refused(RefusedReason::InvalidAnswer("status")),
        _ => ErrorKind::Refused(RefusedReason::BadRequest),
    })
}

/// Any error refuses the whole answer: partial data is data with holes.
fn data(body: &mut Value, cost: Option<Cost>) -> Result<Value, ErrorKind> {
    match &body["errors"] {
        Value::Null => {}
        Value::Array(errors) if errors.is_empty() => {}
        Value::Array(errors) => return Err(by_codes(errors, cost)),
        _ => return Err(ErrorKind::Refused(RefusedReason::BadRequest)),
    }
    if has_warnings(&body["extensions"]["search"]) {
        return Err(ErrorKind::Refused(RefusedReason::SearchIgnored));
    }
    // Not by index: a body that is no object would panic.
    match body.get_mut("data").map(Value::take) {
        Some(data @ Value::Object(_)) => Ok(data),
        _ => Err(ErrorKind::Refused(RefusedReason::InvalidAnswer("data"))),
    }
}

/// One code decides: what passes by itself first, then what somebody must act on.
fn by_codes(errors: &[Value], cost: Option<Cost>) -> ErrorKind {
    let has = |code: &str| errors.iter().any(|error| error["extensions"]["code"] == code);
    let transient =
        |cause, retry_after| ErrorKind::Transient(Transient { cause, retry_after, retry_now: true });
    if has("MAX_COST_EXCEEDED") || (has("THROTTLED") && cost.is_some_and(|cost| cost.never_fits())) {
        ErrorKind::Refused(RefusedReason::TooExpensive)
    } else if has("THROTTLED") {
        transient(TransientCause::RateLimited, cost.map(|cost| cost.wait()))
    } else if has("INTERNAL_SERVER_ERROR") || has("TIMEOUT") {
        transient(TransientCause::Server(200), None)
    } else if has("SHOP_INACTIVE") {
        ErrorKind::Refused(RefusedReason::FrozenShop)
    } else if let Some(kind) = errors.iter().find_map(|error| by_sentence(error["message"].as_str()?)) {
        kind
    } else if has("ACCESS_DENIED") {
        ErrorKind::Refused(RefusedReason::MissingScope)
    } else {
        ErrorKind::Refused(RefusedReason::BadRequest)
    }
}

/// Tells whether the answer warns about its search: a term that cannot be parsed is dropped, with
/// nothing but a warning to tell.
fn has_warnings(search: &Value) -> bool {
    let warned = |entry: &Value| match &entry["warnings"] {
        Value::Null => false,
        Value::Array(warnings) => !warnings.is_empty(),
        _ => true,
    };
    match search {
        Value::Array(entries) => entries.iter().any(warned),
        other => warned(other),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use reqwest::StatusCode;
    use reqwest::header::HeaderMap;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;

    fn answer(status: u16, body: &str) -> Answer {
        let headers = HeaderMap::from_iter([("x-request-id".parse().unwrap(), "9a-1".parse().unwrap())]);
        Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: body.as_bytes().to_vec() }
    }

    fn error(status: u16, body: &str) -> ProviderError {
        read(&answer(status, body)).0.unwrap_err()
    }

    #[rstest]
    #[case(401, r#"{"errors":"[API] Invalid API key or access token"}"#, "token_rejected")]
    #[case(402, r#"{"errors":"Unavailable Shop"}"#, "frozen_shop")]
    #[case(403, r#"{"errors":"[API] This action requires merchant approval"}"#, "missing_scope")]
    #[case(403, r#"{"errors":"[API] This app is not approved to access REST endpoints with protected customer data."}"#,
        "app_not_approved")]
    #[case(403, r#"{"errors":"[API] Non-expiring access tokens are no longer accepted for the Admin API. Start using expiring offline tokens: https://shopify.dev/x"}"#,
        "permanent_token")]
    #[case(404, r#"{"errors":"Not Found"}"#, "unknown_account")]
    #[case(423, r#"{"errors":"Locked"}"#, "frozen_shop")]
    #[case(429, r#"{"errors":"Throttled"}"#, "rate_limited")]
    #[case(430, "<html>", "rate_limited")]
    #[case(500, "<html>", "server_error")]
    #[case(530, "", "server_error")]
    #[case(301, "", "unknown_account")]
    #[case(400, "", "bad_request")]
    #[case(406, "", "bad_request")]
    #[case(201, "{}", "invalid_answer")]
    fn statuses(#[case] status: u16, #[case] body: &str, #[case] code: &str) {
        let error = error(status, body);
        assert_eq!((error.code(), error.request_id.as_deref()), (code, Some("9a-1")));
    }

    #[rstest]
    #[case("THROTTLED", "rate_limited")]
    #[case("MAX_COST_EXCEEDED", "too_expensive")]
    #[case("ACCESS_DENIED", "missing_scope")]
    #[case("SHOP_INACTIVE", "frozen_shop")]
    #[case("INTERNAL_SERVER_ERROR", "server_error")]
    #[case("undefinedField", "bad_request")]
    #[case("", "bad_request")]
    fn codes(#[case] code: &str, #[case] expected: &str) {
        let errors = json!([{"message": "m", "path": ["a"], "extensions": {"code": code}}]);
        assert_eq!(error(200, &json!({"data": {"shop": {}}, "errors": errors}).to_string()).code(), expected);
    }

    #[rstest]
    #[case("ACCESS_DENIED")]
    #[case("")]
    fn an_app_that_is_not_approved_is_no_shops_fault(#[case] code: &str) {
        let message =
            "This app is not approved to access the Order object. See https://shopify.dev/docs/apps/launch";
        let errors = json!([{"message": message, "path": ["orders"], "extensions": {"code": code}}]);
        let error = error(200, &json!({"data": {"orders": null}, "errors": errors}).to_string());
        assert_eq!((error.code(), error.counts_as_attempt()), ("app_not_approved", false));
    }

    #[rstest]
    #[case(r#"{"errors":"a string"}"#, "bad_request")]
    #[case(r#"{"errors":[null]}"#, "bad_request")]
    #[case(r#"{"errors":{"code":"x"}}"#, "bad_request")]
    #[case(r#"{"data":null}"#, "invalid_answer")]
    #[case(r#"{"data":[]}"#, "invalid_answer")]
    #[case("{}", "invalid_answer")]
    #[case("", "invalid_answer")]
    #[case("<html>", "invalid_answer")]
    #[case("[]", "invalid_answer")]
    #[case("true", "invalid_answer")]
    #[case("7", "invalid_answer")]
    #[case(r#""Throttled""#, "invalid_answer")]
    #[case(
        r#"{"data":{},"extensions":{"search":[{"warnings":[{"code":"invalid_field"}]}]}}"#,
        "search_ignored"
    )]
    #[case(r#"{"data":{},"extensions":{"search":[{"warnings":[]},{"warnings":["x"]}]}}"#, "search_ignored")]
    #[case(r#"{"data":{},"extensions":{"search":{"warnings":"x"}}}"#, "search_ignored")]
    fn bodies(#[case] body: &str, #[case] expected: &str) {
        assert_eq!(error(200, body).code(), expected);
    }

    #[rstest]
    #[case(r#"{"data":{"a":1}}"#)]
    #[case(r#"{"data":{"a":1},"errors":null}"#)]
    #[case(r#"{"data":{"a":1},"errors":[]}"#)]
    #[case(r#"{"data":{"a":1},"extensions":{"search":[{"path":["x"],"parsed":{}}]}}"#)]
    #[case(r#"{"data":{"a":1},"extensions":{"search":[{"warnings":[]}]}}"#)]
    fn good_answers(#[case] body: &str) {
        assert_eq!(read(&answer(200, body)).0.unwrap(), json!({"a": 1}));
    }

    proptest! {
        /// Whatever comes with whatever status: data only from a 200 without errors and without a dropped search term.
        #[test]
        fn a_damaged_answer_is_refused_or_has_no_error(
            status in 100_u16..1000,
            body in damaged(json!({
                "data": {"shop": {"currencyCode": "EUR"}},
                "errors": [{"message": "shpat_x", "extensions": {"code": "THROTTLED"}}],
                "extensions": {
                    "search": [{"warnings": [{"code": "invalid_field"}]}],
                    "cost": {"requestedQueryCost": 602, "throttleStatus":
                        {"maximumAvailable": 2000.0, "currentlyAvailable": 1988, "restoreRate": 100}},
                },
            })),
            good: bool,
        ) {
            let status = if good { 200 } else { status };
            match read(&answer(status, &body.to_string())).0 {
                Ok(data) => {
                    prop_assert_eq!((status, &data), (200, &body["data"]));
                    let errors = &body["errors"];
                    prop_assert!(errors.is_null() || *errors == json!([]), "{}", body);
                }
                Err(error) => {
                    let said = format!("{error} {error:?} {}", error.user_message());
                    prop_assert!(!said.contains("shpat_"), "{}", said);
                    prop_assert!(error.retry_after().is_none_or(|wait| wait <= crate::http::LONGEST_RETRY_AFTER));
                }
            }
        }
    }

    fn throttled(requested: u32) -> ProviderError {
        let status = json!({"maximumAvailable": 1000.0, "currentlyAvailable": 100.0, "restoreRate": 50.0});
        let body = json!({
            "errors": [{"message": "Throttled", "extensions": {"code": "THROTTLED"}}],
            "extensions": {"cost": {"requestedQueryCost": requested, "throttleStatus": status}},
        });
        error(200, &body.to_string())
    }

    #[test]
    fn a_throttle_says_how_long() {
        assert_eq!(throttled(602).retry_after(), Some(Duration::from_millis(10_040)));
        assert!(!throttled(602).counts_as_attempt());
        assert_eq!(throttled(1001).code(), "too_expensive", "it would never fit");
    }
}
