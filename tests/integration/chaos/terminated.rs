//! The platform asks the function to stop (SIGTERM), in every moment that matters: what is under way is finished and
//! noted, and no other run is needed.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Method;
use stand_ins::faults::{Fault, InjectedFaults, Rule};

use super::{BATCH, Company, bearer, crosses, ended, slow, time_passes};
use crate::{
    promises::{imported_cents, listed_cents, until},
    world::{Function, World},
};

/// Calls a function and asks it to stop as soon as this request is seen; waits until it has.
async fn stopped_at(
    (method, query): (Method, &str),
    mut function: Function,
    faults: &InjectedFaults,
    step: &str,
) -> Result<()> {
    let seen = faults.count(step);
    faults.add(Rule::on(step, slow()).times(1));
    let caller = {
        let (query, request) =
            (if query.is_empty() { String::new() } else { format!("?{query}") }, function.url());
        let request = jobs::http::client()?.request(method, format!("{request}{query}"));
        tokio::spawn(request.header("authorization", bearer()).send())
    };
    until(step, async || Ok(faults.count(step) > seen)).await?;
    let status = function.terminate().await?;
    assert!(status.success(), "{step}: {status}\n{}", function.log());
    // The answer may be lost with the process; what there is of it is a good one.
    if let Ok(answer) = caller.await? {
        assert!(answer.status().is_success(), "{step}: {}", answer.status());
    }
    faults.clear();
    Ok(())
}

async fn each_of(steps: &[&str], payments: usize) -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(crate::clock::at(super::SECOND));
    for (n, &step) in steps.iter().enumerate() {
        let name = format!("acct_{n}");
        let user = crosses(&world, &name, payments).await?;
        let faults = match step {
            "/v1/account" | "balance_transactions" => world.stripe.faults(),
            BATCH => world.resend.faults(),
            _ => world.environment.gateway.faults(),
        };
        let function = world.function("sync-integrations").await?;
        stopped_at((Method::POST, ""), function, faults, step).await.with_context(|| step.to_owned())?;
        assert_eq!(imported_cents(&world, user).await?, listed_cents(&world, &name), "{step}");
        assert_eq!(world.resend.accepted_count(), n + 1, "{step}: an alert");
        ended(&world).await?;
        let calls: i64 = world
            .value("select count(*) from public.sync_logs where provider = 'jobs' and status = 'success'")
            .await?;
        assert_eq!(calls, i64::try_from(n + 1)?, "{step}: the call's row");
    }
    let attempts: i64 = world.value("select sum(attempts)::bigint from jobs.job_items").await?;
    assert_eq!(attempts, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_plans_reads_and_settles() -> Result<()> {
    let steps = [
        "jobs_plan_sync",
        "jobs_claim",
        "integration_context",
        "/v1/account",
        "integration_prove",
        "balance_transactions",
        "integration_settle",
    ];
    each_of(&steps, 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_mails_and_reports() -> Result<()> {
    let steps = [
        "threshold_books",
        "jobs_note_alerts",
        "jobs_plan_alerts",
        "mail_claim",
        "mail_seal",
        BATCH,
        "mail_settle",
        "jobs_report",
        "jobs_log",
    ];
    each_of(&steps, 3).await
}

/// The function is stopped at a checkpoint, with the rest of the window still to be read.
#[tokio::test(flavor = "multi_thread")]
async fn at_a_checkpoint() -> Result<()> {
    each_of(&["integration_settle"], 2_150).await
}

/// Each route (months, recaps, reminders, offers) is asked to stop in the middle of its work.
#[tokio::test(flavor = "multi_thread")]
async fn in_every_route_that_is_due() -> Result<()> {
    let company = Company::new(3, 5).await?;
    let world = &company.world;
    let gateway = world.environment.gateway.faults();
    for (method, name, query, faults, step) in [
        (Method::POST, "monthly-sync", "force=true", world.shopify.faults(), "graphql"),
        (Method::GET, "daily-orchestrator", "", gateway, "jobs_plan_mails"),
        (Method::GET, "monthly-orchestrator", "", world.resend.faults(), BATCH),
    ] {
        let function = world.function(name).await?;
        stopped_at((method, query), function, faults, step).await.with_context(|| name.to_owned())?;
    }
    company.check().await
}

/// drain-queue has answered already; its work is finished all the same.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_queue_is_drained() -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(crate::clock::at(super::SECOND));
    let user = crosses(&world, "acct_queued", 3).await?;
    world.stripe.faults().add(Rule::on("balance_transactions", stand_ins::stripe::server_error(false)));
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["remaining"], 1, "{answer}");
    world.stripe.faults().clear();
    time_passes(&world).await?;
    let function = world.function("drain-queue").await?;
    stopped_at((Method::POST, ""), function, world.stripe.faults(), "balance_transactions").await?;
    assert_eq!(imported_cents(&world, user).await?, listed_cents(&world, "acct_queued"));
    assert_eq!(world.resend.accepted_count(), 1);
    ended(&world).await
}

/// The budget is the end of it: a mail service that hangs does not keep a function that shall stop.
#[tokio::test(flavor = "multi_thread")]
async fn it_does_not_outlast_its_budget() -> Result<()> {
    let mut company = Company::new(0, 5).await?;
    company.world.set("JOB_BUDGET_SECONDS", "1");
    let mut function = company.world.function("daily-tasks").await?;
    let resend = company.world.resend.faults();
    resend.add(Rule::on(BATCH, Fault::Delay(Duration::from_mins(5))).times(1));
    let request = jobs::http::client()?.get(function.url()).header("authorization", bearer());
    let caller = tokio::spawn(request.send());
    until("the request", async || Ok(resend.count(BATCH) == 1)).await?;
    assert!(function.terminate().await?.success());
    drop(caller.await);
    let held: i64 =
        company.world.value("select count(*) from jobs.job_items where lease_id is not null").await?;
    assert_eq!(held, 0, "given back");
    company.world.set("JOB_BUDGET_SECONDS", "270");
    time_passes(&company.world).await?;
    company.world.cron("daily-tasks", "").await?;
    company.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nothing_to_finish_it_ends_at_once() -> Result<()> {
    let world = World::new().await?;
    let mut function = world.function("daily-orchestrator").await?;
    assert!(function.terminate().await?.success());
    Ok(())
}
