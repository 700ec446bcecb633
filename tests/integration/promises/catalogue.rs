//! Only `service_role` reaches what is ours: read from the catalogue, and tried through the gateway.

use anyhow::Result;
use jobs::{lane::Lane, mail_kind::MailKind};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::rpc_as;
use crate::world::World;

/// Our code calls these; everything else in `public` is the application's.
const OUR_RPC: &str =
    "p.pronamespace = 'public'::regnamespace and p.proname ~ '^(jobs|integration|mail|threshold)_'";
/// Only our own functions call these.
const INNER_FUNCTIONS: &str = "p.pronamespace = 'jobs'::regnamespace";
const OUR_TABLES: &str = "c.relnamespace = 'jobs'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')";
const APPLICATION_ROLES: &str = "unnest(array['anon', 'authenticated', 'service_role', 'authenticator'])";

async fn strings(world: &World, sql: String) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(world.pool()).await?)
}

/// Each question names what must not be there.
async fn assert_none<const N: usize>(world: &World, questions: [(&str, String); N]) -> Result<()> {
    for (what, sql) in questions {
        assert_eq!(strings(world, sql).await?, Vec::<String>::new(), "{what}");
    }
    Ok(())
}

/// The other tests of this file would find nothing wrong in a schema that they do not find.
#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_knows_what_is_ours() -> Result<()> {
    let world = World::new().await?;
    for (what, least, sql) in [
        ("functions that the code calls", 30, format!("select p.proname from pg_proc p where {OUR_RPC}")),
        ("inner functions", 30, format!("select p.proname from pg_proc p where {INNER_FUNCTIONS}")),
        ("tables", 15, format!("select c.relname from pg_class c where {OUR_TABLES} and c.relkind = 'r'")),
    ] {
        let found = strings(&world, sql).await?;
        assert!(found.len() >= least, "{what}: {found:#?}");
    }
    let strangers = [
        (
            "in public and neither the application's nor called by the code",
            format!(
                "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'public'::regnamespace \
                 and not ({OUR_RPC}) and p.proname <> 'handle_auth_user_created'"
            ),
        ),
        (
            "a table, view or sequence in public that is not the application's",
            "select relname from pg_class where relnamespace = 'public'::regnamespace \
             and relkind in ('r', 'p', 'v', 'm', 'S') and relname not in ('user_profiles', 'subscriptions', \
             'ca_records', 'email_preferences', 'marketing_emails', 'user_onboarding_data', \
             'integration_tokens', 'sync_logs')"
                .to_owned(),
        ),
        (
            "an overload",
            format!(
                "select p.proname from pg_proc p where ({OUR_RPC}) or ({INNER_FUNCTIONS}) \
                 group by p.pronamespace, p.proname having count(*) > 1"
            ),
        ),
    ];
    assert_none(&world, strangers).await
}

/// A plan without nested loops has a price as if it took days, for which `PostgreSQL` compiles it first: a third of a
/// second for what takes none. It is told not to, wherever loops are ruled out.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_without_loops_is_not_compiled() -> Result<()> {
    let world = World::new().await?;
    let sets = |setting: &str| format!("coalesce(p.proconfig, '{{}}') @> array['{setting}']");
    let ours = format!("(({OUR_RPC}) or ({INNER_FUNCTIONS}))");
    let without_loops =
        format!("select p.proname from pg_proc p where {ours} and {}", sets("enable_nestloop=off"));
    assert!(strings(&world, without_loops.clone()).await?.len() >= 5);
    assert_none(&world, [("compiled", format!("{without_loops} and not {}", sets("jit=off")))]).await
}

/// The database has one list of lanes and one of kinds of mail: those of the code, in the same order.
#[tokio::test(flavor = "multi_thread")]
async fn lanes_and_kinds_of_mail_are_the_codes() -> Result<()> {
    let world = World::new().await?;
    let known: Vec<(String, bool)> =
        sqlx::query_as("select lane, is_mail from jobs.known_lanes() order by place")
            .fetch_all(world.pool())
            .await?;
    let expected = Lane::ALL.map(|lane| (lane.as_str().to_owned(), lane.is_mail()));
    assert_eq!(known, expected);
    let queues = "select relname::text from pg_class where relnamespace = 'pgmq'::regnamespace and relkind = 'r' \
                  and relname ~ '^q_jobs_' order by 1";
    let mut expected = Lane::ALL.map(|lane| format!("q_jobs_{}", lane.as_str()));
    expected.sort_unstable();
    assert_eq!(strings(&world, queues.to_owned()).await?, expected);
    for kind in MailKind::ALL {
        let lane: String = sqlx::query_scalar("select jobs.lane_of_mail($1)")
            .bind(kind.as_str())
            .fetch_one(world.pool())
            .await?;
        assert_eq!(lane, kind.lane().as_str(), "{kind:?}");
    }
    // What is no kind is refused.
    let unknown = "insert into jobs.email_deliveries (dedupe_key, kind, run_id) values ('x', 'monthly', gen_random_uuid())";
    let refused = sqlx::query(unknown).execute(world.pool()).await.expect_err("no such kind");
    assert!(refused.to_string().contains("email_deliveries_kind_check"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_user_may_execute_a_function_and_none_trusts_a_path() -> Result<()> {
    let world = World::new().await?;
    let wrong = [
        (
            "somebody but its owner may execute an inner function",
            format!(
                "select p.oid::regprocedure::text || ' ' || a.grantee::regrole from pg_proc p, \
                 aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a \
                 where {INNER_FUNCTIONS} and a.grantee <> p.proowner"
            ),
        ),
        (
            "a user may execute it",
            format!(
                "select p.oid::regprocedure::text from pg_proc p, unnest(array['anon', 'authenticated']) r \
                 where {OUR_RPC} and has_function_privilege(r, p.oid, 'execute')"
            ),
        ),
        (
            "somebody but its owner and service_role may execute it",
            format!(
                "select p.oid::regprocedure::text || ' ' || a.grantee::regrole from pg_proc p, \
                 aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a \
                 where {OUR_RPC} and a.grantee not in (p.proowner, 'service_role'::regrole)"
            ),
        ),
        (
            "service_role may not execute it",
            format!(
                "select p.oid::regprocedure::text from pg_proc p \
                 where {OUR_RPC} and not has_function_privilege('service_role', p.oid, 'execute')"
            ),
        ),
        (
            "not security definer with an empty search_path",
            format!(
                "select p.oid::regprocedure::text from pg_proc p where {OUR_RPC} \
                 and not (p.prosecdef and coalesce('search_path=\"\"' = any (p.proconfig), false))"
            ),
        ),
        (
            "runs as its owner, whoever calls it",
            format!(
                "select p.oid::regprocedure::text from pg_proc p where {INNER_FUNCTIONS} and p.prosecdef"
            ),
        ),
        (
            // SQL without any setting becomes part of the query that uses it; its caller's path is empty.
            "an inner function with a search_path that is not empty",
            format!(
                "select p.oid::regprocedure::text from pg_proc p join pg_language l on l.oid = p.prolang \
                 where {INNER_FUNCTIONS} and not coalesce('search_path=\"\"' = any (p.proconfig), \
                 l.lanname = 'sql')"
            ),
        ),
        (
            "a statement timeout that is not 1 to 30 seconds",
            format!(
                "select p.oid::regprocedure::text from pg_proc p where {OUR_RPC} and not exists (\
                 select from unnest(p.proconfig) s where s ~ '^statement_timeout=([1-9]|[12][0-9]|30)s$')"
            ),
        ),
    ];
    assert_none(&world, wrong).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_may_use_the_schema_or_its_tables() -> Result<()> {
    let world = World::new().await?;
    let wrong = [
        (
            "somebody may use the schema",
            format!(
                "select r from {APPLICATION_ROLES} r where has_schema_privilege(r, 'jobs', 'usage') \
                 or has_schema_privilege(r, 'jobs', 'create')"
            ),
        ),
        (
            "somebody but its owner has rights on the schema",
            "select a.grantee::regrole::text from pg_namespace n, aclexplode(n.nspacl) a \
             where n.nspname = 'jobs' and a.grantee <> n.nspowner"
                .to_owned(),
        ),
        (
            "somebody but its owner has rights on a table",
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
            "a user reaches the queues",
            "select c.relname from pg_class c, unnest(array['anon', 'authenticated', 'service_role']) r \
             where c.relnamespace = 'pgmq'::regnamespace and c.relname ~ '^[qa]_jobs_' and c.relkind = 'r' \
             and has_table_privilege(r, c.oid, 'select, insert, update, delete, truncate')"
                .to_owned(),
        ),
    ];
    assert_none(&world, wrong).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_lets_no_user_in() -> Result<()> {
    let world = World::new().await?;
    let user = world.user("curious@example.test").await?;
    let keys = world.environment.gateway.keys().clone();
    let token = keys.user_token(user)?;
    let callers = [(&keys.publishable, None), (&keys.anon, None), (&keys.publishable, Some(token.as_str()))];

    let functions: Vec<(String, Vec<String>)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "select p.proname::text, coalesce(p.proargnames[1:p.pronargs], '{{}}') from pg_proc p where {OUR_RPC} order by 1"
    )))
    .fetch_all(world.pool())
    .await?;
    for (function, names) in &functions {
        let arguments: Map<String, Value> = names.iter().map(|name| (name.clone(), Value::Null)).collect();
        for (key, token) in callers {
            let (status, answer) = rpc_as(&world, key, token, function, &arguments.clone().into()).await?;
            assert!(!status.is_success() && answer["code"] == "42501", "{function}: {status} {answer}");
        }
    }
    Ok(())
}

/// The Data API does not know the schema `jobs`, whoever asks: not by default, not by name.
#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_does_not_know_the_schema() -> Result<()> {
    let world = World::new().await?;
    let user = world.user("curious@example.test").await?;
    let keys = world.environment.gateway.keys().clone();
    let token = keys.user_token(user)?;
    let callers =
        [(&keys.publishable, None), (&keys.publishable, Some(token.as_str())), (&keys.secret, None)];
    let http = jobs::http::client()?;
    let mut paths =
        strings(&world, format!("select relname from pg_class c where {OUR_TABLES} and relkind <> 'S'"))
            .await?;
    paths.extend(
        strings(&world, format!("select 'rpc/' || p.proname from pg_proc p where {INNER_FUNCTIONS}")).await?,
    );
    for path in paths {
        for (key, token) in callers {
            for profile in [None, Some("jobs")] {
                let url = format!("{}/rest/v1/{path}", world.environment.gateway.url());
                let mut request = http.post(url).header("apikey", key).json(&serde_json::json!({}));
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                }
                if let Some(profile) = profile {
                    request = request.header("content-profile", profile);
                }
                let response = request.send().await?;
                let (status, answer) = (response.status().as_u16(), response.json::<Value>().await?);
                // Asked for by name, the schema is refused; else there is no such relation or function.
                let expected = if profile.is_some() { 406 } else { 404 };
                assert_eq!(status, expected, "{path}: {answer}");
            }
        }
    }
    Ok(())
}

/// The application's users still can do what they could before, and no more of ours than their own
/// rows.
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
