//! Calls at once: one plans, all send, and nobody gets two mails.

use anyhow::Result;
use futures_util::future::try_join_all;
use reqwest::Method;

use super::{assert_all_sent, requests, world_of};
use crate::world::SECRET;

/// Makes so many calls at once, half of each route, spread over four processes.
async fn at_once(calls: usize) -> Result<()> {
    const USERS: usize = 230;
    let world = world_of(USERS).await?;
    let routes = ["daily-tasks", "daily-orchestrator"];
    let mut functions = Vec::new();
    for n in 0..calls.min(4) {
        functions.push(world.function(routes[n % 2]).await?);
    }
    let bearer = format!("Bearer {SECRET}");
    let answers =
        try_join_all((0..calls).map(|n| functions[n % functions.len()].call(Method::GET, "", Some(&bearer))))
            .await?;
    let mut planned = 0;
    for answer in answers {
        let body = answer.json();
        assert_eq!(answer.status, 200, "{body}");
        let results = &body["results"];
        let part = results.get("upgradeEmails").unwrap_or(&results["marketingEmails"]);
        assert_eq!((part["sent"].as_u64(), part["errors"].as_u64()), (Some(230), Some(0)), "{body}");
        assert!(part.get("remaining").is_none(), "{body}");
        planned += usize::from(part["skipped"] == false);
    }
    assert_eq!(planned, 1);
    assert_all_sent(&world, USERS).await?;
    let keys: std::collections::BTreeSet<String> =
        requests(&world).iter().map(|request| super::key(request).to_owned()).collect();
    assert_eq!(keys.len(), requests(&world).len(), "no batch was asked for twice");
    let runs: i64 = world.value("select count(*) from jobs.job_runs where task = 'marketing_day3'").await?;
    assert_eq!(runs, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_calls_are_one_mail_each() -> Result<()> {
    at_once(2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_calls_are_one_mail_each() -> Result<()> {
    at_once(20).await
}
