//! A run that could do nothing is no success: it says why, to the caller, the log and the monitor.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    resend::Resend,
    stripe,
};

use super::{SYNC, ask, heal};
use crate::world::World;

/// The last row of the log that is about a whole call: its status and message.
async fn logged(world: &World) -> Result<(String, Option<String>)> {
    let sql = "select status, error_message from public.sync_logs where user_id is null order by synced_at desc limit 1";
    Ok(sqlx::query_as(sql).fetch_one(world.pool()).await?)
}

/// Faults that pass, for the whole of a run: the database refuses every settlement, or Stripe every request.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_could_do_nothing_says_why() -> Result<()> {
    let mut world = World::new().await?;
    let monitor = Resend::bare().await?;
    monitor.faults().add(Rule::on("", Fault::Answer { status: 200, headers: Vec::new(), body: "OK".into() }));
    world.set("PING_URL_SYNC_INTEGRATIONS", &format!("{}/sync", monitor.url()));
    world.set("JOB_BUDGET_SECONDS", "3");
    for account in ["acct_one", "acct_two"] {
        world.stripe_user(account).await?;
        world.stripe.payment(account, world.earlier(90), 4_200, "eur");
    }
    let gateway = world.environment.gateway.faults().clone();
    let refused = Fault::json(503, &json!({"code": "PGRST001", "message": "no connection"}));
    for (code, faults, rule) in [
        ("database", &gateway, Rule::on("/rpc/integration_settle", refused)),
        (
            "rate_limited",
            world.stripe.faults(),
            Rule::on("balance_transactions", stripe::rate_limited("endpoint-rate")),
        ),
    ] {
        monitor.faults().forget();
        faults.add(rule);
        let told = ask(&world, Method::POST, SYNC, "").await?;
        faults.clear();
        assert!(told.status == 200 && told.body["errors"].as_u64() >= Some(1), "{code}: {}", told.text);
        assert_eq!(told.body["remaining"], 2, "{code}: {}", told.text);
        let problem = told.body["problems"][0].clone();
        assert_eq!((&problem["code"], &problem["blocking"]), (&json!(code), &json!(true)), "{}", told.text);
        let (status, message) = logged(&world).await?;
        assert!(status == "error" && message.is_some(), "{code}: {status} {message:?}");
        let heard: Vec<String> = monitor.faults().seen().iter().map(|seen| seen.target.clone()).collect();
        assert_eq!(heard, ["/sync/start", "/sync/fail"], "{code}");
        // Nothing was an attempt: the items are there, and wait until they show again.
        let attempts: i64 =
            world.value("select max(attempts)::bigint from jobs.job_items where status = 'queued'").await?;
        assert_eq!(attempts, 0, "{code}");
    }
    world.set("JOB_BUDGET_SECONDS", "270");
    assert_eq!(heal(&world).await?, 2);
    Ok(())
}

/// One is put off, the other is read: that is said, and is no error.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_made_progress_says_what_is_put_off() -> Result<()> {
    let mut world = World::new().await?;
    world.set("JOB_BUDGET_SECONDS", "3");
    world.set("JOB_CONCURRENCY", "1");
    for account in ["acct_one", "acct_two"] {
        world.stripe_user(account).await?;
    }
    let refused = Fault::json(503, &json!({"code": "PGRST001", "message": "no connection"}));
    let gateway = world.environment.gateway.faults().clone();
    // The first item's settlement, with all its repetitions within the budget.
    let first: i64 = 1;
    gateway.add(Rule::on("/rpc/integration_settle", refused).body(&format!("\"p_item_id\":{first},")));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    gateway.clear();
    assert_eq!(
        (told.status, &told.body["errors"], &told.body["remaining"]),
        (200, &json!(0), &json!(1)),
        "{}",
        told.text
    );
    let problem = &told.body["problems"][0];
    assert_eq!((&problem["code"], &problem["warning"]), (&json!("database"), &json!(true)), "{}", told.text);
    assert_eq!(logged(&world).await?.0, "partial");
    Ok(())
}
