//! Who is slower after Stripe has refused requests for their rate, and who knows of it.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;
use stand_ins::{faults::Rule, stripe};

use super::heal;
use crate::world::World;

const LIST: &str = "/v1/balance_transactions";
const LEASE: [&str; 5] = ["p_answered", "p_count", "p_interval_us", "p_name", "p_version"];

/// Makes so many accounts with a payment each, and as many requests that are refused first.
async fn refused(accounts: usize, reason: &str) -> Result<World> {
    let world = World::new().await?;
    for n in 0..accounts {
        let account = format!("acct_{n}");
        world.stripe_user(&account).await?;
        world.stripe.payment(&account, world.earlier(90), 1_000, "eur");
    }
    world.stripe.faults().add(Rule::on(LIST, stripe::rate_limited(reason)).times(accounts));
    assert_eq!(heal(&world).await?, u64::try_from(accounts)?, "everybody was read in the end");
    assert_eq!(world.value::<i32>("select max(attempts) from jobs.job_items").await?, 0);
    Ok(world)
}

/// Returns the pace that all instances have learned, where they have.
async fn learned(world: &World) -> Result<Option<f64>> {
    let sql = "select (learned ->> 'per_second')::double precision from jobs.job_paces where name = 'stripe'";
    world.value(sql).await
}

/// Returns what was asked of each lease, in microseconds from turn to turn.
fn intervals(world: &World) -> Vec<u64> {
    let seen = world.environment.gateway.faults().seen();
    let leases = seen.iter().filter(|seen| seen.target.ends_with("/jobs_lease_turns"));
    let bodies = leases.filter_map(|seen| serde_json::from_str::<Value>(&seen.body).ok());
    bodies
        .filter(|body| body["p_name"] == "stripe")
        .filter_map(|body| body["p_interval_us"].as_u64())
        .collect()
}

/// Returns what a lease told the database, by name.
fn told(world: &World) -> Vec<String> {
    let seen = world.environment.gateway.faults().seen();
    let bodies = seen.iter().filter(|seen| seen.target.ends_with("/jobs_lease_turns"));
    let names = bodies
        .filter_map(|seen| serde_json::from_str::<Value>(&seen.body).ok())
        .filter_map(|body| Some(body.as_object()?.keys().cloned().collect::<BTreeSet<_>>()));
    names.flatten().collect::<BTreeSet<_>>().into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_that_are_refused_together_slow_everybody_down_and_the_next_process_knows() -> Result<()> {
    for reason in ["global-rate", "endpoint-concurrency", "a-reason-of-2027"] {
        let mut world = refused(6, reason).await?;
        let pace = learned(&world).await?.expect("something was learned");
        assert!(pace <= 700.0, "{reason}: {pace} of 1000 a second");

        // Other variables, another process; its machine's clock is some seconds ahead.
        world.set("JOB_CONCURRENCY", "2");
        let ahead = world.now() + chrono::TimeDelta::seconds(7);
        world.set("JOBS_NOW", &ahead.to_rfc3339());
        world.environment.gateway.faults().forget();
        world.stripe.payment("acct_0", world.earlier(60), 500, "eur");
        assert_eq!(heal(&world).await?, 1);
        let intervals = intervals(&world);
        assert!(intervals.last().is_some_and(|last| *last >= 1_400), "{reason}: {intervals:?}");
        assert_eq!(
            told(&world),
            LEASE,
            "{reason}: a lease knows spans of time, and no instant of any machine"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_one_accounts_own_slows_nobody_else_down() -> Result<()> {
    for (accounts, reason) in [(1, "global-rate"), (6, "resource-specific")] {
        let world = refused(accounts, reason).await?;
        let pace = learned(&world).await?;
        assert!(pace.is_none_or(|pace| pace >= 999.0), "{reason}: {pace:?}");
    }
    Ok(())
}
