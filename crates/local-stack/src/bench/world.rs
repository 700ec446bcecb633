//! Starts what a workload runs on: the stand-ins at their round trips, fresh databases, the functions as deployed.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use jobs::routes::Route;
use serde_json::Value;

use super::measure::{self, Usage};
use crate::seed::TokenKey;
use processes::{functions::Function, vercel};
use stand_ins::{
    Environment, Stack,
    faults::{InjectedFaults, Seen},
    resend::{Limits, Resend},
    shopify, stripe,
};

pub(super) const SECRET: &str = "bench-cron-secret-0123456789abcdef";
/// A round trip to Stripe and Shopify takes so long.
pub(super) const PROVIDER_TRIP: Duration = Duration::from_millis(160);
/// A round trip to the mail service takes so long.
pub(super) const MAIL_TRIP: Duration = Duration::from_millis(120);
/// A round trip to the database's gateway takes so long.
pub(super) const DATABASE_TRIP: Duration = Duration::from_millis(4);
/// So many items are worked on at once in each lane: the default of `JOB_CONCURRENCY`.
pub(super) const CONCURRENCY: usize = 32;

/// Holds everything that is the same for all runs.
pub(super) struct World {
    pub(super) stack: Stack,
    pub(super) key: TokenKey,
    /// Is the instant at which the benchmark began.
    pub(super) now: DateTime<Utc>,
    binaries: PathBuf,
}

/// Holds the stand-ins for one workload.
pub(super) struct Vendors {
    pub(super) stripe: stripe::StandIn,
    pub(super) shopify: shopify::StandIn,
    pub(super) resend: Resend,
}

/// Says how a function is called.
pub(super) struct Call<'a> {
    pub(super) route: Route,
    pub(super) query: String,
    pub(super) vars: &'a [(&'a str, &'a str)],
}

/// Holds what a call cost.
pub(super) struct Called {
    pub(super) answer: Value,
    pub(super) wall: f64,
    /// Until everything was planned.
    pub(super) planned: f64,
    pub(super) usage: Usage,
    pub(super) peak_rss: u64,
    pub(super) load: f64,
    pub(super) stripe: Vec<Seen>,
    pub(super) shopify: Vec<Seen>,
    pub(super) resend: Vec<Seen>,
    pub(super) database: Vec<Seen>,
}

impl World {
    /// Builds these functions as they are deployed and starts a cluster.
    pub(super) async fn start(binaries: &[&str], now: DateTime<Utc>) -> Result<Self> {
        let checkout = vercel::checkout()?;
        println!("· cargo: the functions, optimised …");
        vercel::build_release(&checkout, binaries).await?;
        println!("· PostgreSQL, with the migrations …");
        Ok(Self {
            stack: Stack::start().await?,
            key: TokenKey::generate()?,
            now,
            binaries: checkout.join("target/release"),
        })
    }

    pub(super) fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// Calls a function in a process of its own, and waits for its answer.
    pub(super) async fn call(
        &self,
        environment: &Environment,
        vendors: &Vendors,
        call: Call<'_>,
    ) -> Result<Called> {
        let Vendors { stripe, shopify, resend } = vendors;
        let gateway = environment.gateway.faults();
        gateway.set_round_trip(DATABASE_TRIP);
        let servers = [stripe.faults(), shopify.faults(), resend.faults(), gateway];
        for faults in servers {
            faults.drop_bodies();
            faults.forget();
        }
        let binary = self.binaries.join(call.route.binary());
        let vars = self.vars(environment, vendors, call.vars);
        let mut function = Function::start(&binary, &vars.iter().collect::<Vec<_>>()).await?;
        let pid = measure::child_of(function.watchdog_id(), &binary)?;
        let (load, before) = (measure::load(), Usage::now(pid));

        let begun = Instant::now();
        let url = format!("{}{}?{}", function.url(), call.route.path(), call.query);
        let response = jobs::http::client()?
            .request(call.route.kind().method().parse()?, url)
            .bearer_auth(SECRET)
            .send()
            .await?;
        let status = response.status();
        let text = response.text().await?;
        let wall = begun.elapsed().as_secs_f64();

        let usage = Usage::now(pid).since(before);
        let peak_rss = measure::peak_memory(pid)?;
        function.kill().await?;
        ensure!(status.is_success(), "{status} {text}");
        let [stripe, shopify, resend, database] = servers.map(InjectedFaults::seen);
        let plans = database.iter().position(|seen| seen.target.contains("/jobs_plan_"));
        let after = plans.and_then(|at| database.get(at + 1));
        Ok(Called {
            answer: serde_json::from_str(&text).context("the answer is not JSON")?,
            planned: after.map_or(0.0, |seen| seen.at.duration_since(begun).as_secs_f64()),
            wall,
            usage,
            peak_rss,
            load,
            stripe,
            shopify,
            resend,
            database,
        })
    }

    fn vars(
        &self,
        environment: &Environment,
        vendors: &Vendors,
        more: &[(&str, &str)],
    ) -> HashMap<String, String> {
        let Vendors { stripe, shopify, resend } = vendors;
        let own = [
            ("CRON_SECRET", SECRET.to_owned()),
            ("ENCRYPTION_KEY", self.key.as_str().to_owned()),
            ("STRIPE_SECRET_KEY", stripe.secret_key()),
            ("STRIPE_API_BASE", stripe.url()),
            ("SHOPIFY_CLIENT_ID", shopify.client_id()),
            ("SHOPIFY_CLIENT_SECRET", shopify.client_secret()),
            ("SHOPIFY_API_BASE", shopify.api_base()),
            ("COMPANY_FROM_EMAIL", "Comptalyze <bonjour@exemple.fr>".into()),
            ("SENDER_IDENTITY", "Comptalyze, 1 rue de la Paix, 75002 Paris".into()),
            ("JOBS_BASE_URL", "https://jobs.exemple.fr".into()),
            ("STRIPE_PRICE_PRO", "price_pro".into()),
            ("STRIPE_PRICE_PREMIUM", "price_premium".into()),
            ("MARKETING_FROM_HOUR", "0".into()),
        ];
        own.into_iter()
            .chain(environment.env_vars())
            .chain(resend.env_vars())
            .map(|(name, value)| (name.to_owned(), value))
            .chain(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
            .collect()
    }
}

impl Vendors {
    /// Starts empty ones.
    pub(super) async fn start(mails_per_second: Option<u32>) -> Result<Self> {
        let (stripe, shopify) = (stripe::StandIn::start().await?, shopify::StandIn::start().await?);
        let resend = Resend::bare().await?;
        stripe.faults().set_round_trip(PROVIDER_TRIP);
        shopify.faults().set_round_trip(PROVIDER_TRIP);
        resend.faults().set_round_trip(MAIL_TRIP);
        resend.drop_contents();
        resend.set_limits(Limits { per_second: mails_per_second, ..Limits::default() });
        Ok(Self { stripe, shopify, resend })
    }
}
