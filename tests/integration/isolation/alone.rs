//! A page of one that still cannot be read: a user for whom even a question about them alone takes too long is named and
//! left, and everybody else is served in the same run. Every loop that asks for less where it has asked too much is held to
//! that here.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use stand_ins::faults::{Fault, Rule};
use uuid::Uuid;

use super::{ORDINARY_DAY, SECOND, busy_user, call, sound_users, write};
use crate::{clock::at, world::World};

/// Makes a function of the database end for a user as if the statement's time were over.
async fn slow_where(world: &World, function: &str, arguments: &str, returns: &str, test: &str) -> Result<()> {
    let passed = "$1, $2, $3".chars().take(arguments.split(',').count() * 4 - 2).collect::<String>();
    for sql in [
        format!("alter function jobs.{function}({arguments}) rename to quick_{function}"),
        format!(
            "create function jobs.{function}({arguments}) returns {returns} language plpgsql stable as $f$ begin \
             if {test} then raise query_canceled; end if; return {} jobs.quick_{function}({passed}); end $f$",
            if returns.starts_with("table") { "query select * from" } else { "" },
        ),
        format!("grant execute on function jobs.{function}({arguments}) to public"),
    ] {
        write(world, sql).await?;
    }
    Ok(())
}

async fn slow_books(world: &World, user: Uuid) -> Result<()> {
    let returns = "table (user_id uuid, created date, years jsonb, flaw text)";
    slow_where(world, "books", "uuid[], integer, integer", returns, &format!("'{user}' = any ($1)")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn books_that_take_too_long_alone_keep_nobody_from_their_alert() -> Result<()> {
    let mut world = World::new().await?;
    let users = sound_users(&world).await?;
    let slow = busy_user(&world, "slow", false).await?;
    slow_books(&world, slow).await?;
    let told = call(&mut world, ORDINARY_DAY, Method::POST, "check-thresholds").await?;
    assert_eq!((&told["sent"], &told["errors"]), (&json!(users.len()), &json!(0)), "{told}");
    assert_eq!(told["checked"], users.len() + 1, "{told}");
    let named = "select count(*) from jobs.unreadable_input where part = 'books' and flaw = 'too_slow'";
    assert_eq!(world.value::<i64>(named).await?, 1);

    // After a sync their mark is taken like the others'.
    let told = call(&mut world, ORDINARY_DAY, Method::POST, "sync-integrations").await?;
    assert_eq!(told["errors"], 0, "{told}");
    assert_eq!(world.value::<i64>("select count(*) from jobs.threshold_checks_due").await?, 0);

    // Their books can be read again, and they are told.
    write(&world, "drop function jobs.books(uuid[], integer, integer)".into()).await?;
    let back = "alter function jobs.quick_books(uuid[], integer, integer) rename to books";
    write(&world, back.into()).await?;
    let told = call(&mut world, ORDINARY_DAY, Method::POST, "check-thresholds").await?;
    assert_eq!((&told["sent"], &told["errors"]), (&json!(1), &json!(0)), "{told}");
    assert_eq!(world.value::<i64>(named).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_goes_without_details_and_a_mail_is_put_off_where_one_alone_takes_too_long() -> Result<()> {
    let mut world = World::new().await?;
    let users = sound_users(&world).await?;
    let slow = busy_user(&world, "slow", true).await?;
    slow_where(&world, "assumed_activities", "uuid", "jsonb", &format!("$1 = '{slow}'")).await?;
    let told = call(&mut world, ORDINARY_DAY, Method::POST, "check-thresholds").await?;
    assert_eq!((&told["sent"], &told["errors"]), (&json!(users.len() + 1), &json!(0)), "{told}");

    // Two of the others get the reminder, in the run in which the slow one is put off.
    world.set_now(at(SECOND));
    let answer = world.call(Method::GET, "send-reminders", "").await?;
    let told: Value = answer.json();
    assert_eq!(told["sent"], 2, "{told}");
    let state = "select i.attempts || ' ' || (i.error ->> 'code') || ' ' || i.status from jobs.job_items i \
         where i.user_id = $1 and i.error is not null";
    let state: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(state)).bind(slow).fetch_all(world.pool()).await?;
    assert_eq!(state, ["1 too_slow queued"], "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_fails_keeps_no_mail_from_leaving() -> Result<()> {
    let mut world = World::new().await?;
    let users = sound_users(&world).await?;
    let slow = json!({"code": "57014", "message": "canceling statement due to statement timeout"});
    world.environment.gateway.faults().add(Rule::on("threshold_books", Fault::json(500, &slow)));
    world.set_now(at(SECOND));
    let answer = world.call(Method::POST, "monthly-sync", "force=true").await?;
    assert!(answer.text.contains("follow_up"), "{}", answer.text);
    let sent = "select count(*) from jobs.email_deliveries where kind = 'monthly_recap' and status = 'sent'";
    assert_eq!(world.value::<i64>(sent).await?, i64::try_from(users.len())?, "{}", answer.text);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_too_long_is_not_handed_out_for_its_renewal() -> Result<()> {
    let world = World::at(at(ORDINARY_DAY)).await?;
    busy_user(&world, "shop", false).await?;
    let sql = "select public.integration_refresh_begin(t.id, gen_random_uuid(), 0) from public.integration_tokens t";
    write(&world, "update public.integration_tokens set refresh_token = repeat('x', 100000)".into()).await?;
    let begun: Value = world.value(sql).await?;
    assert_eq!((&begun["acquired"], &begun["refresh_token"]), (&json!(true), &Value::Null));
    write(&world, "update public.integration_tokens set access_token = repeat('x', 100000)".into()).await?;
    let begun: Value = world.value(sql).await?;
    assert_eq!(begun, json!({"acquired": false}));
    Ok(())
}

/// Whoever asks for less where it has asked too much has to say what becomes of one alone, and to be played above.
#[test]
fn whoever_asks_for_less_is_played_with_one_alone() {
    fn look(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                look(&path, found);
            } else if fs::read_to_string(&path).is_ok_and(|text| text.contains(".asks_too_much()")) {
                found.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/jobs/src"), &mut found);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["details.rs", "mailer.rs", "thresholds.rs"]);
}
