//! `cargo stack bench`: how long it takes to plan very many mails, and how fast they leave.
//!
//! The function is built as it is deployed and called as a cron calls it; PostgreSQL and PostgREST are real, the
//! mail service is the bare one: what is measured is ours, the network is not in it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::{
    Stack,
    functions::Function,
    resend::{Limits, Resend},
    seed::calendar::Calendar,
    vercel,
};

const FUNCTION: &str = "cron-daily-tasks";
const SECRET: &str = "benchmark-cron-secret";
/// About as long as planning takes, so that hardly any mails leave meanwhile.
const PLANNING_SECONDS: u64 = 11;
/// How long mails leave at each rate.
const BUDGET_SECONDS: u64 = 20;
/// Requests a second that the mail service allows: what its pages say, and more than we reach.
const RATES: [u32; 3] = [5, 10, 1_000];

/// Measures, and prints what it measures.
pub async fn run(people: u32) -> Result<()> {
    let checkout = vercel::checkout()?;
    vercel::build_release(&checkout, FUNCTION).await?;
    let binary = checkout.join("target/release").join(FUNCTION);
    let stack = Stack::start().await?;
    let environment = stack.environment().await?;
    let resend = Resend::bare().await?;
    resend.drop_contents();

    let mut env: Vec<(&str, String)> = environment.env_vars();
    env.extend(resend.env_vars());
    env.extend([
        ("CRON_SECRET", SECRET.into()),
        ("ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef".into()),
        ("COMPANY_FROM_EMAIL", "Comptalyze <bonjour@comptalyze.exemple.fr>".into()),
        ("SENDER_IDENTITY", "Comptalyze, 1 rue de la Paix, 75002 Paris".into()),
        ("JOBS_BASE_URL", "https://jobs.comptalyze.exemple.fr".into()),
        ("STRIPE_PRICE_PRO", "price_pro".into()),
        ("STRIPE_PRICE_PREMIUM", "price_premium".into()),
        ("MARKETING_FROM_HOUR", "0".into()),
    ]);

    sqlx::query(
        "insert into auth.users (email, email_confirmed_at, created_at)
         select 'u' || n || '@exemple.fr', $2, $2 from generate_series(1, $1) n",
    )
    .bind(i32::try_from(people)?)
    .bind(Calendar::new(Utc::now()).days_ago(3))
    .execute(environment.db.pool())
    .await
    .context("cannot make the users")?;

    let began = Utc::now();
    let called = call(&binary, &env, PLANNING_SECONDS).await?;
    let planned = called.planned.context("the function logs no plan")?;
    let milliseconds = (planned - began).num_milliseconds();
    println!("planned {people} mails in {}.{:03} s", milliseconds / 1_000, milliseconds % 1_000);

    for rate in RATES {
        resend.set_limits(Limits { per_second: Some(rate), ..Limits::default() });
        let before = resend.accepted_count();
        let Called { answer, took, .. } = call(&binary, &env, BUDGET_SECONDS).await?;
        let sent = resend.accepted_count() - before;
        #[expect(clippy::cast_precision_loss, reason = "far fewer")]
        let speed = sent as f32 / took.as_secs_f32();
        println!(
            "at {rate} requests a second: {sent} mails in {:.1} s, {speed:.0} a second; {} wait",
            took.as_secs_f32(),
            answer["results"]["upgradeEmails"]["remaining"].as_u64().unwrap_or(0)
        );
    }
    Ok(())
}

struct Called {
    answer: Value,
    took: Duration,
    /// When all was written down, by the log.
    planned: Option<DateTime<Utc>>,
}

async fn call(binary: &std::path::Path, env: &[(&'static str, String)], budget: u64) -> Result<Called> {
    let mut env = env.to_vec();
    env.push(("JOB_BUDGET_SECONDS", budget.to_string()));
    let function = Function::start(binary, &env).await?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().context("no HTTP client")?;
    let began = Instant::now();
    let request = http.get(format!("{}/api/cron/daily-tasks", function.url())).bearer_auth(SECRET);
    let response = request.send().await.context("the function does not answer")?;
    let (status, text) = (response.status(), response.text().await?);
    let took = began.elapsed();
    ensure!(status == 200, "{status} {text}\n{}", function.logs());
    let planned = function.logs().lines().find_map(|line| {
        let line: Value =
            serde_json::from_str(line).ok().filter(|line: &Value| line["message"] == "planned")?;
        line["timestamp"].as_str()?.parse().ok()
    });
    Ok(Called { answer: serde_json::from_str(&text)?, took, planned })
}
