//! The database is away, slow, behind a broken gateway, or not migrated.

use std::time::{Duration, Instant};

use anyhow::Result;
use processes::database::Template;
use reqwest::Method;
use serde_json::json;
use stand_ins::faults::{Fault, Rule};

use super::{SYNC, ask, ask_again, eventually, heal, traces, turnover};
use crate::world::{SECRET, World};

/// Makes a user with 42.00 that nobody has read yet.
async fn world_with_money() -> Result<(World, uuid::Uuid)> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_waiting").await?;
    world.stripe.payment("acct_waiting", world.earlier(90), 4_200, "eur");
    Ok((world, user))
}

async fn healed(world: &World, user: uuid::Uuid) -> Result<()> {
    world.environment.gateway.faults().clear();
    assert_eq!(heal(world).await?, 1);
    assert_eq!(turnover(world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

fn html(status: u16) -> Fault {
    let body = "<!DOCTYPE html><html><head><title>Cloudflare</title></head><body>http://127.0.0.1 sk_test_x</body></html>";
    Fault::Answer { status, headers: vec![("content-type".into(), "text/html".into())], body: body.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listens() -> Result<()> {
    let (mut world, user) = world_with_money().await?;
    let port = processes::ports::free()?;
    let right = world.replace("SUPABASE_URL", Some(format!("http://127.0.0.1:{port}")));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!(told.status, 503, "{}", told.text);
    assert_eq!(told.error(), "La base de données est injoignable ; vérifiez SUPABASE_URL.");
    let told = ask(&world, Method::POST, "drain-queue", "").await?;
    assert_eq!((told.status, told.error().contains("injoignable")), (503, true), "{}", told.text);
    assert_eq!(traces(&world).await?, 0);
    world.replace("SUPABASE_URL", right);
    healed(&world, user).await
}

/// A gateway answers in the database's place, for good or for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn something_else_answers() -> Result<()> {
    let (world, user) = world_with_money().await?;
    let faults = world.environment.gateway.faults();
    let upstream = json!({"message": "An invalid response was received from the upstream server"});
    let no_route = json!({"message": "no Route matched with those values"});
    let no_pool =
        json!({"code": "PGRST003", "message": "Timed out acquiring connection from connection pool."});
    let table = [
        // (what, our status, words of our answer)
        (html(502), 503, "a répondu 502"),
        (html(200), 500, "vérifiez SUPABASE_URL"),
        (html(404), 500, "vérifiez SUPABASE_URL"),
        (Fault::Answer { status: 200, headers: Vec::new(), body: String::new() }, 500, "inattendue"),
        (Fault::json(200, &json!([1, 2])), 500, "inattendue"),
        (Fault::json(502, &upstream), 503, "a répondu 502"),
        (Fault::json(404, &no_route), 500, "vérifiez SUPABASE_URL"),
        (Fault::json(504, &no_pool), 503, "momentanément"),
        (Fault::CutBefore, 503, "injoignable"),
    ];
    for (fault, status, words) in table {
        faults.clear();
        faults.add(Rule::on("jobs_plan_sync", fault.clone()));
        let told = ask(&world, Method::POST, SYNC, "").await?;
        assert_eq!(told.status, status, "{fault:?}: {}", told.text);
        assert!(told.error().contains(words), "{fault:?}: {}", told.text);
        for page in ["<", "Cloudflare", "upstream"] {
            assert!(!told.text.contains(page), "{}", told.text);
        }
    }
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_runs").await?, 0, "nothing was begun");

    // For a moment only: nobody notices.
    for fault in [html(502), Fault::json(503, &upstream), Fault::json(504, &no_pool), Fault::CutBefore] {
        faults.clear();
        faults.add(Rule::on("jobs_plan_sync", fault.clone()).times(1));
        faults.add(Rule::on("integration_settle", fault).times(1));
        let told = ask(&world, Method::POST, SYNC, "").await?;
        assert_eq!((told.status, &told.body["errors"]), (200, &json!(0)), "{}", told.text);
        assert!(told.body.get("remaining").is_none(), "{}", told.text);
    }
    faults.clear();
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

/// What the database loses against another transaction it does again; what it refuses is an attempt.
#[tokio::test(flavor = "multi_thread")]
async fn deadlocks_pass_and_refusals_are_counted() -> Result<()> {
    let (world, user) = world_with_money().await?;
    let faults = world.environment.gateway.faults();
    let deadlock = Fault::json(500, &json!({"code": "40P01", "message": "deadlock detected", "hint": null}));
    for function in
        ["jobs_plan_sync", "jobs_claim", "integration_context", "integration_settle", "jobs_report"]
    {
        faults.add(Rule::on(function, deadlock.clone()).times(2));
    }
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(0)), "{}", told.text);
    assert_eq!(told.body["totalSynced"], 1, "{}", told.text);
    faults.clear();

    world.stripe.payment("acct_waiting", world.earlier(30), 800, "eur");
    let refused = json!({"code": "22003", "message": "numeric field overflow", "details": "sk_test_detail"});
    faults.add(Rule::on("integration_settle", Fault::json(400, &refused)));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["remaining"]), (200, &json!(1)), "{}", told.text);
    assert!(told.problem("database").unwrap_or_default().contains("22003"), "{}", told.text);
    let attempts = "select max(attempts) from jobs.job_items where status = 'queued'";
    assert_eq!(world.value::<i32>(attempts).await?, 1);
    faults.clear();

    // Out of order for longer than one try: no attempt of the item's.
    faults
        .add(Rule::on("integration_settle", Fault::json(503, &json!({"code": "PGRST001", "message": "no"}))));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["remaining"]), (200, &json!(1)), "{}", told.text);
    assert_eq!(world.value::<i32>(attempts).await?, 1, "the item is not to blame; what it took over counts");
    faults.clear();
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("50.00"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_seconds_late_is_waited_for() -> Result<()> {
    let (world, user) = world_with_money().await?;
    let faults = world.environment.gateway.faults();
    faults.add(Rule::on("integration_settle", Fault::Delay(Duration::from_secs(10))));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["totalSynced"]), (200, &json!(1)), "{}", told.text);
    assert_eq!(faults.count("integration_settle"), 1, "not asked twice");
    faults.clear();
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

/// Everything is twelve seconds late and the budget is short: answered in time, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_database_does_not_outlast_the_budget() -> Result<()> {
    let (mut world, user) = world_with_money().await?;
    let right = world.replace("JOB_BUDGET_SECONDS", Some("1".into()));
    world.environment.gateway.faults().add(Rule::on("", Fault::Delay(Duration::from_secs(12))));
    let begun = Instant::now();
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert!(begun.elapsed() < Duration::from_secs(24), "{:?}", begun.elapsed());
    assert_eq!(told.status, 503, "{}", told.text);
    let clear = ["ne répond pas à temps", "temps imparti"].iter().any(|words| told.error().contains(words));
    assert!(clear, "{}", told.text);
    world.replace("JOB_BUDGET_SECONDS", right);
    healed(&world, user).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_api_restarts_in_the_middle_of_a_run() -> Result<()> {
    let (mut world, user) = world_with_money().await?;
    // The run is between its claim and its settling when the server goes.
    world.stripe.faults().add(Rule::on("balance_transactions", Fault::Delay(Duration::from_secs(1))));
    let function = world.function(SYNC).await?;
    let (authorization, stripe) = (format!("Bearer {SECRET}"), world.stripe.faults().clone());
    let call = tokio::spawn(async move {
        let answer = function.call(Method::POST, "", Some(&authorization)).await?;
        anyhow::Ok((answer, function.log()))
    });
    eventually("the reading", || stripe.count("balance_transactions") > 0).await?;
    world.environment.postgrest.resume().await?;
    let (answer, log) = call.await??;
    super::harmless(&world, &answer.text);
    super::harmless(&world, &log);
    // How long a restart takes is the machine's: it was waited for, or said.
    let body = answer.json();
    match answer.status.as_u16() {
        200 => assert_eq!(body["errors"], 0, "{body}"),
        503 => assert!(body["error"].as_str().is_some_and(|e| e.contains("base") || e.contains("Supabase"))),
        status => panic!("{status} {body}"),
    }
    stripe.clear();
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(0)), "{}", told.text);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    assert_eq!(heal(&world).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_migrations_are_said_to_be_missing() -> Result<()> {
    let world = World::over(Template::Application).await?;
    let user = world.stripe_user("acct_early").await?;
    world.stripe.payment("acct_early", world.earlier(90), 4_200, "eur");
    for (name, method, query) in [
        (SYNC, Method::POST, ""),
        (SYNC, Method::POST, "dry_run=true"),
        ("monthly-sync", Method::POST, "force=true"),
        ("drain-queue", Method::POST, ""),
    ] {
        let told = ask(&world, method, name, query).await?;
        assert_eq!(told.status, 500, "{name}: {}", told.text);
        assert!(told.error().contains("appliquez les migrations de supabase/migrations"), "{}", told.text);
    }
    assert!(world.stripe.faults().seen().is_empty());
    // Applied late, with the server running on: it reloads its schema when it is told to.
    for migration in processes::database::migrations()? {
        processes::database::apply(world.pool(), &migration.name, &migration.sql).await?;
    }
    world.run("notify pgrst, 'reload schema'").await?;
    let function = world.function(SYNC).await?;
    let right = format!("Bearer {SECRET}");
    let deadline = Instant::now() + Duration::from_mins(2);
    while ask_again(&world, &function, Method::POST, "dry_run=true", Some(&right)).await?.status != 200 {
        assert!(Instant::now() < deadline, "the schema was not reloaded");
    }
    healed(&world, user).await
}
