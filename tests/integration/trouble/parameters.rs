//! What may be asked, and what comes of asking for something else.

use anyhow::Result;
use chrono::{SecondsFormat, TimeDelta};
use jobs::routes::{Kind, Parameter, Route};
use reqwest::Method;
use serde_json::Value;
use uuid::Uuid;

use super::{SYNC, ask, ask_again, harmless, heal, turnover};
use crate::world::{SECRET, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_parameter_is_named_and_nothing_runs() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_asked").await?;
    world.stripe.payment("acct_asked", world.earlier(90), 4_200, "eur");
    let in_days = |days: i64| {
        let at = world.now() + TimeDelta::days(days);
        format!("at={}", at.to_rfc3339_opts(SecondsFormat::Secs, true))
    };
    let (tomorrow, long_ago) = (in_days(1), in_days(-36));
    let secretive = format!("token=sk_live_1234&{}", in_days(-1));
    let table: &[(&str, &str, &[&str])] = &[
        (SYNC, "unknown=1", &["unknown", "dry_run, at, user_id, days"]),
        (SYNC, "force=true", &["force"]),
        (SYNC, "month=2026-10", &["month"]),
        (SYNC, &secretive, &["token"]),
        (SYNC, "DAYS=3", &["DAYS"]),
        (SYNC, "days=0", &["days"]),
        (SYNC, "days=-3", &["days"]),
        (SYNC, "days=1e3", &["days"]),
        (SYNC, "days=99999999999999999999", &["days"]),
        (SYNC, "days=3&days=30", &["days", "deux fois"]),
        (SYNC, "user_id=moi", &["user_id", "UUID"]),
        (SYNC, "user_id=", &["user_id"]),
        (SYNC, "dry_run=oui", &["dry_run", "true ou false"]),
        (SYNC, "dry_run", &["dry_run"]),
        (SYNC, "at=", &["at", "RFC 3339"]),
        (SYNC, "at=hier", &["at", "RFC 3339"]),
        (SYNC, "at=2026-02-30T00:00:00Z", &["at"]),
        (SYNC, "at=2026-11-22T07:00:00+01:00", &["at", "%2B"]), // the + of a zone is a space in a query
        (SYNC, &tomorrow, &["at", "futur"]),
        (SYNC, &long_ago, &["at", "35 jours"]),
        ("monthly-sync", "month=2026-13", &["month", "AAAA-MM"]),
        ("monthly-sync", "month=2026-00", &["month"]),
        ("monthly-sync", "month=2026-1", &["month"]),
        ("monthly-sync", "month=2099-01", &["month"]),
        ("monthly-sync", "month=", &["month"]),
        ("monthly-sync", "days=3", &["days"]),
        ("monthly-sync", "force=1", &["force"]),
    ];
    for (name, query, words) in table {
        let told = ask(&world, Method::POST, name, query).await?;
        assert_eq!(told.status, 400, "{name} {query}: {}", told.text);
        assert!(told.error().starts_with("Paramètre"), "{query}: {}", told.text);
        for word in *words {
            assert!(told.error().contains(word), "{query}: {}", told.text);
        }
    }
    let told = ask(&world, Method::GET, "daily-orchestrator", &tomorrow).await?;
    assert_eq!(told.status, 400, "{}", told.text);
    let told = ask(&world, Method::POST, "drain-queue", "days=3").await?;
    assert_eq!((told.status, told.error().contains("n’en prend aucun")), (400, true), "{}", told.text);

    assert_eq!(world.value::<i64>("select count(*) from jobs.job_runs").await?, 0);
    assert!(world.stripe.faults().seen().is_empty(), "nobody was asked for anything");
    // Whoever knows the secret leaves a trace, also of a mistake.
    let logged: Value = world
        .value("select jsonb_agg(jsonb_build_array(status, error_message, metadata)) from public.sync_logs")
        .await?;
    assert_eq!(logged.as_array().map(Vec::len), Some(table.len() + 2), "{logged}");
    harmless(&world, &logged.to_string());
    for row in logged.as_array().into_iter().flatten() {
        assert_eq!(row[0], "error");
        let message = row[1].as_str().unwrap_or_default();
        assert!(message.starts_with("Paramètre"), "a message and not its JSON: {message}");
    }

    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

/// Whoever mistypes an id learns it, on every route that takes one; who exists and has nothing yet is no mistake.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_does_not_exist_is_a_404() -> Result<()> {
    let world = World::new().await?;
    let user = world.user("empty@example.test").await?;
    let routes = Route::ALL.into_iter().filter(|route| route.parameters().contains(&Parameter::UserId));
    let mut calls = 0;
    for route in routes {
        let method = if route.kind() == Kind::Cron { Method::GET } else { Method::POST };
        let name = route.path().rsplit('/').next().unwrap_or_default();
        for dry_run in ["", "&dry_run=true"] {
            let nobody = format!("user_id={}{dry_run}", Uuid::new_v4());
            let told = ask(&world, method.clone(), name, &nobody).await?;
            assert_eq!(told.status, 404, "{name}: {}", told.text);
            assert!(told.error().starts_with("Aucun utilisateur"), "{name}: {}", told.text);
            calls += 1;
        }
        let told = ask(&world, method, name, &format!("user_id={user}")).await?;
        assert_eq!(told.status, 200, "{name}: {}", told.text);
    }
    assert!(calls >= 12, "{calls}");
    let rows = "select count(*) from public.sync_logs where status = 'error' and error_message like 'Aucun utilisateur%'";
    assert_eq!(world.value::<i64>(rows).await?, calls);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_ahead_or_far_back_is_for_trying_only() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_tried").await?;
    world.stripe.payment("acct_tried", world.earlier(90), 4_200, "eur");
    for at in ["2099-01-01T00:00:00Z", "2020-02-29T12:00:00Z"] {
        let told = ask(&world, Method::POST, SYNC, &format!("dry_run=true&at={at}")).await?;
        assert_eq!(told.status, 200, "{}", told.text);
        assert_eq!(told.body["message"], "Essai : rien n’a été écrit", "{}", told.text);
        assert_eq!(told.body["dryRun"]["items"], 1, "{}", told.text);
    }
    let told = ask(&world, Method::POST, SYNC, "dry_run=true&at=2100-01-01T00:00:00Z").await?;
    assert_eq!((told.status, told.error().contains("2099")), (400, true), "{}", told.text);
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_runs").await?, 0);
    assert!(world.stripe.faults().seen().is_empty());
    Ok(())
}

/// An operator who writes `-d user_id=…` means one user: to leave the body unread would run everybody.
#[tokio::test(flavor = "multi_thread")]
async fn parameters_in_the_body_are_refused_rather_than_ignored() -> Result<()> {
    let world = World::new().await?;
    let function = world.function(SYNC).await?;
    let post = async |body: &'static str| {
        let request = jobs::http::client()?.post(function.url()).bearer_auth(SECRET).body(body);
        let answer = function.send(request).await?;
        anyhow::Ok((answer.status.as_u16(), answer.text))
    };
    for body in ["dry_run=true", r#"{"user_id":"2f0b3c9e-0000-4000-8000-000000000000"}"#, "[1]", "x"] {
        let (status, text) = post(body).await?;
        assert_eq!(status, 400, "{body}: {text}");
        assert!(text.contains("adresse") && text.contains("corps"), "{text}");
        harmless(&world, &text);
    }
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_runs").await?, 0);
    // What clients send when they have nothing to say.
    for body in ["", "{}", " \n", "null"] {
        let (status, text) = post(body).await?;
        assert_eq!(status, 200, "{body:?}: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_requests_at_once_in_one_process() -> Result<()> {
    let world = World::new().await?;
    let mut users = Vec::new();
    for number in 0..3 {
        let account = format!("acct_many{number}");
        users.push(world.stripe_user(&account).await?);
        for minute in 1..=10 {
            world.stripe.payment(&account, world.earlier(minute * 10), 1_000, "eur");
        }
    }
    let function = world.function(SYNC).await?;
    let right = format!("Bearer {SECRET}");
    let calls = (0..20).map(|number| {
        let (world, function, right) = (&world, &function, &right);
        async move {
            let (query, authorization, status) = match number % 4 {
                0 => ("days=zero", Some(right.as_str()), 400),
                1 => ("", Some("Bearer wrong"), 401),
                _ => ("", Some(right.as_str()), 200),
            };
            let told = ask_again(world, function, Method::POST, query, authorization).await?;
            assert_eq!(told.status, status, "{}", told.text);
            if status == 200 {
                assert_eq!(told.body["errors"], 0, "{}", told.text);
            }
            anyhow::Ok(told.body["totalSynced"].as_u64().unwrap_or(0))
        }
    });
    let synced: u64 = futures_util::future::try_join_all(calls).await?.into_iter().sum();
    assert_eq!(synced, 30, "each movement was new to exactly one of them");
    for user in users {
        assert_eq!(turnover(&world, user).await?.as_deref(), Some("100.00"));
    }
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_runs").await?, 10);
    assert_eq!(
        world.value::<i64>("select count(*) from public.sync_logs where provider = 'jobs'").await?,
        15,
        "one row for each call that was let in"
    );
    assert_eq!(heal(&world).await?, 0);
    Ok(())
}
