//! Only `service_role` reaches what is ours: read from the catalogue, and tried through the gateway.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::rpc_as;
use crate::world::World;

/// Tables, functions and sequences that our migrations make; everything else is the application's.
const OUR_FUNCTIONS: &str =
    "p.pronamespace = 'public'::regnamespace and p.proname ~ '^(jobs|integration|mail|threshold)_'";
const OUR_TABLES: &str = "c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S') \
    and c.relname ~ '^(job_|jobs_|integration_state|integration_transactions|auto_sync|mail_|threshold_|email_(batches|deliveries|suppressions|events))'";

async fn strings(world: &World, sql: String) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(world.pool()).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_gives_nothing_to_users() -> Result<()> {
    let world = World::new().await?;
    let all = strings(&world, format!("select oid::regprocedure::text from pg_proc p where {OUR_FUNCTIONS}"))
        .await?;
    assert!(all.len() > 25, "{all:#?}");
    let tables = strings(&world, format!("select relname from pg_class c where {OUR_TABLES}")).await?;
    assert!(tables.len() >= 8, "{tables:#?}");

    // Nothing else was made by us: who adds a function or a table names it like these.
    let strangers = strings(
        &world,
        format!(
            "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'public'::regnamespace \
             and not ({OUR_FUNCTIONS}) and p.proname <> 'handle_auth_user_created'"
        ),
    )
    .await?;
    assert_eq!(strangers, Vec::<String>::new());

    for (what, sql) in [
        (
            "a user may execute it",
            format!(
                "select p.oid::regprocedure::text from pg_proc p, unnest(array['anon', 'authenticated']) r \
                 where {OUR_FUNCTIONS} and has_function_privilege(r, p.oid, 'execute')"
            ),
        ),
        (
            "somebody but its owner and service_role may execute it",
            format!(
                "select p.oid::regprocedure::text || ' ' || a.grantee::regrole from pg_proc p, \
                 aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a \
                 where {OUR_FUNCTIONS} and a.grantee not in (p.proowner, 'service_role'::regrole)"
            ),
        ),
        (
            "somebody but its owner has rights on it",
            format!(
                "select c.relname || ' ' || a.grantee::regrole from pg_class c, aclexplode(c.relacl) a \
                 where {OUR_TABLES} and a.grantee <> c.relowner"
            ),
        ),
        (
            "no row-level security",
            format!(
                "select c.relname from pg_class c where {OUR_TABLES} and c.relkind = 'r' and not c.relrowsecurity"
            ),
        ),
        (
            "a policy lets somebody in",
            format!(
                "select c.relname from pg_policy y join pg_class c on c.oid = y.polrelid where {OUR_TABLES}"
            ),
        ),
        (
            "security definer without an empty search_path",
            format!(
                "select p.oid::regprocedure::text from pg_proc p where {OUR_FUNCTIONS} and p.prosecdef \
                 and not coalesce('search_path=\"\"' = any (p.proconfig), false)"
            ),
        ),
        (
            "service_role may call it without a statement timeout of 1 to 30 seconds",
            format!(
                "select p.oid::regprocedure::text from pg_proc p where {OUR_FUNCTIONS} \
                 and has_function_privilege('service_role', p.oid, 'execute') and not exists (\
                 select from unnest(p.proconfig) s where s ~ '^statement_timeout=([1-9]|[12][0-9]|30)s$')"
            ),
        ),
        (
            "a user reaches the queues",
            "select c.relname from pg_class c, unnest(array['anon', 'authenticated', 'service_role']) r \
             where c.relnamespace = 'pgmq'::regnamespace and c.relname ~ '^[qa]_jobs_' and c.relkind = 'r' \
             and has_table_privilege(r, c.oid, 'select, insert, update, delete, truncate')"
                .to_owned(),
        ),
    ] {
        assert_eq!(strings(&world, sql).await?, Vec::<String>::new(), "{what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_lets_no_user_in() -> Result<()> {
    let world = World::new().await?;
    let user = world.user("curious@example.test").await?;
    let keys = world.environment.gateway.keys().clone();
    let token = keys.user_token(user)?;
    let callers = [(&keys.publishable, None), (&keys.anon, None), (&keys.publishable, Some(token.as_str()))];

    let functions: Vec<(String, Vec<String>)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "select p.proname::text, coalesce(p.proargnames[1:p.pronargs], '{{}}') from pg_proc p where {OUR_FUNCTIONS} order by 1"
    )))
    .fetch_all(world.pool())
    .await?;
    for (function, names) in &functions {
        let arguments: Map<String, Value> = names.iter().map(|name| (name.clone(), Value::Null)).collect();
        for (key, token) in callers {
            let (status, answer) = rpc_as(&world, key, token, function, &arguments.clone().into()).await?;
            // A function without a name for each argument cannot be called through PostgREST at all.
            let refused = answer["code"] == "42501" || answer["code"] == "PGRST202";
            assert!(!status.is_success() && refused, "{function}: {status} {answer}");
        }
    }

    let http = jobs::http::client()?;
    let tables =
        strings(&world, format!("select relname from pg_class c where {OUR_TABLES} and relkind = 'r'"))
            .await?;
    for table in tables {
        for (key, token) in callers {
            for method in [Method::GET, Method::POST, Method::PATCH, Method::DELETE] {
                let url = format!("{}/rest/v1/{table}", world.environment.gateway.url());
                let mut request = http.request(method.clone(), url).header("apikey", key);
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                }
                if method != Method::GET {
                    request = request.json(&serde_json::json!({}));
                }
                let response = request.send().await?;
                let (status, text) = (response.status(), response.text().await?);
                assert!(
                    matches!(status.as_u16(), 401 | 403) && text.contains("42501"),
                    "{method} {table}: {status} {text}"
                );
            }
        }
    }
    // Nor does the service key reach the tables: only the functions.
    for table in ["job_items", "integration_state", "email_deliveries", "threshold_alerts", "mail_people"] {
        let url = format!("{}/rest/v1/{table}", world.environment.gateway.url());
        let response = http.get(url).header("apikey", &keys.secret).send().await?;
        assert_eq!(response.status().as_u16(), 403, "{table}");
    }
    Ok(())
}

/// What the application's users could do before they still can, and no more of ours than their own rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_sees_and_writes_their_own_rows_only() -> Result<()> {
    let world = World::new().await?;
    let (one, other) = (world.user("one@example.test").await?, world.user("other@example.test").await?);
    for user in [one, other] {
        sqlx::query("insert into public.ca_records (user_id, year, month, activity_type, amount_eur) values ($1, 2026, 11, 'services', 10)")
            .bind(user)
            .execute(world.pool())
            .await?;
    }
    world.run("insert into public.sync_logs (user_id, provider, sync_type, status) values (null, 'jobs', 'cron', 'success')").await?;
    let keys = world.environment.gateway.keys().clone();
    let http = jobs::http::client()?;
    let get = async |table: &str| {
        let url = format!("{}/rest/v1/{table}", world.environment.gateway.url());
        let response = http
            .get(url)
            .header("apikey", &keys.publishable)
            .bearer_auth(keys.user_token(one)?)
            .send()
            .await?;
        anyhow::Ok(response.json::<Vec<Value>>().await?)
    };
    let rows = get("ca_records").await?;
    assert_eq!(
        (rows.len(), &rows[0]["user_id"], &rows[0]["source"]),
        (1, &one.to_string().into(), &"manual".into())
    );
    assert_eq!(get("sync_logs").await?, Vec::<Value>::new(), "a run's row is nobody's");
    assert_ne!(one, Uuid::nil());
    Ok(())
}
