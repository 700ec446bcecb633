//! Any number of instances work on one lane side by side, and share what the provider takes from all of them.

use std::collections::BTreeSet;

use anyhow::Result;
use chrono::TimeDelta;
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::faults::Seen;

use super::{SECOND, bearer, ended};
use crate::{
    promises::{at, imported_cents, listed_cents, movements},
    world::{Function, World},
};

const ACCOUNTS: usize = 24;
/// As many requests as Stripe takes in a second, and not one more.
const PER_SECOND: u32 = 20;

/// Returns what identifies a request of Stripe: one that is told to wait is made again.
fn identity(request: &Seen) -> (String, Vec<u8>, Vec<u8>) {
    let header = |name| request.headers.get(name).map(|value| value.as_bytes().to_vec()).unwrap_or_default();
    (request.target.clone(), header("authorization"), header("stripe-account"))
}

/// Counts the items of the lane that this process brought to an end.
fn settled(function: &Function) -> u64 {
    let log = function.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["lane"] == "stripe").filter_map(|line| line["settled"].as_u64()).sum()
}

async fn drained_by(processes: usize) -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at(SECOND));
    world.set("JOB_CONCURRENCY", "2");
    world.set("STRIPE_REQUESTS_PER_SECOND", &PER_SECOND.to_string());
    let from = at("2026-11-01T10:00:00Z");
    let mut sellers = Vec::new();
    for n in 0..ACCOUNTS {
        let account = format!("acct_{n}");
        let user = world.stripe_user(&account).await?;
        // Every sixth has two pages.
        let payments = if n % 6 == 0 { 110 } else { 3 };
        world.stripe.payments(&account, from, TimeDelta::seconds(1), payments, "eur");
        let paid = world.stripe.payment(&account, from, 5_000, "eur");
        world.stripe.refund(&account, &paid.charge, from + TimeDelta::minutes(5), 1_234);
        sellers.push((user, account));
    }
    world.stripe.set_rate_limit(Some(f64::from(PER_SECOND)));

    let functions = try_join_all((0..processes).map(|_| world.function("daily-orchestrator"))).await?;
    let bearer = bearer();
    let calls = functions.iter().map(|function| function.call(Method::GET, "", Some(&bearer)));
    for answer in try_join_all(calls).await? {
        let part = &answer.json()["results"]["syncIntegrations"];
        assert_eq!((&part["synced"], &part["errors"]), (&json!(ACCOUNTS), &json!(0)), "{}", answer.text);
        assert_eq!(part["remaining"], Value::Null, "{}", answer.text);
    }
    let mut all = 0;
    for (user, account) in &sellers {
        assert_eq!(imported_cents(&world, *user).await?, listed_cents(&world, account), "{account}");
        let count = i64::try_from(world.stripe.listed(account).len())?;
        assert_eq!(movements(&world, *user).await?, count, "{account}");
        all += count;
    }
    let new: i64 = world
        .value("select sum((result ->> 'records')::bigint)::bigint from jobs.job_items where status = 'done'")
        .await?;
    assert_eq!(new, all, "each movement was new once");
    let attempts: i64 = world.value("select sum(attempts)::bigint from jobs.job_items").await?;
    assert_eq!(attempts, 0);

    let requests = world.stripe.faults().seen();
    let different: BTreeSet<_> = requests.iter().map(identity).collect();
    assert_eq!(requests.len(), different.len(), "{processes}: Stripe had to refuse, or was asked twice");
    let shares: Vec<u64> = functions.iter().map(settled).collect();
    assert_eq!(shares.iter().sum::<u64>(), ACCOUNTS as u64, "{shares:?}");
    assert!(shares.iter().all(|share| *share > 0), "{processes}: somebody did nothing: {shares:?}");
    ended(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_two_and_four_processes_share_a_lane_and_a_strict_limit() -> Result<()> {
    for processes in [1, 2, 4] {
        drained_by(processes).await?;
    }
    Ok(())
}
