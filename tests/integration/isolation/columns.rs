//! Every column that a signed-in user may write, as the catalogue has them, in the worst values of its type.

use anyhow::{Result, ensure};
use jobs::email::{LinkKeys, links};
use reqwest::Method;
use uuid::Uuid;

use super::{assert_all_served, busy_user, call, run_every_route, sound_users, write};
use crate::{
    clock::at,
    world::{ENCRYPTION_KEY, SECRET, World},
};

/// Lists the columns of the application's tables that `authenticated` may write through a policy,
/// and what the user writes through the auth API.
pub(super) const COLUMNS: &str = "\
    select c.table_name::text, c.column_name::text, c.udt_name::text \
    from information_schema.columns c \
    where c.table_schema = 'public' and c.column_name <> 'user_id' and c.is_generated = 'NEVER' \
        and has_column_privilege('authenticated', format('public.%I', c.table_name)::regclass, c.column_name, 'update') \
        and exists (select from pg_policies p where p.schemaname = 'public' and p.tablename = c.table_name \
            and p.cmd in ('INSERT', 'UPDATE', 'ALL')) \
    union all select 'users', 'raw_user_meta_data', 'jsonb' \
    order by 1, 2";

/// Returns the worst of a type, as SQL. What the database itself refuses is no harm.
fn worst(udt: &str) -> &'static [&'static str] {
    match udt {
        "numeric" => &[
            "'NaN'",
            "9999999999.99",
            "-9999999999.99",
            "0.005",
            "1e300",
            "-1e300",
            "1e-300",
            "'infinity'",
            "null",
        ],
        "int4" => &["2147483647", "-2147483648", "-4000", "0", "13", "null"],
        "uuid" => &["gen_random_uuid()", "'00000000-0000-0000-0000-000000000000'", "user_id", "null"],
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
            // What we ourselves write, or read, in one column or another.
            "'auto_sync'",
            "'2026-11/Prestation de services'",
            "'2026-13'",
            "'shopify'",
            "'acct_sound0'",
            // A letter for letter escape of NUL, and marks that turn a line around.
            "E'\\\\u0000'",
            "U&'\\202E\\200B\\FEFF'",
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

/// Makes a user for each column and value, who has written it; answers them with what they wrote. What the database itself
/// refuses is no harm.
async fn odd_users(world: &World) -> Result<Vec<(Uuid, String)>> {
    let mut odd = Vec::new();
    let columns = worst_columns(world).await?;
    for (n, (table, column, value)) in columns.iter().enumerate() {
        let user = busy_user(world, &format!("odd{n}"), true).await?;
        let (schema, key) = if table == "users" { ("auth", "id") } else { ("public", "user_id") };
        let sql = format!("update {schema}.{table} set {column} = {value} where {key} = '{user}'");
        match write(world, sql.clone()).await {
            Ok(rows) => {
                ensure!(rows > 0, "{table}.{column}: nothing was written");
                odd.push((user, sql));
            }
            Err(error) => ensure!(error.as_database_error().is_some(), "{table}.{column}: {error}"),
        }
    }
    let names: std::collections::BTreeSet<_> =
        columns.iter().map(|(table, column, _)| (table, column)).collect();
    ensure!(names.len() > 30, "the catalogue has been read: {names:?}");
    println!("{} columns, {} values, of which the database takes {}", names.len(), columns.len(), odd.len());
    Ok(odd)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_user_writes_costs_nobody_else_anything() -> Result<()> {
    let mut world = World::new().await?;
    world.set("OPERATOR_EMAIL", "operator@example.test");
    let sound = sound_users(&world).await?;
    let odd = odd_users(&world).await?;
    run_every_route(&mut world).await?;
    assert_all_served(&world, &sound).await?;
    every_page_opens(&world, &odd).await?;

    // The same into what has been imported and told since, by now also rows of ours.
    for (_, sql) in &odd {
        if let Err(error) = write(&world, sql.clone()).await {
            ensure!(error.as_database_error().is_some(), "{sql}: {error}");
        }
    }
    for n in 0..sound.len() {
        world.stripe.payment(&format!("acct_sound{n}"), at("2026-12-10T12:00:00Z"), 54_321, "eur");
    }
    for (day, method, name) in [
        ("2026-12-11T10:00:00Z", Method::POST, "sync-integrations"),
        ("2026-12-11T10:00:00Z", Method::POST, "check-thresholds"),
        ("2026-12-12T10:00:00Z", Method::GET, "daily-orchestrator"),
        ("2026-12-31T15:00:00Z", Method::GET, "monthly-orchestrator"),
        ("2027-01-02T07:00:00Z", Method::GET, "monthly-orchestrator"),
    ] {
        call(&mut world, day, method, name).await?;
    }
    for (n, user) in sound.iter().enumerate() {
        let imported = world.imported(*user).await?;
        assert_eq!(imported.last().map(|row| row.2.as_str()), Some("543.21"), "sound{n}: {imported:?}");
        let sql = "select count(*) from jobs.email_deliveries where user_id = $1 and status = 'sent' \
                   and settled_at > '2026-12-12' and kind in ('monthly_recap', 'monthly_reminder')";
        let mails: i64 = sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await?;
        assert_eq!(mails, if n % 2 == 1 { 2 } else { 1 }, "sound{n}");
    }
    every_page_opens(&world, &odd).await
}

/// Opens what an operator and each of these users would: the status page, a file of receipts, the page behind a link.
async fn every_page_opens(world: &World, users: &[(Uuid, String)]) -> Result<()> {
    let (status, confirm) = (world.function("status").await?, world.function("confirm").await?);
    let http = jobs::http::client()?;
    for accept in ["application/json", "text/html"] {
        let page = http.get(status.url()).bearer_auth(SECRET).header("accept", accept);
        let page = status.send(page).await?;
        assert_eq!(page.status, 200, "{}", page.text);
        assert!(!page.text.contains("<script>alert"), "{}", page.text);
    }
    let keys = LinkKeys::derive(&ENCRYPTION_KEY.to_owned().into());
    for (user, sql) in users {
        let file = http.get(format!("{}?user={user}&csv=2026", status.url())).bearer_auth(SECRET);
        assert_eq!(status.send(file).await?.status, 200, "{sql}");
        let link = links::confirm("", &keys, *user, 2026);
        let url = format!("{}?{}", confirm.url(), link.split_once('?').map_or("", |(_, query)| query));
        let look = confirm.send(http.get(&url)).await?;
        assert_eq!(look.status, 200, "{sql}: {}", look.text);
        let form = http.post(&url).header("content-type", "application/x-www-form-urlencoded");
        let said = confirm.send(form.body("verdict=distinct&month=")).await?;
        assert_eq!(said.status, 200, "{sql}: {}", said.text);
    }
    Ok(())
}
