//! Nothing is cut: neither a list of users nor one of movements.

use anyhow::Result;
use chrono::TimeDelta;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{imported_cents, movements};
use crate::world::{World, encrypt};

const USERS: usize = 1_001;

/// Shops with one payment each, proven before: 2 requests to Shopify a user.
async fn many_shops(world: &World) -> Result<i64> {
    let (mut users, mut shops, mut tokens, mut sum) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for n in 0..USERS {
        let shop = format!("shop-{n}.myshopify.com");
        world.shopify.add_shop(&shop, "EUR", &format!("shpat_{n}"));
        sum += world.shopify.tenders(&shop, world.earlier(5), TimeDelta::zero(), 1 + n % 2);
        users.push(Uuid::new_v4());
        tokens.push(encrypt(&format!("shpat_{n}")));
        shops.push(shop);
    }
    sqlx::query(
        "with u as (insert into auth.users (id, email, email_confirmed_at, created_at) \
             select id, id || '@example.test', '2020-01-01', '2020-01-01' from unnest($1::uuid[]) id) \
         insert into public.integration_tokens (user_id, provider, access_token, shop_domain, connected_at) \
         select id, 'shopify', token, shop, '2020-01-01' from unnest($1::uuid[], $2::text[], $3::text[]) t (id, token, shop)",
    )
    .bind(&users)
    .bind(&tokens)
    .bind(&shops)
    .execute(world.pool())
    .await?;
    world
        .run(
            "insert into jobs.integration_state (user_id, provider, account, proof) \
             select user_id, provider, shop_domain, jobs.token_fingerprint(t) from public.integration_tokens t",
        )
        .await?;
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_and_one_integrations_in_one_run() -> Result<()> {
    let mut world = World::new().await?;
    world.set("JOB_CONCURRENCY", "64");
    let sum = many_shops(&world).await?;
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!((&answer["errors"], &answer["remaining"]), (&json!(0), &Value::Null));
    assert_eq!(answer["results"].as_array().map(Vec::len), Some(1_000));
    assert_eq!((&answer["resultsTotal"], &answer["totalSynced"]), (&json!(USERS), &json!(USERS + USERS / 2)));
    let (total, users): (i64, i64) = sqlx::query_as(
        "select sum(amount_eur * 100)::bigint, count(distinct user_id) from public.ca_records",
    )
    .fetch_one(world.pool())
    .await?;
    assert_eq!((total, users), (sum, i64::try_from(USERS)?));
    let answer = world.post("monthly-sync", "force=true&dry_run=true").await?;
    assert_eq!(answer["dryRun"]["items"], json!(USERS), "{answer}");
    // What is reported of a month, without reading it again.
    let run = Uuid::new_v4();
    let mut plan = super::plan(&world, run, None, None);
    (plan["p_kind"], plan["p_payload"]) =
        (json!("sync_month"), json!({"month": "2026-01", "count_month": false}));
    super::rpc(&world, "jobs_plan_sync", &plan).await?;
    let asked = json!({"p_run_id": run, "p_limit": 1000, "p_bytes": 1_000_000, "p_now": world.now()});
    let report = super::rpc(&world, "jobs_report", &asked).await?;
    assert_eq!(report["counts"]["planned"], json!(USERS), "totalUsers");
    Ok(())
}

/// A run over ten thousand users died; the next one plans in time, and its first claim finds its own items behind
/// ten thousand messages of the other.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_leftovers() -> Result<()> {
    let world = World::new().await?;
    world
        .run(
            "with u as (insert into auth.users (id) select gen_random_uuid() from generate_series(1, 10000) returning id) \
             insert into public.integration_tokens (user_id, provider, access_token, stripe_account_id) \
             select id, 'stripe', 'x', 'acct_x' from u",
        )
        .await?;
    let (dead, next) = (Uuid::new_v4(), Uuid::new_v4());
    for run in [dead, next] {
        let planned = super::rpc(&world, "jobs_plan_sync", &super::plan(&world, run, None, None)).await?;
        assert_eq!(planned["plan"]["items"], 10_000, "{planned}");
    }
    let claimed = super::claim(&world, Uuid::new_v4(), 32).await?;
    assert_eq!(claimed.len(), 32);
    assert!(claimed.iter().all(|item| item["run_id"] == json!(next)));
    let mut of_dead = json!({"p_run_id": dead, "p_limit": 0, "p_bytes": 0, "p_now": world.now()});
    assert_eq!(super::rpc(&world, "jobs_close_runs", &json!({"p_now": world.now()})).await?, 1);
    let report = super::rpc(&world, "jobs_report", &of_dead).await?;
    assert_eq!((&report["status"], &report["counts"]["superseded"]), (&json!("partial"), &json!(10_000)));
    of_dead["p_run_id"] = json!(next);
    let report = super::rpc(&world, "jobs_report", &of_dead).await?;
    assert_eq!((&report["counts"]["queued"], &report["in_flight"]), (&json!(10_000), &json!(32)));
    // What was looked at and not taken is free for others.
    let free: i64 =
        world.value("select count(*) from pgmq.q_jobs_stripe where vt <= clock_timestamp()").await?;
    assert_eq!(free, 10_000 - 32);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn eleven_pages_and_more_than_one_checkpoint() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_1001").await?;
    let stripe = world.stripe.payments("acct_1001", world.earlier(60), TimeDelta::zero(), 1_001, "eur");
    world.shopify.add_shop("long.myshopify.com", "EUR", "shpat_long");
    world.shopify.set_bucket("long.myshopify.com", 1e6, 1e6);
    world.connect_shopify(user, "long.myshopify.com", "shpat_long", None).await?;
    let shopify = world.shopify.tenders("long.myshopify.com", world.earlier(60), TimeDelta::zero(), 4_100);
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!((&answer["totalSynced"], &answer["errors"]), (&json!(5_101), &json!(0)), "{answer}");
    assert_eq!(world.stripe.faults().count("balance_transactions"), 11);
    assert!(world.environment.gateway.faults().count("integration_settle") >= 4, "two checkpoints, two ends");
    assert_eq!(movements(&world, user).await?, 5_101);
    assert_eq!(imported_cents(&world, user).await?, stripe + shopify);
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["totalSynced"], 0, "{answer}");
    Ok(())
}

/// A busy merchant's shop is paid through Stripe: every payment is reported twice, and counted
/// once, long before the statement's time is over.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_payments_seen_through_both() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_both").await?;
    world.shopify.add_shop("both.myshopify.com", "EUR", "shpat_both");
    world.connect_shopify(user, "both.myshopify.com", "shpat_both", None).await?;
    let integration: Uuid =
        world.value("select id from public.integration_tokens where provider = 'stripe'").await?;
    // What was read before: 20,000 payments, each through both, and 2,000 refunds that name no payment.
    sqlx::query(
        "with state as (insert into jobs.integration_state (user_id, provider, account, activity, first_month, counted) \
             select $1, p, 'x', 'Vente de marchandises', date_trunc('month', $2 at time zone 'Europe/Paris'), \
             datemultirange(daterange(date_trunc('month', $2 at time zone 'Europe/Paris')::date, null)) \
             from unnest(array['stripe', 'shopify']) p) \
         insert into jobs.integration_transactions \
             (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs) \
         select $1, p, kind || n, 'x', kind, $2, case kind when 'payment' then 1000 else -100 end, 'EUR', \
             case when p = 'stripe' then array['ch_' || n] when kind = 'payment' \
             then array['ch_' || n, 'gid://shopify/Order/' || n] else array['gid://shopify/Order/' || n] end \
         from unnest(array['stripe', 'shopify']) p, unnest(array['payment', 'refund']) kind, \
             generate_series(1, case kind when 'payment' then 20000 else 2000 end) n",
    )
    .bind(user)
    .bind(world.earlier(60))
    .execute(world.pool())
    .await?;
    super::rpc(&world, "jobs_plan_sync", &super::plan(&world, Uuid::new_v4(), None, None)).await?;
    let lease = Uuid::new_v4();
    let item = super::claim(&world, lease, 1).await?.remove(0);
    super::rpc(
        &world,
        "integration_settle",
        &super::settle(&world, &item, lease, integration, &[("txn_new", 5)]),
    )
    .await?;
    assert_eq!(imported_cents(&world, user).await?, 20_000 * 1_000 - 2_000 * 100 + 5);
    Ok(())
}
