//! The list of tenders is not always whole: the orders' own transactions are the second source.

use anyhow::Result;
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    shopify::{Dispute, Tender},
};

use super::{books, excluded, said, sync_at, world_at, worth};
use crate::{chaos::killed_at, clock::at, world::World};

const SHOP: &str = "unlisted.myshopify.com";

/// Counts the requests of each document that a shop has answered since `skipped`.
fn asked(world: &World, document: &str, skipped: usize) -> usize {
    let seen = world.shopify.faults().seen();
    seen.iter().skip(skipped).filter(|call| call.body.contains(document)).count()
}

async fn rows_of_orders(world: &World) -> Result<Vec<(String, i64, String)>> {
    let sql = "select kind, amount_minor, excluded from jobs.integration_transactions \
        where source_kind = 'order_transaction' order by occurred_at";
    Ok(sqlx::query_as(sql).fetch_all(world.pool()).await?)
}

/// An order was paid in two transactions a day apart, and the list of tenders has the first
/// (<https://community.shopify.com/t/tender-transaction-api-is-not-returning-the-second-transaction/124287>).
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_the_list_never_had_is_named() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let first = world.shopify.tender(SHOP, Tender::new(at("2026-11-10T09:00:00Z"), "60.0", "EUR"));
    let second = Tender::new(at("2026-11-11T09:00:00Z"), "40.0", "EUR").same_order(&first).unlisted();
    let second = world.shopify.tender(SHOP, second);
    let part = sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!((&part["errors"], &part["partial"]), (&json!(0), &json!(1)), "{part}");
    let missing = json!({"status": "partial", "flaws": {"unlisted_payment": 1}});
    let rows = [("unlisted_payment".to_owned(), 4_000, "unlisted_payment".to_owned())];
    // Read before, after, twice, as a month.
    for now in ["2026-11-18T18:10:00Z", "2026-11-19T06:10:00Z", "2026-11-20T06:10:00Z"] {
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]), "{now}");
        assert_eq!(worth(&world, user, 11).await?, missing, "{now}");
        assert_eq!(rows_of_orders(&world).await?, rows, "{now}");
        sync_at(&mut world, now).await?;
    }
    world.set_now(at("2026-12-02T10:00:00Z"));
    let told = world.post("monthly-sync", "month=2026-11").await?;
    assert_eq!(told["results"][0]["month_status"], "partial", "{told}");

    // The list has it after all: it is money like other money, and nothing is missing.
    world.shopify.reveal(SHOP, &second);
    let told = world.post("monthly-sync", "month=2026-11").await?;
    assert_eq!(told["results"][0]["month_status"], "complete", "{told}");
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "100.00")]));
    assert_eq!(excluded(&world, &second.id).await?, None);
    assert_eq!(rows_of_orders(&world).await?, [("no_turnover".to_owned(), 4_000, "no_turnover".to_owned())]);
    Ok(())
}

/// A refund that the list lacks is as much missing as a sale, and an order of which the list has nothing, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_and_a_whole_order_can_be_missing() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let sold = world.shopify.tender(SHOP, Tender::new(at("2026-11-10T09:00:00Z"), "60.0", "EUR"));
    let back = Tender::new(at("2026-11-12T09:00:00Z"), "-25.0", "EUR").same_order(&sold).unlisted();
    world.shopify.tender(SHOP, back);
    world.shopify.tender(SHOP, Tender::new(at("2026-10-28T09:00:00Z"), "80.0", "EUR").unlisted());
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    world.post("monthly-sync", "month=2026-10").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]));
    assert_eq!(
        worth(&world, user, 11).await?,
        json!({"status": "partial", "flaws": {"unlisted_payment": 1}})
    );
    let october: Value = world
        .value("select jobs.month_worth(user_id, '2026-10-01', $now) from jobs.integration_state")
        .await?;
    assert_eq!(october, json!({"status": "partial", "flaws": {"unlisted_payment": 1}}));
    Ok(())
}

/// What both sources tell in different pieces or currencies is the same money: nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_list_tells_otherwise_is_not_missing() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let day = at("2026-11-10T09:00:00Z");
    // Cash and its change: the list may have what was kept, or both.
    let kept = world.shopify.tender(SHOP, Tender::new(day, "20.0", "EUR").method("cash"));
    world.shopify.order_transaction(SHOP, &kept, "SALE", day, "30.0");
    world.shopify.order_transaction(SHOP, &kept, "CHANGE", day, "30.0");
    // Rounded at the till.
    let rounded = world.shopify.tender(SHOP, Tender::new(day, "10.0", "EUR").method("cash"));
    world.shopify.order_transaction(SHOP, &rounded, "SALE", day, "0.02");
    // What moves no money, and what is no cash.
    let paid = world.shopify.tender(SHOP, Tender::new(day, "50.0", "USD").shop_money("45.5"));
    for kind in ["AUTHORIZATION", "VOID", "SUGGESTED_REFUND"] {
        world.shopify.order_transaction(SHOP, &paid, kind, day, "45.5");
    }
    let card = Tender::new(day, "12.0", "EUR").gift_card().same_order(&paid);
    world.shopify.tender(SHOP, card);
    // What was paid before, when the card was sold or the credit given: the list may leave it out.
    for method in ["gift_card", "Gift Card", "shopify_store_credit"] {
        world
            .shopify
            .tender(SHOP, Tender::new(day, "13.0", "EUR").method(method).same_order(&paid).unlisted());
    }
    world.shopify.refund(SHOP, &rounded, at("2026-11-12T09:00:00Z"), "4.0");
    world.shopify.tender(SHOP, Tender::new(day, "9.0", "EUR").deleted_order());
    world.shopify.dispute(SHOP, Dispute::new(day, "20.0", "EUR").about(&kept));
    // Five payments of one order, more than are asked for at once.
    let many = world.shopify.tender(SHOP, Tender::new(day, "1.0", "EUR"));
    for minutes in 1..5 {
        let more = Tender::new(day + TimeDelta::minutes(minutes), "1.0", "EUR").same_order(&many);
        world.shopify.tender(SHOP, more);
    }
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(rows_of_orders(&world).await?, []);
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "85.50")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    Ok(())
}

/// Where a tip, or a whole piece of a payment, is not in what the list tells, the payment is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_is_more_than_its_tender_is_named() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let day = at("2026-11-10T09:00:00Z");
    let sold = world.shopify.tender(SHOP, Tender::new(day, "20.0", "EUR"));
    world.shopify.order_transaction(SHOP, &sold, "SALE", day, "2.0");
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "20.00")]));
    assert_eq!(
        worth(&world, user, 11).await?,
        json!({"status": "partial", "flaws": {"unlisted_payment": 1}})
    );
    Ok(())
}

/// Once a day, and with a month, one request more for a shop of up to 75 orders in thirty days; a tender of the last
/// hour may still come.
#[tokio::test(flavor = "multi_thread")]
async fn the_second_source_costs_a_page_a_day() -> Result<()> {
    let mut world = world_at("2026-11-18T05:00:00Z").await?;
    world.shopify_user(SHOP).await?;
    for (orders, pages) in [(75, 1), (1, 2)] {
        world.shopify.tenders(SHOP, at("2026-11-10T09:00:00Z"), TimeDelta::minutes(1), orders);
        let skipped = world.shopify.faults().seen().len();
        let day = if pages == 1 { "2026-11-18" } else { "2026-11-19" };
        for hour in ["06:10:00Z", "12:10:00Z", "18:10:00Z"] {
            sync_at(&mut world, &format!("{day}T{hour}")).await?;
        }
        let counts =
            ["query Orders", "tenderTransactions", "OrderTransactions"].map(|d| asked(&world, d, skipped));
        assert_eq!(counts, [pages, 3, 0], "{orders}");
    }
    world.shopify.tender(SHOP, Tender::new(at("2026-11-20T05:30:00Z"), "7.0", "EUR").unlisted());
    sync_at(&mut world, "2026-11-20T06:10:00Z").await?;
    assert_eq!(rows_of_orders(&world).await?, []);
    sync_at(&mut world, "2026-11-21T06:10:00Z").await?;
    assert_eq!(rows_of_orders(&world).await?.len(), 1);
    Ok(())
}

/// A kill between the list and the orders, an answer that is lost and a page that comes twice change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_both_sources_leaves_no_false_alarm() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tenders(SHOP, at("2026-11-10T09:00:00Z"), TimeDelta::minutes(1), 100);
    world.shopify.tender(SHOP, Tender::new(at("2026-11-10T08:00:00Z"), "5.0", "EUR").unlisted());
    let late = Fault::Late(std::time::Duration::from_mins(5));
    killed_at(&world, (Method::POST, "sync-integrations", "days=30"), ("integration_settle", late)).await?;
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    world.shopify.misbehave(SHOP, Some(stand_ins::shopify::Misbehaviour::DuplicatePage));
    sync_at(&mut world, "2026-11-19T06:10:00Z").await?;
    assert_eq!(rows_of_orders(&world).await?.len(), 1);
    assert_eq!(worth(&world, user, 11).await?["flaws"], json!({"unlisted_payment": 1}));
    Ok(())
}

/// Two equal halves of an order, on both sides of a month's end, of which the list has one: a month's own read knows the
/// other one too, and takes it for no other payment's tender.
#[tokio::test(flavor = "multi_thread")]
async fn equal_payments_are_told_apart_across_a_months_end() -> Result<()> {
    for (listed, missing) in
        [("2026-10-31T09:00:00Z", "2026-11-01T09:00:00Z"), ("2026-11-01T09:00:00Z", "2026-10-31T22:50:00Z")]
    {
        let mut world = world_at("2026-10-20T12:00:00Z").await?;
        let user = world.shopify_user(SHOP).await?;
        sync_at(&mut world, "2026-10-20T12:10:00Z").await?;
        let one = world.shopify.tender(SHOP, Tender::new(at(listed), "50.0", "EUR"));
        let other = Tender::new(at(missing), "50.0", "EUR").same_order(&one).unlisted();
        world.shopify.tender(SHOP, other);
        sync_at(&mut world, "2026-11-05T06:10:00Z").await?;
        let flawed = json!({"unlisted_payment": 1});
        for month in ["", "month=2026-10", "month=2026-11"] {
            if !month.is_empty() {
                world.post("monthly-sync", month).await?;
            }
            for of in ["2026-10", "2026-11"] {
                let worth: Value =
                    sqlx::query_scalar("select jobs.month_worth($1, to_date($2, 'YYYY-MM'), $3)")
                        .bind(user)
                        .bind(of)
                        .bind(world.now())
                        .fetch_one(world.pool())
                        .await?;
                assert_eq!(
                    worth["flaws"] == flawed,
                    missing.starts_with(of),
                    "{listed} {month} {of}: {worth}"
                );
            }
        }
    }
    Ok(())
}

/// Orders that nobody can read keep no tender from counting, and the log says that they were not compared.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_orders_keep_no_tender_back() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(at("2026-11-10T09:00:00Z"), "60.0", "EUR"));
    let odd = json!({"data": {"orders": {"nodes": [{"id": "1"}], "pageInfo": {"hasNextPage": false}}}});
    world.shopify.faults().add(Rule::on("graphql", Fault::json(200, &odd)).body("query Orders"));
    let part = sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(part["errors"], 0, "{part}");
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]));
    let note: String = world
        .value("select metadata -> 'notes' ->> 'orders' from public.sync_logs where user_id is not null")
        .await?;
    assert_eq!(note, "commandes non comparées : invalid_answer");
    Ok(())
}

/// Orders on which Shopify's server fails again and again keep no tender from counting either: at the last attempt they
/// are not compared. Until then the failure may pass.
#[tokio::test(flavor = "multi_thread")]
async fn orders_that_break_their_server_keep_no_tender_back() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(at("2026-11-10T09:00:00Z"), "60.0", "EUR"));
    // Later than anybody waits for within a run.
    let headers = vec![("retry-after".into(), "3600".into())];
    let broken = Fault::Answer { status: 500, headers, body: String::new() };
    world.shopify.faults().add(Rule::on("graphql", broken).body("query Orders"));
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[]), "it may pass");
    sqlx::query("update jobs.job_items set attempts = 4").execute(world.pool()).await?;
    sqlx::query("select pgmq.set_vt('jobs_shopify', msg_id, 0) from pgmq.q_jobs_shopify")
        .execute(world.pool())
        .await?;
    world.cron("daily-orchestrator", "").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "60.00")]));
    let sql = "select count(*) from public.sync_logs where metadata -> 'notes' ->> 'orders' = $1";
    let note = "commandes non comparées : server_error";
    let times: i64 = sqlx::query_scalar(sql).bind(note).fetch_one(world.pool()).await?;
    assert_eq!(times, 1);
    Ok(())
}
