//! Lists the tasks, and says through which door a cron asks for one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

listed! {
    /// Says what the crons run. The names are stored in `job_slots` and `job_runs`: they never change.
    #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Task {
        /// It mails the offer three days after sign-up.
        MarketingDay3,
        /// It reads the movements of Stripe and Shopify, every six hours.
        SyncIntegrations,
        /// It asks users to record the turnover of last month.
        MonthlyReminders,
        /// It reads a whole month to its end, and plans its recap.
        MonthlySync,
        /// It compares the books with the URSSAF ceilings and the VAT thresholds.
        CheckThresholds,
    }
}

impl Task {
    /// Returns whether the crons of every deployment file ask for the task. Thresholds are checked by hand, by the
    /// application or by some deployments' crons.
    pub const fn is_scheduled_everywhere(self) -> bool {
        match self {
            Self::MarketingDay3 | Self::SyncIntegrations | Self::MonthlyReminders | Self::MonthlySync => true,
            Self::CheckThresholds => false,
        }
    }

    /// Returns the stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MarketingDay3 => "marketing_day3",
            Self::SyncIntegrations => "sync_integrations",
            Self::MonthlyReminders => "monthly_reminders",
            Self::MonthlySync => "monthly_sync",
            Self::CheckThresholds => "check_thresholds",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Represents a name that no task has.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unknown task {0:?}")]
pub struct UnknownTask(String);

impl FromStr for Task {
    type Err = UnknownTask;

    fn from_str(name: &str) -> Result<Self, UnknownTask> {
        Self::ALL.into_iter().find(|task| task.as_str() == name).ok_or_else(|| UnknownTask(name.to_owned()))
    }
}

/// Says through which door a cron's `GET` asks for a task.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Via {
    /// A route `/api/cron/*` has its own rhythm and runs a task only where its gate is open.
    CronRoute,
    /// A route `/api/manual/*` is called by a cron: whoever schedules the route chose the moment.
    ManualRoute,
}
