//! All routes at once: what is planned is planned once, whoever works on it.

use anyhow::Result;
use futures_util::future::try_join_all;
use reqwest::Method;

use super::{Company, bearer, drained, time_passes, until};

type Call = (Method, &'static str, &'static str);

const GET: Method = Method::GET;
const POST: Method = Method::POST;

/// Makes these calls at the same moment, each in a process of its own.
async fn at_once(company: &Company, calls: &[Call]) -> Result<()> {
    let mut functions = Vec::new();
    for (method, name, query) in calls {
        functions.push((company.world.function(name).await?, method.clone(), *name, *query));
    }
    let bearer = bearer();
    let answers = try_join_all(
        functions
            .iter()
            .map(|(function, method, _, query)| function.call(method.clone(), query, Some(&bearer))),
    )
    .await?;
    for ((function, _, name, query), answer) in functions.iter().zip(answers) {
        let expected = if *name == "drain-queue" { 202 } else { 200 };
        assert_eq!(answer.status, expected, "{name} {query} {}", answer.text);
        if expected == 202 {
            drained(function).await?;
        }
    }
    Ok(())
}

/// Nobody's help: what one of them left to another is done when they all have ended.
async fn settled(company: &Company) -> Result<()> {
    until("nothing is queued", async || {
        let queued = "select count(*) from jobs.job_items where status = 'queued'";
        Ok(company.world.value::<i64>(queued).await? == 0)
    })
    .await?;
    company.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_the_same_and_two_of_different_routes() -> Result<()> {
    let company = Company::new(6, 7).await?;
    for pair in [
        [(GET, "daily-orchestrator", ""), (GET, "daily-orchestrator", "")],
        [(POST, "monthly-sync", "force=true"), (POST, "sync-integrations", "")],
        [(GET, "monthly-orchestrator", ""), (GET, "send-reminders", "")],
        [(POST, "drain-queue", ""), (POST, "check-thresholds", "")],
    ] {
        at_once(&company, &pair).await?;
    }
    settled(&company).await
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_of_all_routes() -> Result<()> {
    let company = Company::new(9, 130).await?;
    let calls = [
        (GET, "daily-orchestrator", ""),
        (POST, "drain-queue", ""),
        (GET, "monthly-orchestrator", ""),
        (POST, "sync-integrations", ""),
        (POST, "monthly-sync", "force=true"),
        (GET, "send-reminders", ""),
        (GET, "daily-tasks", ""),
        (POST, "check-thresholds", ""),
        (GET, "sync-integrations", ""),
        (POST, "monthly-sync", "month=2026-10"),
    ];
    at_once(&company, &[calls.clone(), calls].concat()).await?;
    settled(&company).await?;
    // And again: there is nothing left to do.
    time_passes(&company.world).await?;
    at_once(
        &company,
        &[
            (GET, "daily-orchestrator", ""),
            (GET, "monthly-orchestrator", ""),
            (POST, "monthly-sync", "force=true"),
        ],
    )
    .await?;
    settled(&company).await
}
