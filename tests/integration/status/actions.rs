//! What an operator may have done: replays and retries, each once.

use anyhow::Result;
use chrono::TimeDelta;
use serde_json::json;
use stand_ins::faults::{Fault, Rule};

use super::{Browser, eventually, json, post};
use crate::{clock::at, mails, world::World};

/// Crons have come by for so many days, and then no more.
async fn crons_came_by(world: &World, days: i64) -> Result<()> {
    sqlx::query(
        "insert into jobs.job_slots (task, slot, run_id, claimed_at) \
         values ('sync_integrations', 'long-ago', gen_random_uuid(), $1)",
    )
    .bind(world.now() - TimeDelta::days(days))
    .execute(world.pool())
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_slot_is_replayed_once() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    crons_came_by(&world, 3).await?;
    let function = world.function("status").await?;
    let before = json(&function).await?;
    let missed: Vec<_> = before["missed"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|missed| missed["task"] == "sync_integrations")
        .collect();
    assert!((11..=13).contains(&missed.len()), "{missed:#?}");
    let newest = missed[0].clone();
    assert_eq!(newest["madeUp"], false, "{newest}");
    let slot = newest["slot"].as_str().unwrap();

    let mut browser = Browser::signed_in(&function).await?;
    for _ in 0..2 {
        let fields = [("action", "replay"), ("task", "sync_integrations"), ("slot", slot)];
        let answer = browser.own_form(&fields).await?;
        assert_eq!(
            (answer.status.as_u16(), answer.headers["location"].to_str()?),
            (303, "/api/status?fait=rejeu")
        );
    }
    eventually(
        &world,
        "select count(*) = 2 from public.sync_logs where sync_type = 'replay' and user_id is null",
    )
    .await?;
    let runs: i64 = world.value("select count(*) from jobs.job_runs where slot is not null").await?;
    assert_eq!(runs, 1, "the second one joined");
    let page = browser.get("?fait=rejeu").await?.text;
    assert!(page.contains("Le rejeu est lancé") && page.contains(&format!("Créneau {slot}")), "{page}");

    let after = json(&function).await?;
    let missed = after["missed"].as_array().unwrap();
    assert!(
        !missed.iter().any(|missed| missed["task"] == "sync_integrations" && missed["slot"] == slot),
        "{missed:#?}"
    );
    let others = missed.iter().filter(|missed| missed["task"] == "sync_integrations");
    assert!(
        others.into_iter().all(|missed| missed["madeUp"] == true),
        "a later sync reads what they would have read"
    );
    let run = &after["tasks"][1]["runs"][0];
    assert_eq!(
        (&run["slot"], &run["trigger"], &run["status"]),
        (&json!(slot), &json!("replay"), &json!("success"))
    );
    assert_eq!(run["lanes"][0]["done"], 1, "{run}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_replayed_is_refused() -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at("2026-11-24T12:00:00Z"));
    world.set("REPLAY_MAX_DAYS", "60");
    let function = world.function("status").await?;
    for (task, slot, status) in [
        ("monthly_reminders", "2026-10", 409), // not in October any more
        ("sync_integrations", "2026-09-01T06Z", 400),
        ("sync_integrations", "2026-11-24T18Z", 400),
        ("sync_integrations", "2026-11-24T07Z", 400),
        ("monthly_sync", "2026-11", 400),
        ("nothing", "2026-10", 400),
    ] {
        let answer = post(&function, &[("action", "replay"), ("task", task), ("slot", slot)]).await?;
        assert_eq!(answer.status, status, "{task} {slot}: {}", answer.text);
    }
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_runs").await?, 0);
    // A month's reminder within its month; a month's end, read to its last second.
    for (task, slot, at) in [
        ("monthly_reminders", "2026-11", "2026-11-02T22:59:59Z"),
        ("monthly_sync", "2026-10", "2026-10-31T22:59:59Z"),
    ] {
        let answer = post(&function, &[("action", "replay"), ("task", task), ("slot", slot)]).await?;
        assert_eq!((answer.status.as_u16(), &answer.json()["at"]), (202, &json!(at)), "{}", answer.text);
    }
    eventually(&world, "select count(*) = 2 from jobs.job_slots").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_is_planned_anew_for_its_users_only() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_good").await?;
    let broken = world.stripe_user("acct_bad").await?;
    world.stripe.payment("acct_bad", world.now() - TimeDelta::minutes(5), 1_000, "eur");
    world.run("update public.integration_tokens set access_token = 'not encrypted' where stripe_account_id = 'acct_bad'").await?;
    world.post("sync-integrations", "").await?;
    let function = world.function("status").await?;
    let told = json(&function).await?;
    let stripe = &told["queue"][0];
    assert_eq!((&stripe["lane"], &stripe["failed"]), (&json!("stripe"), &json!(1)), "{told:#}");
    let broken_told = &told["integrations"]["broken"][0];
    assert_eq!(
        (&broken_told["userId"], &broken_told["address"], &broken_told["code"]),
        (&json!(broken), &json!("a…@e…"), &json!("token_unreadable"))
    );

    sqlx::query(
        "update public.integration_tokens set access_token = $1 where stripe_account_id = 'acct_bad'",
    )
    .bind(crate::world::encrypt("sk_acct_token_acct_bad"))
    .execute(world.pool())
    .await?;
    let answer = post(&function, &[("action", "retry"), ("lane", "stripe")]).await?;
    assert_eq!((answer.status.as_u16(), &answer.json()["planned"]), (202, &json!(1)), "{}", answer.text);
    eventually(&world, "select count(*) = 1 from jobs.job_runs where parameters ->> 'retry' = 'stripe' and status <> 'running'").await?;
    let told = json(&function).await?;
    assert_eq!(told["queue"], json!([]), "{:#}", told["queue"]);
    assert_eq!(told["integrations"]["brokenTotal"], 0);
    assert_eq!(world.imported(broken).await?.len(), 1, "and read to its end");
    let items: i64 = world.value("select count(*) from jobs.job_items").await?;
    assert_eq!(items, 3, "the good one was left alone");
    let again = post(&function, &[("action", "retry"), ("lane", "stripe")]).await?;
    assert_eq!(again.json()["planned"], 0, "{}", again.text);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_another_attempt_goes_at_once() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    let busy = stand_ins::faults::Fault::json(503, &json!({"error": {"type": "api_error"}}));
    world.stripe.faults().add(stand_ins::faults::Rule::on("/v1/account", busy));
    world.post("sync-integrations", "").await?;
    let function = world.function("status").await?;
    let stripe = json(&function).await?["queue"][0].clone();
    assert_eq!((&stripe["waiting"], &stripe["putOff"]), (&json!(1), &json!(1)), "{stripe}");
    world.stripe.faults().clear();
    let answer = post(&function, &[("action", "retry"), ("lane", "stripe")]).await?;
    assert_eq!(
        (&answer.json()["woken"], &answer.json()["planned"]),
        (&json!(1), &json!(0)),
        "{}",
        answer.text
    );
    eventually(&world, "select bool_and(status = 'done') from jobs.job_items").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_mails_leave_again_and_unknown_ones_never() -> Result<()> {
    let mut world = World::new().await?;
    world.midday();
    for name in ["refused", "unknown", "bounced"] {
        mails::signed_up(&world, &format!("{name}@example.test"), "Camille", 4).await?;
    }
    world.resend.refuse_address("refused@example.test");
    world.cron("daily-tasks", "").await?;
    assert_eq!(world.resend.accepted_count(), 2);
    // As if nobody had ever known whether this one arrived.
    world
        .run(
            "with d as (update jobs.email_deliveries d set status = 'unknown', provider_id = null from auth.users u \
             where u.id = d.user_id and u.email = 'unknown@example.test' returning d.item_id) \
             update jobs.job_items i set status = 'failed', result = '{\"mail\": \"unknown\"}', \
             error = '{\"code\": \"unknown_outcome\", \"message\": \"m\"}' from d where i.item_id = d.item_id",
        )
        .await?;
    let function = world.function("status").await?;
    let marketing = json(&function).await?["queue"][0].clone();
    assert_eq!((&marketing["failed"], &marketing["unknown"]), (&json!(1), &json!(1)), "{marketing}");

    // Refused again, and counted again; then the address is put right.
    let answer = post(&function, &[("action", "retry"), ("lane", "marketing")]).await?;
    assert_eq!(answer.json()["mails"], 1, "{}", answer.text);
    eventually(
        &world,
        "select count(*) = 2 from jobs.email_deliveries where status in ('refused', 'unknown')",
    )
    .await?;
    eventually(
        &world,
        "select count(*) = 1 from public.sync_logs where sync_type = 'manual' and user_id is null",
    )
    .await?;
    world
        .run("update auth.users set email = 'right@example.test' where email = 'refused@example.test'")
        .await?;
    post(&function, &[("action", "retry"), ("lane", "marketing")]).await?;
    eventually(&world, "select count(*) = 2 from jobs.email_deliveries where status = 'sent'").await?;
    for _ in 0..2 {
        let answer = post(&function, &[("action", "retry"), ("lane", "marketing")]).await?;
        assert_eq!(
            (&answer.json()["mails"], &answer.json()["woken"]),
            (&json!(0), &json!(0)),
            "{}",
            answer.text
        );
    }
    let to: Vec<String> = mails::received(&world).into_iter().map(|(to, _)| to).collect();
    assert_eq!(to, ["bounced@example.test", "right@example.test", "unknown@example.test"], "each once");
    Ok(())
}

/// The retry is written down, and its answer lost: planned once, sent once.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_retries_once() -> Result<()> {
    let mut world = World::new().await?;
    world.midday();
    mails::signed_up(&world, "refused@example.test", "Camille", 4).await?;
    world.resend.refuse_address("refused@example.test");
    world.stripe_user("acct_bad").await?;
    world.stripe.revoke("acct_bad");
    world.cron("daily-orchestrator", "").await?;
    world.post("sync-integrations", "").await?;
    world
        .run("update auth.users set email = 'right@example.test' where email = 'refused@example.test'")
        .await?;
    let function = world.function("status").await?;
    let gateway = world.environment.gateway.faults();
    for (lane, done) in [
        ("marketing", "select count(*) = 1 from jobs.email_deliveries where status = 'sent'"),
        (
            "stripe",
            "select count(*) = 1 from jobs.job_runs where parameters ->> 'retry' = 'stripe' and status <> 'running'",
        ),
    ] {
        gateway.add(Rule::on("jobs_retry", Fault::CutAfter).times(1));
        let answer = post(&function, &[("action", "retry"), ("lane", lane)]).await?;
        let told = answer.json();
        let begun = ["woken", "mails", "planned"].iter().filter_map(|name| told[*name].as_u64()).sum::<u64>();
        assert_eq!((answer.status.as_u16(), begun > 0), (202, true), "{lane}: as the first time: {told}");
        eventually(&world, done).await?;
    }
    assert_eq!(gateway.count("jobs_retry"), 4);
    assert_eq!(world.resend.accepted_count(), 1);
    Ok(())
}
