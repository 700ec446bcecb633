//! A merchant with very many movements keeps nobody waiting.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use stand_ins::faults::{Fault, Rule};
use uuid::Uuid;

use super::{imported_cents, movements, plan, rpc, until};
use crate::world::{SECRET, World};

/// So many movements are more than two pieces, in pages of 100.
const MANY: usize = 24_000;
/// A piece has so many pages, with those that are read on before it can be told that others wait.
const PAGES_OF_A_PIECE: usize = 100 + 20;

/// As many busy merchants as there are places, first in the queue: everybody else is served before they are read to
/// their end, and nothing of what they set aside in between is lost or counted twice.
#[tokio::test(flavor = "multi_thread")]
async fn busy_merchants_let_the_others_pass() -> Result<()> {
    let mut world = World::new().await?;
    world.set("JOB_CONCURRENCY", "2");
    for n in 0..12 {
        world.stripe_user(&format!("acct_{n}")).await?;
    }
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    let order: Vec<(Uuid, String)> = sqlx::query_as(
        "select i.user_id, t.stripe_account_id from jobs.job_items i \
         join public.integration_tokens t on t.id = i.subject order by i.item_id",
    )
    .fetch_all(world.pool())
    .await?;
    let (busy, others) = order.split_at(2);
    let mut sums = Vec::new();
    for (n, (_, account)) in order.iter().enumerate() {
        let count = if n < busy.len() { MANY } else { 3 };
        sums.push(world.stripe.payments(account, world.earlier(90), TimeDelta::zero(), count, "eur"));
    }

    let function = world.function("drain-queue").await?;
    function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
    until("everything is settled", async || {
        Ok(world.value::<i64>("select count(*) from jobs.job_items where status = 'queued'").await? == 0)
    })
    .await?;

    let whose: Vec<String> = world
        .stripe
        .faults()
        .seen()
        .iter()
        .filter(|seen| seen.target.contains("balance_transactions"))
        .filter_map(|seen| Some(seen.headers.get("stripe-account")?.to_str().ok()?.to_owned()))
        .collect();
    let is_busy = |account: &String| busy.iter().any(|(_, name)| name == account);
    let served = whose.iter().rposition(|account| !is_busy(account)).unwrap_or_default();
    let before = whose[..served].iter().filter(|account| is_busy(account)).count();
    assert!(
        before <= busy.len() * PAGES_OF_A_PIECE,
        "{before} pages of the busy ones before the others' last"
    );
    assert_eq!(whose.len(), busy.len() * MANY / 100 + others.len(), "no page was read twice");
    for ((user, account), sum) in order.iter().zip(sums) {
        assert_eq!(imported_cents(&world, *user).await?, sum, "{account}");
    }
    for (user, _) in busy {
        assert_eq!(movements(&world, *user).await?, i64::try_from(MANY)?);
    }
    let records: i64 = world
        .value("select sum((result ->> 'records')::bigint)::bigint from jobs.job_items where status = 'done'")
        .await?;
    assert_eq!(records, i64::try_from(busy.len() * MANY + others.len() * 3)?);
    Ok(())
}

/// Returns the accounts whose movements have been asked for so far.
fn accounts_read(world: &World) -> BTreeSet<String> {
    let seen = world.stripe.faults().seen();
    let pages = seen.iter().filter(|seen| seen.target.contains("balance_transactions"));
    pages.filter_map(|seen| Some(seen.headers.get("stripe-account")?.to_str().ok()?.to_owned())).collect()
}

/// With a budget too short for everybody, nothing that goes on, and a plan anew every six hours,
/// whoever has waited longest is read first, so that everybody is read within as many calls as the
/// work needs. `JOBS_TEST_INTEGRATIONS=2000` with `--nocapture` measures it for so many, whose plan alone takes more than
/// that second: `JOBS_TEST_BUDGET_SECONDS=10`.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_waited_longest_is_read_first() -> Result<()> {
    const USERS: usize = 60;
    let users = match std::env::var("JOBS_TEST_INTEGRATIONS") {
        Ok(number) => number.parse()?,
        Err(_) => USERS,
    };
    let mut world = World::new().await?;
    world.set("JOB_CONCURRENCY", "1");
    world.set("JOB_BUDGET_SECONDS", &std::env::var("JOBS_TEST_BUDGET_SECONDS").unwrap_or("1".to_owned()));
    world.set("STRIPE_REQUESTS_PER_SECOND", "1000");
    for n in 0..users {
        world.stripe_user(&format!("acct_{n}")).await?;
    }
    world.stripe.faults().add(Rule::on("balance_transactions", Fault::Delay(Duration::from_millis(40))));
    let first = world.last_sync_hour();
    let mut read = BTreeSet::new();
    let mut least = users;
    let mut calls = 0;
    while read.len() < users {
        world.set_now(first + TimeDelta::hours(6 * calls));
        calls += 1;
        let answer = world.cron("daily-orchestrator", "").await?;
        let before = read.len();
        read = accounts_read(&world);
        let more = read.len() - before;
        assert!(more > 0, "call {calls} read nobody new: {answer}");
        if read.len() < users {
            least = least.min(more);
            let waiting: DateTime<Utc> =
                world.value("select min(waiting_since) from jobs.job_items where status = 'queued' and lane = 'stripe'").await?;
            assert_eq!(waiting, first, "who is planned anew has waited since the first plan");
        }
    }
    println!("{users} integrations were read in {calls} calls, {least} a call at least");
    // Each call but the last one read people who had not been read: nobody is read twice before everybody was.
    assert!(usize::try_from(calls)? <= users.div_ceil(least), "{calls} calls, {least} a call");
    Ok(())
}
