//! The hops themselves: each begins where the one before ended, one at a time, and they come to an end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use futures_util::future::{join_all, try_join_all};
use jobs::routes::Route;
use reqwest::Method;
use serde_json::json;
use stand_ins::faults::{Fault, Rule};

use super::{
    super::{BATCH, Company, SECOND, bearer, until},
    CHAIN, DRAIN, Deployment, HOP, SELLERS, call, call_as_hop, header, held, rows,
};
use crate::promises::WAITING;

/// A whole company's work is done in hops of a second, on two instances: crons begin it, and nobody
/// else does anything.
#[tokio::test(flavor = "multi_thread")]
async fn hops_carry_on_what_the_crons_began() -> Result<()> {
    let mut deployment = Deployment::of(Company::new(6, 12).await?).await?;
    for (clock, november) in [("2026-10-31T12:05:00Z", false), (SECOND, true)] {
        if november {
            deployment.company.november();
        }
        deployment.company.clock(clock);
        let _instances = deployment.instances(2).await?;
        let crons = ["daily-orchestrator", "monthly-orchestrator"];
        for answer in join_all(crons.map(|name| deployment.world().cron(name, ""))).await {
            answer?;
        }
        deployment.quiet(0, 0).await?;
    }
    let mut chains: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let hops = deployment.hops();
    for hop in &hops {
        assert_eq!((hop.method.as_str(), hop.target.as_str()), ("POST", DRAIN));
        assert_eq!(header(hop, "authorization"), bearer());
        chains.entry(header(hop, CHAIN)).or_default().push(header(hop, HOP).parse()?);
    }
    for (chain, hops) in &chains {
        assert_eq!(*hops, (1..=hops.len()).collect::<Vec<_>>(), "{chain}");
    }
    assert!(hops.len() > 4, "{chains:?}");
    assert!(!held(deployment.world()).await?);
    deployment.company.check().await
}

/// Each hop leaves what it has no time for to the next one; the last one leaves nothing, and nothing open.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_enough_whatever_waits() -> Result<()> {
    let deployment = Deployment::with_work().await?;
    let instances = deployment.instances(2).await?;
    call(&instances[0]).await?;
    deployment.quiet(1, 0).await?;
    deployment.company.check().await?;
    let rows = rows(deployment.world()).await?;
    assert!(rows.len() > 3, "{rows:?}");
    // What one hop has found out, the next one mails before it reads on.
    let world = deployment.world();
    let mailed =
        world.resend.faults().seen().into_iter().find(|seen| seen.target.contains(BATCH)).map(|seen| seen.at);
    let read = world.stripe.faults().seen().last().map(|seen| seen.at);
    assert!(mailed.is_some() && mailed < read, "all data was read before the first alert");
    // Whoever hands work on has not done it all, and says who goes on.
    let (last, handed_on) = rows.split_last().expect("rows");
    assert_eq!((last.0.as_str(), &last.3), ("success", &None), "{rows:?}");
    let says = |message: &Option<String>| {
        message.as_deref().is_some_and(|words| words.ends_with("l’appel suivant continue."))
    };
    assert!(handed_on.iter().all(|(status, .., message)| status == "partial" && says(message)), "{rows:?}");
    assert_eq!(
        rows.iter().map(|(_, hop, ..)| *hop).collect::<Vec<_>>(),
        (0..i64::try_from(rows.len())?).collect::<Vec<_>>()
    );
    let settled: i64 = rows.iter().filter_map(|(_, _, settled, _)| *settled).sum();
    assert_eq!(settled, 2 * i64::try_from(SELLERS)?, "each item and each mail once: {rows:?}");
    assert!(!held(deployment.world()).await?, "whoever comes next may begin at once");
    Ok(())
}

/// What keeps alerts from being planned keeps nobody's data waiting; it is told, and made good by the next call.
#[tokio::test(flavor = "multi_thread")]
async fn data_does_not_wait_for_alerts_that_cannot_be_planned() -> Result<()> {
    let deployment = Deployment::with_work().await?;
    let world = deployment.world();
    let instances = deployment.instances(2).await?;
    let gateway = world.environment.gateway.faults();
    let refused = json!({"code": "57014", "message": "canceling statement due to statement timeout"});
    gateway.add(Rule::on("threshold_books", Fault::json(500, &refused)));
    call(&instances[0]).await?;
    deployment.quiet(1, 0).await?;
    let rows = rows(world).await?;
    assert!(rows.iter().all(|(status, .., message)| status != "success" && message.is_some()), "{rows:?}");
    assert_eq!(deployment.left().await?, 0, "all data is read: {rows:?}");
    assert!(world.resend.accepted().is_empty());
    gateway.clear();
    deployment.taken_up(&instances[0]).await
}

/// There are never two chains: who calls while one works, hears so and touches nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_call_does_nothing_while_a_chain_works() -> Result<()> {
    let deployment = Deployment::with_work().await?;
    let world = deployment.world();
    let instances = deployment.instances(2).await?;
    let second = world.function("drain-queue").await?;
    let lock = deployment.settling_is_held_up().await?;
    call(&instances[0]).await?;
    until("a hop that works", async || Ok(world.value::<i64>(WAITING).await? >= 1)).await?;
    let claims = world.environment.gateway.faults().count("jobs_claim");
    for (hop, times) in [(0, 1), (7, 2)] {
        call_as_hop(&second, hop).await?;
        until("a refusal", async || Ok(second.log().matches("another chain").count() == times)).await?;
    }
    assert_eq!(world.environment.gateway.faults().count("jobs_claim"), claims);
    lock.rollback().await?;
    deployment.quiet(3, 0).await?;
    deployment.company.check().await?;
    let is_refusal = |message: &Option<String>| {
        message.as_deref().is_some_and(|words| words.contains("Une autre exécution"))
    };
    let refused: Vec<_> =
        rows(world).await?.into_iter().filter(|(.., message)| is_refusal(message)).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    for (status, _, settled, message) in refused {
        assert_eq!((status.as_str(), settled), ("partial", Some(0)), "it did nothing: {message:?}");
    }
    Ok(())
}

/// A chain ends at its bound, says so, and leaves the way free.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_has_an_end() -> Result<()> {
    const MOST: u32 = jobs::chain::MOST_HOPS;
    let deployment = Deployment::with_work().await?;
    let instances = deployment.instances(1).await?;
    for (hop, asked) in [(MOST, 0), (MOST - 1, 1)] {
        let before = rows(deployment.world()).await?.len();
        call_as_hop(&instances[0], hop).await?;
        let ends = usize::from(hop < MOST) + 1;
        until("the bound", async || Ok(rows(deployment.world()).await?.len() == before + ends)).await?;
        assert_eq!(deployment.hops().len(), asked, "{hop}");
        let rows = rows(deployment.world()).await?;
        let (status, _, _, message) = rows.last().expect("a row");
        assert_eq!(status, "partial", "{rows:?}");
        assert!(message.as_deref().is_some_and(|words| words.contains("prochain cron")), "{rows:?}");
        assert!(!held(deployment.world()).await?);
        assert!(deployment.left().await? > 0);
    }
    assert_eq!(header(&deployment.hops()[0], HOP), MOST.to_string());
    deployment.taken_up(&instances[0]).await
}

/// Whichever route runs out of time asks once, and only a production deployment does.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_that_leaves_work_behind_asks_to_go_on() -> Result<()> {
    let routes: Vec<Route> = Route::ALL.into_iter().filter(|route| !route.tasks().is_empty()).collect();
    let mut deployment = Deployment::of(Company::new(0, 3).await?).await?;
    let accepted = Fault::json(202, &json!({}));
    deployment.relay.faults().add(Rule::on(DRAIN, accepted));
    let gateway = deployment.world().environment.gateway.faults().clone();
    for step in ["jobs_plan_", "threshold_books"] {
        gateway.add(Rule::on(step, Fault::Late(Duration::from_millis(1_200))));
    }
    for environment in ["preview", "production"] {
        deployment.company.world.set("VERCEL_ENV", environment);
        let world = deployment.world();
        let answers = routes.iter().map(|route| async move {
            let method: Method = route.kind().method().parse()?;
            let name = route.name();
            let query = if *route == Route::MonthlySync { "force=true" } else { "" };
            let dry = [query, "dry_run=true"].join("&");
            let answer = world.call(method.clone(), name, dry.trim_start_matches('&')).await?;
            assert_eq!(answer.status, 200, "{name}: {}", answer.text);
            let answer = world.call(method, name, query).await?;
            assert_eq!(answer.status, 200, "{name}: {}", answer.text);
            anyhow::Ok(())
        });
        try_join_all(answers).await?;
        let expected = if environment == "production" { routes.len() } else { 0 };
        assert_eq!(deployment.hops().len(), expected, "{environment}");
    }
    let hops = deployment.hops();
    let chains: BTreeSet<&str> = hops.iter().map(|hop| header(hop, CHAIN)).collect();
    assert_eq!(chains.len(), routes.len(), "each a chain of its own, of which one will be let in");
    assert!(hops.iter().all(|hop| header(hop, HOP) == "1"));
    Ok(())
}
