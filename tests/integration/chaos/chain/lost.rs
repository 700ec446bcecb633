//! Invocations that are killed, calls that are lost, and work that is left behind: the chain stays one, and what it
//! leaves is taken up.

use std::time::Duration;

use anyhow::Result;
use chrono::TimeDelta;
use futures_util::future::try_join_all;
use stand_ins::faults::{Fault, Rule};

use super::{
    super::{BATCH, drained, ended, until},
    DRAIN, Deployment, ROUND_TRIP, call, held, rows,
};
use crate::promises::{WAITING, at};

/// The platform kills an invocation, before and after the database did what it was asked: the chain's lease keeps
/// others away until it is over, then whoever calls goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_was_killed_is_taken_up() -> Result<()> {
    const LONG: Duration = Duration::from_mins(5);
    async fn killed(step: &str, body: &str, fault: Fault) -> Result<()> {
        let deployment = Deployment::with_work().await?;
        let gateway = deployment.world().environment.gateway.faults();
        let mut instances = deployment.instances(1).await?;
        let done = matches!(fault, Fault::Late(_));
        gateway.add(Rule::on(step, fault).body(body).skip(1).times(1));
        call(&instances[0]).await?;
        until(step, async || {
            let seen = gateway.seen();
            let asked = seen.iter().filter(|seen| seen.target.contains(step) && seen.body.contains(body));
            Ok(if done { gateway.late() == 1 } else { asked.count() == 2 })
        })
        .await?;
        instances[0].kill().await?;
        assert!(deployment.left().await? > 0, "{step}");
        let other = deployment.instances(1).await?;
        let ended = rows(deployment.world()).await?.len();
        call(&other[0]).await?;
        until("a refusal", async || Ok(rows(deployment.world()).await?.len() > ended)).await?;
        assert!(other[0].log().contains("another chain"), "{step}: {}", other[0].log());
        deployment.taken_up(&other[0]).await
    }
    let table = [("jobs_hold_chain", ""), ("jobs_claim", "\"stripe\""), ("integration_settle", "")]
        .into_iter()
        .flat_map(|(step, body)| [(step, body, Fault::Delay(LONG)), (step, body, Fault::Late(LONG))]);
    try_join_all(table.map(|(step, body, fault)| killed(step, body, fault))).await.map(drop)
}

/// The platform asks an invocation to stop (SIGTERM): it ends what it has begun, and another instance goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_hop_that_is_asked_to_stop_hands_over() -> Result<()> {
    let deployment = Deployment::with_work().await?;
    let mut instances = deployment.instances(1).await?;
    let other = deployment.world().function("drain-queue").await?;
    call(&instances[0]).await?;
    until("the first hop", async || Ok(deployment.hops().len() == 1)).await?;
    deployment.relay.pass_to([other.port()]);
    let status = instances[0].terminate().await?;
    assert!(status.success(), "{status}\n{}", instances[0].log());
    deployment.quiet(1, 0).await?;
    assert!(other.log().contains("queue drained"), "{}", other.log());
    deployment.company.check().await
}

/// The call that should go on is lost on its way, or refused: it is said, and a later call takes the work up.
#[tokio::test(flavor = "multi_thread")]
async fn a_hop_that_never_began() -> Result<()> {
    async fn lost((fault, refused): (Fault, bool)) -> Result<()> {
        let deployment = Deployment::with_work().await?;
        let instances = deployment.instances(1).await?;
        let what = format!("{fault:?}");
        deployment.relay.faults().add(Rule::on(DRAIN, fault).skip(1).times(1));
        call(&instances[0]).await?;
        until("the hop that is lost", async || Ok(deployment.hops().len() == 2)).await?;
        deployment.quiet(1, 1).await?;
        let rows = rows(deployment.world()).await?;
        let (status, hop, _, message) = rows.last().expect("a row");
        assert_eq!((status.as_str(), *hop), ("partial", 1), "{what}: {rows:?}");
        assert!(message.as_deref().is_some_and(|words| words.contains("prochain cron")), "{what}: {rows:?}");
        let unsure = message.as_deref().is_some_and(|words| words.contains("sans réponse"));
        assert_eq!(unsure, !refused, "{what}: {rows:?}");
        assert!(deployment.left().await? > 0, "{what}");
        // Where nobody knows whether it began, the lease is kept for it.
        assert_eq!(held(deployment.world()).await?, !refused, "{what}");
        deployment.taken_up(&instances[0]).await
    }
    let page = |status| Fault::Answer { status, headers: Vec::new(), body: "<html>".into() };
    let table = [
        (page(401), true),
        (page(404), true),
        (page(500), false),
        (page(503), false),
        (page(504), false),
        (Fault::CutBefore, false),
    ];
    try_join_all(table.map(lost)).await.map(drop)
}

/// The next hop has begun, and its answer was lost: it is the one chain still.
#[tokio::test(flavor = "multi_thread")]
async fn a_hop_whose_answer_was_lost_is_the_chain() -> Result<()> {
    let deployment = Deployment::with_work().await?;
    let world = deployment.world();
    let _instances = deployment.instances(1).await?;
    let second = world.function("drain-queue").await?;
    deployment.relay.faults().add(Rule::on(DRAIN, Fault::CutAfter).times(1));
    // Whoever lets the chain go does it after the next hop has taken it.
    let second_thought = Rule::on("jobs_hold_chain", Fault::Delay(Duration::from_secs(1)));
    world.environment.gateway.faults().add(second_thought.body("\"p_seconds\":0").times(1));
    let first = world.function("drain-queue").await?;
    call(&first).await?;
    until("the second hop", async || Ok(deployment.hops().len() == 1)).await?;
    let lock = deployment.settling_is_held_up().await?;
    until("the end of the first hop", async || Ok(rows(world).await?.iter().any(|(_, hop, ..)| *hop == 0)))
        .await?;
    until("a hop that works", async || Ok(world.value::<i64>(WAITING).await? >= 1)).await?;
    call(&second).await?;
    drained(&second).await?;
    assert!(second.log().contains("another chain"), "{}", second.log());
    lock.rollback().await?;
    deployment.quiet(2, 0).await?;
    deployment.company.check().await?;
    ended(world).await
}

/// A cron that leaves work behind while a chain is at its last mails is not let in: the chain looks again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_to_a_chain_at_its_end_is_not_left_alone() -> Result<()> {
    let mut deployment = Deployment::with_work().await?;
    deployment.company.world.stripe.faults().set_round_trip(Duration::ZERO);
    deployment.company.world.set("JOB_BUDGET_SECONDS", "60");
    let world = deployment.world();
    let instances = deployment.instances(1).await?;
    // The chain has done its data and sends.
    world.resend.faults().add(Rule::on(BATCH, Fault::Held).times(1));
    call(&instances[0]).await?;
    until("the last mails", async || Ok(world.resend.faults().count(BATCH) == 1)).await?;
    for seller in &deployment.company.sellers {
        let account = seller.account.as_deref().expect("Stripe");
        world.stripe.payments(account, at("2026-11-01T11:00:00Z"), TimeDelta::zero(), 2, "eur");
    }
    deployment.company.world.set("JOB_BUDGET_SECONDS", "1");
    let world = deployment.world();
    world.stripe.faults().set_round_trip(ROUND_TRIP);
    let answer = world.post("sync-integrations", "").await?;
    assert!(answer["remaining"].as_u64() > Some(0), "{answer}");
    world.stripe.faults().set_round_trip(Duration::ZERO);
    let refused = |(.., message): &(_, _, _, Option<String>)| message.is_some();
    until("a refused call", async || Ok(rows(world).await?.iter().any(refused))).await?;
    world.resend.faults().clear();
    deployment.quiet(1, 0).await?;
    deployment.company.check().await
}
