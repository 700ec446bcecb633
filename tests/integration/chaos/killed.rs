//! The platform kills the function (SIGKILL) at each step, before the step is done and after it, unanswered: the next
//! run puts everything right. What only `promises::kills` and `mails::delivery::kills` do is not done again here.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, InjectedFaults, Rule},
    shopify::RefreshReuse,
};

use super::{BATCH, Company, SECOND, bearer, crosses, ended, time_passes, until};
use crate::{
    promises::{at, imported_cents, listed_cents, movements},
    world::World,
};

/// Shopify renews a token there.
const REFRESH: &str = "/admin/oauth/access_token";
const BEFORE: Fault = Fault::Delay(Duration::from_mins(5));
const AFTER: Fault = Fault::Late(Duration::from_mins(5));

/// Calls a function, kills it when this request is on its way or is done, and lets what it held come back.
pub(crate) async fn killed_at(
    world: &World,
    (method, name, query): (Method, &str, &str),
    (step, fault): (&str, Fault),
) -> Result<()> {
    let faults: &InjectedFaults = match step {
        "/v1/account" | "balance_transactions" => world.stripe.faults(),
        "graphql" | REFRESH => world.shopify.faults(),
        BATCH => world.resend.faults(),
        _ => world.environment.gateway.faults(),
    };
    let mut function = world.function(name).await?;
    let (seen, done) = (faults.count(step), faults.late());
    let after = matches!(fault, Fault::Late(_));
    faults.add(Rule::on(step, fault).times(1));
    let bearer = bearer();
    {
        let call = function.call(method, query, Some(&bearer));
        let reached = async || Ok(if after { faults.late() > done } else { faults.count(step) > seen });
        tokio::select! {
            answer = call => panic!("{step}: answered before it was killed: {answer:?}"),
            reached = until(step, reached) => reached?,
        }
    }
    function.kill().await?;
    faults.clear();
    time_passes(world).await
}

/// A sync with an alert at its end is killed at each of these, and healed by the next one.
async fn each_of(steps: &[(&str, Fault)]) -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at(SECOND));
    for (n, (step, fault)) in steps.iter().enumerate() {
        let what = format!("{step}, {fault:?}");
        let name = format!("acct_{n}");
        let user = crosses(&world, &name, 3).await?;
        let sync = (Method::POST, "sync-integrations", "");
        killed_at(&world, sync, (step, fault.clone())).await.with_context(|| what.clone())?;
        let answer = world.post("sync-integrations", "").await?;
        assert_eq!((&answer["errors"], &answer["remaining"]), (&json!(0), &Value::Null), "{what}: {answer}");
        assert_eq!(imported_cents(&world, user).await?, listed_cents(&world, &name), "{what}");
        assert_eq!(movements(&world, user).await?, 3, "{what}");
        assert_eq!(world.resend.accepted_count(), n + 1, "{what}: an alert");
        ended(&world).await.context(what)?;
    }
    let (attempts, new): (i64, i64) = sqlx::query_as(
        "select sum(attempts)::bigint, sum((result ->> 'records')::bigint)::bigint from jobs.job_items",
    )
    .fetch_one(world.pool())
    .await?;
    assert_eq!((attempts, new), (0, 3 * i64::try_from(steps.len())?), "a kill is no attempt");
    let told: i64 = world.value("select count(*) from jobs.email_deliveries where status = 'sent'").await?;
    assert_eq!(told, i64::try_from(steps.len())?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_plans_and_reads() -> Result<()> {
    each_of(&[
        ("jobs_plan_sync", BEFORE),
        ("jobs_plan_sync", AFTER),
        ("jobs_claim", BEFORE),
        ("jobs_claim", AFTER),
        ("integration_context", BEFORE),
        ("/v1/account", BEFORE),
        ("integration_prove", BEFORE),
        ("integration_prove", AFTER),
        ("integration_settle", AFTER),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_mails_and_reports() -> Result<()> {
    each_of(&[
        ("threshold_books", BEFORE),
        ("jobs_note_alerts", BEFORE),
        ("jobs_note_alerts", AFTER),
        ("jobs_plan_alerts", BEFORE),
        ("jobs_plan_alerts", AFTER),
        ("mail_claim", AFTER),
        ("mail_seal", AFTER),
        (BATCH, AFTER),
        ("mail_settle", AFTER),
        ("jobs_report", AFTER),
        ("jobs_log", BEFORE),
    ])
    .await
}

/// A token that has ended is renewed: whoever was killed over it loses no token, and its lease passes.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_token_is_renewed() -> Result<()> {
    const SHOP: &str = "expiring.myshopify.com";
    let mut world = World::new().await?;
    world.set_now(at(SECOND));
    let user = world.user("expiring@example.test").await?;
    let tokens = world.shopify.add_expiring_shop(SHOP, "EUR");
    world.connect_shopify(user, SHOP, &tokens.access_token, Some(&tokens.refresh_token)).await?;
    world.shopify.set_refresh_reuse(RefreshReuse::UntilReplacementUsed);
    world.post("sync-integrations", "").await?;
    let mut cents = 0;
    for (step, fault) in [
        ("integration_refresh_begin", AFTER),
        (REFRESH, BEFORE),
        (REFRESH, AFTER),
        ("integration_refresh_store", BEFORE),
        ("integration_refresh_store", AFTER),
        ("integration_refresh_end", BEFORE),
    ] {
        let what = format!("{step}, {fault:?}");
        world.shopify.expire_access_tokens(SHOP);
        world.run("update jobs.integration_state set token_expires_at = $now - interval '1 minute'").await?;
        cents += world.shopify.tenders(SHOP, at("2026-11-01T10:00:00Z"), TimeDelta::zero(), 1);
        let sync = (Method::POST, "sync-integrations", "");
        killed_at(&world, sync, (step, fault)).await.with_context(|| what.clone())?;
        world.run("update jobs.integration_state set refresh_lease_until = '-infinity'").await?;
        let answer = world.post("sync-integrations", "").await?;
        assert_eq!((&answer["errors"], &answer["remaining"]), (&json!(0), &Value::Null), "{what}: {answer}");
        assert_eq!(imported_cents(&world, user).await?, cents, "{what}");
        ended(&world).await.context(what)?;
    }
    Ok(())
}

/// A failure is being noted: it is one attempt or none, and never an end.
#[tokio::test(flavor = "multi_thread")]
async fn while_it_gives_back() -> Result<()> {
    for (step, fault, counted) in [
        ("jobs_give_back", BEFORE, 0),
        ("jobs_give_back", AFTER, 1),
        ("mail_give_back", BEFORE, 0),
        ("mail_give_back", AFTER, 1),
    ] {
        let mut world = World::new().await?;
        world.set_now(at(SECOND));
        let user = crosses(&world, "acct_back", 3).await?;
        if step == "jobs_give_back" {
            let refused = stand_ins::stripe::server_error(false);
            world.stripe.faults().add(Rule::on("balance_transactions", refused));
        } else {
            world.resend.faults().add(Rule::on(BATCH, Fault::CutBefore));
        }
        killed_at(&world, (Method::POST, "sync-integrations", ""), (step, fault)).await?;
        let attempts: i64 = world.value("select sum(attempts)::bigint from jobs.job_items").await?;
        assert_eq!(attempts, counted, "{step}");
        world.stripe.faults().clear();
        world.resend.faults().clear();
        let answer = world.post("sync-integrations", "").await?;
        assert_eq!((&answer["errors"], &answer["remaining"]), (&json!(0), &Value::Null), "{step}: {answer}");
        assert_eq!(imported_cents(&world, user).await?, listed_cents(&world, "acct_back"));
        assert_eq!(world.resend.accepted_count(), 1, "{step}");
        ended(&world).await?;
    }
    Ok(())
}

/// Months, recaps, reminders, offers: each route is killed in the middle of its work, and its next call makes it good.
#[tokio::test(flavor = "multi_thread")]
async fn in_every_route_that_is_due() -> Result<()> {
    let company = Company::new(3, 5).await?;
    let month = (Method::POST, "monthly-sync", "force=true");
    let (daily, monthly) =
        ((Method::GET, "daily-orchestrator", ""), (Method::GET, "monthly-orchestrator", ""));
    for (call, step, fault) in [
        (&month, "graphql", BEFORE),
        (&month, "integration_settle", AFTER),
        (&month, BATCH, AFTER),
        (&daily, "jobs_plan_mails", BEFORE),
        (&daily, "jobs_plan_mails", AFTER),
        (&monthly, "jobs_plan_mails", AFTER),
        (&monthly, "mail_seal", AFTER),
    ] {
        killed_at(&company.world, call.clone(), (step, fault)).await.with_context(|| step.to_owned())?;
    }
    for call in [month, daily, monthly] {
        let answer = company.call(call).await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    company.check().await
}
