//! The platform kills the function, in every moment that matters: another run counts everything once.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::faults::{Fault, Rule};
use uuid::Uuid;

use super::{USER_LOCK, WAITING, imported_cents, listed_cents, movements, pass_visibility, until};
use crate::world::{SECRET, World};

const LONG: Fault = Fault::Delay(Duration::from_mins(5));

/// Makes three pages of payments, a refund and a dispute.
async fn ledger(world: &World, account: &str) -> Result<Uuid> {
    let user = world.stripe_user(account).await?;
    world.stripe.payments(account, world.earlier(90), TimeDelta::zero(), 220, "eur");
    let paid = world.stripe.payment(account, world.earlier(90), 12_345, "eur");
    world.stripe.refund(account, &paid.charge, world.earlier(60), 1_005);
    let contested = world.stripe.payment(account, world.earlier(90), 777, "eur");
    world.stripe.dispute(account, &contested.charge, world.earlier(50), 777);
    world.stripe.payout(account, world.earlier(40), 9_999, "eur");
    Ok(user)
}

/// Starts a sync and kills it once `reached` says so.
async fn killed_once<F>(world: &World, what: &str, reached: F) -> Result<()>
where
    F: AsyncFnMut() -> Result<bool>,
{
    let mut function = world.function("sync-integrations").await?;
    let bearer = format!("Bearer {SECRET}");
    {
        let call = function.call(Method::POST, "", Some(&bearer));
        tokio::select! {
            answer = call => panic!("{what}: answered before it was killed: {answer:?}"),
            reached = until(what, reached) => reached?,
        }
    }
    function.kill().await
}

/// Checks what must hold after the next run, whatever was lost before it.
async fn check(world: &World, user: Uuid, account: &str) -> Result<()> {
    assert_eq!(imported_cents(world, user).await?, listed_cents(world, account));
    assert_eq!(movements(world, user).await?, 224);
    let twice: i64 = world
        .value("select count(*) from (select item_id from jobs.job_items where status <> 'queued' group by 1 having count(*) > 1) t")
        .await?;
    let logged: i64 = world.value("select count(*) from public.sync_logs where user_id is not null").await?;
    let settled: i64 = world
        .value("select count(*) from jobs.job_items where status in ('done', 'partial', 'failed')")
        .await?;
    assert_eq!((twice, logged), (0, settled), "one row of the log for each settled item");
    let counted: i64 = world
        .value("select sum((result ->> 'records')::bigint)::bigint from jobs.job_items where status = 'done'")
        .await?;
    assert_eq!(counted, 224, "each movement was new once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_pages_were_read() -> Result<()> {
    let world = World::new().await?;
    let user = ledger(&world, "acct_read").await?;
    world.stripe.faults().add(Rule::on("balance_transactions", LONG).skip(2));
    killed_once(&world, "the third page", async || {
        Ok(world.stripe.faults().count("balance_transactions") == 3)
    })
    .await?;
    assert_eq!(movements(&world, user).await?, 0);
    world.stripe.faults().clear();
    // The dead worker's lease still stands: the new run's own item does the work.
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["totalSynced"], 224, "{answer}");
    check(&world, user, "acct_read").await?;
    // Its item comes back, too, and finds nothing new.
    pass_visibility(&world).await?;
    let function = world.function("drain-queue").await?;
    function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
    until("both items are settled", async || {
        Ok(world.value::<i64>("select count(*) from jobs.job_items where status = 'done'").await? == 2)
    })
    .await?;
    check(&world, user, "acct_read").await
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_settle_arrives() -> Result<()> {
    let world = World::new().await?;
    let user = ledger(&world, "acct_sent").await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("integration_settle", LONG));
    killed_once(&world, "the settle", async || Ok(gateway.count("integration_settle") == 1)).await?;
    assert_eq!(movements(&world, user).await?, 0);
    gateway.clear();
    pass_visibility(&world).await?;
    world.post("sync-integrations", "").await?;
    check(&world, user, "acct_sent").await
}

/// PostgREST commits although the client has gone.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_settles() -> Result<()> {
    let world = World::new().await?;
    let user = ledger(&world, "acct_settle").await?;
    let mut held = world.pool().begin().await?;
    sqlx::query(USER_LOCK).bind(user.to_string()).execute(&mut *held).await?;
    killed_once(&world, "the settle waits for the user's lock", async || {
        Ok(world.value::<i64>(WAITING).await? == 1)
    })
    .await?;
    held.rollback().await?;
    until("the orphaned settle commits", async || Ok(movements(&world, user).await? == 224)).await?;
    pass_visibility(&world).await?;
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["totalSynced"], 0, "{answer}");
    check(&world, user, "acct_settle").await
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_settle_before_the_answer() -> Result<()> {
    let world = World::new().await?;
    let user = ledger(&world, "acct_told").await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("jobs_report", LONG));
    killed_once(&world, "the report", async || Ok(gateway.count("jobs_report") == 1)).await?;
    assert_eq!(movements(&world, user).await?, 224);
    gateway.clear();
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["totalSynced"], 0, "{answer}");
    check(&world, user, "acct_told").await?;
    let open: i64 = world.value("select count(*) from jobs.job_runs where finished_at is null").await?;
    assert_eq!(open, 0, "the dead run was closed, too");
    Ok(())
}

/// The database did its part, and the answer was lost on the way: the repeated call changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost() -> Result<()> {
    let world = World::new().await?;
    let user = ledger(&world, "acct_cut").await?;
    for function in ["jobs_plan_sync", "jobs_claim", "integration_settle", "integration_prove", "jobs_log"] {
        world.environment.gateway.faults().add(Rule::on(function, Fault::CutAfter).times(1));
    }
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!((&answer["totalSynced"], &answer["errors"]), (&json!(224), &json!(0)), "{answer}");
    assert_eq!(answer["skipped"], Value::Null, "{answer}");
    check(&world, user, "acct_cut").await?;
    let runs: i64 = world.value("select count(*) from jobs.job_runs").await?;
    let calls: i64 = world.value("select count(*) from public.sync_logs where user_id is null").await?;
    assert_eq!((runs, calls), (1, 1));
    Ok(())
}

/// A reading of more than two checkpoints is killed between them: the next worker goes on behind
/// the last one.
#[tokio::test(flavor = "multi_thread")]
async fn between_two_checkpoints() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_long").await?;
    let sum = world.stripe.payments("acct_long", world.earlier(90), TimeDelta::zero(), 4_150, "eur");
    world.stripe.faults().add(Rule::on("balance_transactions", LONG).skip(25));
    killed_once(&world, "page 26", async || Ok(world.stripe.faults().count("balance_transactions") == 26))
        .await?;
    assert_eq!((movements(&world, user).await?, imported_cents(&world, user).await?), (2_000, 0));
    world.stripe.faults().clear();
    world.stripe.faults().forget();
    pass_visibility(&world).await?;
    let function = world.function("drain-queue").await?;
    function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
    until("the item is settled", async || Ok(imported_cents(&world, user).await? == sum)).await?;

    assert_eq!(movements(&world, user).await?, 4_150);
    let records: i64 = world.value("select (result ->> 'records')::bigint from jobs.job_items").await?;
    let logged: i32 =
        world.value("select records_synced from public.sync_logs where user_id is not null").await?;
    assert_eq!((records, logged), (4_150, 4_150), "those of the dead worker count, too");
    let pages: Vec<String> = world.stripe.faults().seen().into_iter().map(|seen| seen.target).collect();
    assert!(pages.first().context("a page")?.contains("starting_after"), "{pages:#?}");
    assert_eq!(pages.len(), 22, "pages 21 to 42");
    Ok(())
}

/// A cursor belongs to a shop. Connected to another one in between, the item begins at its first page.
#[tokio::test(flavor = "multi_thread")]
async fn between_two_checkpoints_and_another_shop() -> Result<()> {
    let world = World::new().await?;
    // Its rows have the smaller ids: a cursor of the other shop would lie behind them all.
    world.shopify.add_shop("after.myshopify.com", "EUR", "shpat_after");
    let after = world.shopify.tenders("after.myshopify.com", world.earlier(80), TimeDelta::zero(), 300);
    let user = world.shopify_user("before.myshopify.com").await?;
    let before = world.shopify.tenders("before.myshopify.com", world.earlier(90), TimeDelta::zero(), 2_600);
    world.shopify.set_bucket("before.myshopify.com", 1e6, 1e6);

    let gateway = world.environment.gateway.faults();
    let pages = || {
        world.shopify.faults().seen().iter().filter(|seen| seen.body.contains("TenderTransactions")).count()
    };
    gateway.add(Rule::on("integration_settle", LONG).skip(1));
    killed_once(&world, "the second settle", async || Ok(gateway.count("integration_settle") == 2)).await?;
    gateway.clear();
    assert!(pages() > 8);
    let stored = movements(&world, user).await?;
    assert!((2_000..2_600).contains(&stored), "{stored}");
    sqlx::query("update public.integration_tokens set shop_domain = $1, access_token = $2")
        .bind("after.myshopify.com")
        .bind(crate::world::encrypt("shpat_after"))
        .execute(world.pool())
        .await?;
    pass_visibility(&world).await?;
    let function = world.function("drain-queue").await?;
    function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
    until("the item is settled", async || {
        Ok(world.value::<i64>("select count(*) from jobs.job_items where status = 'done'").await? == 1)
    })
    .await?;
    let of_after: i64 = world
        .value("select coalesce(sum(amount_minor), 0)::bigint from jobs.integration_transactions where account = 'after.myshopify.com'")
        .await?;
    assert_eq!(of_after, after);
    assert!(
        imported_cents(&world, user).await? > after && imported_cents(&world, user).await? < before + after
    );
    Ok(())
}
