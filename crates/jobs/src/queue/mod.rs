//! The work that is written down: lanes, items, and who holds them.
//!
//! pgmq carries and redelivers; `jobs.job_items` is the record (`supabase/schemas/12_items.sql`). An item is
//! held under a *lease*, the id of the claim that read its message last: whatever is written with an older
//! lease is refused by the database. An *attempt* is a classified failure of the item itself; a kill, the
//! time budget or a refused key of ours is none.

mod drain;
mod place;

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

pub use self::{
    drain::{LaneReport, Outcome, Worker, drain},
    place::Place,
};
use crate::{
    deadline::Deadline,
    lane::Lane,
    supabase::{Supabase, SupabaseError},
};

/// How long a claimed item stays invisible to others; extended while the work lasts.
const VISIBILITY: Duration = Duration::from_mins(1);
/// The database fails an item at its fifth attempt.
pub const MOST_ATTEMPTS: u32 = 5;

/// Before the next attempt.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(30), Duration::from_mins(2), Duration::from_mins(10), Duration::from_mins(30)];

/// The pause before the next attempt, after this many.
pub fn pause_after(attempts: u32) -> Duration {
    PAUSES[(attempts as usize).min(PAUSES.len() - 1)]
}

/// What is to be done; the wire form of `job_items.kind` and `payload`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", content = "payload", rename_all = "snake_case")]
pub enum WorkItem {
    /// Read one integration from its last success (or `days` back) up to the run's instant.
    SyncIntegration {
        /// At least this many days; `None`: since the last success.
        days: Option<u16>,
    },
    /// Read a whole Paris month of all of a user's integrations.
    SyncMonth {
        /// `YYYY-MM`.
        month: String,
        /// Asked for by name: write the month even where the user typed it before the first sync.
        count_month: bool,
        /// The month's recap is mailed to its user once it is settled.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        recap: bool,
    },
}

/// The only payload version there has been.
const VERSION: u32 = 1;

/// A message as claimed, before its payload is understood.
#[derive(Debug, Deserialize)]
struct Row {
    item_id: i64,
    run_id: Uuid,
    version: u32,
    kind: String,
    user_id: Uuid,
    payload: Value,
    progress: Progress,
    attempts: u32,
    as_of: DateTime<Utc>,
}

/// What of an item is stored already: by a holder who was lost, or by this one before it set the item aside.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// The worker's own note of where it stood.
    pub cursor: Option<Value>,
    /// Under which the last checkpoint was stored.
    pub lease: Option<Uuid>,
    /// Number of the last checkpoint of that lease.
    pub chunk: u32,
}

/// An item that this process holds.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub item_id: i64,
    pub run_id: Uuid,
    pub lease: Uuid,
    pub user_id: Uuid,
    pub work: WorkItem,
    pub progress: Progress,
    /// Failures so far.
    pub attempts: u32,
    /// The instant that the item's run works for.
    pub as_of: DateTime<Utc>,
}

/// A classified failure, as operators see it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// Stable, for counting.
    pub code: String,
    /// French, harmless.
    pub message: String,
}

/// What came of a run's items. Results stay the text that the database wrote: an amount never becomes a float.
#[derive(Clone, Debug, Deserialize)]
pub struct RunReport {
    pub counts: Counts,
    /// New or changed movements.
    pub records: u64,
    pub errors: Vec<CountedError>,
    /// The first ones, as settled.
    pub results: Vec<Box<RawValue>>,
    pub results_total: u64,
    /// By lane.
    pub mails: BTreeMap<String, MailCounts>,
}

/// What a run's report would wait for.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Waits {
    /// Any of its items is queued.
    pub queued: bool,
    /// A living worker holds one of them.
    pub in_flight: bool,
}

/// Mails of a run in one lane.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct MailCounts {
    pub planned: u64,
    pub queued: u64,
    pub sent: u64,
    /// Not wanted any more, or too late.
    pub skipped: u64,
    pub failed: u64,
    /// Failed, or waiting for another attempt.
    pub erred: u64,
    /// Why the skipped ones were not sent.
    pub unsent: BTreeMap<String, u64>,
    pub errors: Vec<CountedError>,
}

/// Items of a run by state.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Counts {
    pub planned: u64,
    pub queued: u64,
    pub done: u64,
    pub partial: u64,
    pub failed: u64,
    pub superseded: u64,
    /// Failed, failed in part, or waiting for another attempt.
    pub erred: u64,
}

/// The same trouble, counted once for all items it hit.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CountedError {
    pub code: Option<String>,
    pub message: Option<String>,
    pub count: u64,
}

/// The queue of this deployment.
#[derive(Clone)]
pub struct Queue {
    supabase: Supabase,
}

impl Queue {
    /// Over this database.
    pub fn new(supabase: Supabase) -> Self {
        Self { supabase }
    }

    /// Claims up to `limit` items; answers with them whether no more are visible. Items of a version this
    /// deployment does not know stay in the queue.
    async fn claim(
        &self,
        lane: Lane,
        limit: usize,
        deadline: &Deadline,
    ) -> Result<(Vec<Claimed>, bool), SupabaseError> {
        let lease = Uuid::new_v4();
        let arguments = json!({
            "p_claim": lease, "p_lane": lane.as_str(), "p_limit": limit, "p_seconds": VISIBILITY.as_secs(),
        });
        let rows: Option<Vec<Row>> = self.supabase.rpc("jobs_claim", &arguments, deadline).await?;
        // Null: what was seen so far had no item behind it; there may be more.
        let Some(rows) = rows else { return Ok((Vec::new(), false)) };
        let last = rows.len() < limit;
        let (mut claimed, mut unknown) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            let work = (row.version == VERSION)
                .then(|| serde_json::from_value(json!({"kind": row.kind, "payload": row.payload})).ok())
                .flatten();
            match work {
                Some(work) => claimed.push(Claimed {
                    item_id: row.item_id,
                    run_id: row.run_id,
                    lease,
                    user_id: row.user_id,
                    work,
                    progress: row.progress,
                    attempts: row.attempts,
                    as_of: row.as_of,
                }),
                None => unknown.push((row.item_id, lease)),
            }
        }
        if !unknown.is_empty() {
            tracing::warn!(
                lane = lane.as_str(),
                items = unknown.len(),
                "items of an unknown kind or version are left for a newer deployment"
            );
            self.release(lane, &unknown, Duration::from_hours(1), deadline).await?;
        }
        Ok((claimed, last))
    }

    /// Keeps items invisible for another while.
    async fn heartbeat(
        &self,
        lane: Lane,
        held: &[(i64, Uuid)],
        deadline: &Deadline,
    ) -> Result<(), SupabaseError> {
        let (items, leases): (Vec<i64>, Vec<Uuid>) = held.iter().copied().unzip();
        let arguments = json!({
            "p_lane": lane.as_str(), "p_items": items, "p_leases": leases, "p_seconds": VISIBILITY.as_secs(),
        });
        let still: Vec<i64> = self.supabase.rpc("jobs_heartbeat", &arguments, deadline).await?;
        if still.len() < held.len() {
            tracing::warn!(
                lane = lane.as_str(),
                lost = held.len() - still.len(),
                "items were settled or taken over"
            );
        }
        Ok(())
    }

    /// Gives back items that were not worked on: no attempt.
    async fn release(
        &self,
        lane: Lane,
        held: &[(i64, Uuid)],
        delay: Duration,
        deadline: &Deadline,
    ) -> Result<(), SupabaseError> {
        let (items, leases): (Vec<i64>, Vec<Uuid>) = held.iter().copied().unzip();
        let arguments = json!({
            "p_lane": lane.as_str(), "p_items": items, "p_leases": leases, "p_delay_seconds": delay.as_secs(),
        });
        let _released: u64 = self.supabase.rpc("jobs_release", &arguments, deadline).await?;
        Ok(())
    }

    /// Gives an item back after an attempt.
    async fn give_back(
        &self,
        item: &Claimed,
        delay: Duration,
        failure: Option<&Failure>,
        deadline: &Deadline,
    ) -> Result<(), SupabaseError> {
        let arguments = json!({
            "p_item_id": item.item_id, "p_lease_id": item.lease,
            "p_delay_seconds": delay.as_secs(), "p_error": failure,
        });
        let _state: Value = self.supabase.rpc("jobs_give_back", &arguments, deadline).await?;
        Ok(())
    }

    /// Whether a run has anything queued or held. Cheap, however large the run: to be asked again and again.
    pub async fn run_waits(&self, run_id: Uuid, deadline: &Deadline) -> Result<Waits, SupabaseError> {
        self.supabase.rpc("jobs_run_waits", &json!({"p_run_id": run_id}), deadline).await
    }

    /// Closes the runs that have nothing queued any more, then tells how this one stands: adds all its items up.
    pub async fn report(
        &self,
        run_id: Uuid,
        results: usize,
        deadline: &Deadline,
    ) -> Result<RunReport, SupabaseError> {
        self.supabase.rpc("jobs_report", &json!({"p_run_id": run_id, "p_limit": results}), deadline).await
    }

    /// Takes or keeps the one chain of drain-queue invocations.
    pub async fn hold_chain(
        &self,
        chain: Uuid,
        lease: Duration,
        deadline: &Deadline,
    ) -> Result<bool, SupabaseError> {
        let arguments = json!({"p_chain": chain, "p_seconds": lease.as_secs()});
        self.supabase.rpc("jobs_hold_chain", &arguments, deadline).await
    }

    /// Items that wait in any lane.
    pub async fn waiting(&self, deadline: &Deadline) -> Result<u64, SupabaseError> {
        let lanes: BTreeMap<String, LaneState> =
            self.supabase.rpc("jobs_lanes", &json!({}), deadline).await?;
        Ok(lanes.values().map(|lane| lane.queued).sum())
    }
}

#[derive(Deserialize)]
struct LaneState {
    queued: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_items_keep_their_stored_form() {
        let sync = WorkItem::SyncIntegration { days: Some(30) };
        assert_eq!(
            serde_json::to_value(&sync).unwrap(),
            json!({"kind": "sync_integration", "payload": {"days": 30}})
        );
        let month = json!({"kind": "sync_month", "payload": {"month": "2026-11", "count_month": true}});
        let read: WorkItem = serde_json::from_value(month).unwrap();
        assert_eq!(read, WorkItem::SyncMonth { month: "2026-11".into(), count_month: true, recap: false });
    }
}
