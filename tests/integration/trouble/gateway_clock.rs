//! The gateway's clock runs ahead: it refuses a good key for some seconds (`stand_ins::gateway`).

use anyhow::Result;
use jobs::{
    email::{LinkKeys, links},
    mail_kind::MailKind,
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{SYNC, ask, turnover};
use crate::world::{ENCRYPTION_KEY, World};

async fn world_with_money() -> Result<(World, uuid::Uuid)> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_ahead").await?;
    world.stripe.payment("acct_ahead", world.earlier(90), 4_200, "eur");
    Ok((world, user))
}

/// Refused twice in a row, in the middle of everything: nobody notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_the_future_is_made_again() -> Result<()> {
    let (world, user) = world_with_money().await?;
    world.environment.gateway.run_ahead(2);
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(0)), "{}", told.text);
    assert_eq!(told.body.get("remaining"), None, "{}", told.text);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

/// It lasts: a 503 that does not blame the key, nothing is lost, and no item is blamed either.
#[tokio::test(flavor = "multi_thread")]
async fn where_it_lasts_nobody_is_told_to_change_a_good_key() -> Result<()> {
    let (world, user) = world_with_money().await?;
    world.environment.gateway.run_ahead(usize::MAX);
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!(told.status, 503, "{}", told.text);
    let words = told.error().replace('\u{a0}', " ");
    assert!(words.contains("PGRST303") && words.contains("la clé n’est pas en cause"), "{words}");
    assert!(!words.contains("SUPABASE_SECRET_KEY"), "{words}");
    world.environment.gateway.run_ahead(0);
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(0)), "{}", told.text);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

/// A key that is really wrong is named, at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_named() -> Result<()> {
    let (mut world, _) = world_with_money().await?;
    let right = world.replace("SUPABASE_SECRET_KEY", Some("sb_secret_of_another_project".into()));
    assert!(right.is_some(), "the functions go with a secret key");
    let begun = std::time::Instant::now();
    let told = ask(&world, Method::POST, SYNC, "").await?;
    assert_eq!(told.status, 500, "{}", told.text);
    assert!(told.error().contains("SUPABASE_SECRET_KEY"), "{}", told.text);
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
    Ok(())
}

/// A mail program that unsubscribes in one click is told to come back, and its next try is heard.
#[tokio::test(flavor = "multi_thread")]
async fn one_click_is_asked_to_come_back() -> Result<()> {
    let world = World::new().await?;
    let user = world.user("one.click@example.test").await?;
    let keys = LinkKeys::derive(&ENCRYPTION_KEY.to_owned().into());
    let link = links::unsubscribe("https://jobs.example", &keys, user, MailKind::MonthlyRecap);
    let query = link.and_then(|link| Some(link.split_once('?')?.1.to_owned())).unwrap_or_default();
    let function = world.function("unsubscribe").await?;
    world.environment.gateway.run_ahead(usize::MAX);
    let answer = function.call(Method::POST, &query, None).await?;
    assert_eq!(answer.status, 503, "{}", answer.text);
    let wait: u64 = answer.headers["retry-after"].to_str()?.parse()?;
    assert!((60..=3_600).contains(&wait), "{wait}");
    world.environment.gateway.run_ahead(1);
    let answer = function.call(Method::POST, &query, None).await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let wants: Value = world.value("select to_jsonb(e) from public.email_preferences e").await?;
    assert_eq!(wants["monthly_recap_email"], false, "{wants}");
    Ok(())
}
