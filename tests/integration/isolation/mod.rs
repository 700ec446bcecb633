//! One user's rows, however wrong, cost nobody else anything: whatever a signed-in user may write is written, in the
//! worst values of its type, and everybody else is served in the same run.

mod alone;
mod answers;
mod columns;
mod cut;
mod deleted;
mod growth;
mod mended;
mod moved;
mod rule;
mod shrinks;
mod sizes;
mod unread;

pub(crate) use self::columns::worst_columns;
use anyhow::{Context, Result, ensure};
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::{clock::at, world::World};

/// These are an ordinary day, the last day of its month, and the 2nd of the next one.
const ORDINARY_DAY: &str = "2026-11-24T10:00:00Z";
const LAST_DAY: &str = "2026-11-30T15:00:00Z";
const SECOND: &str = "2026-12-02T07:00:00Z";

/// A user for whom every route has something to do: a connected account, books above the thresholds, and every wish.
/// `premium` users get the reminder, the others the offer.
async fn busy_user(world: &World, name: &str, premium: bool) -> Result<Uuid> {
    let user = world.stripe_user(&format!("acct_{name}")).await?;
    let statements = [
        "update auth.users set created_at = $2, email_confirmed_at = $2 where id = $1",
        "update public.user_profiles set full_name = 'Camille Moreau' where id = $1 and $2 is not null",
        "insert into public.email_preferences (user_id, monthly_reminder) select $1, true where $2 is not null",
        "insert into public.user_onboarding_data (user_id, company_creation_date) \
         select $1, '2020-01-01' where $2 is not null",
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) \
         select $1, 2026, m, 'Prestation de services', 20000 from generate_series(1, 3) m where $2 is not null",
    ];
    let created = at(ORDINARY_DAY) - TimeDelta::days(4);
    for sql in statements {
        sqlx::query(sql).bind(user).bind(created).execute(world.pool()).await.context(sql)?;
    }
    if premium {
        sqlx::query(
            "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
        )
        .bind(user)
        .execute(world.pool())
        .await?;
    }
    world.stripe.payment(&format!("acct_{name}"), at("2026-11-10T12:00:00Z"), 12_345, "eur");
    Ok(user)
}

/// Makes four users with nothing wrong; two of them are premium.
async fn sound_users(world: &World) -> Result<Vec<Uuid>> {
    let mut users = Vec::new();
    for n in 0..4 {
        users.push(busy_user(world, &format!("sound{n}"), n % 2 == 1).await?);
    }
    Ok(users)
}

/// Runs a statement of this test's own making.
async fn write(world: &World, sql: String) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(AssertSqlSafe(sql)).execute(world.pool()).await?.rows_affected())
}

/// Calls a route at an instant; it must be a 200.
async fn call(world: &mut World, day: &str, method: Method, name: &str) -> Result<Value> {
    world.set_now(at(day));
    let answer = world.call(method, name, "").await?;
    ensure!(answer.status == 200, "{name}: {} {}", answer.status, answer.text);
    Ok(answer.json())
}

/// Runs every route that works on users, each on its day.
async fn run_every_route(world: &mut World) -> Result<()> {
    for (day, method, name) in [
        (ORDINARY_DAY, Method::POST, "check-thresholds"),
        (ORDINARY_DAY, Method::GET, "daily-tasks"),
        (ORDINARY_DAY, Method::POST, "sync-integrations"),
        (LAST_DAY, Method::GET, "monthly-orchestrator"),
        (SECOND, Method::GET, "monthly-orchestrator"),
    ] {
        call(world, day, method, name).await?;
    }
    Ok(())
}

/// Checks that everybody with nothing wrong got all that was theirs: alert, recap, reminder or
/// offer, and imported turnover.
async fn assert_all_served(world: &World, users: &[Uuid]) -> Result<()> {
    let sql = "select array_agg(kind order by kind) from jobs.email_deliveries where user_id = $1 and status = 'sent'";
    for (n, user) in users.iter().enumerate() {
        let kinds: Option<Vec<String>> = sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await?;
        let own = if n % 2 == 1 { "monthly_reminder" } else { "marketing_day3" };
        let mut expected = vec!["monthly_recap", own, "threshold_alert"];
        expected.sort_unstable();
        assert_eq!(kinds.unwrap_or_default(), expected, "sound{n}");
        assert_imported(world, *user).await?;
    }
    Ok(())
}

/// Checks that a busy user's only payment is in the books.
async fn assert_imported(world: &World, user: Uuid) -> Result<()> {
    let imported = world.imported(user).await?;
    assert_eq!(imported.len(), 1, "{imported:?}");
    assert_eq!(imported[0].2, "123.45");
    Ok(())
}
