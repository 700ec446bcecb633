//! A deployment that is set up wrongly says what to mend, by name and never by value.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;

use super::{SYNC, ask, heal, turnover};
use crate::{
    clock::replay,
    world::{SECRET, World},
};

const INTEGRATIONS: [&str; 4] =
    ["STRIPE_SECRET_KEY", "SHOPIFY_CLIENT_ID", "SHOPIFY_CLIENT_SECRET", "ENCRYPTION_KEY"];

/// Returns a sync slot of today that has begun.
fn slot(world: &World) -> String {
    replay(world.last_sync_hour())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_missing_is_named_at_once() -> Result<()> {
    let mut world = World::new().await?;
    for name in INTEGRATIONS.into_iter().chain(["SUPABASE_URL", "SUPABASE_SECRET_KEY"]) {
        world.unset(name);
    }
    world.set("JOB_CONCURRENCY", "beaucoup");
    for (name, method) in
        [(SYNC, Method::POST), ("daily-orchestrator", Method::GET), ("drain-queue", Method::POST)]
    {
        let told = ask(&world, method, name, "").await?;
        assert_eq!(told.status, 500, "{}", told.text);
        assert!(told.error().starts_with("Configuration à corriger"), "{}", told.text);
        for variable in INTEGRATIONS.into_iter().chain([
            "SUPABASE_URL (ou NEXT_PUBLIC_SUPABASE_URL)",
            "SUPABASE_SECRET_KEY (ou SUPABASE_SERVICE_ROLE_KEY)",
            "JOB_CONCURRENCY",
        ]) {
            assert!(told.error().contains(variable), "{variable}: {}", told.text);
            assert!(told.log.contains(variable), "{variable}: {}", told.log);
        }
        assert!(!told.text.contains("beaucoup") && !told.log.contains("beaucoup"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_variable_of_the_integrations_fails_that_task_alone() -> Result<()> {
    let mut world = World::new().await?;
    let user = world.stripe_user("acct_unset").await?;
    world.stripe.payment("acct_unset", world.earlier(600), 4_200, "eur");
    for name in ["STRIPE_SECRET_KEY", "SHOPIFY_CLIENT_ID"] {
        world.unset(name);
    }
    world.set("SHOPIFY_CLIENT_SECRET", " \n");
    let told = ask(&world, Method::GET, "daily-orchestrator", &slot(&world)).await?;
    assert_eq!(told.status, 500, "{}", told.text);
    assert_eq!(told.body["message"], "Orchestrator quotidien terminé");
    let (marketing, sync) =
        (&told.body["results"]["marketingEmails"], &told.body["results"]["syncIntegrations"]);
    assert_eq!(marketing["errors"], 0, "the other task answers for itself: {}", told.text);
    assert_eq!((&sync["synced"], &sync["errors"]), (&json!(0), &json!(1)), "{}", told.text);
    let error = sync["error"].as_str().unwrap_or_default();
    for name in &INTEGRATIONS[..3] {
        assert!(error.contains(name), "{}", told.text);
    }
    assert!(!error.contains("ENCRYPTION_KEY"), "{}", told.text);
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, told.error().contains("STRIPE_SECRET_KEY")), (500, true), "{}", told.text);
    let told = ask(&world, Method::POST, "monthly-sync", "force=true").await?;
    assert_eq!((told.status, told.error().contains("STRIPE_SECRET_KEY")), (500, true), "{}", told.text);
    let logged: Vec<String> = sqlx::query_scalar(
        "select error_message from public.sync_logs where status <> 'success' order by xmin::text::bigint",
    )
    .fetch_all(world.pool())
    .await?;
    assert_eq!(logged.len(), 3, "no failed call is a success: {logged:?}");
    // The slot was not claimed by a call that could not work: the corrected deployment catches up.
    assert_eq!(
        world.value::<i64>("select count(*) from jobs.job_slots where task <> 'marketing_day3'").await?,
        0
    );
    world.set("STRIPE_SECRET_KEY", &world.stripe.secret_key());
    world.set("SHOPIFY_CLIENT_ID", &world.shopify.client_id());
    world.set("SHOPIFY_CLIENT_SECRET", &world.shopify.client_secret());
    let told = ask(&world, Method::GET, "daily-orchestrator", &slot(&world)).await?;
    assert_eq!(
        (told.status, &told.body["results"]["syncIntegrations"]["synced"]),
        (200, &json!(1)),
        "{}",
        told.text
    );
    heal(&world).await?;
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_values_are_named_and_never_repeated() -> Result<()> {
    let mut world = World::new().await?;
    let table = [
        ("ENCRYPTION_KEY", "trop-courte-31-octets-xxxxxxxxx", "32 octets"),
        ("ENCRYPTION_KEY", "clé-de-trente-deux-caractères-xx", "32 octets"), // 32 characters, more bytes
        ("ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef0", "32 octets"),
        ("STRIPE_SECRET_KEY", "pk_test_publishable", "sk_"),
        ("STRIPE_API_BASE", "http://evil.example", "https://"),
        ("STRIPE_API_BASE", "https://user:passe@evil.example", "https://"),
        ("SHOPIFY_API_BASE", "https://sans-place", "{shop}"),
        ("SUPABASE_URL", "xyz.supabase.co", "https://"),
        ("SUPABASE_URL", "http://xyz.supabase.co", "https://"),
        ("SUPABASE_URL", "https://cle:passe@xyz.supabase.co", "https://"),
        ("SUPABASE_URL", "ftp://xyz.supabase.co", "https://"),
        ("JOB_CONCURRENCY", "0", "1 à 256"),
        ("JOB_BUDGET_SECONDS", "-5", "1 à 270"),
        ("JOB_BUDGET_SECONDS", "99999999999999999999", "1 à 270"),
        ("REPLAY_MAX_DAYS", "35 jours", "0 à 366"),
        ("MARKETING_FROM_HOUR", "24", "0 à 10"),
    ];
    for (name, value, hint) in table {
        let before = world.replace(name, Some(value.to_owned()));
        let function = world.function(SYNC).await?;
        let answer = function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.status, 500, "{name}: {}", answer.text);
        assert!(error.starts_with("Configuration à corriger") && error.contains(name), "{name}: {error}");
        assert!(error.contains(hint), "{name}: {error}");
        let mended = error.matches(" ; ").count();
        assert_eq!(mended, 0, "only what is wrong is named: {error}");
        if value.len() > 2 {
            assert!(!answer.text.contains(value) && !function.log().contains(value), "{name}");
        }
        world.replace(name, before);
    }
    assert_eq!(heal(&world).await?, 0);
    Ok(())
}

/// Under row-level security the wrong key would not fail: it would see an empty database and call it a success.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_service_key_will_do() -> Result<()> {
    let mut world = World::new().await?;
    let user = world.stripe_user("acct_keys").await?;
    world.stripe.payment("acct_keys", world.earlier(90), 4_200, "eur");
    let keys = world.environment.gateway.keys().clone();
    let other = processes::keys::Keys::generate()?;
    let signed_in = keys.user_token(user)?;
    // Told apart before anything is asked.
    for (key, word) in [
        (keys.publishable.as_str(), "publique"),
        (keys.anon.as_str(), "anonyme"),
        (signed_in.as_str(), "service_role"),
        ("eyJhbGciOiJIUzI1NiJ9.e30.x", "service_role"),
        ("mot-de-passe", "service_role"),
    ] {
        for name in ["SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY"] {
            world.unset("SUPABASE_SECRET_KEY");
            world.unset("SUPABASE_SERVICE_ROLE_KEY");
            world.set(name, key);
            let told = ask(&world, Method::POST, SYNC, "").await?;
            assert_eq!(told.status, 500, "{}", told.text);
            assert!(
                told.error().contains("SUPABASE_SECRET_KEY") && told.error().contains(word),
                "{}",
                told.text
            );
        }
    }
    assert!(world.environment.gateway.faults().seen().is_empty());
    world.unset("SUPABASE_SERVICE_ROLE_KEY");
    // Told by the gateway and the database.
    for key in [&other.secret, &other.service_role] {
        world.set("SUPABASE_SECRET_KEY", key);
        let told = ask(&world, Method::POST, SYNC, "").await?;
        assert_eq!(told.status, 500, "{}", told.text);
        assert!(told.error().contains("clé Supabase est refusée"), "{}", told.text);
        assert!(!told.text.contains(key.as_str()) && !told.log.contains(key.as_str()));
        let told = ask(&world, Method::POST, "drain-queue", "").await?;
        assert_eq!((told.status, told.error().contains("refusée")), (500, true), "{}", told.text);
    }
    // A key that is let in and may not run our functions.
    world.set("SUPABASE_SECRET_KEY", &keys.secret);
    world.run("revoke execute on all functions in schema public from service_role").await?;
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!(told.status, 500, "{}", told.text);
    assert!(told.error().contains("pas une clé de service"), "{}", told.text);
    world.run("grant execute on all functions in schema public to service_role").await?;

    assert_eq!(heal(&world).await?, 1);
    // The legacy key, under either name.
    world.set("SUPABASE_SECRET_KEY", &keys.service_role);
    assert_eq!(heal(&world).await?, 0);
    world.unset("SUPABASE_SECRET_KEY");
    world.set("SUPABASE_SERVICE_ROLE_KEY", &keys.secret);
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

/// A key has the right length and is not the one that the tokens were stored with.
#[tokio::test(flavor = "multi_thread")]
async fn another_encryption_key_is_everybodys_trouble_and_heals() -> Result<()> {
    let mut world = World::new().await?;
    let user = world.stripe_user("acct_locked").await?;
    world.stripe.payment("acct_locked", world.earlier(90), 4_200, "eur");
    let right = world.replace("ENCRYPTION_KEY", Some("fedcba9876543210fedcba9876543210".into()));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(1)), "{}", told.text);
    let message = told.problem("token_unreadable").unwrap_or_default();
    assert!(message.contains("ENCRYPTION_KEY"), "{}", told.text);
    assert!(!told.log.contains("fedcba98"));
    assert!(world.stripe.faults().seen().is_empty());
    world.replace("ENCRYPTION_KEY", right);
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}
