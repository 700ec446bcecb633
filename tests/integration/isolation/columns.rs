//! Every column that a signed-in user may write, as the catalogue has them, in the worst values of its type.

use anyhow::Result;

use super::{assert_all_served, busy_user, run_every_route, sound_users, write};
use crate::world::World;

/// Lists the columns of the application's tables that `authenticated` may write through a policy,
/// and what the user writes through the auth API.
pub(super) const COLUMNS: &str = "\
    select c.table_name::text, c.column_name::text, c.udt_name::text \
    from information_schema.columns c \
    where c.table_schema = 'public' and c.column_name not in ('id', 'user_id') and c.is_generated = 'NEVER' \
        and has_column_privilege('authenticated', format('public.%I', c.table_name)::regclass, c.column_name, 'update') \
        and exists (select from pg_policies p where p.schemaname = 'public' and p.tablename = c.table_name \
            and p.cmd in ('INSERT', 'UPDATE', 'ALL')) \
    union all select 'users', 'raw_user_meta_data', 'jsonb' \
    order by 1, 2";

/// Returns the worst of a type, as SQL. What the database itself refuses is no harm.
fn worst(udt: &str) -> &'static [&'static str] {
    match udt {
        "numeric" => &["'NaN'", "9999999999.99", "-9999999999.99", "0.005", "null"],
        "int4" => &["2147483647", "-2147483648", "0", "null"],
        "bool" => &["null", "true", "false"],
        "date" => &["'infinity'", "'-infinity'", "'20226-01-05'", "'0044-03-15 BC'", "'0001-01-01'", "null"],
        "timestamptz" => &["'infinity'", "'-infinity'", "'20226-01-05'", "'0044-03-15 BC'", "null"],
        "jsonb" => &[
            "'[]'",
            "'null'",
            "'\"text\"'",
            "'{\"full_name\": {\"a\": [1e308]}, \"plan\": [], \"is_pro\": 1e999}'",
            "jsonb_build_object('full_name', repeat('x', 17000000), 'plan', repeat('y', 1000000))",
        ],
        _ => &[
            "''",
            "'NaN'",
            "'infinity'",
            "E'\\x01\\r\\n\\t<script>alert(1)</script>{{7*7}}%s'",
            "repeat('é', 400)",
            "repeat('x', 17000000)",
            "null",
        ],
    }
}

/// Table, column and value: each column that a user may write, with each of the worst values of its type.
pub(crate) async fn worst_columns(world: &World) -> Result<Vec<(String, String, &'static str)>> {
    let columns: Vec<(String, String, String)> = sqlx::query_as(COLUMNS).fetch_all(world.pool()).await?;
    let of = |(table, column, udt): (String, String, String)| {
        worst(&udt).iter().map(move |value| (table.clone(), column.clone(), *value))
    };
    Ok(columns.into_iter().flat_map(of).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_user_writes_costs_nobody_else_anything() -> Result<()> {
    let mut world = World::new().await?;
    let sound = sound_users(&world).await?;
    let columns: Vec<(String, String, String)> = sqlx::query_as(COLUMNS).fetch_all(world.pool()).await?;
    assert!(columns.len() > 30, "the catalogue has been read: {columns:?}");
    let mut tried = 0;
    for (table, column, udt) in &columns {
        for value in worst(udt) {
            tried += 1;
            let user = busy_user(&world, &format!("odd{tried}"), true).await?;
            let (schema, key) = if table == "users" { ("auth", "id") } else { ("public", "user_id") };
            let outcome = write(
                &world,
                format!("update {schema}.{table} set {column} = {value} where {key} = '{user}'"),
            )
            .await;
            match outcome {
                Ok(rows) => assert!(rows > 0, "{table}.{column}: nothing was written"),
                Err(error) => assert!(error.as_database_error().is_some(), "{table}.{column}: {error}"),
            }
        }
    }
    run_every_route(&mut world).await?;
    assert_all_served(&world, &sound).await
}
