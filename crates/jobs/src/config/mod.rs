//! Reads the environment once and checks it: the only place that knows a variable's name.
//!
//! It builds the settings that each part owns ([`SupabaseConfig`], [`IntegrationsConfig`], [`MailConfig`] …). Every
//! fault is found at once and named; no value is ever repeated. What every task needs (the secret and Supabase) and
//! what single tasks need fail apart, so that a missing Stripe key leaves the reminders alone. Blank counts as missing,
//! as `undefined` and `null` do, and white space around a value (a pasted newline) is not part of it.

mod environment;
mod integrations;
mod mail;
mod operator;
mod supabase;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use url::Url;

use self::environment::{Environment, checked, sendable};
use crate::{
    config_faults::ConfigFaults,
    deadline::Budget,
    deployment_file::DeploymentFile,
    email::{LinkKeys, MailConfig, Prices},
    integrations::IntegrationsConfig,
    ping::Monitors,
    schedule::Settings,
    supabase::SupabaseConfig,
};

/// Holds everything the environment says, sound or not.
pub struct Config {
    /// Holds `CRON_SECRET`; `None` refuses everybody.
    pub cron_secret: Option<SecretString>,
    pub supabase: Result<SupabaseConfig, ConfigFaults>,
    pub tuning: Result<Tuning, ConfigFaults>,
    /// Names the monitor of each task that has one. What is wrong with them is among the faults of
    /// the tuning.
    pub monitors: Monitors,
    /// Says who gets the daily digest. Its faults are among those of the tuning.
    pub operator_email: Option<String>,
    pub integrations: Result<IntegrationsConfig, ConfigFaults>,
    pub mail: Result<Arc<MailConfig>, ConfigFaults>,
    /// Says which plan a price stands for.
    pub prices: Result<Prices, ConfigFaults>,
    /// Checks the links in mails.
    pub link_keys: Result<LinkKeys, ConfigFaults>,
    /// Checks the mail service's webhooks.
    pub webhook_secret: Result<SecretString, ConfigFaults>,
    /// Holds the address under which this deployment calls itself to continue; `None` outside
    /// production.
    pub own_url: Option<Url>,
    /// Holds another time than the real one, in debug builds only: for tests, and for trying a day
    /// with `vercel dev`.
    pub clock: Option<DateTime<Utc>>,
}

/// Holds what the operator may tune.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Limits how many items of each lane are worked on at once (`JOB_CONCURRENCY`).
    pub concurrency: usize,
    pub budget: Budget,
    pub schedule: Settings,
    /// Says which crons this deployment should see.
    pub file: DeploymentFile,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            concurrency: 32,
            budget: Budget::default(),
            schedule: Settings::default(),
            file: DeploymentFile::default(),
        }
    }
}

impl Config {
    /// Reads the environment of this process.
    pub fn from_env() -> Self {
        Self::read(&|name| std::env::var(name).ok())
    }

    /// Reads the variables that `get` knows.
    pub fn read(get: &dyn Fn(&str) -> Option<String>) -> Self {
        let env = Environment(get);
        let mut optional_faults = ConfigFaults::default();
        let own_url = own_url(&env, &mut optional_faults);
        let monitors = operator::monitors(&env, &mut optional_faults);
        let operator_email = operator::email(&env, &mut optional_faults);
        let cron_secret = env.get("CRON_SECRET");
        if let Some(secret) = &cron_secret {
            sendable("CRON_SECRET", secret, &mut optional_faults);
        }
        Self {
            cron_secret: cron_secret.map(SecretString::from),
            supabase: supabase::supabase(&env),
            tuning: tuning(&env, optional_faults),
            monitors,
            operator_email,
            integrations: integrations::integrations(&env),
            mail: mail::mail(&env).map(Arc::new),
            prices: mail::prices(&env),
            link_keys: mail::link_keys(&env),
            webhook_secret: mail::webhook_secret(&env),
            own_url,
            clock: clock(&env),
        }
    }

    /// Returns what every task needs, or all that is wrong: then also what single tasks would stumble over next.
    pub fn required_by_all(&self) -> Result<(&SupabaseConfig, Tuning), ConfigFaults> {
        match (&self.supabase, &self.tuning) {
            (Ok(supabase), Ok(tuning)) => Ok((supabase, *tuning)),
            (supabase, tuning) => {
                let faults = [
                    supabase.as_ref().err(),
                    tuning.as_ref().err(),
                    self.integrations.as_ref().err(),
                    self.mail.as_ref().err(),
                    self.prices.as_ref().err(),
                ];
                Err(ConfigFaults::all(faults.into_iter().flatten()))
            }
        }
    }
}

fn tuning(env: &Environment, mut faults: ConfigFaults) -> Result<Tuning, ConfigFaults> {
    let concurrency = env.number("JOB_CONCURRENCY", 1..=256, 32, &mut faults);
    let budget_seconds = env.number("JOB_BUDGET_SECONDS", 1..=270, 270, &mut faults);
    let replay_max_days = env.number("REPLAY_MAX_DAYS", 0..=366, 35, &mut faults);
    let from_hour = env.number("MARKETING_FROM_HOUR", 0..=10, 7, &mut faults);
    let tuning = Tuning {
        concurrency: usize::try_from(concurrency).unwrap_or(32),
        budget: Budget::from_seconds(budget_seconds),
        schedule: Settings::new(u8::try_from(from_hour).unwrap_or(7))
            .unwrap_or_default()
            .with_replay_max_days(u16::try_from(replay_max_days).unwrap_or(35)),
        file: operator::deployment_file(env, &mut faults),
    };
    checked(Some(tuning), faults)
}

/// Reads `JOBS_NOW`, an instant as RFC 3339. A release build, which is what is deployed, knows nothing of it.
fn clock(env: &Environment) -> Option<DateTime<Utc>> {
    if cfg!(debug_assertions) { env.get("JOBS_NOW")?.parse().ok() } else { None }
}

/// Returns the deployment's own address, in production only: the Bearer secret goes nowhere else.
fn own_url(env: &Environment, faults: &mut ConfigFaults) -> Option<Url> {
    if env.get("VERCEL_ENV").as_deref() != Some("production") {
        return None;
    }
    let address = env
        .get("JOBS_BASE_URL")
        .or_else(|| env.get("VERCEL_PROJECT_PRODUCTION_URL").map(|host| format!("https://{host}")))?;
    mail::own_address(&address, faults)
}

#[cfg(test)]
mod tests;
