//! The J+3 mail: who is written to, and on which days.

use anyhow::Result;
use chrono::{DateTime, Datelike, Days, TimeDelta, Utc};
use jobs::{
    email::{LinkKeys, links},
    mail_kind::MailKind,
    schedule::{DAYS_AFTER_SIGN_UP, paris},
};
use reqwest::Method;
use serde_json::json;

use super::{
    given::{about, last_sunday, recipients},
    signed_up, signed_up_at,
};
use crate::world::{ENCRYPTION_KEY, World};

#[tokio::test(flavor = "multi_thread")]
async fn whoever_cannot_or_will_not_be_written_to_is_left_alone() -> Result<()> {
    let mut world = World::new().await?;
    let noon = world.midday();
    let preferences = "insert into public.email_preferences (user_id, monthly_reminder, marketing_email) values ($1, false, ";
    let people = [
        ("plain", "select $1::uuid", None),
        ("unconfirmed", "update auth.users set email_confirmed_at = null where id = $1", Some("unconfirmed")),
        (
            "banned",
            "update auth.users set banned_until = $now + interval '1 second' where id = $1",
            Some("user_banned"),
        ),
        ("ban-over", "update auth.users set banned_until = $now - interval '1 second' where id = $1", None),
        ("deleted", "update auth.users set deleted_at = $now where id = $1", Some("user_deleted")),
        ("anonymous", "update auth.users set is_anonymous = true where id = $1", Some("anonymous")),
        ("no-address", "update auth.users set email = null where id = $1", Some("no_address")),
        ("blank-address", "update auth.users set email = '  ' where id = $1", Some("no_address")),
        ("opt-out", &format!("{preferences} false)"), Some("refused_by_user")),
        ("opt-in", &format!("{preferences} true)"), None),
        (
            "had-it",
            "insert into public.marketing_emails (user_id, email_type) values ($1, 'upgrade_day3')",
            Some("already_sent"),
        ),
        (
            "had-another",
            "insert into public.marketing_emails (user_id, email_type) values ($1, 'newsletter')",
            None,
        ),
        (
            "bounced",
            "insert into jobs.email_suppressions (address_hash, reason) \
             select jobs.address_hash(upper(email)), 'bounced' from auth.users where id = $1",
            Some("suppressed"),
        ),
    ];
    let mut reasons = json!({});
    let mut expected = Vec::new();
    for (name, sql, reason) in people {
        let user =
            signed_up_at(&world, &format!("{name}@example.test"), name, noon - TimeDelta::days(4)).await?;
        about(&world, user, sql).await?;
        match reason {
            None => expected.push(format!("{name}@example.test")),
            Some(reason) => {
                let count = reasons[reason].as_u64().unwrap_or(0) + 1;
                reasons[reason] = json!(count);
            }
        }
    }
    expected.sort();
    let tried = world.cron("daily-tasks", "dry_run=true").await?;
    let plan = &tried["results"]["upgradeEmails"]["dryRun"];
    assert_eq!((&plan["items"], &plan["skipped"]), (&json!(expected.len()), &reasons), "{tried}");
    let answer = world.cron("daily-tasks", "").await?;
    assert_eq!(answer["results"]["upgradeEmails"]["sent"], json!(expected.len()), "{answer}");
    assert_eq!(recipients(&world), expected);
    // Whoever becomes reachable within these days gets it with the next run, nobody a second time.
    world
        .run("update auth.users set email_confirmed_at = $now where email = 'unconfirmed@example.test'")
        .await?;
    world.run("delete from jobs.job_slots").await?;
    let answer = world.cron("daily-orchestrator", "").await?;
    assert_eq!(answer["results"]["marketingEmails"]["sent"], 1, "{answer}");
    assert_eq!(recipients(&world).len(), expected.len() + 1);
    Ok(())
}

/// Returns who would get it at an instant, by `dry_run`.
async fn due(world: &World, at: DateTime<Utc>) -> Result<u64> {
    let query = format!("dry_run=true&at={}", at.format("%Y-%m-%dT%H:%M:%SZ"));
    let answer = world.cron("daily-tasks", &query).await?;
    let part = &answer["results"]["upgradeEmails"];
    Ok(part["dryRun"]["items"].as_u64().unwrap_or_else(|| panic!("{answer}")))
}

/// Days are Paris days, also where one of them has 23 or 25 hours.
#[tokio::test(flavor = "multi_thread")]
async fn three_to_six_paris_days() -> Result<()> {
    let mut world = World::new().await?;
    let year = world.now().year() + 1;
    for changes in [last_sunday(year, 3), last_sunday(year, 10), last_sunday(year, 6)] {
        // The clocks change on one of the days in between.
        for today in [changes, changes + Days::new(1), changes + Days::new(4)] {
            let noon = paris::start_of(today) + TimeDelta::hours(12);
            let second = TimeDelta::seconds(1);
            let day = |days: u64| paris::start_of(today - Days::new(days));
            for (name, at) in [
                ("too-old", day(6) - second),
                ("day6-first", day(6)),
                ("day6-last", day(5) - second),
                ("day3-first", day(3)),
                ("day3-last", day(2) - second),
                ("too-new", day(2)),
            ] {
                signed_up_at(&world, &format!("{name}@example.test"), name, at).await?;
            }
            world.set_now(noon);
            let answer = world.cron("daily-tasks", "").await?;
            assert_eq!(answer["results"]["upgradeEmails"]["sent"], 4, "{today}: {answer}");
            let expected = ["day3-first", "day3-last", "day6-first", "day6-last"];
            assert_eq!(recipients(&world), expected.map(|name| format!("{name}@example.test")), "{today}");
            world.resend.clear().await?;
            world.run("delete from auth.users").await?;
            world.run("delete from jobs.email_deliveries").await?;
            world.run("delete from jobs.job_slots").await?;
        }
    }
    Ok(())
}

/// The mail waits for its hour, and a replay does not write to those who signed up long ago.
#[tokio::test(flavor = "multi_thread")]
async fn its_hour_and_its_replay() -> Result<()> {
    let mut world = World::new().await?;
    let noon = world.midday();
    signed_up(&world, "old@example.test", "old", 20).await?;
    signed_up_at(&world, "now@example.test", "now", noon - TimeDelta::days(4)).await?;
    // As of two weeks ago one was due; by the real clock the other one is.
    let then = noon - TimeDelta::days(15);
    assert_eq!(due(&world, then).await?, 1);
    let answer = world.cron("daily-tasks", &format!("at={}", then.format("%Y-%m-%dT%H:%M:%SZ"))).await?;
    assert_eq!(answer["results"]["upgradeEmails"]["sent"], 1, "{answer}");
    assert_eq!(recipients(&world), ["now@example.test"]);

    // Before seven, also on the days on which the clocks change.
    world.set_now(paris::start_of(paris::date(noon)) + TimeDelta::hours(5));
    let answer = world.cron("daily-tasks", "").await?;
    let part = &answer["results"]["upgradeEmails"];
    assert_eq!((&part["sent"], &part["skipped"]), (&json!(0), &json!(true)), "{answer}");
    assert!(part["note"].as_str().unwrap_or_default().contains("7 h"), "{answer}");
    Ok(())
}

/// What has changed by the moment at which a mail would leave is looked at again.
#[tokio::test(flavor = "multi_thread")]
async fn second_thoughts() -> Result<()> {
    let mut world = World::new().await?;
    let noon = world.midday();
    let subscribe = |price: &str| {
        format!(
            "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', '{price}')"
        )
    };
    let changes = [
        ("same", "select $1::uuid".to_owned(), None),
        ("pays", subscribe("price_pro"), Some("paid_plan")),
        ("pays-something", subscribe("price_unheard_of"), Some("unknown_price")),
        (
            "claims",
            r#"update auth.users set raw_user_meta_data = '{"plan": "pro"}' where id = $1"#.to_owned(),
            Some("metadata_says_paid"),
        ),
        (
            "had-it",
            "insert into public.marketing_emails (user_id, email_type) values ($1, 'upgrade_day3')"
                .to_owned(),
            Some("already_sent"),
        ),
        (
            "refuses",
            "select public.mail_unsubscribe($1, 'marketing_day3')".to_owned(),
            Some("refused_by_user"),
        ),
        ("goes", "delete from auth.users where id = $1".to_owned(), None),
        ("moves", "update auth.users set email = 'moved@example.test' where id = $1".to_owned(), None),
    ];
    let mut users = Vec::new();
    for (name, ..) in &changes {
        let address = format!("{name}@example.test");
        users.push(signed_up_at(&world, &address, name, noon - TimeDelta::days(4)).await?);
    }
    sqlx::query(
        "select public.jobs_plan_mails(gen_random_uuid(), 'marketing_day3', 'marketing_day3', null, 'manual', '/test', \
         $1, '{}', null, false, '{\"price_pro\": \"pro\"}', $2, $3, null, null, $1)",
    )
    .bind(noon)
    .bind(DAYS_AFTER_SIGN_UP.start().cast_signed())
    .bind(DAYS_AFTER_SIGN_UP.end().cast_signed())
    .execute(world.pool())
    .await?;
    for ((_, sql, _), user) in changes.iter().zip(&users) {
        about(&world, *user, sql).await?;
    }
    let answer = world.cron("daily-tasks", "").await?;
    assert_eq!(answer["results"]["upgradeEmails"]["sent"], 0, "another run planned them: {answer}");
    assert_eq!(recipients(&world), ["moved@example.test", "same@example.test"]);
    for ((name, _, reason), user) in changes.iter().zip(users) {
        let found: Option<String> =
            sqlx::query_scalar("select reason from jobs.email_deliveries where recipient = $1")
                .bind(user)
                .fetch_one(world.pool())
                .await?;
        if reason.is_some() {
            assert_eq!(found.as_deref(), *reason, "{name}");
        }
    }
    Ok(())
}

/// Who has refused offers, deleted the account and signed up again gets none: by the link, or in the application.
#[tokio::test(flavor = "multi_thread")]
async fn an_objection_outlives_its_account() -> Result<()> {
    let mut world = World::new().await?;
    let noon = world.midday();
    let days = |days: i64| TimeDelta::days(days);
    let by_link = signed_up_at(&world, "link@example.test", "Link", noon - days(20)).await?;
    let in_app = signed_up_at(&world, "app@example.test", "App", noon - days(20)).await?;
    let refused = "insert into public.email_preferences (user_id, monthly_reminder, marketing_email) \
                   values ($1, false, false)";
    about(&world, in_app, refused).await?;
    // Some cron of those days has noted it.
    world.set_now(noon - days(10));
    world.cron("daily-tasks", "").await?;
    let keys = LinkKeys::derive(&ENCRYPTION_KEY.to_owned().into());
    let link = links::unsubscribe("https://jobs.example", &keys, by_link, MailKind::MarketingDay3);
    let query = link.and_then(|link| Some(link.split_once('?')?.1.to_owned())).unwrap_or_default();
    let function = world.function("unsubscribe").await?;
    assert_eq!(function.call(Method::POST, &query, None).await?.status, 200);
    for user in [by_link, in_app] {
        about(&world, user, "delete from auth.users where id = $1").await?;
    }
    let kept: serde_json::Value =
        world.value("select jsonb_agg(to_jsonb(o) - 'since') from jobs.advertising_objections o").await?;
    assert_eq!(kept.as_array().map(Vec::len), Some(2), "{kept}");
    assert!(!kept.to_string().contains("example"), "no address is kept: {kept}");
    let unkeyed: i64 = world
        .value(
            "select count(*) from jobs.advertising_objections \
             where address_hash in (jobs.address_hash('link@example.test'), jobs.address_hash('app@example.test'))",
        )
        .await?;
    assert_eq!(unkeyed, 0, "nobody can tell an address without the key");

    world.set_now(noon);
    for (email, name) in
        [("LINK@example.test", "Link"), ("app@example.test", "App"), ("new@example.test", "New")]
    {
        signed_up_at(&world, email, name, noon - days(4)).await?;
    }
    let answer = world.cron("daily-tasks", "").await?;
    assert_eq!(answer["results"]["upgradeEmails"]["excluded"], json!({"refused_by_user": 2}), "{answer}");
    assert_eq!(recipients(&world), ["new@example.test"]);
    Ok(())
}
