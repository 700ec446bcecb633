//! Says when failures are no single user's: then the operator is told, and users' mails wait.

use serde::{Deserialize, Serialize};

use super::error::Provider;

/// Rules when a provider counts as failing as a whole.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OutageRule {
    /// Is the number of integrations that fail alike, at least.
    pub least: u32,
    /// Is a percentage: more than so many of a hundred active ones fail alike.
    pub percent: u32,
    /// Lists codes that prove by themselves that we are refused, and not a user.
    pub codes: [&'static str; 4],
    /// Counts the hours for which a call that told such a code is believed: until the next cron has
    /// tried again.
    pub hours: u32,
    /// Counts days: a user who was asked to connect again longer ago is not counted, since theirs
    /// is no news of the provider.
    pub days: u32,
    /// A mail that waits is looked at again after so many seconds: within a call not at every claim, and with the next call.
    pub wait_seconds: u32,
}

/// Is the one rule.
pub const OUTAGE: OutageRule = OutageRule {
    least: 10,
    percent: 50,
    codes: ["own_credentials", "own_permission", "app_not_approved", "permanent_token"],
    hours: 7,
    days: 7,
    wait_seconds: 5,
};

/// Represents what the database found by the rule.
#[derive(Clone, Debug, Deserialize)]
pub struct Outage {
    pub provider: Provider,
    /// Repeats what its integrations say.
    pub message: Option<String>,
    /// Counts the integrations that fail alike; `None` where we are refused, and they wait.
    pub failing: Option<u64>,
    /// Counts the active integrations at this provider.
    pub active: u64,
}

impl Outage {
    /// Returns a sentence for the operator, in French.
    pub fn message(&self) -> String {
        let why = self.message.as_deref().unwrap_or("sans explication").trim_end_matches('.');
        let name = self.provider.name();
        match self.failing {
            Some(failing) => format!(
                "{name}\u{a0}: {failing} connexions sur {} échouent pour la même raison ({why}). La cause est sans doute \
                 commune\u{a0}: les courriels qui demandent de se reconnecter attendent.",
                self.active
            ),
            None => format!(
                "{name} refuse Comptalyze et non les utilisateurs ({why}). Les courriels qui demandent de se reconnecter \
                 attendent."
            ),
        }
    }
}
