//! What is due when, by everything that goes by the calendar: offers, syncs, reminders, months, recaps, thresholds, dry
//! runs and the status page, on each day on which something turns.

use anyhow::Result;
use chrono::{DateTime, Datelike, TimeDelta, Timelike, Utc};
use jobs::schedule::paris;
use reqwest::Method;
use serde_json::json;

use crate::{
    clock::on_played_days,
    mails::{
        dry_run::written,
        given::{about, turnover},
        kind, signed_up_at,
    },
    world::{SECRET, World},
};

on_played_days!(day);

/// Returns the mails so far: to whom, and of which kind.
fn mails(world: &World) -> Vec<(String, &'static str)> {
    let accepted = world.resend.accepted();
    let mut mails: Vec<_> = accepted.iter().map(|mail| (mail.mail.to.join(","), kind(mail))).collect();
    mails.sort();
    mails
}

async fn people(world: &World) -> Result<()> {
    let long_ago = world.now() - TimeDelta::days(100);
    signed_up_at(world, "new@example.test", "New", world.now() - TimeDelta::days(4)).await?;
    let premium = signed_up_at(world, "premium@example.test", "Premium", long_ago).await?;
    let subscribed =
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')";
    about(world, premium, subscribed).await?;
    about(
        world,
        premium,
        "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
    )
    .await?;
    let rich = signed_up_at(world, "rich@example.test", "Rich", long_ago).await?;
    turnover(world, rich, &world.month().to_string(), "services", "50000", "manual").await?;
    Ok(())
}

/// Plays both orchestrators at an instant: each does what is due then, and says of the rest that it
/// is not.
async fn day(now: DateTime<Utc>) -> Result<()> {
    let world = World::at(now).await?;
    people(&world).await?;
    let seller = world.stripe_user("acct_seller").await?;
    world.stripe.payment("acct_seller", world.earlier(60), 123_400, "eur");
    let local = paris::local(now);
    let offers = local.hour() >= 7;
    let syncs = now.hour().is_multiple_of(6);
    let reminders = local.day() == 2;
    let months = paris::is_last_day(now);

    let before = written(&world).await?;
    for (method, route) in [
        (Method::GET, "daily-orchestrator"),
        (Method::GET, "monthly-orchestrator"),
        (Method::POST, "sync-integrations"),
        (Method::POST, "check-thresholds"),
        (Method::POST, "monthly-sync"),
    ] {
        let answer = world.call(method, route, "dry_run=true").await?;
        assert_eq!(answer.status, 200, "{route}: {}", answer.text);
    }
    assert_eq!(written(&world).await?, before, "a dry run writes nothing");

    let mut due = Vec::new();
    let daily = world.cron("daily-orchestrator", "").await?;
    let (offered, synced) = (&daily["results"]["marketingEmails"], &daily["results"]["syncIntegrations"]);
    assert_eq!(
        (&offered["sent"], &offered["skipped"]),
        (&json!(u8::from(offers)), &json!(!offers)),
        "{daily}"
    );
    assert_eq!((&synced["synced"], &synced["skipped"]), (&json!(u8::from(syncs)), &json!(!syncs)), "{daily}");
    if offers {
        due.push(("new@example.test".to_owned(), "marketing_day3"));
    }

    let monthly = world.cron("monthly-orchestrator", "").await?;
    let (reminded, read) = (&monthly["results"]["reminders"], &monthly["results"]["monthlySync"]);
    assert_eq!(reminded["sent"], json!(u8::from(reminders)), "{monthly}");
    assert_eq!((&read["synced"], &read["skipped"]), (&json!(u8::from(months)), &json!(!months)), "{monthly}");
    assert_eq!(
        (&monthly["dayOfMonth"], &monthly["isLastDayOfMonth"]),
        (&json!(local.day()), &json!(months)),
        "{monthly}"
    );
    if months {
        due.push(("acct_seller@example.test".to_owned(), "monthly_recap"));
    }
    if reminders {
        due.push(("premium@example.test".to_owned(), "monthly_reminder"));
    }

    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["totalSynced"], json!(u8::from(!syncs && !months)), "{answer}");
    let month = world.month();
    let imported = [(month.to_string(), "Prestation de services".to_owned(), "1234.00".to_owned())];
    assert_eq!(world.imported(seller).await?, imported);
    let answer = world.post("monthly-sync", &format!("month={month}")).await?;
    assert_eq!(answer["month"], json!(month.french()), "{answer}");
    assert_eq!(answer["results"][0]["totalCA"], json!(1234.00), "{answer}");
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!(answer["sent"], 1, "{answer}");
    due.push(("rich@example.test".to_owned(), "threshold_alert"));

    due.sort();
    assert_eq!(mails(&world), due);
    for route in ["daily-orchestrator", "monthly-orchestrator"] {
        world.cron(route, "").await?;
    }
    assert_eq!(mails(&world), due, "nobody gets one twice");
    status(&world, due.len()).await
}

/// Asks the status page at the end of the day's work.
async fn status(world: &World, sent: usize) -> Result<()> {
    let function = world.function("status").await?;
    let request = jobs::http::client()?.get(function.url()).bearer_auth(SECRET);
    let answer = function.send(request.header("accept", "application/json")).await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let told = answer.json();
    // The month's own sync has begun with its last day.
    let next = if paris::is_last_day(world.now()) { world.month().next() } else { world.month() };
    assert_eq!(told["calendar"][0]["month"], json!(next.french()), "{:#}", told["calendar"]);
    // One entry for each kind.
    let days = told["mails"]["days"].as_array().into_iter().flatten();
    let counted: Vec<_> =
        days.filter_map(|day| Some((day["day"].as_str()?, day["sent"].as_u64()?))).collect();
    let today = paris::date(world.now()).to_string();
    assert!(counted.iter().all(|(day, sent)| *day == today || *sent == 0), "{counted:?}");
    assert_eq!(counted.iter().map(|(_, sent)| sent).sum::<u64>(), sent as u64, "{counted:?}");
    assert_eq!(told["integrations"]["brokenTotal"], 0, "{:#}", told["integrations"]);
    Ok(())
}
