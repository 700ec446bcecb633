//! The last day of a month has a second chance: what failed on it comes back with the next cron, and the recap leaves.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use jobs::schedule::Month;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    shopify::Tender,
};

use super::given::{last_day, recipients};
use crate::world::{SECRET, World};

/// Returns a UTC hour of a day of the month after.
fn after(month: Month, day: i64, hour: u32) -> DateTime<Utc> {
    let date = month.next().first_day() + TimeDelta::days(day - 1);
    date.and_hms_opt(hour, 5, 0).expect("an hour").and_utc()
}

/// Returns how many months a daily cron has taken up again.
async fn daily(world: &mut World, at: DateTime<Utc>) -> Result<Value> {
    world.set_now(at);
    let answer = world.cron("daily-orchestrator", "").await?;
    Ok(answer["results"]["syncIntegrations"]["monthsTakenUp"].clone())
}

/// Returns what the status page says of recaps.
async fn owed(world: &World) -> Result<Vec<(String, String)>> {
    let function = world.function("status").await?;
    let request = jobs::http::client()?.get(function.url()).bearer_auth(SECRET);
    let told = function.send(request.header("accept", "application/json")).await?.json();
    let said = told["attention"].as_array().cloned().unwrap_or_default().into_iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(said
        .map(|said| (text(&said["state"]), text(&said["message"])))
        .filter(|(_, message)| message.contains("récapitulatif") && message.contains(" ("))
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_on_the_last_day_comes_back_with_the_next_cron() -> Result<()> {
    let mut world = World::new().await?;
    let (month, now) = last_day(&mut world);
    let refusals = [("a401", 401), ("a403", 403), ("a404", 404)];
    for (name, status) in refusals {
        let shop = format!("{name}.myshopify.com");
        world.shopify_user(&shop).await?;
        world.shopify.tender(&shop, Tender::new(now - TimeDelta::days(3), "42.0", "EUR"));
        world.shopify.set_status(&shop, Some(status));
    }
    world.stripe_user("acct_garbled").await?;
    world.stripe.payment("acct_garbled", now - TimeDelta::days(3), 4_200, "eur");
    let page = json!({"object": "list", "data": [], "has_more": true});
    world.stripe.faults().add(Rule::on("/v1/balance_transactions", Fault::json(200, &page)));
    let answer = world.cron("monthly-orchestrator", "").await?;
    assert_eq!(answer["results"]["monthlySync"]["errors"], 4, "{answer}");
    assert_eq!(recipients(&world), Vec::<String>::new());
    let waiting = owed(&world).await?;
    assert!(!waiting.is_empty() && waiting.iter().all(|(state, _)| state == "inconnu"), "{waiting:?}");

    for (name, _) in refusals {
        world.shopify.set_status(&format!("{name}.myshopify.com"), None);
    }
    // Half a page: refused again, and tried again.
    world.stripe.faults().clear();
    let half =
        Fault::Answer { status: 200, headers: Vec::new(), body: r#"{"object":"list","data":[{"#.into() };
    world.stripe.faults().add(Rule::on("/v1/balance_transactions", half));
    assert_eq!(daily(&mut world, after(month, 1, 0)).await?, 4);
    assert_eq!(recipients(&world).len(), 3);
    world.stripe.faults().clear();
    assert_eq!(daily(&mut world, after(month, 1, 0)).await?, Value::Null, "once for each cron");
    // The other orchestrator does the same.
    world.set_now(after(month, 1, 7));
    let answer = world.cron("monthly-orchestrator", "").await?;
    let part = &answer["results"]["monthlySync"];
    assert_eq!((&part["monthsTakenUp"], &part["synced"]), (&json!(1), &json!(1)), "{answer}");
    assert_eq!(recipients(&world).len(), 4);
    for hour in [12, 18] {
        assert_eq!(daily(&mut world, after(month, 1, hour)).await?, Value::Null);
    }
    assert_eq!(recipients(&world).len(), 4, "each once");
    assert_eq!(owed(&world).await?, []);
    Ok(())
}

/// Asking a revoked account four times a day helps nobody: once more, then when it is good again, until the fifth.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_its_user_can_mend_waits_for_them() -> Result<()> {
    let mut world = World::new().await?;
    let (month, now) = last_day(&mut world);
    for account in ["acct_back", "acct_gone"] {
        world.stripe_user(account).await?;
        world.stripe.payment(account, now - TimeDelta::days(3), 4_200, "eur");
        world.stripe.revoke(account);
    }
    world.cron("monthly-orchestrator", "").await?;
    assert_eq!(daily(&mut world, after(month, 1, 0)).await?, 2, "a refusal may pass");
    assert_eq!(daily(&mut world, after(month, 1, 6)).await?, Value::Null);
    world.stripe.reconnect("acct_back", "sk_acct_token_acct_back");
    assert_eq!(daily(&mut world, after(month, 1, 12)).await?, 1, "connected again");
    assert_eq!(daily(&mut world, after(month, 1, 18)).await?, Value::Null);
    assert_eq!(recipients(&world).iter().filter(|to| to.contains("acct_back")).count(), 1);

    let (before, over) = (after(month, 5, 12), after(month, 6, 0));
    world.set_now(before);
    assert_eq!(owed(&world).await?[0].0, "inconnu");
    world.set_now(over);
    let told = owed(&world).await?;
    assert!(told.len() == 1 && told[0].0 == "à corriger", "{told:?}");
    assert!(told[0].1.contains("non envoyé") && told[0].1.contains("n’est plus valide"), "{told:?}");
    world.stripe.reconnect("acct_gone", "sk_acct_token_acct_gone");
    daily(&mut world, after(month, 6, 6)).await?;
    assert_eq!(daily(&mut world, after(month, 6, 12)).await?, Value::Null, "its time is over");
    Ok(())
}

/// A call whose answer is lost plans once.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_takes_up_once() -> Result<()> {
    let mut world = World::new().await?;
    let (month, now) = last_day(&mut world);
    world.stripe_user("acct_lost").await?;
    world.stripe.payment("acct_lost", now - TimeDelta::days(3), 4_200, "eur");
    world.stripe.faults().add(Rule::on("/v1/balance_transactions", Fault::json(200, &json!({}))));
    world.cron("monthly-orchestrator", "").await?;
    world.stripe.faults().clear();
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("/rpc/jobs_retake_months", Fault::CutAfter).times(1));
    assert_eq!(daily(&mut world, after(month, 1, 0)).await?, 1);
    assert_eq!(recipients(&world).len(), 1);
    world.set_now(after(month, 1, 6));
    let answer = world.call(Method::GET, "daily-orchestrator", "").await?;
    assert_eq!(answer.status, 200);
    assert_eq!(recipients(&world).len(), 1);
    Ok(())
}
