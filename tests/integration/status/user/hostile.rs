//! Whatever a user writes breaks neither their own page nor anybody else's.

use anyhow::{Context, Result};
use sqlx::AssertSqlSafe;

use super::{super::Browser, look};
use crate::{isolation::worst_columns, world::World};

#[tokio::test(flavor = "multi_thread")]
async fn the_worst_of_each_column_breaks_no_page() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_odd").await?;
    for sql in [
        "insert into public.email_preferences (user_id) values ($1)",
        "insert into public.user_onboarding_data (user_id) values ($1)",
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) values ($1, 2026, 11, 'services', 10)",
        "insert into jobs.integration_state (user_id, provider, account) values ($1, 'stripe', 'acct_odd')",
        "insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, \
         currency, source_kind, state, method) select $1, 'stripe', 't' || n, 'acct_odd', 'payment', '2026-11-10', 100, 'EUR', \
         repeat(E'\\x01', 1000), repeat('<b>', 400), repeat('é', 900) from generate_series(1, 300) n",
    ] {
        sqlx::query(sql).bind(user).execute(world.pool()).await.context(sql)?;
    }
    let function = world.function("status").await?;
    let mut browser = Browser::signed_in(&function).await?;
    let columns = worst_columns(&world).await?;
    assert!(columns.len() > 100, "{}", columns.len());
    for (table, column, value) in columns {
        let (schema, key) = if table == "users" { ("auth", "id") } else { ("public", "user_id") };
        let sql = format!("update {schema}.{table} set {column} = {value} where {key} = '{user}'");
        // What the database itself refuses is no harm.
        let mut changed = world.pool().begin().await?;
        if sqlx::query(AssertSqlSafe(sql)).execute(&mut *changed).await.is_err() {
            continue;
        }
        changed.commit().await?;
        let told = look(&function, user, "&month=2026-11")
            .await
            .with_context(|| format!("{table}.{column} = {value}"))?;
        assert_eq!(told["month"]["movementsTotal"], 300, "{table}.{column}");
        let size = told.to_string().len();
        assert!(size < 1024 * 1024, "{table}.{column} = {value}: {size} bytes");
    }
    let page = browser.get(&format!("?user={user}&month=2026-11")).await?;
    assert_eq!(page.status, 200);
    assert!(
        page.text.len() < 1024 * 1024 && !page.text.contains("<b>") && !page.text.contains("<script"),
        "{}",
        page.text
    );
    Ok(())
}
