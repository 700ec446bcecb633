//! What a process keeps between requests, and what it gives to each of them.

use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::answer::Answer;
use crate::{
    config::Config,
    config_faults::ConfigFaults,
    email::{MailLimits, Mailer},
    http,
    integrations::Clients,
    queue::Queue,
    routes::Route,
    supabase::Supabase,
    tasks::Context,
};

/// Holds what a process keeps between requests.
pub(super) struct App {
    pub(super) route: Route,
    pub(super) config: Arc<Config>,
    /// Are built by the first request that is let in: a refused one must not wait for TLS roots.
    parts: OnceLock<Result<Parts, String>>,
}

/// Holds the process's clients, which are built once.
pub(super) struct Parts {
    pub(super) http: reqwest::Client,
    pub(super) supabase: Result<Supabase, ConfigFaults>,
    pub(super) integrations: Result<Arc<Clients>, ConfigFaults>,
    mail_limits: Result<Arc<MailLimits>, ConfigFaults>,
}

impl App {
    /// Reads the environment; clients are built later.
    pub(super) fn new(route: Route) -> Self {
        Self { route, config: Arc::new(Config::from_env()), parts: OnceLock::new() }
    }

    /// Returns the instant at which a request comes in: the real one but in tests.
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.config.clock.unwrap_or_else(Utc::now)
    }

    /// Returns the process's clients; an error is a French message.
    pub(super) fn parts(&self) -> Result<&Parts, String> {
        let parts = self.parts.get_or_init(|| {
            let http = http::client().map_err(|error| {
                tracing::error!(%error, "the HTTP client cannot be built");
                "Le client HTTP n’a pas pu être préparé.".to_owned()
            })?;
            let supabase = match &self.config.supabase {
                Ok(config) => Ok(Supabase::new(http.clone(), config).map_err(|error| error.user_message())?),
                Err(faults) => Err(faults.clone()),
            };
            let integrations = match (&supabase, &self.config.integrations) {
                (Ok(supabase), Ok(config)) => Ok(Arc::new(Clients::new(&http, supabase.clone(), config))),
                (Err(faults), _) | (_, Err(faults)) => Err(faults.clone()),
            };
            let mail_limits = supabase.clone().map(|supabase: Supabase| Arc::new(MailLimits::new(supabase)));
            Ok(Parts { http, supabase, integrations, mail_limits })
        });
        parts.as_ref().map_err(Clone::clone)
    }

    /// Returns what sends this invocation's mails.
    pub(super) fn mailer(&self, parts: &Parts, now: DateTime<Utc>) -> Result<Arc<Mailer>, ConfigFaults> {
        match (&parts.supabase, &parts.mail_limits, &self.config.mail) {
            (Ok(supabase), Ok(limits), Ok(config)) => {
                let prices = self.config.prices.as_ref().ok();
                let (supabase, config, limits) = (supabase.clone(), config.clone(), limits.clone());
                Ok(Arc::new(Mailer::new(&parts.http, supabase, config, prices, limits, now)))
            }
            (Err(faults), ..) | (_, Err(faults), _) | (.., Err(faults)) => Err(faults.clone()),
        }
    }

    /// Returns what this invocation works with, or the answer that says what is missing.
    pub(super) fn context(&self, now: DateTime<Utc>, begun: Instant) -> Result<Context, Answer> {
        let (_, tuning) = self.config.required_by_all().map_err(|faults| {
            tracing::error!(%faults, "configuration");
            Answer::error(500, &faults.to_string())
        })?;
        let parts = self.parts().map_err(|message| Answer::error(500, &message))?;
        let supabase = parts.supabase.clone().map_err(|faults| Answer::error(500, &faults.to_string()))?;
        Ok(Context {
            config: self.config.clone(),
            tuning,
            http: parts.http.clone(),
            queue: Queue::new(supabase.clone(), now),
            supabase,
            integrations: parts.integrations.clone(),
            mailer: self.mailer(parts, now),
            now,
            begun,
            deadline: tuning.budget.deadline(begun),
        })
    }
}
