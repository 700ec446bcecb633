//! What an invocation works with.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::{
    config::{Config, Tuning},
    config_faults::ConfigFaults,
    deadline::Deadline,
    email::Mailer,
    integrations::Clients,
    queue::Queue,
    supabase::Supabase,
};

/// The clients, the configuration, the instant and the deadline of one invocation.
#[derive(Clone)]
pub struct Context {
    pub config: Arc<Config>,
    pub tuning: Tuning,
    pub http: reqwest::Client,
    pub supabase: Supabase,
    pub queue: Queue,
    /// What the integrations need, or all that is wrong with their configuration.
    pub integrations: Result<Arc<Clients>, ConfigFaults>,
    /// What sending mails needs, or all that is wrong with its configuration.
    pub mailer: Result<Arc<Mailer>, ConfigFaults>,
    /// The real time at which the invocation began, also in a replay.
    pub now: DateTime<Utc>,
    pub deadline: Deadline,
}
