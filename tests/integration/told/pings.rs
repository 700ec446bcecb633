//! A monitor hears of each task that was due: that it began, and how it went.

use anyhow::Result;
use chrono::TimeDelta;
use jobs::schedule::paris;
use reqwest::Method;
use serde_json::json;
use stand_ins::faults::{Fault, Rule};

use super::{heard, monitor, timed_out};
use crate::{clock::replay, world::World};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_begins_and_goes_well_or_fails_with_the_reason() -> Result<()> {
    let mut world = World::new().await?;
    let monitor = monitor().await?;
    world.set("PING_URL_SYNC_INTEGRATIONS", &format!("{}/sync", monitor.url()));
    let user = world.stripe_user("acct_told").await?;
    world.post("sync-integrations", "").await?;
    let heard = super::heard(&monitor);
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert_eq!(heard[0], "POST /sync/start: ");
    assert!(
        heard[1].starts_with("POST /sync: éléments\u{a0}: 1")
            || heard[1].starts_with("POST /sync: éléments : 1"),
        "{heard:?}"
    );

    // One user's run and a dry one say nothing of the task; nor does a cron that is not due.
    monitor.faults().forget();
    world.post("sync-integrations", "dry_run=true").await?;
    world.post("sync-integrations", &format!("user_id={user}")).await?;
    world.cron("daily-orchestrator", &replay(world.last_sync_hour() - TimeDelta::hours(3))).await?;
    assert_eq!(super::heard(&monitor), Vec::<String>::new());

    world.stripe.revoke("acct_told");
    world.post("sync-integrations", "").await?;
    let heard = super::heard(&monitor);
    assert_eq!((heard.len(), heard[0].as_str()), (2, "POST /sync/start: "), "{heard:?}");
    // It counts as an error, but nobody who runs the deployment can mend it.
    assert!(
        heard[1].starts_with("POST /sync: ") && heard[1].replace('\u{a0}', " ").contains("erreurs : 1"),
        "{heard:?}"
    );

    monitor.faults().forget();
    world.unset("STRIPE_SECRET_KEY");
    assert_eq!(world.call(Method::POST, "sync-integrations", "").await?.status, 500);
    let heard = super::heard(&monitor);
    assert!(heard[1].starts_with("POST /sync/fail: ") && heard[1].contains("STRIPE_SECRET_KEY"), "{heard:?}");
    Ok(())
}

/// A row that one user has written pages nobody; a key of ours that opens no token does.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_be_read_is_its_users_unless_most_are() -> Result<()> {
    let mut world = World::new().await?;
    let monitor = monitor().await?;
    world.set("PING_URL_SYNC_INTEGRATIONS", &format!("{}/sync", monitor.url()));
    for account in ["acct_odd", "acct_one", "acct_two"] {
        world.stripe_user(account).await?;
    }
    world.run("update public.integration_tokens set access_token = E'a\\x01b' where stripe_account_id = 'acct_odd'").await?;
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(
        (&answer["errors"], &answer["problems"][0]["code"]),
        (&json!(1), &json!("token_unreadable")),
        "{answer}"
    );
    let told = heard(&monitor);
    assert!(told.len() == 2 && told[1].starts_with("POST /sync: "), "{told:?}");

    monitor.faults().forget();
    world.run("update public.integration_tokens set access_token = 'ff:ff'").await?;
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["errors"], json!(3), "{answer}");
    let told = heard(&monitor);
    assert!(told.len() == 2 && told[1].starts_with("POST /sync/fail: "), "{told:?}");
    Ok(())
}

/// A provider that fails with one account of several pages nobody; one that fails with most of them does.
#[tokio::test(flavor = "multi_thread")]
async fn what_passes_by_itself_with_one_account_pages_nobody() -> Result<()> {
    for (broken, expected) in [(1, "POST /sync: "), (2, "POST /sync/fail: ")] {
        let mut world = World::new().await?;
        let monitor = monitor().await?;
        world.set("PING_URL_SYNC_INTEGRATIONS", &format!("{}/sync", monitor.url()));
        for account in ["acct_odd", "acct_one", "acct_two"] {
            world.stripe_user(account).await?;
        }
        // No list of balance transactions: the item is given up, the next sync reads it again.
        let no_list = Fault::json(200, &json!({}));
        world.stripe.faults().add(Rule::on("/v1/balance_transactions", no_list).times(broken));
        let answer = world.post("sync-integrations", "").await?;
        assert_eq!(answer["errors"], json!(broken), "{answer}");
        let told = heard(&monitor);
        assert!(told.len() == 2 && told[1].starts_with(expected), "{told:?}");
    }
    Ok(())
}

/// A provider that fails with each of its accounts pages somebody, however many of the other's are read.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_fails_with_all_of_its_accounts_is_told() -> Result<()> {
    let mut world = World::new().await?;
    let monitor = monitor().await?;
    world.set("PING_URL_SYNC_INTEGRATIONS", &format!("{}/sync", monitor.url()));
    world.stripe_user("acct_odd").await?;
    for shop in ["one.myshopify.com", "two.myshopify.com"] {
        world.shopify_user(shop).await?;
    }
    world.stripe.faults().add(Rule::on("/v1/balance_transactions", Fault::json(200, &json!({}))));
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!((&answer["errors"], &answer["resultsTotal"]), (&json!(1), &json!(3)), "{answer}");
    let told = heard(&monitor);
    assert!(told.len() == 2 && told[1].starts_with("POST /sync/fail: "), "{told:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_is_not_there_changes_nothing_and_its_address_is_in_no_log() -> Result<()> {
    let mut world = World::new().await?;
    world.set("PING_URL_SYNC_INTEGRATIONS", "http://127.0.0.1:9/5f0c0e52-private");
    world.stripe_user("acct_alone").await?;
    let function = world.function("sync-integrations").await?;
    let answer = function.call(Method::POST, "", Some(&format!("Bearer {}", crate::world::SECRET))).await?;
    assert_eq!((answer.status.as_u16(), &answer.json()["errors"]), (200, &serde_json::json!(0)));
    assert!(function.log().contains("the monitor does not answer"));
    assert!(!function.log().contains("5f0c0e52-private"), "{}", function.log());
    Ok(())
}

/// Months that had failed and are taken up again are heard of without having been due; and so is a cron that cannot even
/// look for them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_good_is_told() -> Result<()> {
    let mut world = World::new().await?;
    let monitor = monitor().await?;
    world.set("PING_URL_MONTHLY_SYNC", &format!("{}/month", monitor.url()));
    let month = world.month().previous();
    world.set_now(paris::start_of(month.last_day()) + TimeDelta::hours(15));
    world.stripe_user("acct_again").await?;
    world.stripe.payment("acct_again", world.earlier(90), 4_200, "eur");
    world.stripe.faults().add(Rule::on("/v1/balance_transactions", Fault::json(200, &json!({}))));
    world.cron("monthly-orchestrator", "").await?;
    world.stripe.faults().clear();

    world.set_now(month.next().first_day().and_hms_opt(6, 5, 0).expect("an hour").and_utc());
    monitor.faults().forget();
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("jobs_retake_months", timed_out()));
    let answer = world.cron("sync-integrations", "").await?;
    assert_eq!((&answer["errors"], &answer["totalSynced"]), (&json!(1), &json!(1)), "{answer}");
    assert_eq!(answer["problems"][0]["code"], "second_chance", "{answer}");
    world.call(Method::GET, "monthly-orchestrator", "").await?;
    let told = heard(&monitor);
    assert!(told.len() == 1 && told[0].starts_with("POST /month/fail: "), "{told:?}");

    gateway.clear();
    monitor.faults().forget();
    world.cron("monthly-orchestrator", "").await?;
    let told = heard(&monitor);
    assert!(told.len() == 1 && told[0].starts_with("POST /month: "), "{told:?}");
    Ok(())
}

/// Months that a sync takes up are told to the month's monitor, and nobody else's: what failed there, what came back.
#[tokio::test(flavor = "multi_thread")]
async fn months_that_a_sync_takes_up_are_told_to_their_own_monitor() -> Result<()> {
    let mut world = World::new().await?;
    let monitor = monitor().await?;
    world.set("PING_URL_MONTHLY_SYNC", &format!("{}/month", monitor.url()));
    let month = world.month().previous();
    world.set_now(paris::start_of(month.last_day()) + TimeDelta::hours(15));
    world.stripe_user("acct_taken").await?;
    world.stripe.payment("acct_taken", world.earlier(90), 4_200, "eur");
    world.stripe.faults().add(Rule::on("/v1/balance_transactions", Fault::json(200, &json!({}))));
    world.cron("monthly-orchestrator", "").await?;

    let after = |hour| month.next().first_day().and_hms_opt(hour, 5, 0).expect("an hour").and_utc();
    monitor.faults().forget();
    world.set_now(after(6));
    let answer = world.cron("sync-integrations", "").await?;
    assert_eq!(answer["monthsTakenUp"], 1, "{answer}");
    let told = heard(&monitor);
    assert!(told.len() == 1 && told[0].starts_with("POST /month/fail: "), "{told:?}");

    world.stripe.faults().clear();
    monitor.faults().forget();
    world.set_now(after(12));
    let answer = world.cron("sync-integrations", "").await?;
    assert_eq!(answer["monthsTakenUp"], 1, "{answer}");
    let told = heard(&monitor);
    assert!(told.len() == 1 && told[0].starts_with("POST /month: "), "{told:?}");
    assert!(told[0].replace('\u{a0}', " ").contains("éléments : 1"), "{told:?}");

    // Nothing is owed any more: the sync says nothing of months.
    monitor.faults().forget();
    world.set_now(after(18));
    world.cron("sync-integrations", "").await?;
    assert_eq!(heard(&monitor), Vec::<String>::new());
    Ok(())
}

/// An address that the mail service does not take is its user's to mend: it counts as an error and pages nobody.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_none_pages_nobody() -> Result<()> {
    let mut world = World::new().await?;
    let monitor = monitor().await?;
    world.set("PING_URL_CHECK_THRESHOLDS", &format!("{}/thresholds", monitor.url()));
    for address in ["above@example.test", "no-address"] {
        let user = world.user(address).await?;
        sqlx::query(
            "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) \
             values ($1, $2, 1, 'Prestation de services', 80000)",
        )
        .bind(user)
        .bind(chrono::Datelike::year(&paris::date(world.now())))
        .execute(world.pool())
        .await?;
    }
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!((&answer["sent"], &answer["errors"]), (&json!(1), &json!(1)), "{answer}");
    let told = heard(&monitor);
    assert!(told.len() == 2 && told[1].starts_with("POST /thresholds: "), "{told:?}");
    Ok(())
}
