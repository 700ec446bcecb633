//! Bad input and trouble: each answer is clear, French and harmless, and the next healthy run makes good.

mod configuration;
mod currencies;
mod database;
mod exchanged;
mod gateway_clock;
mod hostile;
mod lost_answers;
mod parameters;
mod secret;
mod shopify;
mod shopify_tokens;
mod stalled;
mod stripe;
mod stripe_pace;
mod together;
mod who_acts;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, header::HeaderMap};
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::world::{ENCRYPTION_KEY, Function, SECRET, World};

const SYNC: &str = "sync-integrations";

/// Represents an answer that was found harmless, with what the function logged meanwhile.
#[derive(Debug)]
struct Told {
    status: u16,
    headers: HeaderMap,
    text: String,
    body: Value,
    log: String,
}

impl Told {
    /// Returns the French message of a refusal.
    fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }

    /// Returns whether exactly this trouble is among the reported problems; its message.
    fn problem(&self, code: &str) -> Option<&str> {
        let problems = self.body["problems"].as_array()?;
        problems.iter().find(|problem| problem["code"] == code)?["message"].as_str()
    }
}

/// Calls a function, as an operator (POST) or a cron (GET) does.
async fn ask(world: &World, method: Method, name: &str, query: &str) -> Result<Told> {
    let function = world.warm(name).await?;
    ask_again(world, &function, method, query, Some(&format!("Bearer {SECRET}"))).await
}

/// Asks the same of a process that runs already.
async fn ask_again(
    world: &World,
    function: &Function,
    method: Method,
    query: &str,
    authorization: Option<&str>,
) -> Result<Told> {
    let (before, said) = (lines(function), function.log().len());
    let answer = function.call(method, query, authorization).await?;
    eventually("the line of the request", || lines(function) > before).await?;
    let log = function.log().split_off(said);
    harmless(world, &answer.text);
    harmless(world, &log);
    let body = serde_json::from_str(&answer.text).unwrap_or(Value::Null);
    Ok(Told { status: answer.status.as_u16(), headers: answer.headers, text: answer.text, body, log })
}

/// Counts the requests that the function has logged so far.
fn lines(function: &Function) -> usize {
    function.log().lines().filter(|line| line.contains(r#""message":"request""#)).count()
}

/// Waits for what another process is about to do.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_mins(2);
    while !condition() {
        ensure!(Instant::now() < deadline, "{what} never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Checks that there is no secret, no token, no address, nothing that a query string held.
fn harmless(world: &World, text: &str) {
    let keys = world.environment.gateway.keys();
    let secrets = [
        SECRET,
        ENCRYPTION_KEY,
        &keys.secret,
        &keys.service_role,
        &keys.publishable,
        &keys.anon,
        &world.stripe.secret_key(),
        &world.shopify.client_secret(),
    ];
    let tokens = ["sk_acct_token_", "shpat_", "shprt_", "sk_test_", "sk_live_", "eyJ", "secret="];
    let addresses = ["@example.test", "http://127.0.0.1", "https://", "evil.example"];
    for forbidden in secrets.into_iter().chain(tokens).chain(addresses) {
        // The instructions of a manual route show how to call it.
        let shown = text.contains("VOTRE_CRON_SECRET") && ["secret=", "https://"].contains(&forbidden);
        assert!(shown || !text.contains(forbidden), "{forbidden} in {text}");
    }
}

/// Makes a healthy sync of everybody: no error, nothing left. Answers how many movements were new.
async fn heal(world: &World) -> Result<u64> {
    let told = ask(world, Method::POST, SYNC, "").await?;
    let body = &told.body;
    ensure!(told.status == 200 && body["errors"] == 0, "{}", told.text);
    ensure!(body.get("remaining").is_none() && body.get("problems").is_none(), "{}", told.text);
    body["totalSynced"].as_u64().context("totalSynced")
}

/// Returns the user's imported turnover of all months and activities, in euros; `None` where
/// nothing was imported.
async fn turnover(world: &World, user: Uuid) -> Result<Option<String>> {
    let sum =
        "select sum(amount_eur)::text from public.ca_records where user_id = $1 and source = 'auto_sync'";
    Ok(sqlx::query_scalar(sum).bind(user).fetch_one(world.pool()).await?)
}

/// Returns what the integration says to its owner.
async fn last_error(world: &World, user: Uuid) -> Result<Option<String>> {
    let sql = "select string_agg(last_error, ' ') from public.integration_tokens where user_id = $1";
    Ok(sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await?)
}

/// Runs, slots, log rows: what every admitted call leaves and a refused one does not.
async fn traces(world: &World) -> Result<i64> {
    world
        .value(
            "select (select count(*) from jobs.job_runs) + (select count(*) from jobs.job_slots) \
             + (select count(*) from public.sync_logs) + (select count(*) from jobs.job_items)",
        )
        .await
}
