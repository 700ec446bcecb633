//! Too many requests, or two under one key: waited as told, and no attempt of anybody's.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    resend::{Limits, concurrent_idempotent_requests, rate_limited},
};

use super::{BATCH, all, assert_all_sent, attempts, come_back, drain, key, requests, states, world_of};
use crate::{promises::rpc, world::World};

const USERS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_waited_for_as_told() -> Result<()> {
    let world = world_of(USERS).await?;
    for seconds in [2, 1] {
        world.resend.faults().add(Rule::on(BATCH, rate_limited(seconds)).times(1));
    }
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await?;
    assert_eq!(attempts(&world).await?, 0);
    let requests = requests(&world);
    let pauses: Vec<Duration> = requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert_eq!(pauses.len(), 2);
    assert!(pauses[0] >= Duration::from_secs(2) && pauses[1] >= Duration::from_secs(1), "{pauses:?}");
    assert!(requests.iter().all(|request| key(request) == key(&requests[0])));
    Ok(())
}

/// Whatever one batch was told holds for the others, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_everybodys() -> Result<()> {
    let world = world_of(350).await?;
    world.resend.faults().add(Rule::on(BATCH, rate_limited(2)).times(1));
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(350), &json!(0)), "{part}");
    assert_all_sent(&world, 350).await?;
    let requests = requests(&world);
    let told = requests[0].at;
    let early =
        requests.iter().skip(1).filter(|request| request.at - told < Duration::from_millis(1_900)).count();
    assert!(early <= 1, "at most one that had begun: {early}");
    Ok(())
}

/// A limit that outlasts our patience gives the batch back; nothing is counted, nobody gets two.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_that_does_not_end() -> Result<()> {
    let mut world = world_of(USERS).await?;
    world.set("JOB_BUDGET_SECONDS", "3");
    world.resend.faults().add(Rule::on(BATCH, rate_limited(1)));
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["remaining"]), (&json!(0), &json!(USERS)), "{part}");
    assert_eq!((attempts(&world).await?, states(&world).await?), (0, all("planned", 5)));
    world.resend.faults().clear();
    world.set("JOB_BUDGET_SECONDS", "270");
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await
}

/// An account is strict, and one, two or four processes drain side by side: they share its pace by
/// leasing turns, so that none of them is ever told to wait.
#[tokio::test(flavor = "multi_thread")]
async fn processes_that_share_a_strict_limit() -> Result<()> {
    for processes in [1, 2, 4] {
        let world = world_of(430).await?;
        world.resend.set_limits(Limits { per_second: Some(2), ..Limits::default() });
        let drains = (0..processes).map(|_| drain(&world));
        for part in futures_util::future::try_join_all(drains).await? {
            assert_eq!((&part["sent"], &part["errors"]), (&json!(430), &json!(0)), "{processes}: {part}");
        }
        assert_all_sent(&world, 430).await?;
        assert_eq!(attempts(&world).await?, 0);
        let requests = requests(&world);
        let keys: BTreeSet<&str> = requests.iter().map(key).collect();
        assert_eq!(requests.len(), keys.len(), "{processes}: a batch that is told to wait is sent again");
    }
    Ok(())
}

/// The leases of turns are lost on their way back, or refused: the pace is kept, and everything leaves.
#[tokio::test(flavor = "multi_thread")]
async fn turns_whose_lease_is_lost() -> Result<()> {
    for fault in [Fault::CutAfter, Fault::json(503, &json!({"code": "PGRST001", "message": "no"}))] {
        let world = world_of(USERS).await?;
        let gateway = world.environment.gateway.faults();
        for name in ["jobs_lease_turns", "jobs_hold_turns"] {
            gateway.add(Rule::on(name, fault.clone()).times(4));
        }
        world.resend.faults().add(Rule::on(BATCH, rate_limited(1)).times(1));
        let part = drain(&world).await?;
        assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
        assert_all_sent(&world, USERS).await?;
        assert!(gateway.count("jobs_lease_turns") >= 4 && gateway.count("jobs_hold_turns") >= 4);
        let requests = requests(&world);
        assert_eq!(requests.len(), 2);
        assert!(requests[1].at - requests[0].at >= Duration::from_secs(1));
    }
    Ok(())
}

/// A provider may ask to be left alone for longer than any lease reaches: every instance waits as long as it has asked. Turns
/// that a changed clock has left far ahead are not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_lasts_as_long_as_it_was_asked_for() -> Result<()> {
    let world = World::new().await?;
    let hold = async |seconds: i64| {
        rpc(&world, "jobs_hold_turns", &json!({"p_name": "resend", "p_wait_ms": seconds * 1_000})).await
    };
    let wait = async || -> Result<i64> {
        let turn = json!({"p_name": "resend", "p_count": 1, "p_interval_us": 1_000_000, "p_version": 0, "p_answered": 0});
        rpc(&world, "jobs_lease_turns", &turn).await?["wait_us"].as_i64().context("a turn")
    };
    hold(600).await?;
    hold(1).await?;
    let first = wait().await?;
    assert!((590_000_000..=600_000_000).contains(&first), "{first}");
    let second = wait().await?;
    assert!(
        (591_000_000..=601_000_000).contains(&second) && second > first - 9_000_000,
        "one after the other: {second}"
    );
    world.run("update jobs.job_paces set next_at = next_at + interval '1 day', held_until = null").await?;
    let third = wait().await?;
    assert!(third <= 120_000_000, "{third}");
    Ok(())
}

/// Another request with the key is under way, by whoever: it may be accepted, so only the same key may ask again.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_elsewhere() -> Result<()> {
    let world = world_of(USERS).await?;
    world.resend.faults().add(Rule::on(BATCH, concurrent_idempotent_requests()).times(1));
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["remaining"]), (&json!(0), &json!(USERS)), "{part}");
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await?;
    assert_eq!(attempts(&world).await?, 0);
    let requests = requests(&world);
    assert_eq!((requests.len(), key(&requests[0])), (2, key(&requests[1])));
    Ok(())
}

/// The first request was cut off while the service was at it: the retry is told to wait, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_meets_its_first_request() -> Result<()> {
    let world = world_of(USERS).await?;
    world.resend.faults().add(Rule::on(BATCH, Fault::CutAfter).times(1));
    world.resend.faults().add(Rule::on(BATCH, concurrent_idempotent_requests()).times(1));
    let part = drain(&world).await?;
    assert_eq!(part["remaining"], USERS, "{part}");
    assert_eq!(states(&world).await?, all("sealed", 5));
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await
}
