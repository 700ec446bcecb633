//! Holds what an invocation works with.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::{
    config::{Config, Tuning},
    config_faults::ConfigFaults,
    deadline::Deadline,
    email::Mailer,
    integrations::Clients,
    queue::Queue,
    supabase::Supabase,
};

/// Holds the clients, the configuration, the instant and the deadline of one invocation.
#[derive(Clone)]
pub struct Context {
    pub config: Arc<Config>,
    pub tuning: Tuning,
    pub http: reqwest::Client,
    pub supabase: Supabase,
    pub queue: Queue,
    /// Holds what the integrations need, or all that is wrong with their configuration.
    pub integrations: Result<Arc<Clients>, ConfigFaults>,
    /// Holds what sending mails needs, or all that is wrong with its configuration.
    pub mailer: Result<Arc<Mailer>, ConfigFaults>,
    /// Is the real time at which the invocation began, also in a replay.
    pub now: DateTime<Utc>,
    /// Is the same moment on the monotonic clock.
    pub begun: Instant,
    pub deadline: Deadline,
}

impl Context {
    /// Returns the present instant by this invocation's clock: `now` and what has passed since. What is written at the
    /// end of a call is dated by it, so that a digest planned meanwhile does not take it for told.
    pub fn instant(&self) -> DateTime<Utc> {
        self.now + self.begun.elapsed()
    }
}
