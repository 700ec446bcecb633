//! What we ask passes the vendors' own schemas, and so does what the stand-ins answer to it.

use anyhow::{Context, Result};
use chrono::TimeDelta;
use jobs::providers::shopify::documents;
use reqwest::Method;
use serde_json::Value;
use stand_ins::{
    shopify::{Dispute, Tender},
    vendor_schemas::{Exchange, check_shopify_all, check_stripe_all},
};

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn every_document_and_its_answers_are_shopifys() -> Result<()> {
    let world = World::new().await?;
    let shop = "vendors.myshopify.com";
    world.shopify_user(shop).await?;
    let noon = world.earlier(90);
    let sale =
        world.shopify.tender(shop, Tender::new(noon, "120.0", "USD").shop_money("110.0").reference("ch_1"));
    world.shopify.refund(shop, &sale, world.earlier(80), "20.0");
    world.shopify.tender(shop, Tender::new(noon, "5.0", "EUR").gift_card().deleted_order());
    let lost = Dispute::new(noon - TimeDelta::days(20), "40.0", "EUR")
        .about(&sale)
        .finalized("LOST", world.earlier(70));
    world.shopify.dispute(shop, lost);
    world.shopify.dispute(shop, Dispute::new(noon, "4.0", "EUR").inquiry());
    world.post("sync-integrations", "").await?;

    let asked: Vec<_> = world.shopify.faults().seen();
    let mut exchanges = Vec::new();
    for request in &asked {
        let body: Value = serde_json::from_str(&request.body)?;
        let answer = jobs::http::client()?
            .request(Method::POST, format!("{}{}", world.shopify.url(), request.target))
            .header("x-shopify-access-token", format!("shpat_{shop}"))
            .json(&body)
            .send()
            .await?;
        let response: Value = answer.json().await?;
        assert_eq!(response["errors"], Value::Null, "{response}");
        let document = body["query"].as_str().context("a document")?.to_owned();
        exchanges.push(Exchange { document, variables: body["variables"].clone(), response });
    }
    for (name, document) in documents::ALL {
        assert!(exchanges.iter().any(|exchange| exchange.document == document), "{name} was never sent");
    }
    check_shopify_all(&exchanges).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_stripe_is_stripes() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_vendors").await?;
    let paid = world.stripe.payment("acct_vendors", world.earlier(90), 12_000, "eur");
    world.stripe.converted_payment("acct_vendors", world.earlier(90), (12_000, "usd"), (11_000, "eur"));
    world.stripe.partial_capture("acct_vendors", world.earlier(90), (1_000, 600), "eur");
    world.stripe.refund("acct_vendors", &paid.charge, world.earlier(80), 100);
    world.stripe.refund_failure("acct_vendors", &paid.charge, world.earlier(70), 100);
    world.stripe.dispute("acct_vendors", &paid.charge, world.earlier(60), 600);
    world.stripe.dispute_reversal("acct_vendors", &paid.charge, world.earlier(50), 600);
    world.stripe.payout("acct_vendors", world.earlier(40), 300, "eur");
    world.post("sync-integrations", "").await?;

    let mut answers = Vec::new();
    for request in world.stripe.faults().seen() {
        let mut again = jobs::http::client()?.get(format!("{}{}", world.stripe.url(), request.target));
        for name in ["authorization", "stripe-account", "stripe-version"] {
            if let Some(value) = request.headers.get(name) {
                again = again.header(name, value);
            }
        }
        let answer: Value = again.send().await?.json().await?;
        let kind = if request.target.contains("balance") { "ApiList<BalanceTransaction>" } else { "Account" };
        answers.push((kind, answer));
    }
    assert_eq!(answers.len(), 2, "{answers:#?}");
    let answers: Vec<(&str, &Value)> = answers.iter().map(|(kind, answer)| (*kind, answer)).collect();
    check_stripe_all(&answers).await
}
