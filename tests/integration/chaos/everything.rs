//! Everything around the jobs fails at once, by a schedule that a seed decides: errors, pages of a proxy, cut
//! connections, stalls of ten seconds, at Stripe, Shopify, the mail service and the database's gateway. Then it is
//! over, and the crons that come next put everything right.

use std::{panic::AssertUnwindSafe, time::Duration};

use anyhow::{Context, Result, bail};
use futures_util::{
    FutureExt,
    future::{join_all, try_join_all},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, InjectedFaults, Rule},
    resend, shopify, stripe,
};

use super::{BATCH, Company, time_passes};
use crate::promises::model::Dice;

const STALL: Fault = Fault::Delay(Duration::from_secs(10));
/// All routes call these, but for planning, which has one fault, which its repetition survives. A
/// plan that fails is a slot that nobody claimed, and there may be no second call for it.
const CALLS: [&str; 14] = [
    "jobs_claim",
    "integration_context",
    "integration_prove",
    "integration_settle",
    "jobs_give_back",
    "threshold_books",
    "jobs_note_alerts",
    "jobs_plan_alerts",
    "mail_claim",
    "mail_seal",
    "mail_settle",
    "jobs_report",
    "jobs_run_waits",
    "jobs_log",
];

fn page(status: u16) -> Fault {
    let headers = vec![("content-type".to_owned(), "text/html".to_owned())];
    Fault::Answer { status, headers, body: "<html><title>Bad gateway</title></html>".to_owned() }
}

fn one<T>(dice: &mut Dice, mut of: Vec<T>) -> T {
    let n = usize::try_from(dice.below(of.len() as u64)).expect("small");
    of.swap_remove(n)
}

/// Injects so many faults into a server, each after some requests that are left alone, and one
/// stall.
fn spoil(
    dice: &mut Dice,
    faults: &InjectedFaults,
    count: usize,
    targets: &[&str],
    kinds: impl Fn() -> Vec<Fault>,
) {
    for n in 0..count {
        let fault = if n == 0 {
            STALL
        } else {
            let proxy = page(one(dice, vec![500, 502, 503, 504]));
            one(dice, [kinds(), vec![proxy, Fault::CutBefore, Fault::CutAfter]].concat())
        };
        let target = one(dice, targets.to_vec());
        let times = if n == 0 { 1 } else { 1 + usize::try_from(dice.below(5)).expect("small") };
        let skip = usize::try_from(dice.below(4)).expect("small");
        faults.add(Rule::on(target, fault).skip(skip).times(times));
    }
}

fn spoil_everything(dice: &mut Dice, company: &Company) {
    let world = &company.world;
    spoil(dice, world.stripe.faults(), 8, &["/v1/account", "balance_transactions"], || {
        vec![stripe::server_error(true), stripe::server_error(false), stripe::lock_timeout()]
    });
    spoil(dice, world.shopify.faults(), 8, &["graphql"], || {
        let status = [500, 503, 504].map(shopify::http_error);
        [status.to_vec(), ["INTERNAL_SERVER_ERROR", "THROTTLED"].map(shopify::graphql_error).to_vec()]
            .concat()
    });
    spoil(dice, world.resend.faults(), 4, &[BATCH], || {
        vec![
            resend::refuse(500, "application_error", "An unexpected error occurred."),
            resend::refuse(503, "service_unavailable", "Try later."),
            resend::rate_limited(1),
        ]
    });
    let gateway = world.environment.gateway.faults();
    gateway
        .add(Rule::on("jobs_plan_", one(dice, vec![Fault::CutAfter, Fault::CutBefore, page(503)])).times(1));
    spoil(dice, gateway, 10, &CALLS, || {
        let said = |status, code: &str| Fault::json(status, &json!({"code": code, "message": "no"}));
        vec![said(500, "40P01"), said(503, "PGRST001"), said(504, "PGRST003"), said(500, "XX000")]
    });
}

/// Whatever it says, it says it clearly.
fn clear(answer: &crate::world::Answer) -> Result<Value> {
    assert!([200, 500, 503].contains(&answer.status.as_u16()), "{} {}", answer.status, answer.text);
    let body: Value = serde_json::from_str(&answer.text).context("JSON")?;
    for words in ["<html", "sk_", "shpat_", "http://127", "@example.test"] {
        assert!(!answer.text.contains(words), "{words} in {}", answer.text);
    }
    if answer.status != StatusCode::OK && body.get("error").is_none() {
        assert!(body.get("results").is_some(), "the other tasks' results: {body}");
    }
    Ok(body)
}

/// Crons that fall due together, while everything fails.
async fn crons(company: &Company, dice: &mut Dice, calls: &[(Method, &str, &str)]) -> Result<()> {
    spoil_everything(dice, company);
    for answer in join_all(calls.iter().cloned().map(|call| company.call(call))).await {
        clear(&answer?)?;
    }
    let world = &company.world;
    for faults in [
        world.stripe.faults(),
        world.shopify.faults(),
        world.resend.faults(),
        world.environment.gateway.faults(),
    ] {
        faults.clear();
    }
    Ok(())
}

async fn run(seed: u64) -> Result<()> {
    let mut dice = Dice(seed * 2 + 1);
    let mut company = Company::new(6, 12).await?;
    // Long enough for a stall; nobody waits for what another one holds.
    company.world.set("JOB_BUDGET_SECONDS", "15");
    let crons_of_a_day = [(Method::GET, "daily-orchestrator", ""), (Method::GET, "monthly-orchestrator", "")];
    company.clock("2026-10-31T12:05:00Z");
    crons(&company, &mut dice, &crons_of_a_day).await?;
    // The evening's cron finds what was sealed while its key is remembered.
    company.clock("2026-10-31T18:05:00Z");
    time_passes(&company.world).await?;
    crons(&company, &mut dice, &crons_of_a_day[..1]).await?;
    time_passes(&company.world).await?;
    company.drain().await?;
    company.november();
    company.clock(super::SECOND);
    time_passes(&company.world).await?;
    crons(&company, &mut dice, &crons_of_a_day).await?;

    // It is over. Nobody does anything but the crons and what they ask to go on.
    company.clock("2026-11-02T18:05:00Z");
    time_passes(&company.world).await?;
    company.drain().await?;
    time_passes(&company.world).await?;
    for call in crons_of_a_day {
        let answer = company.call(call).await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    company.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_seeds() -> Result<()> {
    let seeds: Vec<u64> = match std::env::var("CHAOS_SEED") {
        Ok(seed) => vec![seed.parse()?],
        Err(_) => vec![1, 2, 3],
    };
    // Side by side, for they mostly wait; which one failed is said.
    let runs = seeds.into_iter().map(|seed| async move {
        let ended = AssertUnwindSafe(run(seed)).catch_unwind().await;
        ended.unwrap_or_else(|_| bail!("see above")).with_context(|| format!("seed {seed}"))
    });
    try_join_all(runs).await.map(drop)
}
