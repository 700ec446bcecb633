//! PostgREST commits, and the answer is lost: every function of ours is called again and changes nothing more.

use anyhow::Result;
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::json;
use stand_ins::faults::{Fault, Rule};

use super::{SYNC, ask, heal, turnover};
use crate::world::World;

/// Lists what a sync calls, in its order.
const CALLS: [&str; 9] = [
    "jobs_plan_sync",
    "jobs_claim",
    "integration_context",
    "integration_settle",
    "threshold_books",
    "jobs_plan_alerts",
    "mail_claim",
    "jobs_report",
    "jobs_log",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_changes_nothing() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_cut").await?;
    let faults = world.environment.gateway.faults();
    let mut runs = 0;
    for name in CALLS.into_iter().chain(["integration_prove"]) {
        if name == "integration_prove" {
            world.run("delete from jobs.integration_state").await?;
        }
        world.stripe.payment("acct_cut", world.earlier(90), 1_000, "eur");
        faults.clear();
        faults.forget();
        faults.add(Rule::on(&format!("/rpc/{name}"), Fault::CutAfter).times(1));
        let told = ask(&world, Method::POST, SYNC, "").await?;
        runs += 1;
        assert_eq!(told.status, 200, "{name}: {}", told.text);
        assert_eq!(
            (&told.body["totalSynced"], &told.body["errors"]),
            (&json!(1), &json!(0)),
            "{name}: {}",
            told.text
        );
        assert!(told.body.get("remaining").is_none(), "{name}: {}", told.text);
        assert!(faults.count(&format!("/rpc/{name}")) >= 2, "{name} was called again");
        let sum = format!("{runs}0.00");
        assert_eq!(turnover(&world, user).await?.as_deref(), Some(sum.as_str()), "{name}");
        let counts: (i64, i64, i64, i64, i64) = sqlx::query_as(
            "select (select count(*) from jobs.job_runs), (select count(*) from jobs.job_items), \
             (select count(*) from jobs.job_runs where status = 'success'), \
             (select count(*) from public.sync_logs where provider = 'jobs'), \
             (select count(*) from public.sync_logs where provider = 'stripe')",
        )
        .fetch_one(world.pool())
        .await?;
        assert_eq!(counts, (runs, runs, runs, runs, runs), "{name}: one of each for each call");
    }
    // All of them in one run.
    world.stripe.payment("acct_cut", world.earlier(90), 1_000, "eur");
    faults.clear();
    for name in CALLS {
        faults.add(Rule::on(&format!("/rpc/{name}"), Fault::CutAfter).times(1));
    }
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["totalSynced"]), (200, &json!(1)), "{}", told.text);
    faults.clear();
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(turnover(&world, user).await?, Some(format!("{}0.00", runs + 1)));
    let left: i64 = world.value("select count(*) from pgmq.q_jobs_stripe").await?;
    assert_eq!(left, 0, "no message is left behind");
    Ok(())
}

/// A window is read in several pieces: the stored ones are not stored or counted again.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_checkpoint_counts_once() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_big").await?;
    let sum = world.stripe.payments("acct_big", world.earlier(600), TimeDelta::milliseconds(1), 2_150, "eur");
    let faults = world.environment.gateway.faults();
    faults.add(Rule::on("/rpc/integration_settle", Fault::CutAfter).times(1));
    faults.add(Rule::on("/rpc/integration_settle", Fault::CutAfter).skip(1).times(1));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["totalSynced"]), (200, &json!(2_150)), "{}", told.text);
    assert_eq!(faults.count("/rpc/integration_settle"), 4, "a checkpoint and the end, each twice");
    faults.clear();
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(turnover(&world, user).await?, Some(format!("{}.{:02}", sum / 100, sum % 100)));
    Ok(())
}

/// An attempt whose note was lost is one attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_giving_back_is_one_attempt() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_back").await?;
    world.stripe.payment("acct_back", world.earlier(90), 4_200, "eur");
    world.stripe.faults().add(Rule::on("balance_transactions", stand_ins::stripe::server_error(false)));
    let faults = world.environment.gateway.faults();
    faults.add(Rule::on("/rpc/jobs_give_back", Fault::CutAfter).times(1));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["remaining"]), (200, &json!(1)), "{}", told.text);
    assert_eq!(world.value::<i32>("select max(attempts) from jobs.job_items").await?, 1);
    world.stripe.faults().clear();
    faults.clear();
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

/// A cron whose plan is repeated has one slot and one run; a second cron joins it.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_plan_claims_its_slot_once() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_cron").await?;
    world.stripe.payment("acct_cron", world.earlier(90), 4_200, "eur");
    let at = crate::clock::replay(world.last_sync_hour());
    let faults = world.environment.gateway.faults();
    for name in ["jobs_plan_sync", "jobs_prune", "jobs_log"] {
        faults.add(Rule::on(&format!("/rpc/{name}"), Fault::CutAfter).times(1));
    }
    let told = ask(&world, Method::GET, "daily-orchestrator", &at).await?;
    let sync = &told.body["results"]["syncIntegrations"];
    assert_eq!(
        (told.status, &sync["synced"], &sync["skipped"]),
        (200, &json!(1), &json!(false)),
        "{}",
        told.text
    );
    let told = ask(&world, Method::GET, "daily-orchestrator", &at).await?;
    assert_eq!(told.body["results"]["syncIntegrations"]["skipped"], true, "{}", told.text);
    let (runs, slots): (i64, i64) = sqlx::query_as(
        "select (select count(*) from jobs.job_runs r where r.task = 'sync_integrations'), \
         (select count(*) from jobs.job_slots s where s.task = 'sync_integrations')",
    )
    .fetch_one(world.pool())
    .await?;
    assert_eq!((runs, slots), (1, 1));
    heal(&world).await?;
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

/// What was left in the queue is worked off by a chain whose own calls are lost, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_chain_is_one_chain() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_chain").await?;
    world.stripe.payment("acct_chain", world.earlier(90), 4_200, "eur");
    // Planned, and nobody works on it.
    let faults = world.environment.gateway.faults();
    faults.add(Rule::on("/rpc/jobs_claim", Fault::json(400, &json!({"code": "22023", "message": "no"}))));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, told.error().contains("22023")), (503, true), "{}", told.text);
    faults.clear();
    for name in ["jobs_lanes", "jobs_hold_chain", "jobs_claim", "jobs_close_runs"] {
        faults.add(Rule::on(&format!("/rpc/{name}"), Fault::CutAfter).times(1));
    }
    let function = world.function("drain-queue").await?;
    let right = format!("Bearer {}", crate::world::SECRET);
    let told = super::ask_again(&world, &function, Method::POST, "", Some(&right)).await?;
    assert_eq!((told.status, &told.body["waiting"]), (202, &json!(1)), "{}", told.text);
    super::eventually("the end of the chain", || function.log().contains("queue drained")).await?;
    super::harmless(&world, &function.log());
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    faults.clear();
    assert_eq!(heal(&world).await?, 0);
    Ok(())
}
