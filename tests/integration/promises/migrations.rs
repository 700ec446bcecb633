//! The migrations: on top of the application's tables with rows in them, and the same schema everywhere.

use anyhow::{Context, Result};
use local_stack::{
    Stack,
    database::{Database, Template, apply, migrations},
};
use sqlx::PgPool;

/// Tables, columns, constraints, indexes, policies, rights and functions of `public`, one line each.
const SCHEMA: &str = "select line collate \"C\" from (\
    select format('relation %s %s rls %s %s', oid::regclass, relkind, relrowsecurity, relacl) as line \
    from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'S', 'v', 'i') \
    union all select format('column %s.%s %s %s not null %s %s', attrelid::regclass, attname, attnum, \
        format_type(atttypid, atttypmod), attnotnull, pg_get_expr(d.adbin, d.adrelid)) \
    from pg_attribute a join pg_class c on c.oid = a.attrelid left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum \
    where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and attnum > 0 and not attisdropped \
    union all select format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) \
    from pg_constraint where connamespace = 'public'::regnamespace \
    union all select format('index %s', indexdef) from pg_indexes where schemaname = 'public' \
    union all select format('policy %s.%s %s %s', tablename, policyname, qual, with_check) from pg_policies \
    union all select format('function %s %s', pg_get_functiondef(oid), proacl) \
    from pg_proc where pronamespace = 'public'::regnamespace \
    union all select format('queue %s', relname) from pg_class where relnamespace = 'pgmq'::regnamespace and relname ~ '^q_'\
    ) lines order by 1";

async fn schema(pool: &PgPool) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(SCHEMA).fetch_all(pool).await?)
}

async fn database(template: Template) -> Result<Database> {
    Stack::shared().await?.database(template).await
}

async fn migrate(pool: &PgPool) -> Result<()> {
    for migration in migrations()? {
        apply(pool, &migration.name, &migration.sql).await?;
    }
    Ok(())
}

/// Rows of every kind that production holds, also such as our checks would not let in anew.
const ROWS: &str = "
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

const COUNTS: &str = "select format('%s %s %s %s %s %s %s %s', (select count(*) from public.ca_records), \
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
    migrate(pool).await?;
    let after: String = sqlx::query_scalar(COUNTS).fetch_one(pool).await?;
    assert_eq!(after, before);
    let manual: i64 = sqlx::query_scalar("select count(*) from public.ca_records where source = 'manual' and external_id is null and metadata = '{}'")
        .fetch_one(pool)
        .await?;
    assert_eq!(manual, 1_200);
    // The rows of before are planned for like any other.
    let plan = "select public.jobs_plan_sync(gen_random_uuid(), 'sync_integrations', 'sync_integration', null, \
                'manual', '/', '2026-11-18T10:20:00Z', '{}', '{}', null, false) #>> '{plan,items}'";
    let items: String = sqlx::query_scalar(plan).fetch_one(pool).await?;
    assert_eq!(items, "50");
    Ok(())
}

#[tokio::test]
async fn everywhere_the_same_schema() -> Result<()> {
    let (fresh, full, shipped) = (
        database(Template::Application).await?,
        database(Template::Application).await?,
        database(Template::Migrated).await?,
    );
    apply(full.pool(), "rows", ROWS).await?;
    migrate(fresh.pool()).await?;
    migrate(full.pool()).await?;
    let expected = schema(shipped.pool()).await?;
    assert!(expected.len() > 150, "{expected:#?}");
    for other in [fresh, full] {
        let found = schema(other.pool()).await?;
        let differing: Vec<_> = found
            .iter()
            .filter(|line| !expected.contains(line))
            .chain(expected.iter().filter(|line| !found.contains(line)))
            .collect();
        assert_eq!(differing, Vec::<&String>::new());
    }
    Ok(())
}

/// Pasted into the SQL editor a second time, a file changes nothing: it is refused as a whole, or says the same.
#[tokio::test]
async fn a_file_twice_changes_nothing() -> Result<()> {
    let database = database(Template::Migrated).await?;
    let before = schema(database.pool()).await?;
    let mut connection = database.pool().acquire().await?;
    for migration in migrations()? {
        let again =
            sqlx::raw_sql(sqlx::AssertSqlSafe(migration.sql.as_str())).execute(&mut *connection).await;
        if migration.sql.contains("safe to run twice") {
            again.context(migration.name)?;
        }
        sqlx::raw_sql("rollback").execute(&mut *connection).await?;
    }
    let after = schema(database.pool()).await?;
    assert_eq!(after, before);
    Ok(())
}

/// With only some of the application's tables, the first file says so.
#[tokio::test]
async fn a_project_without_the_application_is_told_so() -> Result<()> {
    let database = database(Template::Application).await?;
    sqlx::raw_sql("drop table public.ca_records cascade").execute(database.pool()).await?;
    let refused = format!("{:#}", migrate(database.pool()).await.expect_err("no such table"));
    assert!(refused.contains("not a Comptalyze database: these tables are missing: ca_records"), "{refused}");
    Ok(())
}
