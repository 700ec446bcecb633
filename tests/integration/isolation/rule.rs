//! The rule that holds isolation: nothing but `17_user_input.sql` casts or parses what a user wrote. A cast fails for the
//! whole statement, so that one row would stop everybody whom the statement serves.
//!
//! The columns are the catalogue's, as in `columns`: those that `authenticated` may write. A function is searched, its
//! comments cut out, for such a name that is cast (`amount_eur::bigint`, also after `->>`) or handed to a function that
//! parses (`to_date`, `cast`, `date_trunc`, `extract`, …). A name that a column of ours has, too (`created_at`, `month`)
//! tells nothing and is left out; so is what PostgreSQL casts by itself, which `columns` finds by trying it.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Result;
use sqlx::AssertSqlSafe;

use super::columns::COLUMNS;
use crate::world::World;

/// Finds a column, cast or parsed, in a text: both are bound in this order.
const IS_CAST: &str = "$1 ~* format('\\m%1$s\\M(\\s*->>?\\s*''[^'']*'')*\\s*\\)*\\s*::\\s*(?!text)', $2::text) \
     or $1 ~* format('\\m%1$s\\M[^;,]{0,40}\\mat time zone\\M[^;,]{0,40}::', $2::text) \
     or $1 ~* format('\\m(cast|to_date|to_number|to_timestamp|make_date|date_trunc|date_part|extract)\\s*\\([^()]*\\m%s\\M', $2::text)";

fn schema(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("supabase/schemas").join(name);
    fs::read_to_string(path).expect("readable")
}

/// Returns a text without its comments.
fn uncommented(text: &str) -> String {
    text.lines().map(|line| line.split("--").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

async fn is_cast(world: &World, text: &str, column: &str) -> Result<bool> {
    let sql = format!("select {IS_CAST}");
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(text).bind(column).fetch_one(world.pool()).await?)
}

/// Returns the names of columns that a user may write and that no column of ours has.
async fn telling_columns(world: &World) -> Result<BTreeSet<String>> {
    let sql = format!(
        "select distinct c.column_name from ({COLUMNS}) c (table_name, column_name, udt_name) \
         where c.udt_name not in ('bool', 'uuid') and not exists (select from information_schema.columns o \
         where o.column_name = c.column_name and (o.table_schema = 'jobs' or (o.table_schema = 'public' \
         and o.table_name in ('sync_logs', 'subscriptions', 'marketing_emails'))))"
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(world.pool()).await?.into_iter().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_casts_or_parses_what_a_user_wrote() -> Result<()> {
    let world = World::new().await?;
    let columns = telling_columns(&world).await?;
    for known in
        ["amount_eur", "company_creation_date", "activity_type", "access_token", "raw_user_meta_data"]
    {
        assert!(columns.contains(known), "{known}: {columns:?}");
    }
    let reader = schema("17_user_input.sql");
    let functions: Vec<(String, String)> = sqlx::query_as(
        "select p.proname::text, p.prosrc from pg_proc p where p.pronamespace = 'jobs'::regnamespace \
         or (p.pronamespace = 'public'::regnamespace and p.proname ~ '^(jobs|integration|mail|threshold)_')",
    )
    .fetch_all(world.pool())
    .await?;
    // The catalogue writes a view's casts out that nobody wrote: views are read as they stand in their file.
    let people = schema("31_mail_people.sql");
    let view = people.split("create view ").nth(1).and_then(|rest| rest.split(';').next()).expect("the view");
    let others =
        functions.into_iter().filter(|(name, _)| !reader.contains(&format!("function jobs.{name}(")));
    let texts: Vec<_> = others.chain([("mail_people".to_owned(), view.to_owned())]).collect();
    assert!(texts.len() > 80, "{}", texts.len());
    let mut found = Vec::new();
    for (name, text) in &texts {
        for column in &columns {
            if is_cast(&world, &uncommented(text), column).await? {
                found.push((name.as_str(), column.as_str()));
            }
        }
    }
    assert!(
        found.is_empty(),
        "read it in 17_user_input.sql, which makes it safe and names what it leaves out: {found:?}"
    );
    Ok(())
}

/// The search finds what it is there for, and not what is harmless.
#[tokio::test(flavor = "multi_thread")]
async fn a_cast_is_found() -> Result<()> {
    let world = World::new().await?;
    for (text, expected) in [
        ("select (r.amount_eur * 100)::bigint", false), // not the column itself: `columns` tries it
        ("select r.amount_eur::bigint", true),
        ("select (r.amount_eur) :: integer", true),
        ("select coalesce(amount_eur)::integer", true),
        ("select r.amount_eur::text", false),
        ("select to_date(r.amount_eur, 'YYYY')", true),
        ("select cast(r.amount_eur as integer)", true),
        ("select (r.amount_eur ->> 'a')::date", true),
        ("select r.amount_eur, x::date", false),
        ("select extract(year from r.amount_eur)", true),
        ("select (r.amount_eur at time zone 'Europe/Paris')::date", true),
        ("select other_amount_eur::bigint", false),
        ("select 1 -- r.amount_eur::bigint", false),
    ] {
        assert_eq!(is_cast(&world, &uncommented(text), "amount_eur").await?, expected, "{text}");
    }
    Ok(())
}
