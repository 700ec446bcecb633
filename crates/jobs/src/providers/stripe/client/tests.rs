//! Asks a small server that answers as Stripe does, and as it should not.

use std::num::NonZeroU32;

use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::test_server::{Reply, TestServer};

fn deadline() -> Deadline {
    let end = Instant::now() + Duration::from_mins(1);
    Deadline::new(end, end)
}

fn client(server: &TestServer) -> StripeClient {
    let policy = RetryPolicy { first_pause: Duration::from_millis(1), ..RetryPolicy::PROVIDER };
    StripeClient::new(
        http::client().unwrap(),
        &server.url("/"),
        "sk_test_platform".into(),
        Pacer::alone(NonZeroU32::new(20).unwrap()),
    )
    .with_retries(policy)
}

fn window() -> Window {
    Window { from: "2026-10-31T23:00:00Z".parse().unwrap(), to: "2026-11-21T10:00:00.5Z".parse().unwrap() }
}

fn list(ids: &[&str], has_more: bool) -> serde_json::Value {
    let rows: Vec<_> = ids
        .iter()
        .map(|id| {
            json!({"id": id, "amount": 100, "currency": "eur", "created": 1_795_000_000,
                   "reporting_category": "charge", "source": "ch_1"})
        })
        .collect();
    json!({"data": rows, "has_more": has_more})
}

async fn first_page(server: &TestServer) -> Result<Page, ProviderError> {
    let account = "acct_1".parse().unwrap();
    client(server).balance_transactions(&account, window(), None, &deadline()).await
}

#[tokio::test]
async fn asks_for_what_stripe_documents() {
    let server = TestServer::start([Reply::new(200).json(&list(&["txn_2", "txn_1"], true))]).await;
    let account = "acct_1".parse().unwrap();
    let page =
        client(&server).balance_transactions(&account, window(), Some("txn_3"), &deadline()).await.unwrap();
    assert_eq!((page.movements.len(), page.next.as_deref()), (2, Some("txn_1")));

    let asked = &server.requests()[0];
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("GET", "/v1/balance_transactions"));
    let query: Vec<_> = asked.query.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expected = [
        ("limit", "100"),
        ("created[gte]", "1793487600"),
        ("created[lt]", "1795255201"),
        ("expand[]", "data.source"),
        ("starting_after", "txn_3"),
    ];
    assert_eq!(query, expected);
    assert_eq!(asked.header("authorization"), Some("Bearer sk_test_platform"));
    assert_eq!(asked.header("stripe-account"), Some("acct_1"));
    assert_eq!(asked.header("stripe-version"), Some(API_VERSION));
}

#[tokio::test]
async fn another_accounts_page_is_no_page() {
    for (answered, expected) in [("acct_1", None), ("acct_2", Some("invalid_answer"))] {
        let reply = Reply::new(200).header("stripe-account", answered).json(&list(&["txn_1"], false));
        let server = TestServer::start([reply]).await;
        let code = first_page(&server).await.err().map(|error| error.code());
        assert_eq!(code, expected, "{answered}");
    }
}

#[tokio::test]
async fn survives_what_passes() {
    let replies = [
        Reply::new(503).body("<html>"),
        Reply::new(429).header("retry-after", "0"),
        Reply::new(409),
        Reply::new(200).json(&list(&["txn_1"], false)),
    ];
    let server = TestServer::start(replies).await;
    assert_eq!(first_page(&server).await.unwrap().movements.len(), 1);
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn gives_up_at_once_on_what_does_not() {
    for (reply, code) in [
        (Reply::new(401), "own_credentials"),
        (Reply::new(503).header("stripe-should-retry", "false"), "server_error"),
        (Reply::new(429).header("retry-after", "600"), "rate_limited"),
        (Reply::new(302).header("location", "https://evil.example"), "invalid_answer"),
        (Reply::new(200).body("<html>"), "invalid_answer"),
    ] {
        let server = TestServer::start([reply.header("request-id", "req_1")]).await;
        let error = first_page(&server).await.unwrap_err();
        assert_eq!(error.code(), code);
        assert_eq!(error.request_id.as_deref(), Some("req_1"));
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn an_account_is_proven_with_the_rows_own_token_alone() {
    let server =
        TestServer::start([Reply::new(200).json(&json!({"id": "acct_42", "object": "account"}))]).await;
    let id = client(&server).prove_account(&"sk_row".into(), &deadline()).await.unwrap();
    assert_eq!(id.as_str(), "acct_42");
    let asked = &server.requests()[0];
    assert_eq!(asked.path, "/v1/account");
    assert_eq!(asked.header("authorization"), Some("Bearer sk_row"));
    assert_eq!(asked.header("stripe-account"), None);
}

#[tokio::test]
async fn the_key_is_checked_with_what_the_work_asks() {
    let lacks = json!({"error": {"message": "Having the 'rak_charge_read' permission would allow this"}});
    let gone = json!({"error": {"code": "account_invalid"}});
    let (none, one) = (list(&[], false), "acct_1".parse().unwrap());
    for (replies, requests, code) in [
        (vec![Reply::new(200).json(&none)], 1, None),
        (vec![Reply::new(403).json(&lacks)], 1, Some("own_permission")),
        (vec![Reply::new(403).json(&gone), Reply::new(200).json(&none)], 2, None),
        (vec![Reply::new(403).json(&gone), Reply::new(401)], 2, Some("own_credentials")),
    ] {
        let server = TestServer::start(replies).await;
        let answer = client(&server).check_key(Some(&one), &deadline()).await;
        assert_eq!(answer.err().map(|error| error.code()), code);
        let asked = server.requests();
        assert_eq!((asked.len(), asked[0].header("stripe-account")), (requests, Some("acct_1")));
        assert!(asked.iter().all(|asked| asked.query.iter().any(|(name, _)| name == "expand[]")));
    }
}

#[tokio::test]
async fn a_rows_refused_token_is_its_own_trouble() {
    let server = TestServer::start([Reply::new(401)]).await;
    let error = client(&server).prove_account(&"sk_row".into(), &deadline()).await.unwrap_err();
    assert_eq!(error.code(), "token_rejected");
}

#[tokio::test]
async fn an_answer_without_an_account_proves_nothing() {
    for body in ["{}", r#"{"id":null}"#, r#"{"id":"cus_1"}"#, "<html>"] {
        let server = TestServer::start([Reply::new(200).body(body)]).await;
        let error = client(&server).prove_account(&"sk_row".into(), &deadline()).await.unwrap_err();
        assert_eq!(error.code(), "invalid_answer");
    }
}

#[tokio::test]
async fn nothing_is_asked_when_the_time_is_over() {
    let server = TestServer::start([]).await;
    let (now, account) = (Instant::now(), "acct_1".parse().unwrap());
    let over = Deadline::new(now, now);
    let error = client(&server).balance_transactions(&account, window(), None, &over).await.unwrap_err();
    assert_eq!(error.code(), "out_of_time");
    assert!(server.requests().is_empty());
}

/// The work of a lane is spawned: what it awaits must be able to move between threads.
#[test]
fn calls_can_be_spawned() {
    fn sendable<T: Send>(_: T) {}
    let client = StripeClient::new(
        http::client().unwrap(),
        super::super::DEFAULT_API_BASE,
        "sk_test".into(),
        Pacer::alone(NonZeroU32::new(20).unwrap()),
    );
    let (account, token, end) = ("acct_1".parse().unwrap(), SecretString::from("sk_row"), Instant::now());
    let deadline = Deadline::new(end, end);
    sendable(client.balance_transactions(&account, window(), None, &deadline));
    sendable(client.prove_account(&token, &deadline));
}
