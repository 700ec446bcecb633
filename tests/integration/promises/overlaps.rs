//! Runs that overlap: one plans, the others help, and nothing is counted twice.

use std::sync::Arc;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{USER_LOCK, WAITING, imported_cents, listed_cents, movements, pass_visibility, replay, until};
use crate::world::{Answer, SECRET, World};

/// Waits for all of them, side by side.
async fn join_all<T: Send + 'static>(
    tasks: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let handles: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::with_capacity(handles.len());
    for handle in handles {
        results.push(handle.await.expect("no panic"));
    }
    results
}

/// Returns a minute before the last sync hour, which is never in another Paris month than that
/// hour.
fn before_sync_hour(world: &World) -> DateTime<Utc> {
    world.last_sync_hour() - TimeDelta::minutes(1)
}

fn sync_hour(world: &World) -> String {
    replay(world.last_sync_hour())
}

async fn calls(world: &World, method: Method, name: &str, query: &str, count: usize) -> Result<Vec<Answer>> {
    let processes = count.min(4);
    let mut functions = Vec::new();
    for _ in 0..processes {
        functions.push(Arc::new(world.function(name).await?));
    }
    let calls = (0..count).map(|n| {
        let (function, method, query) = (functions[n % processes].clone(), method.clone(), query.to_owned());
        async move { function.call(method, &query, Some(&format!("Bearer {SECRET}"))).await }
    });
    join_all(calls).await.into_iter().collect()
}

async fn users(world: &World, count: usize) -> Result<Vec<(Uuid, String)>> {
    let mut users = Vec::new();
    for n in 0..count {
        let account = format!("acct_{n}");
        let user = world.stripe_user(&account).await?;
        // Before the sync hour, so that a replay of it sees them.
        world.stripe.payments(&account, before_sync_hour(world), TimeDelta::zero(), 3 + n, "eur");
        users.push((user, account));
    }
    Ok(users)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_and_twenty_crons_at_once_are_one_run() -> Result<()> {
    for count in [2, 20] {
        let world = World::new().await?;
        let users = users(&world, 5).await?;
        let answers = calls(&world, Method::GET, "daily-orchestrator", &sync_hour(&world), count).await?;
        let mut planned = 0;
        for answer in answers {
            let body = answer.json();
            assert_eq!(answer.status, 200, "{body}");
            let sync = &body["results"]["syncIntegrations"];
            assert_eq!(
                (&sync["synced"], &sync["errors"], &sync["remaining"]),
                (&json!(5), &json!(0), &Value::Null)
            );
            planned += usize::from(sync["skipped"] == false);
        }
        assert_eq!(planned, 1, "of {count}");
        for (user, account) in &users {
            assert_eq!(imported_cents(&world, *user).await?, listed_cents(&world, account));
        }
        let (runs, items, logged, called): (i64, i64, i64, i64) = sqlx::query_as(
            "select (select count(*) from jobs.job_runs where task = 'sync_integrations'), \
             (select count(*) from jobs.job_items where kind = 'sync_integration'), \
             (select count(*) from public.sync_logs where user_id is not null), \
             (select count(*) from public.sync_logs where user_id is null)",
        )
        .fetch_one(world.pool())
        .await?;
        assert_eq!((runs, items, logged), (1, 5, 5));
        assert_eq!(called, i64::try_from(count)?, "each call leaves its row");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_at_once_for_the_same_users() -> Result<()> {
    let world = World::new().await?;
    let users = users(&world, 3).await?;
    for (user, account) in &users {
        let shop = format!("shop-{}.myshopify.com", account.trim_start_matches("acct_"));
        world.shopify.add_shop(&shop, "EUR", &format!("shpat_{shop}"));
        world.connect_shopify(*user, &shop, &format!("shpat_{shop}"), None).await?;
        world.shopify.tenders(&shop, before_sync_hour(&world), TimeDelta::zero(), 4);
    }
    // Before the first movement, so that its month is in the books whichever call sees the account first.
    sqlx::query("update public.integration_tokens set connected_at = $1")
        .bind(before_sync_hour(&world) - TimeDelta::days(1))
        .execute(world.pool())
        .await?;
    let month = format!("month={}", world.months_ago(0));
    let routes = [
        (Method::POST, "sync-integrations", String::new()),
        (Method::POST, "monthly-sync", month.clone()),
        (Method::GET, "daily-orchestrator", sync_hour(&world)),
        (Method::POST, "sync-integrations", "days=60".into()),
        (Method::POST, "monthly-sync", month),
        (Method::GET, "sync-integrations", String::new()),
    ];
    let mut functions = Vec::new();
    for (method, name, query) in routes {
        functions.push((world.function(name).await?, method, query));
    }
    let answers = join_all(functions.into_iter().map(|(function, method, query)| async move {
        function.call(method, &query, Some(&format!("Bearer {SECRET}"))).await
    }))
    .await;
    for answer in answers {
        let answer = answer?;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    // What another run took over is settled by it.
    let world = &world;
    until("nothing is queued", async || {
        Ok(world.value::<i64>("select count(*) from jobs.job_items where status = 'queued'").await? == 0)
    })
    .await?;
    let shop: i64 = (1_000..1_004).sum();
    for (user, account) in &users {
        assert_eq!(imported_cents(world, *user).await?, listed_cents(world, account) + shop);
        let stripe = i64::try_from(world.stripe.listed(account).len())?;
        assert_eq!(movements(world, *user).await?, stripe + 4);
    }
    let records: i64 = world
        .value("select sum((result ->> 'records')::bigint)::bigint from jobs.job_items where status = 'done'")
        .await?;
    assert_eq!(records, 3 + 4 + 5 + 3 * 4, "each movement was new to one run only");
    Ok(())
}

/// The lease of a slow worker passes, another one reads and settles: the first writes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_message_writes_nothing() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_slow").await?;
    world.stripe.payment("acct_slow", world.earlier(90), 1_000, "eur");
    let slow = world.function("sync-integrations").await?;
    let other = world.function("drain-queue").await?;
    let bearer = format!("Bearer {SECRET}");

    // Whoever settles first waits for this, in the order of arrival.
    let mut held = world.pool().begin().await?;
    sqlx::query(USER_LOCK).bind(user.to_string()).execute(&mut *held).await?;
    let take_over = async {
        until("the slow worker settles", async || Ok(world.value::<i64>(WAITING).await? == 1)).await?;
        world.stripe.payment("acct_slow", world.earlier(80), 500, "eur");
        pass_visibility(&world).await?;
        other.call(Method::POST, "", Some(&bearer)).await?;
        until("the other one settles", async || Ok(world.value::<i64>(WAITING).await? == 2)).await?;
        held.rollback().await?;
        anyhow::Ok(())
    };
    let (answer, taken) = tokio::join!(slow.call(Method::POST, "", Some(&bearer)), take_over);
    taken?;
    let answer = answer?.json();
    assert_eq!(answer["totalSynced"], 2, "the report is the item's, whoever settled it: {answer}");
    assert_eq!(imported_cents(&world, user).await?, 1_500);
    assert_eq!(
        world.value::<i64>("select count(*) from public.sync_logs where user_id is not null").await?,
        1
    );
    assert!(slow.log().contains("taken over"), "{}", slow.log());
    Ok(())
}

/// Two sources of one user settle at the same moment: neither overwrites the other.
#[tokio::test(flavor = "multi_thread")]
async fn two_sources_of_one_user_at_once() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_two").await?;
    sqlx::query("update public.integration_tokens set activity_type = 'Vente de marchandises'")
        .execute(world.pool())
        .await?;
    world.shopify.add_shop("two.myshopify.com", "EUR", "shpat_two");
    world.connect_shopify(user, "two.myshopify.com", "shpat_two", None).await?;
    for round in 1..=5 {
        world.stripe.payment("acct_two", world.earlier(90), 1_000, "eur");
        world.shopify.tenders("two.myshopify.com", world.earlier(80), TimeDelta::zero(), 1);
        world.post("sync-integrations", "").await?;
        assert_eq!(imported_cents(&world, user).await?, round * 2_000, "one row for both");
    }
    Ok(())
}
