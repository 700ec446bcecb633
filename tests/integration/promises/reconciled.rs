//! The record says what waits, the queue carries it: where a queue was purged, or restored without its messages, they agree
//! again within a run.

use anyhow::Result;
use chrono::TimeDelta;
use jobs::schedule::paris;
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
    mails::{
        given::{about, turnover},
        kind, signed_up,
    },
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
    assert_eq!(back, json!({"messages": 0, "mails": 0, "unplanned": false}));
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
    assert_eq!(back, json!({"messages": 3, "mails": 0, "unplanned": false}));
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
    world.set_now(world.now() + TimeDelta::days(1));
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

/// The same drill for what goes by the calendar and by the books: a recap, an alert and a reminder that were accepted after
/// the backup are planned again by the crons that follow, and none of them leaves twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_repeats_no_recap_alert_or_reminder() -> Result<()> {
    let mut world = World::new().await?;
    let month = world.month().previous();
    let last = paris::start_of(month.last_day()) + TimeDelta::hours(15);
    let later =
        |day: i64| paris::start_of(month.next().first_day() + TimeDelta::days(day - 1)) + TimeDelta::hours(9);
    let left = |world: &World| {
        let mut kinds: Vec<_> = world.resend.accepted().iter().map(|mail| kind(mail)).collect();
        kinds.retain(|kind| *kind != "marketing_day3");
        kinds.sort_unstable();
        kinds
    };

    // Before the backup: an installation at work.
    world.set_now(last - TimeDelta::days(2));
    world.stripe_user("acct_restored").await?;
    world.stripe.payment("acct_restored", last - TimeDelta::days(3), 4_200, "eur");
    let rich = signed_up(&world, "rich@example.test", "Rich", 300).await?;
    turnover(&world, rich, &month.to_string(), "services", "50000", "manual").await?;
    let premium = signed_up(&world, "premium@example.test", "Prune", 300).await?;
    for sql in [
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
        "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
    ] {
        about(&world, premium, sql).await?;
    }
    world.post("sync-integrations", "").await?;
    world.run("create table public.backup as select run_id from jobs.job_runs").await?;

    // What is lost: the month, an alert, the reminders.
    world.set_now(last);
    world.cron("monthly-orchestrator", "").await?;
    world.post("check-thresholds", "").await?;
    world.set_now(later(2));
    world.cron("monthly-orchestrator", "").await?;
    let all = ["monthly_recap", "monthly_reminder", "threshold_alert"];
    assert_eq!(left(&world), all);

    let key = world.replace("RESEND_API_KEY", Some("re_arret".into()));
    for forgotten in [
        "delete from jobs.email_deliveries",
        "delete from jobs.email_batches",
        "delete from jobs.threshold_alerts",
        "delete from jobs.job_slots s where not exists (select from public.backup b where b.run_id = s.run_id)",
        "delete from jobs.job_runs r where not exists (select from public.backup b where b.run_id = r.run_id)",
        "delete from public.marketing_emails",
        "delete from public.sync_logs",
    ] {
        world.run(forgotten).await?;
    }
    // As the runbook has it: what was due since is planned, and waits; then it is given up, and the key comes back.
    world.set_now(later(3));
    let crons = async |world: &World| -> Result<()> {
        for route in ["daily-orchestrator", "monthly-orchestrator"] {
            world.cron(route, "").await?;
        }
        world.post("check-thresholds", "").await?;
        Ok(())
    };
    crons(&world).await?;
    let waiting: Vec<String> = world
        .value("select coalesce(array_agg(kind order by kind), '{}') from jobs.email_deliveries where status = 'planned' and kind <> 'marketing_day3'")
        .await?;
    assert_eq!(waiting, all);
    world.value::<i32>("select jobs.give_up_waiting_mails($now)").await?;
    world.replace("RESEND_API_KEY", key);
    for day in [3, 4, 5] {
        world.set_now(later(day) + TimeDelta::hours(3));
        crons(&world).await?;
    }
    assert_eq!(left(&world), all);
    Ok(())
}
