//! One mail a day to the operator, when and only when there is something to look at.

use anyhow::Result;
use chrono::TimeDelta;
use stand_ins::faults::{Fault, Rule};

use crate::{clock::at, mails::received, world::World};

/// Digests that have left.
fn digests(world: &World) -> Vec<String> {
    let all = received(world).into_iter().filter(|(to, _)| to == "operator@example.test");
    all.map(|(_, subject)| subject).collect()
}

/// Returns what the digests said, for a test that wants none.
fn said(world: &World) -> String {
    world.resend.accepted().iter().filter_map(|accepted| accepted.mail.text.clone()).collect()
}

/// Makes a world whose clock shows noon of a day, Paris time.
async fn world() -> Result<World> {
    let mut world = World::new().await?;
    world.set("OPERATOR_EMAIL", "operator@example.test");
    world.midday();
    Ok(world)
}

/// Dates the calls so far of a route back, as if they had come in so long before noon.
async fn called(world: &World, route: &str, before_noon: TimeDelta) -> Result<()> {
    sqlx::query("update public.sync_logs set synced_at = $1 where metadata ->> 'route' like '%' || $2")
        .bind(world.now() - before_noon)
        .bind(route)
        .execute(world.pool())
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_without_trouble_sends_none() -> Result<()> {
    let world = world().await?;
    world.stripe_user("acct_fine").await?;
    world.cron("daily-orchestrator", "").await?;
    world.cron("monthly-orchestrator", "").await?;
    assert_eq!(digests(&world), Vec::<String>::new(), "{}", said(&world));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_told_once_a_day() -> Result<()> {
    let world = world().await?;
    world.stripe_user("acct_bad").await?;
    world.stripe.revoke("acct_bad");
    world.post("sync-integrations", "").await?;
    assert_eq!(digests(&world).len(), 0, "an operator who calls by hand reads the answer");
    world.cron("monthly-orchestrator", "").await?;
    assert_eq!(digests(&world).len(), 1);
    let mails = world.resend.accepted();
    let mail = &mails.last().expect("a mail").mail;
    let text = mail.text.clone().unwrap_or_default();
    assert!(text.contains("Échecs") && text.contains("Stripe") && text.contains("/api/status"), "{text}");
    assert!(!text.contains("acct_bad") && !text.contains("@example.test"), "nobody is named: {text}");
    for _ in 0..2 {
        world.cron("daily-orchestrator", "").await?;
        world.cron("monthly-orchestrator", "").await?;
    }
    assert_eq!(digests(&world).len(), 1, "once a day");
    Ok(())
}

/// Whatever answer is lost on its way, it is one mail.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_make_no_second_digest() -> Result<()> {
    let world = world().await?;
    world.stripe_user("acct_bad").await?;
    world.stripe.revoke("acct_bad");
    world.post("sync-integrations", "").await?;
    let gateway = world.environment.gateway.faults();
    for name in ["jobs_troubles", "jobs_plan_digest", "mail_seal", "mail_settle"] {
        gateway.add(Rule::on(name, Fault::CutAfter).times(1));
    }
    world.resend.faults().add(Rule::on("/emails", Fault::CutAfter).times(1));
    world.cron("monthly-orchestrator", "").await?;
    assert!(gateway.count("jobs_plan_digest") >= 2, "asked again");
    world.cron("daily-orchestrator", "").await?;
    assert_eq!(digests(&world).len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_orchestrator_notices_that_the_other_has_not_run() -> Result<()> {
    let world = world().await?;
    world.cron("monthly-orchestrator", "").await?;
    called(&world, "monthly-orchestrator", TimeDelta::hours(25)).await?;
    world.cron("daily-orchestrator", "").await?;
    assert_eq!(digests(&world), Vec::<String>::new(), "it is called once a day, more or less");
    called(&world, "monthly-orchestrator", TimeDelta::hours(36)).await?;
    world.cron("daily-orchestrator", "").await?;
    assert_eq!(digests(&world).len(), 1);
    let mails = world.resend.accepted();
    let text = mails.last().expect("a mail").mail.text.clone().unwrap_or_default();
    assert!(text.contains("/api/cron/monthly-orchestrator n’est plus appelé"), "{text}");
    Ok(())
}

/// Whoever has waited for more than a day since they were planned first is told of, on the page and in the digest alike,
/// however often they were planned anew; nobody before.
#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_day_of_waiting_is_told_alike() -> Result<()> {
    let world = world().await?;
    let words = "La file «\u{a0}Shopify\u{a0}» attend depuis plus d’un jour";
    for (waits, told) in [(TimeDelta::days(1), 0), (TimeDelta::days(1) + TimeDelta::seconds(1), 1)] {
        world.run("delete from jobs.job_runs where route = '/test'").await?;
        sqlx::query(
            "with r as (insert into jobs.job_runs (run_id, task, trigger, route, as_of, started_at) \
             values (gen_random_uuid(), 'sync_integrations', 'cron', '/test', $1, $1) returning run_id) \
             insert into jobs.job_items (run_id, lane, kind, subject, created_at, waiting_since, lease_id, leased_until) \
             select run_id, 'shopify', 'sync_integration', gen_random_uuid(), $1, $2, gen_random_uuid(), \
                 'infinity' from r", // held, so that no call works on it
        )
        .bind(world.now())
        .bind(world.now() - waits)
        .execute(world.pool())
        .await?;
        world.cron("monthly-orchestrator", "").await?;
        assert_eq!(said(&world).matches(words).count(), told, "{waits}: {}", said(&world));
        let page = world.function("status").await?;
        let request = jobs::http::client()?.get(page.url()).bearer_auth(crate::world::SECRET);
        let page = page.send(request.header("accept", "application/json")).await?.text;
        assert_eq!(page.matches(words).count(), told, "{waits}: {page}");
    }
    Ok(())
}

/// Without an address nobody is told, and without the mails' variables nothing fails for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_digest_is_optional() -> Result<()> {
    let mut world = world().await?;
    // A day on which the cron has nothing else to send: reminders without a key are a failure.
    world.set_now(at("2026-11-18T11:00:00Z"));
    world.stripe_user("acct_bad").await?;
    world.stripe.revoke("acct_bad");
    world.post("sync-integrations", "").await?;
    world.unset("OPERATOR_EMAIL");
    world.cron("monthly-orchestrator", "").await?;
    assert_eq!(world.resend.accepted_count(), 0);
    world.set("OPERATOR_EMAIL", "operator@example.test");
    world.unset("RESEND_API_KEY");
    world.cron("monthly-orchestrator", "").await?;
    Ok(())
}
