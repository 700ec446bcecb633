//! What Stripe and a Stripe integration can do to us.

use anyhow::Result;
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    shopify::Tender,
    stripe,
};
use uuid::Uuid;

use super::{SYNC, Told, ask, heal, last_error, turnover};
use crate::world::{World, encrypt};

const LIST: &str = "/v1/balance_transactions";

async fn set_token(world: &World, user: Uuid, stored: &str) -> Result<()> {
    sqlx::query("update public.integration_tokens set access_token = $2 where user_id = $1")
        .bind(user)
        .bind(stored)
        .execute(world.pool())
        .await?;
    Ok(())
}

async fn claim_account(world: &World, user: Uuid, account: &str) -> Result<()> {
    sqlx::query("update public.integration_tokens set stripe_account_id = $2 where user_id = $1")
        .bind(user)
        .bind(account)
        .execute(world.pool())
        .await?;
    Ok(())
}

/// Checks an answer in which one item failed for good, and what its owner reads.
async fn failed(world: &World, told: &Told, user: Uuid, code: &str, words: &str) -> Result<()> {
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(1)), "{}", told.text);
    let message = told.problem(code).unwrap_or_else(|| panic!("no {code} in {}", told.text));
    assert!(message.contains(words), "{message}");
    assert_eq!(last_error(world, user).await?.as_deref(), Some(message), "the user sees the same");
    let logged: i64 = world
        .value("select count(*) from public.sync_logs where provider <> 'jobs' and status = 'error'")
        .await?;
    assert!(logged >= 1);
    let called: String = world
        .value("select status from public.sync_logs where provider = 'jobs' order by xmin::text::bigint desc limit 1")
        .await?;
    assert_ne!(called, "success", "a run with a failed part is none");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_does_not_decrypt() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_cipher").await?;
    world.stripe.payment("acct_cipher", world.earlier(90), 4_200, "eur");
    let good = encrypt("sk_acct_token_acct_cipher");
    for stored in ["", "sk_acct_token_acct_cipher", "zz:zz", ":", &good[..good.len() - 2], &good[33..]] {
        set_token(&world, user, stored).await?;
        let told = ask(&world, Method::POST, SYNC, "").await?;
        failed(&world, &told, user, "token_unreadable", "la connexion doit être refaite").await?;
    }
    assert!(world.stripe.faults().seen().is_empty(), "nothing was sent anywhere");
    set_token(&world, user, &good).await?;
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(last_error(&world, user).await?, None);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

/// With our platform key every connected account would open: the row's own token decides which one it may name.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_not_the_rows_own() -> Result<()> {
    let world = World::new().await?;
    let victim = world.stripe_user("acct_victim").await?;
    world.stripe.payment("acct_victim", world.earlier(90), 99_900, "eur");
    let thief = world.stripe_user("acct_thief").await?;
    world.stripe.payment("acct_thief", world.earlier(90), 100, "eur");
    assert_eq!(heal(&world).await?, 2);

    claim_account(&world, thief, "acct_victim").await?;
    world.stripe.payment("acct_victim", world.earlier(60), 1_000, "eur");
    world.stripe.faults().forget();
    let told = ask(&world, Method::POST, SYNC, &format!("user_id={thief}")).await?;
    failed(&world, &told, thief, "account_mismatch", "rien n’a été lu").await?;
    assert_eq!(world.stripe.faults().count(LIST), 0, "nothing was read");
    let theirs: i64 = sqlx::query_scalar(
        "select count(*) from jobs.integration_transactions where user_id = $1 and account = 'acct_victim'",
    )
    .bind(thief)
    .fetch_one(world.pool())
    .await?;
    assert_eq!(theirs, 0);
    assert_eq!(turnover(&world, thief).await?.as_deref(), Some("1.00"), "what they had stays");
    let reported: i64 = world
        .value("select count(*) from public.sync_logs where (metadata ->> 'also_claimed_by')::integer = 1")
        .await?;
    assert_eq!(reported, 1, "two users claim one account: the log says so");

    // Not an account at all, or one that would be another request.
    for account in ["", "acct_", "cus_1", "acct_x\r\nX-Evil: 1", "acct_1?limit=1", "acct_1/../x"] {
        claim_account(&world, thief, account).await?;
        let told = ask(&world, Method::POST, SYNC, &format!("user_id={thief}")).await?;
        failed(&world, &told, thief, "not_connected", "la connexion doit être refaite").await?;
    }
    assert_eq!(world.stripe.faults().count(LIST), 0);

    claim_account(&world, thief, "acct_thief").await?;
    assert_eq!(heal(&world).await?, 1, "the victim's new payment");
    assert_eq!(turnover(&world, victim).await?.as_deref(), Some("1009.00"));
    assert_eq!(turnover(&world, thief).await?.as_deref(), Some("1.00"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_account_until_it_is_connected_again() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_left").await?;
    world.stripe.payment("acct_left", world.earlier(90), 4_200, "eur");
    assert_eq!(heal(&world).await?, 1);
    world.stripe.revoke("acct_left");
    world.stripe.payment("acct_left", world.earlier(60), 800, "eur");
    let told = ask(&world, Method::POST, SYNC, "").await?;
    failed(&world, &told, user, "access_revoked", "la connexion doit être refaite").await?;
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"), "what was read stays");
    // A token that was never proven and is refused.
    set_token(&world, user, &encrypt("sk_acct_token_of_nobody")).await?;
    let told = ask(&world, Method::POST, SYNC, "").await?;
    failed(&world, &told, user, "token_rejected", "doit être refaite").await?;

    world.stripe.reconnect("acct_left", "sk_acct_token_new");
    set_token(&world, user, &encrypt("sk_acct_token_new")).await?;
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("50.00"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_key_refused_stops_stripe_with_one_message_and_nothing_else() -> Result<()> {
    let mut world = World::new().await?;
    let mut users = Vec::new();
    for number in 0..5 {
        let account = format!("acct_ours{number}");
        users.push(world.stripe_user(&account).await?);
        world.stripe.payment(&account, world.earlier(90), 1_000, "eur");
    }
    let shop = world.shopify_user("ours.myshopify.com").await?;
    world.shopify.tender("ours.myshopify.com", Tender::new(world.earlier(90), "55.0", "EUR"));
    world.set("JOB_CONCURRENCY", "2");
    // What was claimed and not tried is free again at once, even where our word of it has to be repeated.
    world.environment.gateway.faults().add(Rule::on("/rpc/jobs_release", Fault::CutAfter).times(1));
    let right = world.replace("STRIPE_SECRET_KEY", Some("sk_test_rolled_over".into()));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!(told.status, 200, "{}", told.text);
    assert_eq!((&told.body["errors"], &told.body["remaining"]), (&json!(1), &json!(5)), "{}", told.text);
    assert_eq!(told.body["problems"].as_array().map(Vec::len), Some(1), "one message: {}", told.text);
    let message = told.problem("own_credentials").unwrap_or_default();
    assert!(message.contains("Stripe refuse les identifiants de Comptalyze"), "{}", told.text);
    assert!(world.stripe.faults().count(LIST) <= 2, "the others were not even tried");
    assert_eq!(turnover(&world, shop).await?.as_deref(), Some("55.00"), "Shopify goes on");
    for user in &users {
        assert_eq!(last_error(&world, *user).await?, None, "no user is told to act on our mistake");
    }
    assert_eq!(world.value::<i32>("select max(attempts) from jobs.job_items").await?, 0);

    // The monthly sync says the same and does not fail the shop's owner.
    let told = ask(&world, Method::POST, "monthly-sync", &format!("month={}", world.month())).await?;
    assert_eq!(told.status, 200, "{}", told.text);
    assert!(told.problem("own_credentials").is_some() && told.body["errors"] == 1, "{}", told.text);

    world.replace("STRIPE_SECRET_KEY", right);
    assert_eq!(heal(&world).await?, 5);
    for user in users {
        assert_eq!(turnover(&world, user).await?.as_deref(), Some("10.00"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_is_obeyed_and_is_nobodys_attempt() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_fast").await?;
    world.stripe.payment("acct_fast", world.earlier(90), 1_000, "eur");
    let faults = world.stripe.faults();
    let bare = Fault::Answer { status: 429, headers: Vec::new(), body: "slow down".into() };
    let soon =
        Fault::Answer { status: 429, headers: vec![("retry-after".into(), "1".into())], body: String::new() };
    let rounds = [[stripe::rate_limited("endpoint-rate"), soon], [stripe::lock_timeout(), bare]];
    for (round, throttles) in (1..).zip(rounds) {
        for fault in throttles {
            faults.add(Rule::on(LIST, fault).times(1));
        }
        assert_eq!(heal(&world).await?, u64::from(round == 1), "waited for inside the run");
        assert_eq!(faults.count(LIST), 3 * round);
    }
    faults.clear();

    // Longer than anybody waits: given back, untried.
    world.stripe.payment("acct_fast", world.earlier(60), 500, "eur");
    let hour = Fault::Answer {
        status: 429,
        headers: vec![("retry-after".into(), "3600".into())],
        body: String::new(),
    };
    faults.add(Rule::on(LIST, hour));
    faults.forget();
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!(
        (told.status, &told.body["errors"], &told.body["remaining"]),
        (200, &json!(1), &json!(1)),
        "{}",
        told.text
    );
    assert!(told.problem("rate_limited").is_some(), "a run that could do nothing says why: {}", told.text);
    assert_eq!(faults.count(LIST), 1, "not asked again before the hour is over");
    assert_eq!(world.value::<i32>("select max(attempts) from jobs.job_items").await?, 0);
    let logged: String = world
        .value("select status from public.sync_logs where provider = 'jobs' order by xmin::text::bigint desc limit 1")
        .await?;
    assert_eq!(logged, "error");
    faults.clear();
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("15.00"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_fails_in_the_middle() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_pages").await?;
    let sum =
        world.stripe.payments("acct_pages", world.earlier(600), TimeDelta::milliseconds(10), 250, "eur");
    let faults = world.stripe.faults();
    let nothing = "select (select count(*) from jobs.integration_transactions) + (select count(*) from public.ca_records)";
    // For good: nothing of the pages before is settled, and the trouble is told.
    for (fault, code) in [
        (stripe::server_error(false), "server_error"),
        (Fault::Answer { status: 200, headers: Vec::new(), body: "<html>".into() }, "invalid_answer"),
        (Fault::json(200, &json!({"object": "list", "data": [], "has_more": true})), "endless_pages"),
        (
            Fault::json(200, &json!({"object": "list", "data": [{"id": "txn_1"}], "has_more": false})),
            "invalid_answer",
        ),
        (Fault::json(400, &json!({"error": {"code": "parameter_unknown"}})), "bad_request"),
        (
            Fault::Answer {
                status: 302,
                headers: vec![("location".into(), "https://evil.example/".into())],
                body: String::new(),
            },
            "invalid_answer",
        ),
    ] {
        faults.clear();
        faults.add(Rule::on("starting_after", fault).skip(1));
        let told = ask(&world, Method::POST, SYNC, "").await?;
        assert_eq!((told.status, &told.body["totalSynced"]), (200, &json!(0)), "{}", told.text);
        assert!(told.problem(code).is_some(), "{code}: {}", told.text);
        assert!(told.body["errors"] == 1 || told.body["remaining"] == 1, "{}", told.text);
        assert_eq!(world.value::<i64>(nothing).await?, 0, "{code}: nothing half-settled");
    }
    // For a moment: asked again within the run.
    faults.clear();
    faults.add(Rule::on("starting_after", stripe::server_error(true)).skip(1).times(1));
    faults.add(Rule::on("starting_after", Fault::CutAfter).skip(1).times(1));
    assert_eq!(heal(&world).await?, 250);
    assert_eq!(turnover(&world, user).await?, Some(format!("{}.{:02}", sum / 100, sum % 100)));
    Ok(())
}

/// A long list that fails behind its first checkpoint: what was stored is counted by whoever reads on.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_fails_behind_a_checkpoint() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_long").await?;
    world.stripe.payment("acct_long", world.earlier(601), 1_000, "eur");
    assert_eq!(heal(&world).await?, 1);
    let sum = 1_000
        + world.stripe.payments("acct_long", world.earlier(600), TimeDelta::milliseconds(1), 2_100, "eur");
    let faults = world.stripe.faults();
    faults.add(Rule::on("starting_after", stripe::server_error(false)).skip(20));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["remaining"]), (200, &json!(1)), "{}", told.text);
    assert!(told.problem("server_error").is_some(), "{}", told.text);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("10.00"), "no half-read figure");
    faults.clear();
    // The next run takes the place of what was left in the queue, and its account of what is new.
    assert_eq!(heal(&world).await?, 2_100);
    assert_eq!(turnover(&world, user).await?, Some(format!("{}.{:02}", sum / 100, sum % 100)));
    assert_eq!(heal(&world).await?, 0);
    Ok(())
}

/// What an operator asked for with `days=` is still read when a run with a shorter window takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_wider_window_is_not_lost_to_a_narrower_one() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_wide").await?;
    assert_eq!(heal(&world).await?, 0);
    world.stripe.payment("acct_wide", world.now() - TimeDelta::days(50), 1_000, "eur");
    world.stripe.faults().add(Rule::on(LIST, stripe::server_error(false)).times(2));
    for query in ["days=60", "days=7"] {
        let told = ask(&world, Method::POST, SYNC, query).await?;
        assert_eq!(
            (&told.body["remaining"], &told.body["totalSynced"]),
            (&json!(1), &json!(0)),
            "{}",
            told.text
        );
    }
    let told = ask(&world, Method::GET, SYNC, "").await?;
    assert_eq!((told.status, &told.body["totalSynced"]), (200, &json!(1)), "{}", told.text);

    // Two crons' windows go back to the last success, and no further.
    let alone = format!("user_id={user}");
    world.stripe.faults().add(Rule::on(LIST, stripe::server_error(false)).times(1));
    for left in [json!(1), json!(null)] {
        let told = ask(&world, Method::GET, SYNC, &alone).await?;
        assert_eq!((told.status, &told.body["remaining"]), (200, &left), "{}", told.text);
    }
    let days = "select payload ->> 'days' from jobs.job_items order by item_id desc limit 1";
    assert_eq!(world.value::<Option<String>>(days).await?, None);
    assert_eq!(heal(&world).await?, 0);
    Ok(())
}

/// The fifth attempt is the last; the next run begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn five_attempts_and_then_it_is_said() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_five").await?;
    world.stripe.payment("acct_five", world.earlier(90), 4_200, "eur");
    world.stripe.faults().add(Rule::on(LIST, stripe::server_error(false)));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!(told.body["remaining"], 1, "{}", told.text);
    let function = world.function("drain-queue").await?;
    let right = format!("Bearer {}", crate::world::SECRET);
    for attempt in 2..=5 {
        // The pause is over.
        world.run("update pgmq.q_jobs_stripe set vt = '-infinity'").await?;
        super::ask_again(&world, &function, Method::POST, "", Some(&right)).await?;
        let drained = || function.log().matches("queue drained").count() >= attempt - 1;
        super::eventually("the end of the attempt", drained).await?;
    }
    super::harmless(&world, &function.log());
    let item: (String, String) =
        sqlx::query_as("select status, error ->> 'code' from jobs.job_items").fetch_one(world.pool()).await?;
    assert_eq!(item, ("failed".into(), "server_error".into()));
    assert!(last_error(&world, user).await?.unwrap_or_default().contains("Stripe ne répond pas"));
    assert_eq!(world.value::<String>("select status from jobs.job_runs").await?, "error");
    world.stripe.faults().clear();
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(last_error(&world, user).await?, None);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}
