//! The sync of integrations, end to end: providers, queue, totals.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use stand_ins::shopify::Tender;

use crate::{
    clock::{at, replay},
    world::World,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_changes_nothing_and_says_0() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_once").await?;
    let paid = world.stripe.payment("acct_once", world.earlier(90), 12_000, "eur");
    world.stripe.payment("acct_once", world.earlier(80), 1_999, "eur");
    world.stripe.refund("acct_once", &paid.charge, world.earlier(60), 2_000);
    world.stripe.payout("acct_once", world.earlier(50), 5_000, "eur");

    let first = world.post("sync-integrations", "").await?;
    assert_eq!(first["message"], "Synchronisation terminée");
    assert_eq!(first["totalSynced"], 3, "{first}");
    assert_eq!(first["results"][0]["records"], 3);
    assert_eq!(first["results"][0]["provider"], "stripe");
    let imported = world.imported(user).await?;
    assert_eq!(imported.len(), 1);
    assert_eq!((imported[0].1.as_str(), imported[0].2.as_str()), ("Prestation de services", "119.99"));

    let before: String =
        world.value("select string_agg(xmin::text, ',' order by id) from public.ca_records").await?;
    let second = world.post("sync-integrations", "").await?;
    assert_eq!(second["totalSynced"], 0, "{second}");
    let after: String =
        world.value("select string_agg(xmin::text, ',' order by id) from public.ca_records").await?;
    assert_eq!(before, after, "no row was rewritten");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_seen_through_both_counts_once() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_both").await?;
    world.shopify.add_shop("both.myshopify.com", "EUR", "shpat_both");
    world.connect_shopify(user, "both.myshopify.com", "shpat_both", None).await?;
    let paid = world.stripe.payment("acct_both", world.earlier(90), 10_000, "eur");
    let sold = world
        .shopify
        .tender("both.myshopify.com", Tender::new(world.earlier(90), "100.0", "EUR").reference(&paid.charge));
    world.shopify.tender("both.myshopify.com", Tender::new(world.earlier(70), "40.0", "EUR"));
    world.stripe.refund("acct_both", &paid.charge, world.earlier(60), 1_000);
    world.shopify.refund("both.myshopify.com", &sold, world.earlier(60), "10.0");

    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["errors"], 0, "{answer}");
    let imported = world.imported(user).await?;
    let amounts: Vec<_> = imported.iter().map(|row| (row.1.as_str(), row.2.as_str())).collect();
    assert_eq!(amounts, [("Prestation de services", "90.00"), ("Vente de marchandises", "40.00")]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daily_cron_claims_its_slot_once() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_slot").await?;
    world.stripe.payment("acct_slot", world.earlier(600), 5_000, "eur");
    let query = replay(world.last_sync_hour());
    let first = world.cron("daily-orchestrator", &query).await?;
    let sync = &first["results"]["syncIntegrations"];
    assert_eq!(
        (&sync["synced"], &sync["errors"], &sync["skipped"]),
        (&json!(1), &json!(0), &json!(false)),
        "{first}"
    );
    let second = world.cron("daily-orchestrator", &query).await?;
    let sync = &second["results"]["syncIntegrations"];
    assert_eq!((&sync["synced"], &sync["skipped"]), (&json!(1), &json!(true)), "{second}");
    assert!(sync["note"].as_str().unwrap_or_default().starts_with("déjà planifié"), "{second}");
    assert_eq!(
        world.value::<i64>("select count(*) from jobs.job_runs where task = 'sync_integrations'").await?,
        1
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_is_read_to_its_end_and_reported_by_source() -> Result<()> {
    let world = World::at(at("2026-11-18T10:20:00Z")).await?;
    let user = world.stripe_user("acct_month").await?;
    world.stripe.payment("acct_month", at("2026-10-01T10:00:00Z"), 10_000, "eur");
    world.stripe.payment("acct_month", at("2026-10-31T22:59:59Z"), 5_000, "eur");
    world.stripe.payment("acct_month", at("2026-10-31T23:00:00Z"), 7_777, "eur"); // November in Paris
    let answer = world.post("monthly-sync", "month=2026-10").await?;
    assert_eq!(answer["message"], "Sync mensuel terminé");
    assert_eq!(answer["month"], "octobre 2026");
    assert_eq!(answer["totalUsers"], 1);
    assert_eq!(answer["results"][0]["userId"], json!(user), "{answer}");
    assert_eq!(answer["results"][0]["totalCA"], json!(150.00), "{answer}");
    assert_eq!(answer["results"][0]["details"], json!([{"source": "stripe", "amount": 150.00}]));
    assert_eq!(answer["results"][0]["month_status"], "complete");
    let imported = world.imported(user).await?;
    assert_eq!(imported, [("2026-10".into(), "Prestation de services".into(), "150.00".to_owned())]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_users_trouble_stays_theirs() -> Result<()> {
    let world = World::new().await?;
    let fine = world.stripe_user("acct_fine").await?;
    world.stripe_user("acct_gone").await?;
    world.stripe.payment("acct_fine", world.earlier(30), 4_200, "eur");
    world.stripe.revoke("acct_gone");
    let answer = world.call(Method::POST, "sync-integrations", "").await?;
    let body = answer.json();
    assert_eq!(answer.status, 200, "{body}");
    assert_eq!(body["errors"], 1, "{body}");
    assert_eq!(world.imported(fine).await?[0].2, "42.00");
    let error: String = world
        .value("select last_error from public.integration_tokens where stripe_account_id = 'acct_gone'")
        .await?;
    assert!(error.contains("Stripe"), "{error}");
    let logged: i64 = world
        .value("select count(*) from public.sync_logs where status = 'error' and provider = 'stripe'")
        .await?;
    assert_eq!(logged, 1);
    Ok(())
}
