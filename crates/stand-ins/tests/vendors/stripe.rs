//! Paging, filters, keys, versions, limits and late rows of the Stripe stand-in.

use chrono::TimeDelta;
use reqwest::{Client, RequestBuilder};
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    stripe::{API_VERSION, Entry, StandIn, lock_timeout},
};

use crate::{
    at,
    http::{Answer, client, send},
};

pub(crate) const ACCOUNT: &str = "acct_camille";
const LIST: &str = "/v1/balance_transactions";

pub(crate) struct Bench {
    pub(crate) stripe: StandIn,
    client: Client,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let stripe = StandIn::start().await.expect("a port");
        stripe.add_account(ACCOUNT, "sk_test_camille");
        Self { stripe, client: client() }
    }

    fn with_key(&self, key: &str, target: &str) -> RequestBuilder {
        let request = self.client.get(format!("{}{target}", self.stripe.url()));
        request.bearer_auth(key).header("stripe-version", API_VERSION)
    }

    /// As the product asks: the platform's key, for the connected account.
    pub(crate) async fn get(&self, target: &str) -> Answer {
        send(self.with_key(&self.stripe.secret_key(), target).header("stripe-account", ACCOUNT)).await
    }

    async fn amounts(&self, query: &str) -> Vec<i64> {
        let answer = self.get(&format!("{LIST}?limit=100&{query}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let rows = answer.body["data"].as_array().expect("rows").iter();
        rows.map(|row| row["amount"].as_i64().expect("an amount")).collect()
    }

    /// Returns status, code and param of a refusal.
    async fn refused(&self, query: &str) -> (u16, String, String) {
        let answer = self.get(&format!("{LIST}?{query}")).await;
        let text = |name: &str| answer.body["error"][name].as_str().unwrap_or_default().to_owned();
        assert_eq!(text("type"), "invalid_request_error");
        (answer.status, text("code"), text("param"))
    }
}

#[tokio::test]
async fn pages_newest_first_to_the_end() {
    let bench = Bench::new().await;
    let start = at("2026-11-01T00:00:00Z");
    // Four in the same second: a cursor by time alone would lose or repeat some.
    for amount in 1..=4 {
        bench.stripe.payment(ACCOUNT, start, amount, "eur");
    }
    bench.stripe.payments(ACCOUNT, start + TimeDelta::hours(1), TimeDelta::minutes(1), 20, "EUR");
    let first = bench.get(LIST).await.body;
    assert_eq!(first["object"], "list");
    assert_eq!(first["url"], LIST);
    assert_eq!(first["data"].as_array().map(Vec::len), Some(10));

    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = bench.get(&format!("{LIST}?limit=7{after}")).await.body;
        let rows = page["data"].as_array().expect("rows").clone();
        after = format!("&starting_after={}", rows.last().expect("a row")["id"].as_str().expect("an id"));
        seen.extend(rows.iter().map(|row| row["amount"].as_i64().expect("an amount")));
        if page["has_more"] == false {
            break;
        }
    }
    let expected: Vec<_> = (1_000..1_020).rev().chain((1..=4).rev()).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn filters_by_time_and_type() {
    let bench = Bench::new().await;
    let (before, edge) = (at("2026-10-31T22:59:59Z"), at("2026-10-31T23:00:00Z"));
    bench.stripe.payment(ACCOUNT, before, 100, "eur");
    bench.stripe.payment(ACCOUNT, edge, 200, "eur");
    bench.stripe.payout(ACCOUNT, edge + TimeDelta::seconds(1), 50, "eur");
    let edge = edge.timestamp();
    assert_eq!(bench.amounts(&format!("created[gte]={edge}")).await, [-50, 200]);
    assert_eq!(bench.amounts(&format!("created%5Bgt%5D={edge}")).await, [-50]);
    assert_eq!(bench.amounts(&format!("created[lt]={edge}")).await, [100]);
    assert_eq!(bench.amounts(&format!("created[lte]={edge}")).await, [200, 100]);
    assert_eq!(bench.amounts("type=payout").await, [-50]);
    assert_eq!(bench.amounts(&format!("created={edge}")).await, [200]);
}

#[tokio::test]
async fn refuses_what_it_does_not_know() {
    let bench = Bench::new().await;
    let refused = |status: u16, code: &str, param: &str| (status, code.to_owned(), param.to_owned());
    assert_eq!(bench.refused("limit=0").await, refused(400, "", "limit"));
    assert_eq!(bench.refused("limit=101").await, refused(400, "", "limit"));
    assert_eq!(bench.refused("limit=ten").await, refused(400, "parameter_invalid_integer", "limit"));
    let unknown = refused(400, "resource_missing", "starting_after");
    assert_eq!(bench.refused("starting_after=txn_none").await, unknown);
    assert_eq!(bench.refused("create[gte]=1").await, refused(400, "parameter_unknown", "create[gte]"));
    assert_eq!(bench.refused("expand[]=data.customer").await, refused(400, "", "expand"));
    assert_eq!(bench.refused("ending_before=txn_none").await.0, 501);
    assert_eq!(bench.get("/v1/charges").await.status, 404);
}

#[tokio::test]
async fn expands_what_stands_behind_a_row() {
    let bench = Bench::new().await;
    let paid =
        bench.stripe.converted_payment(ACCOUNT, at("2026-11-01T10:00:00Z"), (12_000, "USD"), (11_000, "eur"));
    let back = bench.stripe.refund(ACCOUNT, &paid.charge, at("2026-11-02T10:00:00Z"), 1_000);
    let lost = bench.stripe.dispute(ACCOUNT, &paid.charge, at("2026-11-03T10:00:00Z"), 11_000);
    let plain = bench.get(LIST).await.body;
    assert_eq!(plain["data"][2]["source"], json!(paid.charge));
    let rows = bench.get(&format!("{LIST}?expand[]=data.source")).await.body["data"].clone();
    assert_eq!(rows[0]["source"]["id"], json!(lost.source));
    assert_eq!(rows[0]["source"]["charge"], json!(paid.charge));
    assert_eq!(rows[0]["net"], -13_000);
    assert_eq!(rows[1]["source"]["id"], json!(back.source));
    assert_eq!(rows[1]["source"]["payment_intent"], json!(paid.intent));
    assert_eq!(rows[1]["currency"], "eur");
    assert_eq!(rows[2]["source"]["payment_intent"], json!(paid.intent));
    assert_eq!(rows[2]["source"]["currency"], "usd");
    assert_eq!(rows[2]["amount"], 11_000);
}

#[tokio::test]
async fn knows_who_may_read_which_account() {
    let bench = Bench::new().await;
    let platform = bench.stripe.secret_key();
    let own = send(bench.with_key("sk_test_camille", "/v1/account")).await;
    assert_eq!((own.status, &own.body["id"]), (200, &json!(ACCOUNT)));
    assert_eq!(bench.get("/v1/account").await.body["id"], ACCOUNT);
    let platform_itself = send(bench.with_key(&platform, "/v1/account")).await;
    assert_eq!(platform_itself.body["id"], json!(bench.stripe.platform_account()));

    let nobody = send(bench.client.get(format!("{}/v1/account", bench.stripe.url()))).await;
    assert_eq!(nobody.status, 401);
    let wrong = send(bench.with_key("sk_test_wrong_1234", "/v1/account")).await;
    assert_eq!(wrong.status, 401);
    assert_eq!(wrong.body["error"]["message"], "Invalid API Key provided: sk_test_******1234");
    let foreign = send(bench.with_key("sk_test_camille", LIST).header("stripe-account", "acct_other")).await;
    assert_eq!((foreign.status, &foreign.body["error"]["code"]), (403, &json!("account_invalid")));

    bench.stripe.revoke(ACCOUNT);
    let revoked = bench.get(LIST).await;
    assert_eq!((revoked.status, &revoked.body["error"]["code"]), (403, &json!("account_invalid")));
    assert_eq!(send(bench.with_key("sk_test_camille", "/v1/account")).await.status, 401);
    bench.stripe.reconnect(ACCOUNT, "sk_test_again");
    assert_eq!(send(bench.with_key("sk_test_again", "/v1/account")).await.status, 200);
}

#[tokio::test]
async fn wants_the_version_pinned() {
    let bench = Bench::new().await;
    let request =
        || bench.client.get(format!("{}{LIST}", bench.stripe.url())).bearer_auth(bench.stripe.secret_key());
    assert_eq!(send(request()).await.status, 400);
    assert_eq!(send(request().header("stripe-version", "2024-06-20")).await.status, 400);
    bench.stripe.accept_any_version();
    assert_eq!(send(request()).await.status, 200);
}

#[tokio::test]
async fn limits_and_fails_on_demand() {
    let bench = Bench::new().await;
    bench.stripe.set_rate_limit(Some(2.0));
    assert_eq!(bench.get(LIST).await.status, 200);
    assert!(bench.get(LIST).await.header("request-id").starts_with("req_"));
    let over = bench.get(LIST).await;
    assert_eq!((over.status, over.header("stripe-rate-limited-reason")), (429, "global-rate"));
    assert_eq!(over.body["error"]["code"], "rate_limit");
    bench.stripe.set_rate_limit(None);

    // One account has used up its own, by whichever key; the others go on.
    bench.stripe.set_account_rate_limit(Some(1.0));
    assert_eq!(bench.get(LIST).await.status, 200);
    let over = bench.get(LIST).await;
    assert_eq!((over.status, over.header("stripe-rate-limited-reason")), (429, "endpoint-rate"));
    let platform = bench.with_key(&bench.stripe.secret_key(), LIST);
    assert_eq!(send(platform).await.status, 200);
    bench.stripe.set_account_rate_limit(None);
    assert_eq!(bench.stripe.rate_refusals().len(), 2);

    bench.stripe.faults().add(Rule::on(LIST, lock_timeout()).times(1));
    let locked = bench.get(LIST).await;
    assert_eq!((locked.status, locked.header("stripe-rate-limited-reason")), (429, ""));
    assert_eq!(locked.header("stripe-should-retry"), "true");
    bench.stripe.faults().add(Rule::on(LIST, Fault::CutAfter).times(1));
    let cut = bench.with_key(&bench.stripe.secret_key(), LIST).send().await;
    assert!(cut.is_err());
    assert_eq!(bench.get(LIST).await.status, 200);
}

#[tokio::test]
async fn late_rows_appear_where_they_belong() {
    let bench = Bench::new().await;
    let noon = at("2026-11-01T12:00:00Z");
    bench.stripe.payment(ACCOUNT, noon, 100, "eur");
    let late = bench.stripe.add(ACCOUNT, Entry::new(noon - TimeDelta::hours(1), 200, "eur").late());
    assert_eq!(bench.amounts("").await, [100]);
    bench.stripe.reveal(ACCOUNT, &late.transaction);
    assert_eq!(bench.amounts("").await, [100, 200]);
    bench.stripe.hide(ACCOUNT, &late.transaction);
    assert_eq!(bench.stripe.listed(ACCOUNT).len(), 1);
}

#[tokio::test]
async fn books_each_movement_as_stripe_does() {
    let bench = Bench::new().await;
    let noon = at("2026-11-01T12:00:00Z");
    let (paid, _) = bench.stripe.partial_capture(ACCOUNT, noon, (1_000, 600), "eur");
    bench.stripe.refund(ACCOUNT, &paid.charge, noon, 100);
    bench.stripe.refund_failure(ACCOUNT, &paid.charge, noon, 100);
    let lost = bench.stripe.dispute(ACCOUNT, &paid.charge, noon, 600);
    let won = bench.stripe.dispute_reversal(ACCOUNT, &paid.charge, noon, 600);
    assert_eq!(won.source, lost.source);
    bench.stripe.charge_failure(ACCOUNT, &paid.charge, noon, 600);
    bench.stripe.payout(ACCOUNT, noon, 300, "eur");
    bench.stripe.top_up(ACCOUNT, noon, 300, "eur");
    bench.stripe.fee(ACCOUNT, noon, 9, "eur");
    bench.stripe.add(
        ACCOUNT,
        Entry::new(noon, -5, "eur")
            .balance_type("issuing")
            .kind("issuing_transaction", "issuing_transaction"),
    );
    let mut booked: Vec<_> =
        bench.stripe.listed(ACCOUNT).into_iter().map(|row| (row.reporting_category, row.amount)).collect();
    booked.reverse();
    let expected = [
        ("charge", 1_000),
        ("partial_capture_reversal", -400),
        ("refund", -100),
        ("refund_failure", 100),
        ("dispute", -600),
        ("dispute_reversal", 600),
        ("charge_failure", -600),
        ("payout", -300),
        ("topup", 300),
        ("fee", -9),
        ("issuing_transaction", -5),
    ];
    assert_eq!(booked, expected.map(|(category, amount)| (category.to_owned(), amount)));
}
