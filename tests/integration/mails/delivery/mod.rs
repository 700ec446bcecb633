//! What is promised about every mail, and tests that try to break it: each exactly once, only to
//! those who want it, none lost without a word.

mod addresses;
mod kills;
mod lanes;
mod lost_answers;
mod old_batches;
mod overlaps;
mod payloads;
mod plans_at_once;
mod quotas;
mod rates;
mod refused_keys;
mod second_thoughts;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use jobs::{
    email::samples,
    schedule::{DAYS_AFTER_SIGN_UP, paris},
};
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::faults::Seen;
use uuid::Uuid;

use super::signed_up;
use crate::{
    promises::{rpc, until},
    world::{Answer, SECRET, World},
};

/// Batches go there.
const BATCH: &str = "/emails/batch";

/// Makes a world at midday with this many users for the J+3 mail, `user-0@example.test` and so on.
async fn world_of(users: usize) -> Result<World> {
    let mut world = World::new().await?;
    world.midday();
    for n in 0..users {
        signed_up(&world, &address(n), "Camille Moreau", 4).await?;
    }
    Ok(world)
}

fn address(n: usize) -> String {
    format!("user-{n}@example.test")
}

/// Plans the J+3 mails of today's slot, and sends nothing: whoever calls the route next joins this run.
pub(crate) async fn plan(world: &World) -> Result<Uuid> {
    let now = world.now();
    let run = Uuid::new_v4();
    let arguments = json!({
        "p_run_id": run, "p_task": "marketing_day3", "p_kind": "marketing_day3",
        "p_slot": paris::date(now).to_string(), "p_trigger": "cron", "p_route": "/api/cron/daily-tasks",
        "p_as_of": now, "p_parameters": {}, "p_user_id": null, "p_dry_run": false,
        "p_prices": {"price_pro": "pro", "price_premium": "premium"},
        "p_first_day": DAYS_AFTER_SIGN_UP.start(), "p_last_day": DAYS_AFTER_SIGN_UP.end(), "p_month": null,
        "p_expires_at": null, "p_now": now,
    });
    let planned = rpc(world, "jobs_plan_mails", &arguments).await?;
    assert_eq!(planned["state"], "planned", "{planned}");
    Ok(run)
}

/// Puts a mail of a kind into the outbox, into this run.
async fn add(world: &World, run: Uuid, kind: &str, email: &str) -> Result<Uuid> {
    let user = world.user(email).await?;
    if kind == "monthly_reminder" {
        sqlx::query(
            "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
        )
        .bind(user)
        .execute(world.pool())
        .await?;
        sqlx::query("insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)")
            .bind(user)
            .execute(world.pool())
            .await?;
    }
    let facts = samples::samples().into_iter().find(|(_, facts)| facts.kind().as_str() == kind);
    let mut facts = serde_json::to_value(facts.context("no sample")?.1)?;
    if kind == "monthly_recap" {
        // One of long ago does not leave any more.
        facts["month"] = json!(paris::month(world.now()).to_string());
    }
    sqlx::query(
        "insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts) \
         values ($1 || '/' || $2::text, $1, $2, $2, $3, $4)",
    )
    .bind(kind)
    .bind(user)
    .bind(run)
    .bind(facts)
    .execute(world.pool())
    .await?;
    sqlx::query("select jobs.queue_mails($1, null, $2)")
        .bind(run)
        .bind(world.now())
        .execute(world.pool())
        .await?;
    Ok(user)
}

/// Calls the route as its cron does, in a process that knows nothing of the mail service yet; its part of the answer.
async fn drain(world: &World) -> Result<Value> {
    let answer = call(world).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text);
    Ok(answer.json()["results"]["upgradeEmails"].clone())
}

async fn call(world: &World) -> Result<Answer> {
    let function = world.function("daily-tasks").await?;
    function.call(Method::GET, "", Some(&format!("Bearer {SECRET}"))).await
}

/// Makes every queued mail visible, as if its visibility timeout or its pause had just passed.
async fn come_back(world: &World) -> Result<()> {
    for lane in ["alerts", "reminders", "recaps", "marketing"] {
        let sql = format!("select pgmq.set_vt('jobs_{lane}', msg_id, 0) from pgmq.q_jobs_{lane}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(world.pool()).await?;
    }
    Ok(())
}

/// Returns how many deliveries are in each state.
async fn states(world: &World) -> Result<BTreeMap<String, i64>> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("select status, count(*) from jobs.email_deliveries group by 1")
            .fetch_all(world.pool())
            .await?;
    Ok(rows.into_iter().collect())
}

fn all(state: &str, count: i64) -> BTreeMap<String, i64> {
    BTreeMap::from([(state.to_owned(), count)])
}

/// Attempts that were counted, all in all.
async fn attempts(world: &World) -> Result<i64> {
    world.value("select coalesce(sum(attempts), 0)::bigint from jobs.job_items").await
}

async fn noted(world: &World) -> Result<i64> {
    world.value("select count(*) from public.marketing_emails where email_type = 'upgrade_day3'").await
}

/// Returns who got a mail, in the order of arrival.
fn recipients(world: &World) -> Vec<String> {
    world.resend.accepted().iter().map(|accepted| accepted.mail.to.join(",")).collect()
}

/// Checks that exactly these got a mail, each one.
fn assert_each_once(world: &World, expected: impl IntoIterator<Item = String>) {
    let got = recipients(world);
    let different: BTreeSet<&String> = got.iter().collect();
    assert_eq!(different.len(), got.len(), "somebody got two: {got:?}");
    assert_eq!(got.iter().cloned().collect::<BTreeSet<_>>(), expected.into_iter().collect());
}

/// Checks the same, with everything written down, and nothing left that a further drain could send.
async fn assert_all_sent(world: &World, users: usize) -> Result<()> {
    let count = i64::try_from(users)?;
    assert_each_once(world, (0..users).map(address));
    assert_eq!((states(world).await?, noted(world).await?), (all("sent", count), count));
    let open: i64 = world.value("select count(*) from jobs.email_batches where state = 'sealed'").await?;
    let messages: i64 = world.value("select count(*) from pgmq.q_jobs_marketing").await?;
    assert_eq!((open, messages), (0, 0));
    Ok(())
}

/// Returns the requests that carried mails, in order.
fn requests(world: &World) -> Vec<Seen> {
    world.resend.faults().seen().into_iter().filter(|seen| seen.target.contains(BATCH)).collect()
}

fn key(request: &Seen) -> &str {
    request.headers["idempotency-key"].to_str().expect("ASCII")
}

/// Counts the mails that a request carried.
fn size(request: &Seen) -> usize {
    let mails: Vec<Value> = serde_json::from_str(&request.body).expect("a list of mails");
    mails.len()
}

/// Tells whether a problem with this code is told, and blocks.
fn blocking(part: &Value, code: &str) -> bool {
    part["problems"]
        .as_array()
        .is_some_and(|problems| problems.iter().any(|p| p["code"] == code && p["blocking"] == true))
}
