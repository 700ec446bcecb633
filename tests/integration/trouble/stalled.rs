//! A run that could do nothing is no success: it says why, to the caller, the log and the monitor.

use std::time::Duration;

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    resend::Resend,
    stripe,
};

use uuid::Uuid;

use super::{SYNC, ask, ask_again, heal};
use crate::{
    promises::{rpc, until},
    world::{SECRET, World},
};

/// Returns the last row of the log that is about a whole call: its status and message.
async fn logged(world: &World) -> Result<(String, Option<String>)> {
    let sql = "select status, error_message from public.sync_logs where user_id is null order by xmin::text::bigint desc limit 1";
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
        // Slow, and nothing else: each answer takes longer than the whole call may.
        (
            "no_time",
            world.stripe.faults(),
            Rule::on("balance_transactions", Fault::Delay(Duration::from_secs(30))),
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

/// The row of a `drain-queue` call is no success where an attempt of an item failed, an item failed for good, or a mail
/// could not be sent. The reason stands in it.
#[tokio::test(flavor = "multi_thread")]
async fn the_row_of_a_drain_is_no_success_where_something_failed() -> Result<()> {
    let mut world = World::new().await?;
    world.set("JOB_BUDGET_SECONDS", "3");
    for account in ["acct_bad", "acct_good"] {
        world.stripe_user(account).await?;
        world.stripe.payment(account, world.earlier(90), 4_200, "eur");
    }
    let plan_sync = || {
        json!({
            "p_run_id": Uuid::new_v4(), "p_task": "sync_integrations", "p_kind": "sync_integration", "p_slot": null,
            "p_trigger": "manual", "p_route": "/test", "p_as_of": world.now(), "p_parameters": {},
            "p_payload": {"days": null}, "p_user_id": null, "p_dry_run": false, "p_most_days": jobs::schedule::MOST_DAYS, "p_now": world.now(),
        })
    };
    rpc(&world, "jobs_plan_sync", &plan_sync()).await?;
    world.stripe.faults().add(Rule::on("balance_transactions", stripe::server_error(false)));
    assert_eq!(drained(&world).await?, ("partial".into(), true), "an attempt of each failed");
    world.stripe.faults().clear();

    world.stripe.revoke("acct_bad");
    rpc(&world, "jobs_plan_sync", &plan_sync()).await?;
    assert_eq!(drained(&world).await?, ("partial".into(), true), "one failed for good, one was read");

    let digest = json!({
        "p_run_id": Uuid::new_v4(), "p_route": "/test", "p_now": world.now(),
        "p_expires_at": world.now() + chrono::TimeDelta::days(3),
        "p_facts": {
            "to": "operator@example.test", "day": "2026-11-18", "status_url": "https://jobs.example/api/status",
            "points": [{"title": "Titre", "detail": "Texte", "count": 1}],
        },
    });
    rpc(&world, "jobs_plan_digest", &digest).await?;
    let no = json!({"name": "application_error", "message": "no"});
    world.resend.faults().add(Rule::on("/emails", Fault::json(500, &no)));
    assert_eq!(drained(&world).await?, ("partial".into(), true), "a mail's outcome is unknown");
    world.resend.faults().clear();

    assert_eq!(drained(&world).await?, ("success".into(), false), "nothing waits");
    Ok(())
}

/// Calls `drain-queue`; answers the status of its row, and whether that says why.
async fn drained(world: &World) -> Result<(String, bool)> {
    world.run("delete from public.sync_logs where sync_type = 'drain'").await?;
    // Kept until the row is there: the work goes on after the answer.
    let function = world.function("drain-queue").await?;
    let told = ask_again(world, &function, Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
    assert_eq!(told.status, 202, "{}", told.text);
    let rows = "select count(*) from public.sync_logs where sync_type = 'drain'";
    until("the row of the call", async || Ok(world.value::<i64>(rows).await? > 0)).await?;
    let row = "select status, error_message is not null from public.sync_logs where sync_type = 'drain'";
    Ok(sqlx::query_as(row).fetch_one(world.pool()).await?)
}

/// A run that only sends, at a mail service that never answers within the call, is no success either. The mails wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_could_send_nothing_says_why() -> Result<()> {
    let mut world = World::at(crate::clock::at("2026-12-02T07:00:00Z")).await?;
    let monitor = Resend::bare().await?;
    monitor.faults().add(Rule::on("", Fault::Answer { status: 200, headers: Vec::new(), body: "OK".into() }));
    world.set("PING_URL_MONTHLY_REMINDERS", &format!("{}/reminders", monitor.url()));
    world.set("JOB_BUDGET_SECONDS", "1");
    let user = world.user("camille@example.test").await?;
    for sql in [
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
        "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
    ] {
        sqlx::query(sql).bind(user).execute(world.pool()).await?;
    }
    world.resend.faults().add(Rule::on("/emails", Fault::Delay(Duration::from_mins(1))));
    let told = ask(&world, Method::GET, "send-reminders", "").await?;
    assert_eq!((told.status, &told.body["sent"], &told.body["remaining"]), (200, &json!(0), &json!(1)));
    let problem = &told.body["problems"][0];
    assert_eq!((&problem["code"], &problem["blocking"]), (&json!("no_time"), &json!(true)), "{}", told.text);
    assert_eq!(told.body["errors"], 1, "{}", told.text);
    let (status, message) = logged(&world).await?;
    assert!(status == "error" && message.is_some(), "{status} {message:?}");
    let heard: Vec<String> = monitor.faults().seen().iter().map(|seen| seen.target.clone()).collect();
    assert_eq!(heard, ["/reminders/start", "/reminders/fail"]);
    assert_eq!(world.value::<i32>("select max(attempts) from jobs.job_items").await?, 0);
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

/// What moves elsewhere is no movement of a provider that answers nothing but refusals, nor is a failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_stands_still_is_no_success_whatever_moves_elsewhere() -> Result<()> {
    let mut world = World::new().await?;
    // Long enough on a busy machine for an answer to be refused, and not only cut.
    world.set("JOB_BUDGET_SECONDS", "8");
    world.stripe_user("acct_still").await?;
    world.shopify_user("moves.myshopify.com").await?;
    world.stripe.faults().add(Rule::on("balance_transactions", stripe::rate_limited("endpoint-rate")));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!(
        (told.status, &told.body["errors"], &told.body["remaining"], &told.body["resultsTotal"]),
        (200, &json!(1), &json!(1), &json!(1)),
        "{}",
        told.text
    );
    let problem = &told.body["problems"][0];
    assert_eq!(
        (&problem["code"], &problem["blocking"]),
        (&json!("rate_limited"), &json!(true)),
        "{}",
        told.text
    );
    Ok(())
}
