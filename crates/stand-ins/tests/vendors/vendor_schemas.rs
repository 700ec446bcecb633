//! What the stand-ins answer passes the vendors' own schemas. Installs the vendors' packages.

use chrono::TimeDelta;
use serde_json::{Value, json};
use stand_ins::{
    shopify::{self, Dispute, PaymentsAccess, Tender},
    stripe::Entry,
    vendor_schemas::{Exchange, check_shopify_all, check_shopify_subset, check_stripe_all},
};

use crate::at;

/// Asks for every field that the Shopify stand-in knows.
const EVERYTHING: &str = "
query Everything($order: ID!, $ids: [ID!]!) {
  shop { id name myshopifyDomain currencyCode }
  tenderTransactions(first: 10, query: \"test:false\") {
    edges { cursor node { id } }
    nodes {
      id amount { amount currencyCode } processedAt test paymentMethod remoteReference
      order { id name currencyCode presentmentCurrencyCode }
    }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
  shopifyPaymentsAccount {
    id activated country defaultCurrency
    disputes(first: 10) {
      edges { cursor node { id } }
      nodes {
        id legacyResourceId type status initiatedAt finalizedOn evidenceDueBy evidenceSentOn
        amount { amount currencyCode } order { id } reasonDetails { reason networkReasonCode }
      }
      pageInfo { hasNextPage endCursor }
    }
  }
  order(id: $order) {
    ...Order
    transactions(first: 10) {
      id kind status test gateway formattedGateway paymentId createdAt processedAt settlementCurrency
      amountSet { shopMoney { amount currencyCode } presentmentMoney { amount currencyCode } }
      parentTransaction { id } order { id }
    }
  }
  nodes(ids: $ids) { __typename id ...Order }
  node(id: $order) { id }
}
fragment Order on Order {
  id legacyResourceId name createdAt processedAt cancelledAt test currencyCode presentmentCurrencyCode
}";

#[tokio::test]
async fn shopify_answers_pass_shopifys_schema() -> anyhow::Result<()> {
    check_shopify_subset(shopify::schema::SOURCE).await?;

    let bench = crate::shopify::Bench::new().await;
    let (shopify, shop) = (&bench.shopify, crate::shopify::SHOP);
    let noon = at("2026-11-03T12:00:00Z");
    let sale = shopify.tender(shop, Tender::new(noon, "120.0", "USD").shop_money("110.0").reference("ch_1"));
    shopify.refund(shop, &sale, noon + TimeDelta::days(1), "20.0");
    shopify.order_transaction(shop, &sale, "CHANGE", noon, "0.5");
    shopify.tender(shop, Tender::new(noon, "5.0", "EUR").gift_card().deleted_order());
    let dispute = shopify.dispute(shop, Dispute::new(noon, "40.0", "EUR").about(&sale));
    shopify.dispute(shop, Dispute::new(noon, "4.0", "EUR").inquiry().finalized("WON", noon));
    let variables =
        json!({"order": sale.order, "ids": [sale.order, sale.id, dispute, "gid://shopify/Order/1"]});
    let full = bench.ask(EVERYTHING, variables.clone()).await.body;
    assert_eq!(full["errors"], Value::Null, "{full}");
    shopify.set_payments_access(shop, PaymentsAccess::NoDisputes);
    let denied = bench.ask(EVERYTHING, variables.clone()).await.body;
    let exchange = |response: &Value| Exchange {
        document: EVERYTHING.into(),
        variables: variables.clone(),
        response: response.clone(),
    };
    check_shopify_all(&[exchange(&full), exchange(&denied)]).await?;

    // And the check does find what is wrong.
    let (mut status, mut amount, mut extra) = (full.clone(), full.clone(), full);
    status["data"]["shopifyPaymentsAccount"]["disputes"]["nodes"][0]["status"] = "CANCELLED".into();
    amount["data"]["tenderTransactions"]["nodes"][0]["amount"]["amount"] = 120.into();
    extra["data"]["shop"]["plan"] = "basic".into();
    let unknown =
        Exchange { document: "{ shop { turnover } }".into(), variables: json!({}), response: json!({}) };
    let wrong = [exchange(&status), exchange(&amount), exchange(&extra), unknown];
    let refused = check_shopify_all(&wrong).await.expect_err("all wrong").to_string();
    for word in ["CANCELLED", "120 is no Decimal", "answer 3: the schema makes", "turnover"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    check_shopify_subset("type Shop { turnover: Int! }").await.expect_err("no such field");
    Ok(())
}

#[tokio::test]
async fn stripe_answers_pass_stripes_types() -> anyhow::Result<()> {
    let bench = crate::stripe::Bench::new().await;
    let (stripe, account) = (&bench.stripe, crate::stripe::ACCOUNT);
    let noon = at("2026-11-03T12:00:00Z");
    stripe.converted_payment(account, noon, (12_000, "usd"), (11_000, "eur"));
    let (paid, _) = stripe.partial_capture(account, noon, (1_000, 600), "eur");
    stripe.refund(account, &paid.charge, noon, 100);
    stripe.refund_failure(account, &paid.charge, noon, 100);
    stripe.dispute(account, &paid.charge, noon, 600);
    stripe.dispute_reversal(account, &paid.charge, noon, 600);
    stripe.charge_failure(account, &paid.charge, noon, 600);
    stripe.payout(account, noon, 300, "eur");
    stripe.top_up(account, noon, 300, "eur");
    stripe.fee(account, noon, 9, "eur");
    stripe.add(account, Entry::new(noon, -5, "eur").balance_type("issuing"));
    let me = bench.get("/v1/account").await.body;
    let plain = bench.get("/v1/balance_transactions?limit=100").await.body;
    let expanded = bench.get("/v1/balance_transactions?limit=100&expand[]=data.source").await.body;
    let list = "ApiList<BalanceTransaction>";
    let row = plain["data"][0].clone();
    let answers = [("Account", &me), (list, &plain), (list, &expanded), ("BalanceTransaction", &row)];
    check_stripe_all(&answers).await?;

    // And the check does find what is wrong.
    let (mut missing, mut other, mut extra) = (row.clone(), row.clone(), row);
    missing.as_object_mut().expect("an object").remove("net");
    other["object"] = "transaction".into();
    extra["turnover"] = 1.into();
    let wrong = [&missing, &other, &extra].map(|value| ("BalanceTransaction", value));
    let refused = check_stripe_all(&wrong).await.expect_err("all wrong").to_string();
    for word in [
        "(value 1): Property 'net' is missing",
        "(value 2): Type '\"transaction\"'",
        "(value 3): Object literal",
    ] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    Ok(())
}
