//! What an integration test stands on: a Supabase project of its own, stand-ins for Stripe, Shopify and Resend, and
//! the real function binaries.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use jobs::routes::Route;
use processes::{database::Template, functions};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use stand_ins::{
    Environment, Stack,
    clock::Clock,
    resend::{Resend, webhooks},
    shopify, stripe,
};
use uuid::Uuid;

use crate::{
    clock::today,
    leaks::Watch,
    warm::{Busy, Idle, Warm},
};

pub(crate) const SECRET: &str = "test-cron-secret-0123456789";
pub(crate) const ENCRYPTION_KEY: &str = "0123456789abcdef0123456789abcdef";

/// Represents one test's world.
pub(crate) struct World {
    pub(crate) environment: Environment,
    pub(crate) stripe: stripe::StandIn,
    pub(crate) shopify: shopify::StandIn,
    pub(crate) resend: Resend,
    clock: Clock,
    vars: HashMap<String, String>,
    idle: Idle,
}

/// Represents an answer of a function.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

impl World {
    pub(crate) async fn new() -> Result<Self> {
        Self::over(Template::Migrated).await
    }

    /// Makes one at another instant than today's.
    pub(crate) async fn at(now: DateTime<Utc>) -> Result<Self> {
        let mut world = Self::new().await?;
        world.set_now(now);
        Ok(world)
    }

    /// Makes one over a database of another making, for instance without our migrations.
    pub(crate) async fn over(template: Template) -> Result<Self> {
        let stack = Stack::shared().await?;
        let environment = stack.environment_from(template).await?;
        let clock = Clock::default();
        let (stripe, shopify) =
            (stripe::StandIn::start().await?, shopify::StandIn::start_at(clock.clone()).await?);
        let resend = Resend::bare_at(clock.clone()).await?;
        let mut vars: HashMap<String, String> = environment
            .env_vars()
            .into_iter()
            .chain(resend.env_vars())
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        for (name, value) in [
            ("CRON_SECRET", SECRET.to_owned()),
            ("ENCRYPTION_KEY", ENCRYPTION_KEY.to_owned()),
            ("STRIPE_SECRET_KEY", stripe.secret_key()),
            ("STRIPE_API_BASE", stripe.url()),
            ("SHOPIFY_CLIENT_ID", shopify.client_id()),
            ("SHOPIFY_CLIENT_SECRET", shopify.client_secret()),
            ("SHOPIFY_API_BASE", shopify.api_base()),
            ("COMPANY_FROM_EMAIL", "Comptalyze <bonjour@comptalyze.example>".to_owned()),
            ("SENDER_IDENTITY", "Comptalyze SAS, 1 rue de l’Exemple, 75000 Paris".to_owned()),
            ("JOBS_BASE_URL", "https://jobs.comptalyze.example".to_owned()),
            ("RESEND_WEBHOOK_SECRET", webhooks::signing_secret()),
            ("STRIPE_PRICE_PRO", "price_pro".to_owned()),
            ("STRIPE_PRICE_PREMIUM", "price_premium".to_owned()),
            // The stand-in has no limit; tests of the pace set one.
            ("STRIPE_REQUESTS_PER_SECOND", "1000".to_owned()),
        ] {
            vars.insert(name.to_owned(), value);
        }
        let mut world = Self { environment, stripe, shopify, resend, clock, vars, idle: Idle::default() };
        world.set_now(today());
        Ok(world)
    }

    /// Returns the instant at which the functions, the stand-ins and the test are.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Sets the clock: of the stand-ins at once, of the functions that start from now on.
    pub(crate) fn set_now(&mut self, at: DateTime<Utc>) {
        self.clock.set(at);
        self.set("JOBS_NOW", &at.to_rfc3339());
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.environment.db.pool()
    }

    /// Returns a variable of the functions.
    pub(crate) fn var(&self, name: &str) -> &str {
        self.vars.get(name).map_or("", String::as_str)
    }

    /// Sets a variable of the functions that start from now on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.vars.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn unset(&mut self, name: &str) {
        self.vars.remove(name);
    }

    /// Sets or takes away a variable; answers what it was.
    pub(crate) fn replace(&mut self, name: &str, value: Option<String>) -> Option<String> {
        match value {
            Some(value) => self.vars.insert(name.to_owned(), value),
            None => self.vars.remove(name),
        }
    }

    /// Starts a function's process; `name` is the last part of its path.
    pub(crate) async fn function(&self, name: &str) -> Result<Function> {
        let busy = self.idle.busy(self.pool()).await?;
        Function::start(name, &self.vars, busy).await
    }

    /// Returns a function whose process may have served other calls before, as on the platform. Two
    /// who ask at once have two processes; other variables make another one.
    pub(crate) async fn warm(&self, name: &str) -> Result<Warm<'_>> {
        let busy = self.idle.busy(self.pool()).await?;
        let function = match self.idle.take(name, &self.vars) {
            Some(mut function) => {
                function.busy = Some(busy);
                function
            }
            None => Function::start(name, &self.vars, busy).await?,
        };
        Ok(self.idle.hold(name, &self.vars, function))
    }

    /// Calls a function.
    pub(crate) async fn call(&self, method: Method, name: &str, query: &str) -> Result<Answer> {
        let function = self.warm(name).await?;
        function.call(method, query, Some(&format!("Bearer {SECRET}"))).await
    }

    /// Makes an operator's POST, which must be a 200.
    pub(crate) async fn post(&self, name: &str, query: &str) -> Result<Value> {
        let answer = self.call(Method::POST, name, query).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text);
        Ok(answer.json())
    }

    /// Makes a cron's GET, which must be a 200.
    pub(crate) async fn cron(&self, name: &str, query: &str) -> Result<Value> {
        let answer = self.call(Method::GET, name, query).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text);
        Ok(answer.json())
    }

    /// Makes a confirmed user who signed up long ago.
    pub(crate) async fn user(&self, email: &str) -> Result<Uuid> {
        let id = Uuid::new_v4();
        sqlx::query(
            "insert into auth.users (id, email, email_confirmed_at, created_at) \
             values ($1, $2, '2020-01-01', '2020-01-01')",
        )
        .bind(id)
        .bind(email)
        .execute(self.pool())
        .await?;
        Ok(id)
    }

    /// Makes a user with a Stripe account.
    pub(crate) async fn stripe_user(&self, account: &str) -> Result<Uuid> {
        let user = self.user(&format!("{account}@example.test")).await?;
        let token = format!("sk_acct_token_{account}");
        self.stripe.add_account(account, &token);
        self.connect_stripe(user, account, &token).await?;
        Ok(user)
    }

    pub(crate) async fn connect_stripe(&self, user: Uuid, account: &str, token: &str) -> Result<Uuid> {
        let id = Uuid::new_v4();
        sqlx::query(
            "insert into public.integration_tokens (id, user_id, provider, access_token, stripe_account_id, connected_at) \
             values ($1, $2, 'stripe', $3, $4, '2020-01-01')",
        )
        .bind(id)
        .bind(user)
        .bind(encrypt(token))
        .bind(account)
        .execute(self.pool())
        .await?;
        Ok(id)
    }

    /// Makes a user with a shop and a permanent token.
    pub(crate) async fn shopify_user(&self, shop: &str) -> Result<Uuid> {
        let user = self.user(&format!("{shop}@example.test")).await?;
        let token = format!("shpat_{shop}");
        self.shopify.add_shop(shop, "EUR", &token);
        self.connect_shopify(user, shop, &token, None).await?;
        Ok(user)
    }

    pub(crate) async fn connect_shopify(
        &self,
        user: Uuid,
        shop: &str,
        token: &str,
        refresh: Option<&str>,
    ) -> Result<Uuid> {
        let id = Uuid::new_v4();
        sqlx::query(
            "insert into public.integration_tokens \
             (id, user_id, provider, access_token, refresh_token, shop_domain, connected_at) \
             values ($1, $2, 'shopify', $3, $4, $5, '2020-01-01')",
        )
        .bind(id)
        .bind(user)
        .bind(encrypt(token))
        .bind(refresh.map(encrypt))
        .bind(shop)
        .execute(self.pool())
        .await?;
        Ok(id)
    }

    /// Returns one value of the database; `$now` is this world's instant.
    pub(crate) async fn value<T>(&self, sql: &'static str) -> Result<T>
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(AssertSqlSafe(self.dated(sql))).fetch_one(self.pool()).await.context(sql)
    }

    /// Returns the imported rows of a user: (month, activity, amount).
    pub(crate) async fn imported(&self, user: Uuid) -> Result<Vec<(String, String, String)>> {
        let rows = sqlx::query_as(
            "select format('%s-%s', year, lpad(month::text, 2, '0')), activity_type, amount_eur::text \
             from public.ca_records where user_id = $1 and source = 'auto_sync' order by 1, 2",
        );
        Ok(rows.bind(user).fetch_all(self.pool()).await?)
    }

    /// Runs a statement; `$now` is this world's instant.
    pub(crate) async fn run(&self, sql: &'static str) -> Result<u64> {
        let done = sqlx::query(AssertSqlSafe(self.dated(sql))).execute(self.pool()).await.context(sql)?;
        Ok(done.rows_affected())
    }
}

/// Encrypts as the web application does.
pub(crate) fn encrypt(token: &str) -> String {
    let key = jobs::crypto::tokens::TokenKey::new(&ENCRYPTION_KEY.to_owned().into()).expect("32 bytes");
    key.encrypt(&token.to_owned().into()).expect("randomness")
}

/// Represents a running function, called under its own path. Whatever it answers and writes is
/// looked through for what is nobody's business: the test in which it says too much fails.
pub(crate) struct Function {
    path: &'static str,
    process: functions::Function,
    watch: Watch,
    /// Is `None` while it is at rest.
    pub(crate) busy: Option<Busy>,
}

impl Drop for Function {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.watch.log(&self.log());
        }
    }
}

impl Function {
    async fn start(name: &str, vars: &HashMap<String, String>, busy: Busy) -> Result<Self> {
        let route = Route::ALL.into_iter().find(|route| route.name() == name).context("no such function")?;
        // Cargo builds all binaries of the package for this test, and puts them beside each other.
        let binary = Path::new(env!("CARGO_BIN_EXE_status")).with_file_name(route.binary());
        let watch = Watch::new(vars);
        let vars: Vec<(&String, &String)> = vars.iter().collect();
        let process = functions::Function::start(&binary, &vars).await?;
        Ok(Self { path: route.path(), process, watch, busy: Some(busy) })
    }

    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }

    /// Nobody waits for it any more.
    pub(crate) fn rest(&mut self) {
        self.busy = None;
    }

    /// Returns its address, without a query.
    pub(crate) fn url(&self) -> String {
        format!("{}{}", self.process.url(), self.path)
    }

    /// Returns where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.process.port()
    }

    /// Returns what it has written, but for the runtime's own word that it listens.
    pub(crate) fn log(&self) -> String {
        self.process
            .logs()
            .lines()
            .filter(|line| !line.starts_with("Dev server"))
            .fold(String::new(), |log, line| log + line + "\n")
    }

    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Asks it to stop, as the platform does, and waits until it has.
    pub(crate) async fn terminate(&mut self) -> Result<std::process::ExitStatus> {
        self.process.terminate().await
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        query: &str,
        authorization: Option<&str>,
    ) -> Result<Answer> {
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        let url = format!("{}{query}", self.url());
        let mut request = jobs::http::client()?.request(method, url);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        self.send(request).await
    }

    /// Sends it any other request.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let (client, request) = request.build_split();
        let request = request?;
        self.watch.asks(request.url().query().unwrap_or_default());
        let response = client.execute(request).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await?;
        self.watch.answer(&headers, &text);
        Ok(Answer { status, headers, text })
    }
}
