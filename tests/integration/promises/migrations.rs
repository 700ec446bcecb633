//! The migrations: on top of the application's tables with rows in them, the same schema everywhere, and the one that
//! `supabase/schemas` describes.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use processes::database::{Database, SqlFile, Template, apply, migrations, schemas};
use sqlx::{AssertSqlSafe, PgPool};
use stand_ins::Stack;

/// Selects everything of `public` and `jobs` that can differ, and our queues, one line each.
const SCHEMA: &str = "
    with ours as (select oid from pg_namespace where nspname in ('public', 'jobs'))
    select line collate \"C\" from (
        select format('schema %s %s', nspname, nspacl) as line from pg_namespace where oid in (select oid from ours)
        union all
        select format('default rights %s %s %s', defaclnamespace::regnamespace, defaclobjtype, defaclacl)
        from pg_default_acl
        union all
        select format('relation %s %s rls %s %s %s %s', c.oid::regclass, relkind, relrowsecurity, relforcerowsecurity,
            relacl, case relkind when 'v' then pg_get_viewdef(c.oid) end)
        from pg_class c where relnamespace in (select oid from ours) and relkind in ('r', 'S', 'v', 'm', 'p')
        union all
        select format('column %s.%s %s %s not null %s identity %s generated %s %s %s', c.oid::regclass, attname,
            -- Its place among those that are left.
            row_number() over (partition by c.oid order by attnum),
            format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, pg_get_expr(d.adbin, d.adrelid), attacl)
        from pg_attribute a join pg_class c on c.oid = a.attrelid
        left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace in (select oid from ours) and c.relkind in ('r', 'v', 'm', 'p') and attnum > 0 and not attisdropped
        union all
        select format('constraint %s %s %s valid %s', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated)
        from pg_constraint where connamespace in (select oid from ours)
        union all
        select format('index %s', indexdef) from pg_indexes where schemaname in ('public', 'jobs')
        union all
        select format('trigger %s', pg_get_triggerdef(t.oid)) from pg_trigger t where not tgisinternal
        union all
        select format('policy %s.%s.%s %s %s %s %s %s', schemaname, tablename, policyname, permissive, roles, cmd, qual,
            with_check) from pg_policies
        union all
        select format('function %s %s', pg_get_functiondef(oid), proacl)
        from pg_proc where pronamespace in (select oid from ours)
        union all
        select format('comment %s %s %s', pg_describe_object(classoid, objoid, objsubid), objsubid, description)
        from pg_description where objoid >= 16384
        union all
        select format('queue %s', relname) from pg_class where relnamespace = 'pgmq'::regnamespace and relname ~ '^[qa]_'
    ) lines order by 1";

pub(super) async fn schema(pool: &PgPool) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(SCHEMA).fetch_all(pool).await?)
}

pub(super) async fn database(template: Template) -> Result<Database> {
    Stack::shared().await?.database(template).await
}

async fn apply_all(pool: &PgPool, files: Vec<SqlFile>) -> Result<()> {
    for file in files {
        apply(pool, &file.name, &file.sql).await?;
    }
    Ok(())
}

pub(super) fn assert_same(what: &str, expected: &[String], found: &[String]) {
    let missing: Vec<_> = expected.iter().filter(|line| !found.contains(line)).collect();
    let added: Vec<_> = found.iter().filter(|line| !expected.contains(line)).collect();
    assert!(missing.is_empty() && added.is_empty(), "{what}: missing {missing:#?}, added {added:#?}");
}

/// Writes rows of every kind that production holds, also such as our checks would not let in anew.
pub(super) const ROWS: &str = "
    insert into auth.users (id, email) select md5(n::text)::uuid, n || '@example.test' from generate_series(1, 50) n;
    insert into public.ca_records (user_id, year, month, activity_type, amount_eur, ir_mode)
        select id, 2026, m, (array['services', 'Vente de marchandises', 'Activité libérale', 'autre'])[1 + m % 4], 100.55, 'vl'
        from auth.users, generate_series(1, 12) m, generate_series(1, 2);
    insert into public.integration_tokens (user_id, provider, access_token, stripe_account_id, shop_domain, is_active)
        select id, p, 'aa:bb', 'acct_same', 'Shop.MyShopify.com', nullif(p, 'stripe') is null
        from auth.users, unnest(array['stripe', 'shopify']) p;
    insert into public.sync_logs (user_id, provider, sync_type, status)
        select id, 'stripe', 'webhook', 'partial' from auth.users;
    insert into public.subscriptions (user_id, status) select id, 'active' from auth.users;
    insert into public.email_preferences (user_id) select id from auth.users;
    insert into public.marketing_emails (user_id, email_type) select id, 'upgrade_day3' from auth.users;
    insert into public.user_onboarding_data (user_id) select id from auth.users;";

pub(super) const COUNTS: &str = "select format('%s %s %s %s %s %s %s %s', (select count(*) from public.ca_records), \
    (select count(*) from public.integration_tokens), (select count(*) from public.sync_logs), \
    (select count(*) from public.user_profiles), (select count(*) from public.subscriptions), \
    (select sum(amount_eur) from public.ca_records), (select count(*) from public.marketing_emails), \
    (select md5(string_agg(concat(id, year, month, activity_type, amount_eur, ir_mode, created_at), '' order by id)) from public.ca_records))";

#[tokio::test]
async fn no_row_of_the_application_is_lost() -> Result<()> {
    let database = database(Template::Application).await?;
    let pool = database.pool();
    apply(pool, "rows", ROWS).await?;
    let before: String = sqlx::query_scalar(COUNTS).fetch_one(pool).await?;
    assert!(before.starts_with("1200 100 50 50 50 120660.00 50 "), "{before}");
    apply_all(pool, migrations()?).await?;
    let after: String = sqlx::query_scalar(COUNTS).fetch_one(pool).await?;
    assert_eq!(after, before);
    let manual: i64 = sqlx::query_scalar("select count(*) from public.ca_records where source = 'manual' and external_id is null and metadata = '{}'")
        .fetch_one(pool)
        .await?;
    assert_eq!(manual, 1_200);
    // The rows of before are planned for like any other.
    let plan = "select public.jobs_plan_sync(gen_random_uuid(), 'sync_integrations', 'sync_integration', null, \
                'manual', '/', '2026-11-18T10:20:00Z', '{}', '{}', null, false, 366, '2026-11-18T10:20:00Z') #>> '{plan,items}'";
    let items: String = sqlx::query_scalar(plan).fetch_one(pool).await?;
    assert_eq!(items, "50");
    Ok(())
}

#[tokio::test]
async fn everywhere_the_same_schema() -> Result<()> {
    let expected = schema(database(Template::Migrated).await?.pool()).await?;
    assert!(expected.len() > 400, "{expected:#?}");
    for (what, template, rows) in [
        ("an empty project", Template::Platform, ""),
        ("the application's tables, empty", Template::Application, ""),
        ("the application's tables with rows", Template::Application, ROWS),
    ] {
        let project = database(template).await?;
        apply(project.pool(), "rows", rows).await?;
        apply_all(project.pool(), migrations()?).await?;
        assert_same(what, &expected, &schema(project.pool()).await?);
    }
    Ok(())
}

/// Whoever changes a function edits `schemas` and writes a migration that repeats it: neither alone.
#[tokio::test]
async fn the_schemas_say_what_the_migrations_lead_to() -> Result<()> {
    let described = database(Template::Platform).await?;
    apply_all(described.pool(), schemas()?).await?;
    let migrated = database(Template::Migrated).await?;
    assert_same(
        "supabase/schemas (expected) and supabase/migrations (found)",
        &schema(described.pool()).await?,
        &schema(migrated.pool()).await?,
    );
    Ok(())
}

/// Every function is found by its name, in one file; where a function stands twice, the first one is dead.
#[test]
fn in_the_schemas_each_function_stands_once() -> Result<()> {
    let mut names: Vec<String> = Vec::new();
    for file in schemas()? {
        for line in file.sql.lines() {
            assert!(!line.contains("or replace"), "{}: {line}", file.name);
            if let Some(rest) = line.trim_start().strip_prefix("create function ") {
                names.push(rest.split('(').next().unwrap_or_default().to_owned());
            }
        }
    }
    assert!(names.len() > 60, "{names:?}");
    names.sort();
    let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert_eq!(twice, Vec::<&[String]>::new());
    Ok(())
}

/// Pasted into the SQL editor a second time, a file changes nothing: it says the same, or is refused as a whole.
#[tokio::test]
async fn a_file_twice_changes_nothing() -> Result<()> {
    let database = database(Template::Migrated).await?;
    let before = schema(database.pool()).await?;
    let mut connection = database.pool().acquire().await?;
    let mut repeatable = 0;
    for migration in migrations()? {
        let again = sqlx::raw_sql(AssertSqlSafe(migration.sql.as_str())).execute(&mut *connection).await;
        if migration.sql.contains("Safe to run twice") {
            again.context(migration.name)?;
            repeatable += 1;
        } else {
            assert!(again.is_err(), "{} is safe to run twice and does not say so", migration.name);
        }
        sqlx::raw_sql("rollback").execute(&mut *connection).await?;
    }
    assert!(repeatable >= 2, "both files about the application's tables");
    assert_same("a second time", &before, &schema(database.pool()).await?);
    Ok(())
}

/// The Supabase CLI knows a file by the digits of its name: two of them with the same ones are one to it.
#[test]
fn each_file_has_a_version_of_its_own() -> Result<()> {
    let mut versions = BTreeSet::new();
    for migration in migrations()? {
        let (version, _) = migration.name.split_once('_').context("no version")?;
        assert!(
            version.len() == 14 && version.bytes().all(|byte| byte.is_ascii_digit()),
            "{}",
            migration.name
        );
        assert!(versions.insert(version.to_owned()), "{}", migration.name);
    }
    Ok(())
}

/// Whoever waits for a lock holds up everybody behind it: each file is one transaction that gives up early.
#[test]
fn each_file_is_one_transaction_that_does_not_wait_for_locks() -> Result<()> {
    for migration in migrations()? {
        let statements: Vec<&str> = migration.sql.lines().filter(|line| !line.starts_with("--")).collect();
        let statements = statements.join("\n");
        let body = statements.trim();
        assert!(body.starts_with("begin;\nset local lock_timeout = '5s';\n"), "{}", migration.name);
        assert!(body.ends_with("\ncommit;"), "{}", migration.name);
    }
    Ok(())
}

/// With only some of the application's tables, the first file says so.
#[tokio::test]
async fn a_project_without_the_application_is_told_so() -> Result<()> {
    let database = database(Template::Application).await?;
    sqlx::raw_sql("drop table public.ca_records cascade").execute(database.pool()).await?;
    let refused =
        format!("{:#}", apply_all(database.pool(), migrations()?).await.expect_err("no such table"));
    assert!(refused.contains("not a Comptalyze database: these tables are missing: ca_records"), "{refused}");
    Ok(())
}
