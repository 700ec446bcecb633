//! The client against a scripted shop.

use std::future::Future;

use tokio::time::Instant;

use super::*;
use crate::providers::MovementKind;
use crate::test_server::{Asked, Reply, TestServer};

const SHOP: &str = "ma-boutique.myshopify.com";

fn deadline() -> Deadline {
    let end = Instant::now() + Duration::from_mins(1);
    Deadline::new(end, end)
}

fn window() -> Window {
    Window { from: "2026-10-31T23:00:00Z".parse().unwrap(), to: "2026-11-30T23:00:00Z".parse().unwrap() }
}

fn client(server: &TestServer) -> ShopifyClient {
    let policy = RetryPolicy { first_pause: Duration::from_millis(1), ..RetryPolicy::PROVIDER };
    let base = server.url("/{shop}").parse().unwrap();
    ShopifyClient::new(http::client().unwrap(), base, "client-id", "client-secret".into())
        .with_retries(policy)
}

async fn tenders(server: &TestServer) -> Result<Page, ProviderError> {
    client(server).tender_page(&SHOP.parse().unwrap(), &"shpat_1".into(), window(), None, &deadline()).await
}

async fn disputes(server: &TestServer) -> Result<Disputes, ProviderError> {
    let (shop, token) = (SHOP.parse().unwrap(), "shpat_1".into());
    client(server).dispute_page(&shop, &token, window(), None, window().to, &deadline()).await
}

fn ok(data: &Value) -> Reply {
    Reply::new(200).json(&json!({"data": data}))
}

fn coded(code: &str) -> Reply {
    Reply::new(200).json(&json!({"errors": [{"message": "m", "extensions": {"code": code}}]}))
}

fn tender(number: u32, amount: &str, currency: &str, order: u32) -> Value {
    json!({
        "id": format!("gid://shopify/TenderTransaction/{number}"), "processedAt": "2026-11-05T09:30:00Z",
        "test": false, "paymentMethod": "credit_card", "remoteReference": null,
        "amount": {"amount": amount, "currencyCode": currency},
        "order": {"id": format!("gid://shopify/Order/{order}"), "currencyCode": "EUR"},
    })
}

fn tender_data(nodes: &[Value], next: Option<&str>) -> Value {
    let page_info = json!({"hasNextPage": next.is_some(), "endCursor": next});
    json!({"shop": {"currencyCode": "EUR"}, "tenderTransactions": {"nodes": nodes, "pageInfo": page_info}})
}

fn sale(buyer: &str, shop: &str) -> Value {
    json!({
        "kind": "SALE", "status": "SUCCESS", "test": false, "processedAt": "2026-11-05T09:30:00Z",
        "amountSet": {
            "presentmentMoney": {"amount": buyer, "currencyCode": "USD"},
            "shopMoney": {"amount": shop, "currencyCode": "EUR"},
        },
    })
}

fn order_data(orders: &[(u32, Vec<Value>)]) -> Value {
    let nodes: Vec<_> = orders
        .iter()
        .map(|(number, transactions)| {
            json!({"id": format!("gid://shopify/Order/{number}"), "transactions": transactions})
        })
        .collect();
    json!({"nodes": nodes})
}

fn variables(asked: &Asked) -> Value {
    asked.json()["variables"].clone()
}

#[tokio::test]
async fn asks_the_shop_as_documented() {
    let server = TestServer::start([ok(&tender_data(&[tender(1, "12.00", "EUR", 1)], Some("c1")))]).await;
    let page = tenders(&server).await.unwrap();
    assert_eq!((page.movements[0].amount_minor, page.next.as_deref()), (Some(1200), Some("c1")));

    let asked = &server.requests()[0];
    assert_eq!(asked.method, "POST");
    assert_eq!(asked.path, format!("/{SHOP}/admin/api/2026-10/graphql.json"));
    assert_eq!(asked.header("x-shopify-access-token"), Some("shpat_1"));
    assert_eq!(asked.json()["query"], documents::TENDER_TRANSACTIONS);
    let query = "processed_at:>='2026-10-31T23:00:00Z' AND processed_at:<'2026-11-30T23:00:00Z'";
    assert_eq!(variables(asked), json!({"first": 200, "after": null, "query": query}));
}

#[tokio::test]
async fn the_cursor_is_passed_on_and_must_move() {
    let server = TestServer::start([ok(&tender_data(&[], Some("c1")))]).await;
    let shop = SHOP.parse().unwrap();
    let result =
        client(&server).tender_page(&shop, &"shpat_1".into(), window(), Some("c1"), &deadline()).await;
    assert_eq!(result.unwrap_err().code(), "endless_pages");
    assert_eq!(variables(&server.requests()[0])["after"], "c1");
}

#[tokio::test]
async fn foreign_currencies_are_asked_in_one_request() {
    let nodes = [tender(1, "108.00", "USD", 1), tender(2, "54.00", "USD", 2), tender(3, "9.00", "EUR", 3)];
    let orders = order_data(&[(1, vec![sale("108.00", "100.00")]), (2, vec![sale("54.00", "49.90")])]);
    let server = TestServer::start([ok(&tender_data(&nodes, None)), ok(&orders)]).await;
    let page = tenders(&server).await.unwrap();
    let amounts: Vec<_> =
        page.movements.iter().map(|m| (m.amount_minor.unwrap(), m.currency.as_deref().unwrap())).collect();
    assert_eq!(amounts, [(10_000, "EUR"), (4_990, "EUR"), (900, "EUR")]);
    assert!(page.movements.iter().all(|movement| movement.converted));

    let asked = server.requests();
    assert_eq!(asked.len(), 2);
    assert_eq!(
        variables(&asked[1]),
        json!({"ids": ["gid://shopify/Order/1", "gid://shopify/Order/2"], "first": 25})
    );
}

#[tokio::test]
async fn an_order_with_many_transactions_is_asked_alone_and_to_its_end() {
    let many = vec![sale("1.00", "0.90"); 25];
    let all: Vec<_> = many.iter().cloned().chain([sale("108.00", "100.00")]).collect();
    let server = TestServer::start([
        ok(&tender_data(&[tender(1, "108.00", "USD", 1)], None)),
        ok(&order_data(&[(1, many)])),
        ok(&order_data(&[(1, all)])),
    ])
    .await;
    assert_eq!(tenders(&server).await.unwrap().movements[0].amount_minor, Some(10_000));
    assert_eq!(variables(&server.requests()[2])["first"], 240);
}

#[tokio::test]
async fn an_order_beyond_every_limit_is_kept_and_not_converted() {
    let server = TestServer::start([
        ok(&tender_data(&[tender(1, "1.00", "USD", 1)], None)),
        ok(&order_data(&[(1, vec![sale("1.00", "0.90"); 25])])),
        ok(&order_data(&[(1, vec![sale("1.00", "0.90"); 240])])),
    ])
    .await;
    let page = tenders(&server).await.unwrap();
    assert!(!page.movements[0].converted);
}

#[tokio::test]
async fn too_expensive_halves_the_page() {
    let replies = [coded("MAX_COST_EXCEEDED"), coded("MAX_COST_EXCEEDED"), ok(&tender_data(&[], None))];
    let server = TestServer::start(replies).await;
    assert_eq!(tenders(&server).await.unwrap(), Page::default());
    let firsts: Vec<_> = server.requests().iter().map(|asked| variables(asked)["first"].clone()).collect();
    assert_eq!(firsts, [200, 100, 50]);
}

#[tokio::test]
async fn halving_ends() {
    let server = TestServer::start(vec![coded("MAX_COST_EXCEEDED"); 10]).await;
    assert_eq!(tenders(&server).await.unwrap_err().code(), "too_expensive");
    assert_eq!(server.requests().len(), 5);
}

#[tokio::test]
async fn too_expensive_orders_are_split() {
    let nodes = [tender(1, "108.00", "USD", 1), tender(2, "54.00", "USD", 2)];
    let server = TestServer::start([
        ok(&tender_data(&nodes, None)),
        coded("MAX_COST_EXCEEDED"),
        ok(&order_data(&[(2, vec![sale("54.00", "49.90")])])),
        ok(&order_data(&[(1, vec![sale("108.00", "100.00")])])),
    ])
    .await;
    let page = tenders(&server).await.unwrap();
    assert_eq!(page.movements.iter().filter_map(|m| m.amount_minor).collect::<Vec<_>>(), [10_000, 4_990]);
}

#[tokio::test]
async fn a_throttle_is_waited_for() {
    let status = json!({"maximumAvailable": 2000.0, "currentlyAvailable": 600.0, "restoreRate": 2000.0});
    let throttled = Reply::new(200).json(&json!({
        "errors": [{"message": "Throttled", "extensions": {"code": "THROTTLED"}}],
        "extensions": {"cost": {"requestedQueryCost": 604, "throttleStatus": status}},
    }));
    let server = TestServer::start([throttled, ok(&tender_data(&[], None))]).await;
    tenders(&server).await.unwrap();
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn what_passes_is_survived_and_what_does_not_is_not_repeated() {
    let replies = [Reply::new(502).body("<html>"), Reply::new(429).header("retry-after", "0.001")];
    let server = TestServer::start(replies.into_iter().chain([ok(&tender_data(&[], None))])).await;
    tenders(&server).await.unwrap();
    assert_eq!(server.requests().len(), 3);

    for (status, code) in [(401, "token_rejected"), (402, "frozen_shop"), (301, "unknown_account")] {
        let server = TestServer::start([Reply::new(status).header("location", server.url("/"))]).await;
        assert_eq!(tenders(&server).await.unwrap_err().code(), code);
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_dropped_search_term_is_an_error() {
    let extensions = json!({"search": [{"path": ["tenderTransactions"], "warnings": [{"code": "invalid"}]}]});
    let body = json!({"data": tender_data(&[tender(1, "1.00", "EUR", 1)], None), "extensions": extensions});
    let server = TestServer::start([Reply::new(200).json(&body)]).await;
    assert_eq!(tenders(&server).await.unwrap_err().code(), "search_ignored");
}

#[tokio::test]
async fn disputes_without_the_scope_are_no_failure() {
    let server = TestServer::start([coded("ACCESS_DENIED")]).await;
    assert_eq!(disputes(&server).await.unwrap(), Disputes::NotAvailable);
}

#[tokio::test]
async fn a_lost_chargeback_in_another_currency_takes_its_sales_rate() {
    let dispute = json!({
        "id": "gid://shopify/ShopifyPaymentsDispute/1", "type": "CHARGEBACK", "status": "LOST",
        "finalizedOn": "2026-11-05", "amount": {"amount": "108.00", "currencyCode": "USD"},
        "order": {"id": "gid://shopify/Order/1", "currencyCode": "EUR"},
    });
    let connection = json!({"nodes": [dispute], "pageInfo": {"hasNextPage": false, "endCursor": null}});
    let data = json!({"shop": {"currencyCode": "EUR"}, "shopifyPaymentsAccount": {"disputes": connection}});
    let orders = order_data(&[(1, vec![sale("108.00", "100.00")])]);
    let server = TestServer::start([ok(&data), ok(&orders)]).await;
    let Disputes::Page(page) = disputes(&server).await.unwrap() else { panic!("a page") };
    assert_eq!(page.movements[0].kind, MovementKind::Dispute);
    assert_eq!((page.movements[0].amount_minor, page.movements[0].converted), (Some(-10_000), true));
    let query = variables(&server.requests()[0])["query"].as_str().unwrap().to_owned();
    assert_eq!(query, "initiated_at:>='2025-05-09T23:00:00Z' AND initiated_at:<'2026-11-30T23:00:00Z'");
}

#[tokio::test]
async fn a_refresh_sends_the_form_and_no_access_token() {
    let pair = json!({"access_token": "a", "expires_in": 3600, "refresh_token": "b",
                      "refresh_token_expires_in": 7_776_000, "scope": "read_orders"});
    let server = TestServer::start([Reply::new(503), Reply::new(200).json(&pair)]).await;
    let shop = SHOP.parse().unwrap();
    client(&server).refresh(&shop, &"shprt_1".into(), &deadline()).await.unwrap();
    let asked = &server.requests()[1];
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str()),
        ("POST", "/ma-boutique.myshopify.com/admin/oauth/access_token")
    );
    assert_eq!(asked.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(asked.header("x-shopify-access-token"), None);
    let form =
        "client_id=client-id&client_secret=client-secret&grant_type=refresh_token&refresh_token=shprt_1";
    assert_eq!(asked.body, form);
}

#[tokio::test]
async fn the_shop_says_its_currency_and_what_is_within_reach() {
    let server = TestServer::start([ok(&json!({
        "shop": {"currencyCode": "CHF"},
        "currentAppInstallation": {"accessScopes": [{"handle": "read_orders"}]},
    }))])
    .await;
    let shop = SHOP.parse().unwrap();
    let (currency, all_orders) = client(&server).shop(&shop, &"shpat_1".into(), &deadline()).await.unwrap();
    assert_eq!((currency.as_str(), all_orders), ("CHF", Some(false)));
}

#[tokio::test]
async fn nothing_is_asked_when_the_time_is_over() {
    let server = TestServer::start([]).await;
    let (now, shop) = (Instant::now(), SHOP.parse().unwrap());
    let over = Deadline::new(now, now);
    let (client, token) = (client(&server), SecretString::from("shpat_1"));
    let page = client.tender_page(&shop, &token, window(), None, &over);
    assert_eq!(code(page).await, "out_of_time");
    assert_eq!(code(client.refresh(&shop, &token, &over)).await, "out_of_time");
    assert!(server.requests().is_empty());
}

/// The work of a lane is spawned: what it awaits must be able to move between threads.
#[test]
fn calls_can_be_spawned() {
    fn sendable<T: Send>(_: T) {}
    let client = ShopifyClient::new(http::client().unwrap(), ApiBase::default(), "id", "secret".into());
    let (shop, token) = (SHOP.parse().unwrap(), SecretString::from("shpat_1"));
    let end = Instant::now();
    let deadline = Deadline::new(end, end);
    sendable(client.tender_page(&shop, &token, window(), None, &deadline));
    sendable(client.dispute_page(&shop, &token, window(), None, window().to, &deadline));
    sendable(client.refresh(&shop, &token, &deadline));
}

async fn code<T>(call: impl Future<Output = Result<T, ProviderError>>) -> &'static str {
    call.await.err().map_or("no error", |error| error.code())
}
