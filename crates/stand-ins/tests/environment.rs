//! What a test gets: a Supabase project of its own that answers as the real one does.

mod support;

use anyhow::{Context, Result};
use processes::database::Template;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, query, query_scalar, raw_sql};
use stand_ins::{
    Environment, Stack,
    faults::{Fault, Rule},
};
use support::http_client;
use uuid::Uuid;

async fn environment() -> Result<Environment> {
    Stack::shared().await?.environment().await
}

/// Makes a request to the gateway with the secret key.
fn get(environment: &Environment, path: &str) -> RequestBuilder {
    http_client()
        .get(format!("{}/rest/v1{path}", environment.gateway.url()))
        .header("apikey", &environment.gateway.keys().secret)
}

async fn status_and_body(request: RequestBuilder) -> Result<(StatusCode, Value)> {
    let response = request.send().await?;
    let status = response.status();
    let text = response.text().await?;
    let body = serde_json::from_str(&text).with_context(|| format!("not JSON: {status} {text}"))?;
    Ok((status, body))
}

async fn add_user(environment: &Environment, email: &str) -> Result<Uuid> {
    let id = query_scalar("insert into auth.users (email) values ($1) returning id")
        .bind(email)
        .fetch_one(environment.db.pool())
        .await?;
    Ok(id)
}

async fn emails(request: RequestBuilder) -> Result<Vec<String>> {
    let (status, body) = status_and_body(request).await?;
    assert_eq!(status, StatusCode::OK, "{body}");
    let rows = body.as_array().context("not a list")?;
    Ok(rows.iter().filter_map(|row| row["email"].as_str()).map(String::from).collect())
}

#[tokio::test]
async fn the_secret_key_reads_past_row_level_security() -> Result<()> {
    let environment = environment().await?;
    add_user(&environment, "a@example.com").await?;
    assert_eq!(emails(get(&environment, "/user_profiles?select=email")).await?, ["a@example.com"]);
    Ok(())
}

#[tokio::test]
async fn two_environments_share_nothing() -> Result<()> {
    let (one, two) = tokio::try_join!(environment(), environment())?;
    add_user(&one, "one@example.com").await?;
    add_user(&two, "two@example.com").await?;
    assert_eq!(emails(get(&one, "/user_profiles?select=email")).await?, ["one@example.com"]);
    assert_eq!(emails(get(&two, "/user_profiles?select=email")).await?, ["two@example.com"]);
    let foreign = http_client()
        .get(format!("{}/rest/v1/user_profiles", two.gateway.url()))
        .header("apikey", &one.gateway.keys().secret);
    assert_eq!(status_and_body(foreign).await?.0, StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn many_environments_at_once() -> Result<()> {
    let stack = Stack::shared().await?;
    let (a, b, c, d) = tokio::try_join!(
        stack.environment(),
        stack.environment(),
        stack.database(Template::Application),
        stack.environment()
    )?;
    let names = [a.db.name(), b.db.name(), c.name(), d.db.name()];
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
    Ok(())
}

/// Says who may come in, and as whom. The profile is visible to its owner and to the service role
/// only.
#[tokio::test]
async fn the_gateway_knows_the_keys() -> Result<()> {
    let environment = environment().await?;
    let owner = add_user(&environment, "a@example.com").await?;
    let keys = environment.gateway.keys();
    let owner_token = keys.user_token(owner)?;
    let none: Option<&str> = None;
    let server = Some("comptalyze-jobs/1.0");
    let browser = Some("Mozilla/5.0 (X11; Linux x86_64)");

    // (apikey, bearer, user agent) → (status, how many profiles, or the message)
    let rows = [
        ((none, none, server), (401, json!("No API key found in request"))),
        ((none, Some(keys.service_role.as_str()), server), (401, json!("No API key found in request"))),
        ((Some("sb_secret_wrong"), none, server), (401, json!("Invalid API key"))),
        ((Some(""), none, server), (401, json!("Invalid API key"))),
        ((Some(&keys.secret), none, server), (200, json!(1))),
        ((Some(&keys.secret), none, none), (200, json!(1))),
        ((Some(&keys.secret), none, browser), (401, json!("Forbidden use of secret API key in browser"))),
        ((Some(&keys.publishable), none, browser), (200, json!(0))),
        ((Some(&keys.service_role), none, server), (200, json!(1))),
        ((Some(&keys.service_role), Some(&keys.service_role), server), (200, json!(1))),
        ((Some(&keys.service_role), Some(&keys.service_role), browser), (200, json!(1))),
        ((Some(&keys.anon), none, server), (200, json!(0))),
        ((Some(&keys.anon), Some(&keys.anon), server), (200, json!(0))),
        // The role comes from the token, not from the key.
        ((Some(&keys.anon), Some(&keys.service_role), server), (200, json!(1))),
        ((Some(&keys.service_role), Some(&keys.anon), server), (200, json!(0))),
        ((Some(&keys.publishable), Some(&owner_token), server), (200, json!(1))),
    ];
    for (row, ((key, bearer, agent), expected)) in rows.into_iter().enumerate() {
        let mut request =
            http_client().get(format!("{}/rest/v1/user_profiles?select=id", environment.gateway.url()));
        for (name, value) in [("apikey", key), ("user-agent", agent)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer);
        }
        let (status, body) = status_and_body(request).await?;
        let seen = body.as_array().map_or_else(|| body["message"].clone(), |list| json!(list.len()));
        assert_eq!((status.as_u16(), seen), expected, "row {row}");
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_key_is_no_token() -> Result<()> {
    let environment = environment().await?;
    let secret = &environment.gateway.keys().secret;
    let (status, body) = status_and_body(get(&environment, "/user_profiles").bearer_auth(secret)).await?;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
    Ok(())
}

#[tokio::test]
async fn the_refusals_are_word_for_word() -> Result<()> {
    let environment = environment().await?;
    let url = format!("{}/rest/v1/user_profiles", environment.gateway.url());
    let (_, body) = status_and_body(http_client().get(&url)).await?;
    let hint = "No `apikey` request header or url param was found.";
    assert_eq!(body, json!({"message": "No API key found in request", "hint": hint}));
    let (_, body) = status_and_body(http_client().get(&url).header("apikey", "eyJ")).await?;
    let hint = "Double check your Supabase `anon` or `service_role` API key.";
    assert_eq!(body, json!({"message": "Invalid API key", "hint": hint}));
    let elsewhere = http_client().get(format!("{}/rest/v1x", environment.gateway.url()));
    assert_eq!(status_and_body(elsewhere).await?.0, StatusCode::NOT_FOUND);
    Ok(())
}

#[tokio::test]
async fn lists_are_cut_at_1000_rows_without_a_word() -> Result<()> {
    let environment = environment().await?;
    query("insert into auth.users (email) select 'u' || n || '@example.com' from generate_series(1, 1005) n")
        .execute(environment.db.pool())
        .await?;
    assert_eq!(emails(get(&environment, "/user_profiles?select=email")).await?.len(), 1000);
    let rest = emails(get(&environment, "/user_profiles?select=email&order=id&offset=1000")).await?;
    assert_eq!(rest.len(), 5);
    Ok(())
}

#[tokio::test]
async fn functions_are_called_with_arguments_and_write() -> Result<()> {
    let environment = environment().await?;
    let sql =
        "create function public.add_account(address text) returns jsonb language sql security definer as
        $$ insert into auth.users (email) values (address) returning to_jsonb(email) $$;
        notify pgrst, 'reload schema';";
    raw_sql(AssertSqlSafe(sql)).execute(environment.db.pool()).await?;
    let call = || {
        http_client()
            .post(format!("{}/rest/v1/rpc/add_account", environment.gateway.url()))
            .header("apikey", &environment.gateway.keys().secret)
            .json(&json!({"address": "é@example.com"}))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let (status, body) = status_and_body(call()).await?;
        if status == StatusCode::OK {
            assert_eq!(body, json!("é@example.com"));
            break;
        }
        assert_eq!(body["code"], "PGRST202", "{body}");
        assert!(std::time::Instant::now() < deadline, "the schema is never reloaded");
    }
    assert_eq!(emails(get(&environment, "/user_profiles?select=email")).await?, ["é@example.com"]);
    Ok(())
}

#[tokio::test]
async fn postgrest_can_go_and_come_back() -> Result<()> {
    let mut environment = environment().await?;
    add_user(&environment, "a@example.com").await?;
    assert_eq!(emails(get(&environment, "/user_profiles?select=email")).await?, ["a@example.com"]);
    environment.postgrest.kill();
    let (status, _) = status_and_body(get(&environment, "/user_profiles?select=email")).await?;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    environment.postgrest.resume().await?;
    assert_eq!(emails(get(&environment, "/user_profiles?select=email")).await?, ["a@example.com"]);
    Ok(())
}

#[tokio::test]
async fn faults_hit_the_gateway() -> Result<()> {
    let environment = environment().await?;
    let faults = environment.gateway.faults();
    faults.add(Rule::on("user_profiles", Fault::json(503, &json!({"message": "busy"}))).times(1));
    faults.add(Rule::on("user_profiles", Fault::CutBefore).times(1));
    let request = || get(&environment, "/user_profiles?select=email");
    assert_eq!(status_and_body(request()).await?.0, StatusCode::SERVICE_UNAVAILABLE);
    assert!(request().send().await.is_err());
    assert_eq!(status_and_body(request()).await?.0, StatusCode::OK);
    assert_eq!(faults.count("/rest/v1/user_profiles"), 3);
    Ok(())
}

#[tokio::test]
async fn a_migrated_database_has_pgmq_and_speaks_utc() -> Result<()> {
    let db = Stack::shared().await?.database(Template::Migrated).await?;
    raw_sql("select pgmq.create('lane')").execute(db.pool()).await?;
    let sent: i64 = query_scalar("select pgmq.send('lane', '{\"version\": 1}')").fetch_one(db.pool()).await?;
    assert_eq!(sent, 1);
    let zone: String = query_scalar("show timezone").fetch_one(db.pool()).await?;
    assert_eq!(zone, "UTC");
    let lower: String = query_scalar("select lower('É')").fetch_one(db.pool()).await?;
    assert_eq!(lower, "é");
    Ok(())
}
