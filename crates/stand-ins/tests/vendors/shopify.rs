//! Selections, searches, pages, costs, tokens and refusals of the Shopify stand-in.

use std::time::Duration;

use chrono::TimeDelta;
use reqwest::Client;
use serde_json::{Value, json};
use stand_ins::{
    faults::Rule,
    shopify::{
        Dispute, Misbehaviour, PaymentsAccess, RefreshReuse, StandIn, Tender, Tokens, graphql_error,
        http_error,
    },
};

use crate::{
    at,
    http::{Answer, client, send},
};

pub(crate) const SHOP: &str = "atelier.myshopify.com";
const TENDERS: &str = "query T($first: Int!, $after: String, $query: String) {
  tenderTransactions(first: $first, after: $after, query: $query) {
    pageInfo { hasNextPage endCursor }
    nodes { id amount { amount currencyCode } processedAt test paymentMethod remoteReference order { id name } }
  }
}";

pub(crate) struct Bench {
    pub(crate) shopify: StandIn,
    client: Client,
    pub(crate) token: String,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let shopify = StandIn::start().await.expect("a port");
        shopify.add_shop(SHOP, "EUR", "shpat_permanent");
        Self { shopify, client: client(), token: "shpat_permanent".into() }
    }

    pub(crate) async fn ask(&self, query: &str, variables: Value) -> Answer {
        self.ask_path("/admin/api/2026-10/graphql.json", query, variables).await
    }

    async fn ask_path(&self, path: &str, query: &str, variables: Value) -> Answer {
        let url = self.shopify.api_base().replace("{shop}", SHOP) + path;
        let body = json!({"query": query, "variables": variables});
        send(self.client.post(url).header("x-shopify-access-token", &self.token).json(&body)).await
    }

    /// Returns the data of an answer without errors.
    async fn data(&self, query: &str, variables: Value) -> Value {
        let answer = self.ask(query, variables).await;
        assert_eq!((answer.status, &answer.body["errors"]), (200, &Value::Null), "{}", answer.body);
        answer.body["data"].clone()
    }

    /// Returns the code of the first error.
    async fn code(&self, query: &str) -> String {
        let answer = self.ask(query, json!({})).await;
        assert_eq!(answer.status, 200);
        answer.body["errors"][0]["extensions"]["code"].as_str().unwrap_or_default().to_owned()
    }

    async fn page(&self, first: usize, after: &Value) -> Value {
        let variables = json!({"first": first, "after": after});
        self.data(TENDERS, variables).await["tenderTransactions"].clone()
    }

    async fn refresh(&self, refresh_token: &str) -> Answer {
        let form = [
            ("client_id", self.shopify.client_id()),
            ("client_secret", self.shopify.client_secret()),
            ("grant_type", "refresh_token".into()),
            ("refresh_token", refresh_token.into()),
        ];
        let url = format!("{}/{SHOP}/admin/oauth/access_token", self.shopify.url());
        send(self.client.post(url).form(&form)).await
    }
}

fn amounts(page: &Value) -> Vec<&str> {
    let nodes = page["nodes"].as_array().expect("nodes").iter();
    nodes.map(|node| node["amount"]["amount"].as_str().expect("an amount")).collect()
}

#[tokio::test]
async fn answers_exactly_what_is_asked() {
    let bench = Bench::new().await;
    let noon = at("2026-11-03T12:00:00Z");
    let sale = bench.shopify.tender(SHOP, Tender::new(noon, "12.5", "EUR").reference("ch_1"));
    bench.shopify.refund(SHOP, &sale, noon + TimeDelta::days(1), "2.5");
    bench.shopify.tender(SHOP, Tender::new(noon, "5.0", "EUR").gift_card().deleted_order().test());
    let query = "query Shop($n: Int = 2, $all: Boolean!) {
      here: shop { currency: currencyCode ...Where }
      tenderTransactions(first: $n) {
        edges { node { __typename amount { amount } order { name } paymentMethod @include(if: $all) } }
        nodes { remoteReference ... on TenderTransaction { test } }
      }
    }
    fragment Where on Shop { myshopifyDomain }";
    let data = bench.data(query, json!({"all": false})).await;
    let expected = json!({
        "here": {"currency": "EUR", "myshopifyDomain": SHOP},
        "tenderTransactions": {
            "edges": [
                {"node": {"__typename": "TenderTransaction", "amount": {"amount": "12.5"}, "order": {"name": "#1001"}}},
                {"node": {"__typename": "TenderTransaction", "amount": {"amount": "-2.5"}, "order": {"name": "#1001"}}},
            ],
            "nodes": [{"remoteReference": "ch_1", "test": false}, {"remoteReference": null, "test": false}],
        },
    });
    assert_eq!(data, expected);
    let last = bench.data(TENDERS, json!({"first": 1, "query": "test:true"})).await;
    let node = &last["tenderTransactions"]["nodes"][0];
    assert_eq!((&node["paymentMethod"], &node["order"]), (&json!("gift_card"), &Value::Null));
}

#[tokio::test]
async fn order_transactions_tell_the_shop_money() {
    let bench = Bench::new().await;
    let noon = at("2026-11-03T12:00:00Z");
    let sale = bench.shopify.tender(SHOP, Tender::new(noon, "120.0", "USD").shop_money("110.0"));
    bench.shopify.order_transaction(SHOP, &sale, "CHANGE", noon, "0.5");
    let order = sale.order.clone().expect("an order");
    let query = "query($id: ID!, $ids: [ID!]!) {
      order(id: $id) { transactions(first: 10) { kind amountSet { shopMoney { amount currencyCode } } } }
      nodes(ids: $ids) { id ... on Order { presentmentCurrencyCode } }
    }";
    let data = bench.data(query, json!({"id": order, "ids": [order, "gid://shopify/Order/1"]})).await;
    let money = |amount: &str| json!({"shopMoney": {"amount": amount, "currencyCode": "EUR"}});
    let expected = json!([
        {"kind": "SALE", "amountSet": money("110.0")},
        {"kind": "CHANGE", "amountSet": money("0.5")},
    ]);
    assert_eq!(data["order"]["transactions"], expected);
    assert_eq!(data["nodes"], json!([{"id": order, "presentmentCurrencyCode": "USD"}, null]));
    bench.shopify.hide_orders_before(SHOP, noon + TimeDelta::days(1));
    assert_eq!(bench.page(1, &Value::Null).await["nodes"][0]["order"], Value::Null);
}

#[tokio::test]
async fn pages_to_the_end() {
    let bench = Bench::new().await;
    bench.shopify.tenders(SHOP, at("2026-11-01T00:00:00Z"), TimeDelta::minutes(1), 7);
    let (mut seen, mut after) = (Vec::new(), Value::Null);
    loop {
        let page = bench.page(3, &after).await;
        seen.extend(amounts(&page).into_iter().map(ToOwned::to_owned));
        after = page["pageInfo"]["endCursor"].clone();
        if page["pageInfo"]["hasNextPage"] == false {
            break;
        }
    }
    assert_eq!(seen, ["10.0", "10.01", "10.02", "10.03", "10.04", "10.05", "10.06"]);
    assert_eq!(bench.code("{ tenderTransactions(first: 251) { nodes { id } } }").await, "BAD_REQUEST");
    assert_eq!(bench.code("{ tenderTransactions { nodes { id } } }").await, "BAD_REQUEST");
    let foreign = "{ tenderTransactions(first: 1, after: \"abc\") { nodes { id } } }";
    assert_eq!(bench.code(foreign).await, "BAD_REQUEST");
}

#[tokio::test]
async fn lists_go_wrong_on_demand() {
    let bench = Bench::new().await;
    bench.shopify.tenders(SHOP, at("2026-11-01T00:00:00Z"), TimeDelta::minutes(1), 5);
    bench.shopify.misbehave(SHOP, Some(Misbehaviour::LoopingCursor));
    let first = bench.page(2, &Value::Null).await;
    let second = bench.page(2, &first["pageInfo"]["endCursor"]).await;
    assert_eq!(first, second);

    bench.shopify.misbehave(SHOP, Some(Misbehaviour::DuplicatePage));
    let (mut seen, mut after) = (Vec::new(), Value::Null);
    for _ in 0..4 {
        let page = bench.page(2, &after).await;
        seen.extend(amounts(&page).into_iter().map(ToOwned::to_owned));
        after = page["pageInfo"]["endCursor"].clone();
    }
    assert_eq!(seen, ["10.0", "10.01", "10.0", "10.01", "10.02", "10.03", "10.04"]);

    bench.shopify.misbehave(SHOP, Some(Misbehaviour::NoCursor));
    let info = bench.page(2, &Value::Null).await["pageInfo"].clone();
    assert_eq!(info, json!({"hasNextPage": true, "endCursor": null}));

    bench.shopify.misbehave(SHOP, None);
    bench.shopify.faults().add(Rule::on(SHOP, graphql_error("INTERNAL_SERVER_ERROR")).skip(1).times(1));
    bench.page(2, &Value::Null).await;
    assert_eq!(bench.code("{ shop { id } }").await, "INTERNAL_SERVER_ERROR");
    assert_eq!(bench.code("{ shop { id } }").await, "");
}

#[tokio::test]
async fn a_search_it_cannot_read_is_dropped_with_a_warning() {
    let bench = Bench::new().await;
    for (day, amount) in [("2026-10-31T22:59:59Z", "1.0"), ("2026-10-31T23:00:00Z", "2.0")] {
        bench.shopify.tender(SHOP, Tender::new(at(day), amount, "EUR"));
    }
    let quoted = "processed_at:>='2026-10-31T23:00:00Z' processed_at:<'2026-11-30T23:00:00Z' test:false";
    let good = bench.ask(TENDERS, json!({"first": 10, "query": quoted})).await.body;
    assert_eq!(amounts(&good["data"]["tenderTransactions"]), ["2.0"]);
    assert_eq!(good["extensions"]["search"], Value::Null);

    let bare = "processed_at:>=2026-10-31T23:00:00Z";
    let bad = bench.ask(TENDERS, json!({"first": 10, "query": bare})).await;
    assert_eq!(bad.status, 200);
    assert_eq!(amounts(&bad.body["data"]["tenderTransactions"]), ["1.0", "2.0"]);
    let search = &bad.body["extensions"]["search"][0];
    assert_eq!((&search["path"], &search["query"]), (&json!(["tenderTransactions"]), &json!(bare)));
    assert_eq!(search["warnings"][0]["code"], "invalid_field");
}

#[tokio::test]
async fn disputes_have_their_own_scope() {
    let bench = Bench::new().await;
    let noon = at("2026-11-03T12:00:00Z");
    let sale = bench.shopify.tender(SHOP, Tender::new(noon, "40.0", "EUR"));
    let open = bench.shopify.dispute(SHOP, Dispute::new(noon, "40.0", "EUR").about(&sale));
    let asked = Dispute::new(noon, "5.0", "EUR").inquiry().finalized("WON", noon + TimeDelta::days(2));
    bench.shopify.dispute(SHOP, asked);
    let query = "{ shopifyPaymentsAccount { disputes(first: 50, query: \"status:NEEDS_RESPONSE\") {
      nodes { id type status initiatedAt finalizedOn amount { amount } order { id } } } } }";
    let expected = json!([{
        "id": open, "type": "CHARGEBACK", "status": "NEEDS_RESPONSE", "initiatedAt": "2026-11-03T12:00:00Z",
        "finalizedOn": null, "amount": {"amount": "40.0"}, "order": {"id": sale.order},
    }]);
    assert_eq!(bench.data(query, json!({})).await["shopifyPaymentsAccount"]["disputes"]["nodes"], expected);
    bench.shopify.finalize_dispute(SHOP, &open, "LOST", noon);
    assert_eq!(bench.data(query, json!({})).await["shopifyPaymentsAccount"]["disputes"]["nodes"], json!([]));

    for (access, path) in [
        (PaymentsAccess::NoDisputes, json!(["shopifyPaymentsAccount", "disputes"])),
        (PaymentsAccess::NoAccount, json!(["shopifyPaymentsAccount"])),
    ] {
        bench.shopify.set_payments_access(SHOP, access);
        let denied = bench.ask(query, json!({})).await.body;
        assert_eq!(denied["data"], json!({"shopifyPaymentsAccount": null}));
        assert_eq!(denied["errors"][0]["extensions"]["code"], "ACCESS_DENIED");
        assert_eq!(denied["errors"][0]["path"], path);
    }
    bench.shopify.set_payments_access(SHOP, PaymentsAccess::NotUsed);
    assert_eq!(bench.data(query, json!({})).await, json!({"shopifyPaymentsAccount": null}));
}

#[tokio::test]
async fn counts_costs_and_throttles() {
    let bench = Bench::new().await;
    bench.shopify.tenders(SHOP, at("2026-11-01T00:00:00Z"), TimeDelta::minutes(1), 3);
    let query = "{ tenderTransactions(first: 100) { nodes { id amount { amount } } } }";
    let cost = bench.ask(query, json!({})).await.body["extensions"]["cost"].clone();
    // Two for the connection, one for each tender and one for its amount.
    assert_eq!((&cost["requestedQueryCost"], &cost["actualQueryCost"]), (&json!(202), &json!(8)));
    assert_eq!(cost["throttleStatus"]["maximumAvailable"], 2000.0);

    bench.shopify.set_bucket(SHOP, 210.0, 1.0);
    assert_eq!(bench.code(query).await, "");
    assert_eq!(bench.code(query).await, "");
    let throttled = bench.ask(query, json!({})).await;
    assert_eq!((throttled.status, &throttled.body["data"]), (200, &Value::Null));
    assert_eq!(throttled.body["errors"][0]["message"], "Throttled");
    assert_eq!(throttled.body["errors"][0]["extensions"]["code"], "THROTTLED");
    assert_eq!(throttled.body["extensions"]["cost"]["actualQueryCost"], Value::Null);

    bench.shopify.set_max_cost(SHOP, 201);
    assert_eq!(bench.code(query).await, "MAX_COST_EXCEEDED");
}

#[tokio::test]
async fn refuses_documents_that_the_schema_does_not_know() {
    let bench = Bench::new().await;
    for (query, code) in [
        ("{ shop { turnover } }", "undefinedField"),
        ("{ shop }", "selectionMismatch"),
        ("{ shop { name { first } } }", "selectionMismatch"),
        ("{ order { id } }", "missingRequiredArguments"),
        ("{ tenderTransactions(first: 1, since: 2) { nodes { id } } }", "argumentNotAccepted"),
        ("{ tenderTransactions(first: \"ten\") { nodes { id } } }", "argumentLiteralsIncompatible"),
        ("query($n: String) { tenderTransactions(first: $n) { nodes { id } } }", "variableMismatch"),
        ("query($id: ID) { order(id: $id) { id } }", "variableMismatch"),
        ("query($n: Int) { shop { id } }", "variableNotUsed"),
        ("{ tenderTransactions(first: $n) { nodes { id } } }", "variableNotDefined"),
        ("{ shop { ...Missing } }", "useAndDefineFragment"),
        ("{ shop { id } } fragment Unused on Shop { id }", "useAndDefineFragment"),
        ("{ shop { ...Round } } fragment Round on Shop { ...Round }", "infiniteLoop"),
        ("{ shop { ... on Order { id } } }", "cannotSpreadFragment"),
        ("{ shop { ... on Nothing { id } } }", "undefinedType"),
        ("{ shop { name: id name } }", "fieldConflict"),
        ("{ shop { id @unless(if: true) } }", "undefinedDirective"),
        ("{ shop { id @skip } }", "missingRequiredArguments"),
        ("query($id: ID!) { order(id: $id) { id } }", "INVALID_VARIABLE"),
        ("{ shop { ", "PARSING_ERROR"),
        ("mutation { shop { id } }", "STAND_IN_LIMIT"),
        ("{ tenderTransactions(last: 1) { nodes { id } } }", "STAND_IN_LIMIT"),
    ] {
        assert_eq!(bench.code(query).await, code, "{query}");
    }
    let unknown = bench.ask("query Q { shop { turnover } }", json!({})).await.body["errors"][0].clone();
    assert!(unknown["message"].as_str().is_some_and(|text| text.contains("turnover")), "{unknown}");
    assert_eq!(unknown["locations"], json!([{"line": 1, "column": 18}]));
}

#[tokio::test]
async fn refuses_over_http_as_shopify_does() {
    let mut bench = Bench::new().await;
    let query = "{ shop { id } }";
    let old = bench.ask_path("/admin/api/2025-10/graphql.json", query, json!({})).await;
    assert_eq!((old.status, &old.body), (404, &json!({"errors": "Not Found"})));
    for status in [402, 403, 404, 423, 429, 503] {
        bench.shopify.set_status(SHOP, Some(status));
        let refused = bench.ask(query, json!({})).await;
        assert_eq!(refused.status, status);
        assert!(refused.body["errors"].is_string());
    }
    bench.shopify.set_status(SHOP, None);
    bench.shopify.faults().add(Rule::on(SHOP, http_error(429)).times(1));
    assert_eq!(bench.ask(query, json!({})).await.header("retry-after"), "2.0");
    let good = bench.ask(query, json!({})).await;
    assert_eq!(good.header("x-shopify-api-version"), "2026-10");
    bench.token = "shpat_wrong".into();
    let wrong = bench.ask(query, json!({})).await;
    assert_eq!(wrong.status, 401);
    assert!(wrong.body["errors"].as_str().is_some_and(|text| text.starts_with("[API] Invalid API key")));
}

#[tokio::test]
async fn refresh_tokens_rotate() {
    let mut bench = Bench::new().await;
    let Tokens { access_token, refresh_token, .. } = bench.shopify.add_expiring_shop(SHOP, "EUR");
    bench.token = access_token;
    let query = "{ shop { id } }";
    let fresh = bench.refresh(&refresh_token).await;
    assert_eq!(fresh.status, 200);
    assert_eq!(
        (&fresh.body["expires_in"], &fresh.body["refresh_token_expires_in"]),
        (&json!(3600), &json!(7_776_000))
    );
    assert_eq!(bench.ask(query, json!({})).await.status, 200, "the access token from before lives on");
    let again = bench.refresh(&refresh_token).await;
    assert_eq!((again.status, &again.body["error"]), (401, &json!("invalid_request")));
    assert_eq!(bench.shopify.refreshes(SHOP), 1);

    bench.shopify.advance(Duration::from_secs(3_601));
    assert_eq!(bench.ask(query, json!({})).await.status, 401);
    fresh.body["access_token"].as_str().expect("a token").clone_into(&mut bench.token);
    assert_eq!(bench.ask(query, json!({})).await.status, 401, "an hour old too");

    // As Shopify really does: until the new refresh token is used, the old one still works.
    bench.shopify.set_refresh_reuse(RefreshReuse::UntilReplacementUsed);
    let retried = bench.refresh(&refresh_token).await;
    assert_eq!(retried.status, 200);
    let replacement = retried.body["refresh_token"].as_str().expect("a token").to_owned();
    assert_eq!(bench.refresh(&replacement).await.status, 200);
    assert_eq!(bench.refresh(&refresh_token).await.status, 401);
    bench.shopify.uninstall(SHOP);
    assert_eq!(bench.refresh(&replacement).await.status, 401);
}
