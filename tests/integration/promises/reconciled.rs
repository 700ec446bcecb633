//! The record says what waits, the queue carries it: where a queue was purged, or restored without its messages, they agree
//! again within a run.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use stand_ins::{
    faults::{Fault, Rule},
    resend::refuse,
};
use uuid::Uuid;

use super::{claim, plan, rpc};
use crate::{
    mails::signed_up,
    told::timed_out,
    world::{SECRET, World},
};

/// Purges every queue, as the button in the dashboard does.
async fn purge(world: &World) -> Result<()> {
    world.run("select pgmq.purge_queue(queue_name) from pgmq.list_queues()").await?;
    Ok(())
}

async fn messages(world: &World) -> Result<i64> {
    world
        .value(
            "select (select count(*) from pgmq.q_jobs_stripe) + (select count(*) from pgmq.q_jobs_marketing)",
        )
        .await
}

/// A mail that could not leave and a sync that was planned wait: their messages are gone.
async fn world_without_messages() -> Result<World> {
    let mut world = World::new().await?;
    world.midday();
    world.stripe_user("acct_waits").await?;
    world.stripe.payment("acct_waits", world.earlier(90), 4_200, "eur");
    signed_up(&world, "waits@example.test", "Camille Moreau", 4).await?;
    world.resend.faults().add(Rule::on("/emails/batch", refuse(403, "invalid_api_key", "No.")));
    world.cron("daily-tasks", "").await?;
    world.resend.faults().clear();
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    assert_eq!(messages(&world).await?, 2);
    purge(&world).await?;
    Ok(world)
}

async fn all_done(world: &World) -> Result<()> {
    let left: i64 = world.value("select count(*) from jobs.job_items where status = 'queued'").await?;
    assert_eq!((left, messages(world).await?), (0, 0));
    assert_eq!(world.resend.accepted_count(), 1);
    let records: i64 =
        world.value("select count(*) from public.ca_records where source = 'auto_sync'").await?;
    assert_eq!(records, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_messages_come_back_within_a_run() -> Result<()> {
    let world = world_without_messages().await?;
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer.get("remaining"), None, "{answer}");
    all_done(&world).await
}

/// The page, "Reprendre" and drain-queue speak of what waits: two.
#[tokio::test(flavor = "multi_thread")]
async fn everybody_counts_what_really_waits() -> Result<()> {
    let world = world_without_messages().await?;
    let function = world.function("status").await?;
    let request = jobs::http::client()?.get(function.url()).bearer_auth(SECRET);
    let told = function.send(request.header("accept", "application/json")).await?.json();
    let waiting: Vec<_> =
        told["queue"].as_array().into_iter().flatten().map(|lane| &lane["waiting"]).collect();
    assert_eq!(waiting, [&json!(1), &json!(1)], "{told:#}");
    let retried = json!({
        "p_run_id": Uuid::new_v4(), "p_lane": "marketing", "p_route": "/api/status",
        "p_failed_since": world.earlier(1_000), "p_now": world.now(),
    });
    let retried: Value = rpc(&world, "jobs_retry", &retried).await?;
    assert_eq!(retried["woken"], 1, "{retried}");
    assert_eq!(messages(&world).await?, 1);
    // It answers at once and works on afterwards.
    let function = world.function("drain-queue").await?;
    let answer = function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
    assert_eq!((answer.status.as_u16(), &answer.json()["waiting"]), (202, &json!(2)), "{}", answer.text);
    super::until("the chain is done", async || {
        let left = "select count(*) from jobs.job_items where status = 'queued'";
        Ok(world.value::<i64>(left).await? == 0)
    })
    .await?;
    all_done(&world).await
}

/// What a living worker holds gets no second message, and what has one gets no other.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_given_twice() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    world.stripe_user("acct_b").await?;
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    assert_eq!(claim(&world, Uuid::new_v4(), 1).await?.len(), 1);
    let reconcile = json!({"p_route": "/api/cron/daily-orchestrator", "p_now": world.now()});
    let back: Value = rpc(&world, "jobs_reconcile", &reconcile).await?;
    assert_eq!(back, json!({"messages": 0, "mails": 0}));
    purge(&world).await?;
    let back: Value = rpc(&world, "jobs_reconcile", &reconcile).await?;
    assert_eq!(back["messages"], 1, "one is held: {back}");
    let back: Value = rpc(&world, "jobs_reconcile", &reconcile).await?;
    assert_eq!(back["messages"], 0, "{back}");
    // The answer is lost: the call is repeated, and nothing comes twice.
    purge(&world).await?;
    world.environment.gateway.faults().add(Rule::on("jobs_reconcile", Fault::CutAfter).times(1));
    world.post("sync-integrations", "").await?;
    Ok(())
}

/// Statistics of a quiet hour, then a plan of many items: what lacks its message is found within the function's own
/// `statement_timeout`, which an item at a time would exceed.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_plan_is_reconciled_in_time() -> Result<()> {
    let world = World::new().await?;
    let plan = "
        insert into jobs.job_runs (run_id, task, trigger, route, as_of, started_at)
            values (md5('large')::uuid, 'sync_integrations', 'manual', '/', $now, $now);
        insert into jobs.job_items (run_id, lane, kind, subject, status, settled_at)
            select md5('large')::uuid, 'stripe', 'sync_integration', gen_random_uuid(), 'done', $now
            from generate_series(1, 3000);
        insert into pgmq.q_jobs_stripe (vt, message)
            select $now, jsonb_build_object('item_id', i.item_id) from jobs.job_items i;
        delete from pgmq.q_jobs_stripe;
        analyze jobs.job_items, pgmq.q_jobs_stripe;
        insert into jobs.job_items (run_id, lane, kind, subject)
            select md5('large')::uuid, 'stripe', 'sync_integration', gen_random_uuid() from generate_series(1, 60000);
        select jobs.send_items(md5('large')::uuid);
        delete from pgmq.q_jobs_stripe where msg_id % 20000 = 1;";
    sqlx::raw_sql(AssertSqlSafe(world.dated(plan))).execute(world.pool()).await?;
    let reconcile = json!({"p_route": "/api/cron/daily-orchestrator", "p_now": world.now()});
    let back: Value = rpc(&world, "jobs_reconcile", &reconcile).await?;
    assert_eq!(back, json!({"messages": 3, "mails": 0}));
    Ok(())
}

/// What was lost may wait for another run: what the queue carries does not.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reconciled_keeps_no_work_back() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_goeson").await?;
    world.stripe.payment("acct_goeson", world.earlier(90), 4_200, "eur");
    world.environment.gateway.faults().add(Rule::on("jobs_reconcile", timed_out()));
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!((&answer["totalSynced"], &answer["errors"]), (&json!(1), &json!(1)), "{answer}");
    assert_eq!(answer["problems"][0]["code"], "reconcile", "{answer}");
    assert_eq!(answer.get("remaining"), None, "{answer}");
    // The next call of the chain works on, too.
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    let function = world.function("drain-queue").await?;
    assert_eq!(function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?.status, 202);
    super::until("the chain is done", async || {
        let left = "select count(*) from jobs.job_items where status = 'queued'";
        Ok(world.value::<i64>(left).await? == 0)
    })
    .await
}

/// The drill of the runbook: a backup of before the offers is restored after they were accepted. They do not leave twice, and
/// who is due afterwards gets theirs.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_sends_nothing_twice() -> Result<()> {
    let mut world = World::new().await?;
    world.midday();
    for name in ["one", "two"] {
        signed_up(&world, &format!("{name}@example.test"), "Camille Moreau", 4).await?;
    }
    world.cron("daily-tasks", "").await?;
    assert_eq!(world.resend.accepted_count(), 2);

    // The key is taken away, then everything since the backup is gone: ours, and what the application keeps of it.
    let key = world.replace("RESEND_API_KEY", Some("re_arret".into()));
    for forgotten in [
        "delete from jobs.email_deliveries",
        "delete from jobs.email_batches",
        "delete from jobs.job_slots",
        "delete from jobs.job_runs",
        "delete from public.marketing_emails",
        "delete from public.sync_logs",
    ] {
        world.run(forgotten).await?;
    }
    let part = world.cron("daily-orchestrator", "").await?["results"]["marketingEmails"].clone();
    assert_eq!((&part["sent"], &part["remaining"]), (&json!(0), &json!(2)), "{part}");
    let given_up: i32 = world.value("select jobs.give_up_waiting_mails($now)").await?;
    assert_eq!(given_up, 2);
    world.replace("RESEND_API_KEY", key);

    signed_up(&world, "three@example.test", "Camille Moreau", 4).await?;
    world.cron("daily-tasks", "").await?;
    world.set_now(world.now() + chrono::TimeDelta::days(1));
    world.cron("daily-tasks", "").await?;
    let to: Vec<String> = world.resend.accepted().iter().map(|mail| mail.mail.to.join(",")).collect();
    assert_eq!(to.len(), 3, "{to:?}");
    assert_eq!(to[2], "three@example.test");
    let states: Value = world
        .value("select jsonb_object_agg(status, n) from (select status, count(*) n from jobs.email_deliveries group by 1) s")
        .await?;
    assert_eq!(states, json!({"sent": 1, "unknown": 2}));
    assert_eq!(messages(&world).await?, 0);
    Ok(())
}
