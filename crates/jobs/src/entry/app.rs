//! What a process keeps between requests, and what it gives to each of them.

use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::answer::Answer;
use crate::{
    config::Config, config_faults::ConfigFaults, email::Mailer, http, integrations::Clients, queue::Queue,
    routes::Route, supabase::Supabase, tasks::Context,
};

/// What a process keeps between requests.
pub(super) struct App {
    pub(super) route: Route,
    pub(super) config: Arc<Config>,
    /// Built by the first request that is let in: a refused one must not wait for TLS roots.
    parts: OnceLock<Result<Parts, String>>,
}

/// The clients, built once.
pub(super) struct Parts {
    http: reqwest::Client,
    pub(super) supabase: Result<Supabase, ConfigFaults>,
    pub(super) integrations: Result<Arc<Clients>, ConfigFaults>,
    pub(super) mailer: Result<Arc<Mailer>, ConfigFaults>,
}

impl App {
    /// Reads the environment; clients are built later.
    pub(super) fn new(route: Route) -> Self {
        Self { route, config: Arc::new(Config::from_env()), parts: OnceLock::new() }
    }

    /// The instant at which a request comes in: the real one but in tests.
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.config.clock.unwrap_or_else(Utc::now)
    }

    /// The process's clients; an error is a French message.
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
            let mailer = match (&supabase, &self.config.mail) {
                (Ok(supabase), Ok(config)) => {
                    let prices = self.config.prices.as_ref().ok();
                    let clock = self.config.clock;
                    Ok(Arc::new(Mailer::new(&http, supabase.clone(), config.clone(), prices, clock)))
                }
                (Err(faults), _) | (_, Err(faults)) => Err(faults.clone()),
            };
            Ok(Parts { http, supabase, integrations, mailer })
        });
        parts.as_ref().map_err(Clone::clone)
    }

    /// What this invocation works with, or the answer that says what is missing.
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
            queue: Queue::new(supabase.clone()),
            supabase,
            integrations: parts.integrations.clone(),
            mailer: parts.mailer.clone(),
            now,
            deadline: tuning.budget.deadline(begun),
        })
    }
}
