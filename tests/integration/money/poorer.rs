//! An answer that says less takes nothing back: not the money, not its date, not what is missing of it.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    shopify::{Dispute, Tender},
    stripe::PassedOn,
};

use super::{books, excluded, said, sync_at, world_at, worth};
use crate::{clock::at, world::World};

const ACCOUNT: &str = "acct_poorer";
const SHOP: &str = "poorer.myshopify.com";

/// Lets the shop answer one of its lists with these rows.
fn answers(world: &World, list: &str, rows: &[Value]) {
    let found = json!({"nodes": rows, "pageInfo": {"hasNextPage": false, "endCursor": null}});
    let mut data = json!({"shop": {"currencyCode": "EUR"}, "tenderTransactions": found});
    if list == "query Disputes" {
        data["shopifyPaymentsAccount"] = json!({"disputes": found});
    }
    world.shopify.faults().clear();
    world.shopify.faults().add(Rule::on("graphql", Fault::json(200, &json!({"data": data}))).body(list));
}

/// What PayPal settles stays missing and named when its payment is only named any more; what is an amount of zero by then
/// is no sale of 0 €.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_stays_missing() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    world.stripe.payment(ACCOUNT, at("2026-11-03T09:00:00Z"), 4_200, "eur");
    let wallet = world.stripe.paid_at_paypal(ACCOUNT, at("2026-11-17T09:00:00Z"), 10_000);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    let missing = json!({"status": "partial", "flaws": {"unknown_kind": 1}});
    assert_eq!(worth(&world, user, 11).await?, missing);
    for source in [
        json!(wallet.charge),
        json!({"id": wallet.charge, "object": "charge", "status": "succeeded"}),
        json!(""),
    ] {
        world.stripe.show(ACCOUNT, &wallet.transaction, json!({"source": source}));
        world.post("sync-integrations", "days=30").await?;
        assert_eq!(worth(&world, user, 11).await?, missing, "{source}");
        let kind: String = world
            .value("select source_kind from jobs.integration_transactions where excluded = 'unknown_kind'")
            .await?;
        assert_eq!(kind, "settled_elsewhere:paypal", "{source}");
    }
    Ok(())
}

/// An amount that was known stays where it is not told any more, also where it was another currency before.
#[tokio::test(flavor = "multi_thread")]
async fn an_amount_that_is_not_told_any_more_stays() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    let day = at("2026-11-17T09:00:00Z");
    let dollars = world.stripe.converted_payment(ACCOUNT, day, (10_000, "usd"), (9_200, "eur"));
    let euros = world.stripe.payment(ACCOUNT, day, 4_200, "eur");
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "134.00")]));
    for less in
        [json!({"amount": null}), json!({"currency": null}), json!({"amount": null, "currency": null})]
    {
        for row in [&dollars, &euros] {
            world.stripe.show(ACCOUNT, &row.transaction, less.clone());
        }
        world.post("sync-integrations", "days=30").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "134.00")]), "{less}");
        assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}), "{less}");
    }
    Ok(())
}

/// The same in a shop: a sale and a lost dispute in dollars, whose order, amount, date, reference or means of payment is
/// not told any more, or whose order comes back with another rate.
#[tokio::test(flavor = "multi_thread")]
async fn a_sale_of_which_less_is_told_stays() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let sale = Tender::new(at("2026-11-16T09:00:00Z"), "100.0", "USD").shop_money("92.0").reference("ch_1");
    let sale = world.shopify.tender(SHOP, sale);
    let told = Dispute::new(at("2026-11-17T09:00:00Z"), "100.0", "USD").about(&sale);
    let dispute = world.shopify.dispute(SHOP, told.finalized("LOST", at("2026-11-17T10:00:00Z")));
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "0.00")]));
    let whole = json!({
        "id": sale.id, "processedAt": "2026-11-16T09:00:00Z", "test": false, "paymentMethod": "credit_card",
        "remoteReference": null, "amount": {"amount": "100.0", "currencyCode": "USD"}, "order": null,
    });
    for (field, value) in [
        ("order", Value::Null),
        ("amount", Value::Null),
        ("amount", json!({"amount": null, "currencyCode": "USD"})),
        ("amount", json!({"amount": "100.0"})),
        ("processedAt", Value::Null),
        ("paymentMethod", Value::Null),
        ("test", Value::Null),
    ] {
        let mut row = whole.clone();
        row[field] = value.clone();
        answers(&world, "tenderTransactions", &[row]);
        world.post("sync-integrations", "days=30").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "0.00")]), "{field} {value}");
        assert_eq!(excluded(&world, &sale.id).await?, None, "{field} {value}");
        assert_eq!(worth(&world, user, 11).await?["flaws"], Value::Null, "{field} {value}");
    }
    let refs: Vec<String> =
        sqlx::query_scalar("select unnest(refs) from jobs.integration_transactions where external_id = $1")
            .bind(&sale.id)
            .fetch_all(world.pool())
            .await?;
    assert!(refs.contains(&"ch_1".to_owned()), "{refs:?}");
    let whole = json!({
        "id": dispute, "type": "CHARGEBACK", "status": "LOST", "finalizedOn": "2026-11-17T10:00:00Z",
        "initiatedAt": "2026-11-17T09:00:00Z", "amount": {"amount": "100.0", "currencyCode": "USD"}, "order": null,
    });
    for (field, value) in [
        ("amount", Value::Null),
        ("amount", json!({"currencyCode": "USD"})),
        ("status", Value::Null),
        ("finalizedOn", Value::Null),
        ("initiatedAt", Value::Null),
        ("order", Value::Null),
    ] {
        let mut row = whole.clone();
        row[field] = value.clone();
        answers(&world, "query Disputes", &[row]);
        world.post("sync-integrations", "days=30").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "0.00")]), "{field} {value}");
        assert_eq!(worth(&world, user, 11).await?["flaws"], Value::Null, "{field} {value}");
    }
    Ok(())
}

/// An accepted dispute that is called lost afterwards keeps the day on which it was decided, where no other is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_loss_keeps_its_day_under_another_name() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let told = Dispute::new(at("2026-11-05T09:00:00Z"), "42.0", "EUR");
    let dispute = world.shopify.dispute(SHOP, told.finalized("ACCEPTED", at("2026-11-06T09:00:00Z")));
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "-42.00")]));
    world.shopify.finalize_dispute(SHOP, &dispute, "LOST", at("2026-11-06T09:00:00Z"));
    world.shopify.forget_decision(SHOP, &dispute);
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "-42.00")]));
    // Won and lost again it has no day that anybody knows: it is named.
    world.shopify.finalize_dispute(SHOP, &dispute, "WON", at("2026-11-19T02:00:00Z"));
    sync_at(&mut world, "2026-11-19T06:10:00Z").await?;
    assert_eq!(books(&world, user).await?, []);
    world.shopify.finalize_dispute(SHOP, &dispute, "LOST", at("2026-11-19T09:00:00Z"));
    world.shopify.forget_decision(SHOP, &dispute);
    sync_at(&mut world, "2026-11-19T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, []);
    assert_eq!(excluded(&world, &dispute).await?.as_deref(), Some("no_date"));
    Ok(())
}

/// With the application fee the account shows the buyer's amount; it does so, too, when the fee is not told any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_platforms_fee_that_was_known_stays_known() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    let paid = world.stripe.passed_on(ACCOUNT, at("2026-11-17T09:00:00Z"), 10_000, PassedOn::WithFee);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    let source = json!({
        "id": paid.charge, "object": "charge", "status": "succeeded", "source_transfer": format!("tr_{}", paid.charge),
    });
    world.stripe.show(ACCOUNT, &paid.transaction, json!({"source": source}));
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    Ok(())
}

/// A row that an earlier version stored counts without a state. An answer that only names its payment, which may be a
/// debit's, does not take it out of the books.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_counted_without_a_state_goes_on_counting() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    let debit = world.stripe.debit(ACCOUNT, at("2026-11-16T09:00:00Z"), 5_000, at("2026-11-17T09:00:00Z"));
    world.stripe.settle_debit(ACCOUNT, &debit);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    world
        .run("update jobs.integration_transactions set state = null, method = null, source_kind = null")
        .await?;
    world.stripe.show(ACCOUNT, &debit.transaction, json!({"source": debit.charge}));
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "50.00")]));
    Ok(())
}

/// A scope that is withdrawn between two pages takes nothing of the first one into the books and nothing out of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_scope_withdrawn_between_two_pages_changes_nothing() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tenders(SHOP, at("2026-11-10T09:00:00Z"), chrono::TimeDelta::minutes(1), 250);
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    let before = books(&world, user).await?;
    world.shopify.tender(SHOP, Tender::new(at("2026-11-18T09:00:00Z"), "7.0", "EUR"));
    let denied = json!({"errors": [{"message": "Access denied for tenderTransactions field.",
        "extensions": {"code": "ACCESS_DENIED", "requiredAccess": "`read_orders` access scope."}}]});
    world
        .shopify
        .faults()
        .add(Rule::on("graphql", Fault::json(200, &denied)).body("tenderTransactions").skip(1));
    let answer = world.post("sync-integrations", "days=30").await?;
    assert_eq!(answer["results"]["syncIntegrations"]["errors"].as_i64().unwrap_or(1), 1, "{answer}");
    assert_eq!(books(&world, user).await?, before);
    world.shopify.faults().clear();
    world.post("sync-integrations", "days=30").await?;
    assert_ne!(books(&world, user).await?, before);
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    Ok(())
}
