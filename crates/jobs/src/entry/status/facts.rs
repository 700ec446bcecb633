//! What `jobs_status` answers: everything the database knows, in one call. Addresses come cut (`a…@d…`).
#![expect(clippy::struct_field_names, reason = "fields are named as in the database")]

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    deadline::Deadline,
    lane,
    providers::Provider,
    schedule::Task,
    supabase::{FUNCTIONS, Supabase, SupabaseError},
};

/// Runs shown of each task.
const RUNS: u32 = 5;
/// Days of mails.
pub(super) const MAIL_DAYS: u32 = 14;
/// Broken integrations shown.
const BROKEN: u32 = 30;

#[derive(Debug, Deserialize)]
pub(super) struct Facts {
    /// Functions of this version that are not there.
    pub(super) missing: Vec<String>,
    pub(super) slots: Vec<ClaimedSlot>,
    /// When each task claimed its first slot.
    pub(super) first_claims: BTreeMap<String, DateTime<Utc>>,
    pub(super) runs: Runs,
    pub(super) queue: Vec<Lane>,
    pub(super) mails: Mails,
    pub(super) integrations: Integrations,
}

#[derive(Debug, Deserialize)]
pub(super) struct ClaimedSlot {
    pub(super) task: String,
    pub(super) slot: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Runs {
    pub(super) runs: Vec<Run>,
    pub(super) single: Vec<Single>,
}

/// A run for everybody.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(super) struct Run {
    pub(super) run_id: Uuid,
    pub(super) task: String,
    pub(super) slot: Option<String>,
    pub(super) trigger: String,
    pub(super) as_of: DateTime<Utc>,
    pub(super) status: String,
    pub(super) started_at: DateTime<Utc>,
    pub(super) duration_ms: Option<u64>,
    pub(super) parameters: Value,
    /// Why some were not planned at all, counted.
    pub(super) skipped: BTreeMap<String, u64>,
    pub(super) records: u64,
    pub(super) lanes: Vec<RunLane>,
    pub(super) troubles: u64,
    pub(super) troubled: Vec<Troubled>,
}

/// What became of a run's items in one lane.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct RunLane {
    pub(super) lane: String,
    pub(super) planned: u64,
    pub(super) queued: u64,
    pub(super) done: u64,
    pub(super) partial: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
    pub(super) superseded: u64,
}

/// An item in trouble, and whose.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(super) struct Troubled {
    pub(super) user_id: Option<Uuid>,
    pub(super) address: Option<String>,
    pub(super) lane: String,
    pub(super) status: String,
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
}

/// Runs for single users within a day.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Single {
    #[serde(skip_serializing)]
    pub(super) task: String,
    pub(super) runs: u64,
    pub(super) erred: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(super) struct Lane {
    pub(super) lane: String,
    pub(super) waiting: u64,
    pub(super) in_flight: u64,
    /// Of those that wait: after a failure.
    pub(super) put_off: u64,
    pub(super) oldest: Option<DateTime<Utc>>,
    pub(super) failed: u64,
    /// Mails that may have been sent.
    pub(super) unknown: u64,
}

impl Lane {
    pub(super) fn is_mail(&self) -> bool {
        lane::Lane::from_stored(&self.lane).is_some_and(lane::Lane::is_mail)
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(super) struct Mails {
    pub(super) days: Vec<MailDay>,
    pub(super) reasons: Vec<Reason>,
    pub(super) suppressed_addresses: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct MailDay {
    pub(super) kind: String,
    pub(super) day: NaiveDate,
    #[serde(flatten)]
    pub(super) counts: MailCounts,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct MailCounts {
    pub(super) sent: u64,
    pub(super) failed: u64,
    pub(super) unknown: u64,
    pub(super) skipped: u64,
    pub(super) suppressed: u64,
    /// Sent, and bounced or complained about.
    pub(super) returned: u64,
}

impl MailCounts {
    pub(super) fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.skipped += other.skipped;
        self.suppressed += other.suppressed;
        self.returned += other.returned;
    }

    pub(super) fn all(self) -> u64 {
        self.sent + self.failed + self.unknown + self.kept()
    }

    /// Not sent because they were not to be.
    pub(super) fn kept(self) -> u64 {
        self.skipped + self.suppressed
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Reason {
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) count: u64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(super) struct Integrations {
    pub(super) states: Vec<IntegrationState>,
    pub(super) broken_total: u64,
    pub(super) broken: Vec<Broken>,
    #[serde(skip_serializing)]
    pub(super) shopify_renewed: Option<bool>,
    #[serde(skip_serializing)]
    pub(super) refused_credentials: Vec<RefusedCredentials>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct IntegrationState {
    pub(super) provider: Provider,
    pub(super) state: String,
    pub(super) count: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(super) struct Broken {
    pub(super) user_id: Uuid,
    pub(super) address: Option<String>,
    pub(super) provider: Provider,
    pub(super) failures: u64,
    pub(super) failed_at: Option<DateTime<Utc>>,
    pub(super) last_success_at: Option<DateTime<Utc>>,
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
}

/// Within a day, a provider has refused our own credentials.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RefusedCredentials {
    pub(super) at: DateTime<Utc>,
    pub(super) message: String,
}

/// Asks the database, for slots of the last `slot_days`.
pub(super) async fn ask(
    supabase: &Supabase,
    now: DateTime<Utc>,
    slot_days: u16,
    deadline: &Deadline,
) -> Result<Facts, SupabaseError> {
    let arguments = json!({
        "p_functions": FUNCTIONS.as_slice(), "p_tasks": Task::ALL, "p_runs": RUNS, "p_days": MAIL_DAYS, "p_broken": BROKEN,
        // Of a slot that opened earlier, and was claimed later, nobody asks.
        "p_since": now - TimeDelta::days(i64::from(slot_days) + 8),
    });
    supabase.rpc("jobs_status", &arguments, deadline).await
}
