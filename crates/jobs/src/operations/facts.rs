//! Asks for what `jobs_status` answers: it brings everything that the database knows in one call. Addresses come cut
//! (`a…@d…`).
#![expect(clippy::struct_field_names, reason = "fields are named as in the database")]

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::claims::ClaimedSlot;
use crate::{
    deadline::Deadline,
    lane,
    providers::{OUTAGE, Outage, Provider},
    schedule::Task,
    supabase::{FUNCTIONS, Supabase, SupabaseError},
};

/// So many runs of each task are shown.
const RUNS: u32 = 5;
/// Mails of so many days are counted.
pub(crate) const MAIL_DAYS: u32 = 14;
/// Failures are shown and may be retried for so long.
pub(crate) const FAILURES_SINCE: TimeDelta = TimeDelta::days(30);
/// An integration is late after six syncs without a success.
pub(crate) const LATE_AFTER: TimeDelta = TimeDelta::hours(36);
/// So many broken integrations are shown.
const BROKEN: u32 = 30;

#[derive(Debug, Deserialize)]
pub(crate) struct DatabaseFacts {
    /// Names the functions of this version that the database does not have.
    pub(crate) missing: Vec<String>,
    pub(crate) slots: Vec<ClaimedSlot>,
    /// Says when each task claimed its first slot.
    pub(crate) first_claims: BTreeMap<String, DateTime<Utc>>,
    /// Says when each route was called by a cron for the first time, as far back as slots are looked at.
    #[serde(default)]
    pub(crate) first_calls: BTreeMap<String, DateTime<Utc>>,
    pub(crate) runs: Runs,
    pub(crate) queue: Vec<Lane>,
    pub(crate) mails: Mails,
    pub(crate) integrations: Integrations,
    pub(crate) unreadable: Unreadable,
    #[serde(default)]
    pub(crate) owed_months: Vec<OwedMonths>,
    #[serde(default)]
    pub(crate) outages: Vec<Outage>,
}

/// Counts users whose month failed for one reason and was not made up for: their recap is owed.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct OwedMonths {
    pub(crate) month: String,
    pub(crate) message: Option<String>,
    pub(crate) count: u64,
}

/// Names users who have written something that could not be read when it was looked at last.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Unreadable {
    pub(crate) total: u64,
    /// Lists the first of them.
    pub(crate) users: Vec<UnreadableInput>,
}

/// Says who has written something that cannot be read, and what.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct UnreadableInput {
    pub(crate) user_id: Uuid,
    pub(crate) address: Option<String>,
    pub(crate) flaw: String,
    pub(crate) since: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Runs {
    pub(crate) runs: Vec<Run>,
    pub(crate) single: Vec<Single>,
}

/// Represents a run for everybody.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Run {
    pub(crate) run_id: Uuid,
    pub(crate) task: String,
    pub(crate) slot: Option<String>,
    pub(crate) trigger: String,
    pub(crate) as_of: DateTime<Utc>,
    pub(crate) status: String,
    pub(crate) started_at: DateTime<Utc>,
    pub(crate) duration_ms: Option<u64>,
    pub(crate) parameters: Value,
    /// Counts what was not planned at all, by reason.
    pub(crate) skipped: BTreeMap<String, u64>,
    pub(crate) records: u64,
    pub(crate) lanes: Vec<RunLane>,
    pub(crate) troubles: u64,
    pub(crate) troubled: Vec<Troubled>,
}

/// Says what became of a run's items in one lane.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct RunLane {
    pub(crate) lane: String,
    pub(crate) planned: u64,
    pub(crate) queued: u64,
    pub(crate) done: u64,
    pub(crate) partial: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    pub(crate) superseded: u64,
}

/// Represents an item in trouble, and whose.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Troubled {
    pub(crate) user_id: Option<Uuid>,
    pub(crate) address: Option<String>,
    pub(crate) lane: String,
    pub(crate) status: String,
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
}

/// Runs for single users within a day.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Single {
    #[serde(skip_serializing)]
    pub(crate) task: String,
    pub(crate) runs: u64,
    pub(crate) erred: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Lane {
    pub(crate) lane: String,
    pub(crate) waiting: u64,
    pub(crate) in_flight: u64,
    /// Counts those that wait after a failure.
    pub(crate) put_off: u64,
    pub(crate) oldest: Option<DateTime<Utc>>,
    pub(crate) failed: u64,
    /// Counts the mails that may have been sent.
    pub(crate) unknown: u64,
}

impl Lane {
    pub(crate) fn is_mail(&self) -> bool {
        lane::Lane::from_stored(&self.lane).is_some_and(lane::Lane::is_mail)
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Mails {
    pub(crate) days: Vec<MailDay>,
    pub(crate) reasons: Vec<Reason>,
    pub(crate) suppressed_addresses: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct MailDay {
    pub(crate) kind: String,
    pub(crate) day: NaiveDate,
    #[serde(flatten)]
    pub(crate) counts: MailCounts,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct MailCounts {
    pub(crate) sent: u64,
    pub(crate) failed: u64,
    pub(crate) unknown: u64,
    pub(crate) skipped: u64,
    pub(crate) suppressed: u64,
    /// Counts mails that were sent, and bounced or were complained about.
    pub(crate) returned: u64,
}

impl MailCounts {
    pub(crate) fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.skipped += other.skipped;
        self.suppressed += other.suppressed;
        self.returned += other.returned;
    }

    pub(crate) fn all(self) -> u64 {
        self.sent + self.failed + self.unknown + self.kept()
    }

    /// Counts those that were not sent because they were not to be.
    pub(crate) fn kept(self) -> u64 {
        self.skipped + self.suppressed
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Reason {
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) count: u64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Integrations {
    pub(crate) states: Vec<IntegrationState>,
    pub(crate) broken_total: u64,
    pub(crate) broken: Vec<Broken>,
    #[serde(skip_serializing)]
    pub(crate) shopify_renewed: Option<bool>,
    #[serde(skip_serializing)]
    pub(crate) refused_credentials: Vec<RefusedCredentials>,
    /// Counts the active Shopify integrations whose token cannot be renewed.
    #[serde(default)]
    pub(crate) shopify_permanent: u64,
    /// Counts the integrations whose list lacks what it has shown before.
    #[serde(default)]
    pub(crate) doubted_lists: u64,
    /// Names the Stripe account that was read last: the key is checked with it.
    #[serde(default, skip_serializing)]
    pub(crate) stripe_account: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct IntegrationState {
    pub(crate) provider: Provider,
    pub(crate) state: String,
    pub(crate) count: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Broken {
    pub(crate) user_id: Uuid,
    pub(crate) address: Option<String>,
    pub(crate) provider: Provider,
    pub(crate) failures: u64,
    pub(crate) failed_at: Option<DateTime<Utc>>,
    pub(crate) last_success_at: Option<DateTime<Utc>>,
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
}

/// Within a day, a provider has refused us, and not a user: our credentials, a permission of our key, or our application.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RefusedCredentials {
    pub(crate) at: DateTime<Utc>,
    pub(crate) code: String,
    pub(crate) message: String,
}

/// Asks the database, for slots of the last `slot_days`.
pub(crate) async fn ask(
    supabase: &Supabase,
    now: DateTime<Utc>,
    slot_days: u16,
    deadline: &Deadline,
) -> Result<DatabaseFacts, SupabaseError> {
    let arguments = json!({
        "p_functions": FUNCTIONS.as_slice(), "p_tasks": Task::ALL, "p_runs": RUNS, "p_days": MAIL_DAYS, "p_broken": BROKEN,
        // Of a slot that opened earlier, and was claimed later, nobody asks.
        "p_since": now - TimeDelta::days(i64::from(slot_days) + 8),
        "p_failed_since": now - FAILURES_SINCE, "p_late_before": now - LATE_AFTER, "p_outage": OUTAGE,
        "p_now": now,
    });
    supabase.rpc("jobs_status", &arguments, deadline).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is late here makes a month in the database incomplete: one number.
    #[test]
    fn the_database_calls_the_same_late() {
        let schema = include_str!("../../../../supabase/schemas/27_months.sql");
        let (_, function) = schema.split_once("function jobs.late_after()").expect("a function");
        assert!(function.contains(&format!("select interval '{} hours';", LATE_AFTER.num_hours())));
    }
}
