//! A mark that thresholds are to be checked is kept where it is set again while the books are read.

use anyhow::Result;
use chrono::{DateTime, Datelike, Utc};
use jobs::schedule::paris;
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use super::{rpc, until};
use crate::world::{SECRET, World};

/// Selects a check that waits for the books, as long as somebody holds their table.
const WAITING: &str = "select count(*) from pg_locks l join pg_database d on d.oid = l.database \
    where d.datname = current_database() and l.relation = 'public.ca_records'::regclass and not l.granted";

async fn marked_at(world: &World) -> Result<Option<DateTime<Utc>>> {
    Ok(sqlx::query_scalar("select since from jobs.threshold_checks_due").fetch_optional(world.pool()).await?)
}

/// The check has seen the mark and reads the books: now turnover comes in and sets the mark again. What was checked is the
/// first mark only, so that the second one stays, and with it the alert.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_is_set_again_while_the_books_are_read_is_kept() -> Result<()> {
    let world = World::new().await?;
    let now = world.now();
    let year = paris::date(now).year();
    let user = world.user("marked@example.test").await?;
    let mark = "insert into jobs.threshold_checks_due (user_id) values ($1) \
                on conflict (user_id) do update set since = excluded.since";
    sqlx::query(mark).bind(user).execute(world.pool()).await?;
    let first = marked_at(&world).await?;

    let mut books = world.pool().begin().await?;
    sqlx::query("lock table public.ca_records in access exclusive mode").execute(&mut *books).await?;
    let asked = json!({
        "p_after": null, "p_limit": 5000, "p_user_id": null, "p_due": true, "p_floors": {year.to_string(): 100},
        "p_bytes": 4_000_000, "p_noted_at": now, "p_now": now,
    });
    let check = rpc(&world, "threshold_books", &asked);
    let meanwhile = async {
        until("the check reads the books", async || Ok(world.value::<i64>(WAITING).await? > 0)).await?;
        sqlx::query(mark).bind(user).execute(world.pool()).await?;
        books.rollback().await?;
        anyhow::Ok(())
    };
    let (page, done) = tokio::join!(check, meanwhile);
    done?;
    let page = page?;
    let second = marked_at(&world).await?;
    assert!(first.is_some() && second > first, "{first:?} {second:?}");
    let checked: DateTime<Utc> = serde_json::from_value(page["due"][0]["since"].clone())?;
    assert_eq!(Some(checked), first, "the mark that was there before the books: {page}");

    let plan = json!({
        "p_run_id": Uuid::new_v4(), "p_append": true, "p_task": "check_thresholds", "p_slot": null,
        "p_trigger": "cron", "p_route": "/test", "p_as_of": now, "p_parameters": {}, "p_due": page["due"],
        "p_outline": {}, "p_now": now,
    });
    rpc(&world, "jobs_plan_alerts", &plan).await?;
    assert_eq!(marked_at(&world).await?, second, "set again, so it is checked again");

    // The turnover that set it: whoever goes on with the queue tells of it.
    sqlx::query(
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) \
         values ($1, $2, 1, 'Prestation de services', 80000)",
    )
    .bind(user)
    .bind(year)
    .execute(world.pool())
    .await?;
    let function = world.function("drain-queue").await?;
    let answer = function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
    assert_eq!(answer.status, 202, "{}", answer.text);
    until("the alert", async || Ok(world.resend.accepted_count() == 1)).await?;
    until("the mark is gone", async || Ok(marked_at(&world).await?.is_none())).await
}
