//! Keeps the queue: items in lanes, and who holds them.
//!
//! pgmq carries and redelivers; `jobs.job_items` is the record (`supabase/schemas/12_items.sql`). An item is
//! held under a *lease*, the id of the claim that read its message last: whatever is written with an older
//! lease is refused by the database. An *attempt* is a classified failure of the item itself; a kill, the
//! time budget or a refused key of ours is none.

mod drain;
mod item;
mod permit;
mod report;

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use self::item::VERSION;
pub use self::{
    drain::{LaneReport, Outcome, Worker, drain},
    item::{Claimed, Progress, WorkItem},
    permit::Permit,
    report::{Counts, MailCounts, RunReport, Waits},
};
use crate::{
    deadline::Deadline,
    failure::Failure,
    lane::Lane,
    supabase::{Supabase, SupabaseError},
};

/// Says how long a claimed item stays invisible to others; extended while the work lasts.
const VISIBILITY: Duration = Duration::from_mins(1);
/// The database fails an item at its fifth attempt.
pub const MOST_ATTEMPTS: u32 = 5;

impl Claimed {
    /// Returns whether the item is given up where this attempt fails.
    pub fn is_last_attempt(&self) -> bool {
        self.attempts + 1 >= MOST_ATTEMPTS
    }
}

/// Pauses so long before the next attempt.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(30), Duration::from_mins(2), Duration::from_mins(10), Duration::from_mins(30)];

/// Returns the pause before the next attempt, after this many.
pub fn pause_after(attempts: u32) -> Duration {
    PAUSES[(attempts as usize).min(PAUSES.len() - 1)]
}

/// Represents a message as claimed, before its payload is understood.
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
    /// A database that is a migration behind does not say it: then nothing is read beyond `as_of`.
    #[serde(default = "unknown_replay")]
    is_replay: bool,
}

const fn unknown_replay() -> bool {
    true
}

/// Represents the queue of this deployment.
#[derive(Clone)]
pub struct Queue {
    supabase: Supabase,
    /// Is the instant of the invocation.
    now: DateTime<Utc>,
}

/// Counts what came back: messages of queued items, and mails.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Reconciled {
    pub messages: u64,
    pub mails: u64,
    /// More alerts were found than planned: the next call plans a further part. Unknown to databases that are a migration
    /// behind.
    #[serde(default)]
    pub unplanned: bool,
}

impl Queue {
    /// Opens the queue in this database. `now` is the instant of the invocation.
    pub fn new(supabase: Supabase, now: DateTime<Utc>) -> Self {
        Self { supabase, now }
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
                    is_replay: row.is_replay,
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

    /// Extends the visibility timeout of held items.
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

    /// Gives back items that were not worked on; this counts no attempt.
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
            "p_max_attempts": MOST_ATTEMPTS, "p_now": self.now,
        });
        let _state: Value = self.supabase.rpc("jobs_give_back", &arguments, deadline).await?;
        Ok(())
    }

    /// Returns whether a run has anything queued or held. The answer is cheap however large the run is, so it may be
    /// polled.
    pub async fn run_waits(&self, run_id: Uuid, deadline: &Deadline) -> Result<Waits, SupabaseError> {
        self.supabase.rpc("jobs_run_waits", &json!({"p_run_id": run_id}), deadline).await
    }

    /// Closes the runs that have nothing queued any more, as of `at`, then adds up the items of this one. It lists so
    /// many results, of so many bytes together, at most.
    pub async fn report(
        &self,
        run_id: Uuid,
        results: usize,
        bytes: usize,
        at: DateTime<Utc>,
        deadline: &Deadline,
    ) -> Result<RunReport, SupabaseError> {
        let arguments = json!({"p_run_id": run_id, "p_limit": results, "p_bytes": bytes, "p_now": at});
        self.supabase.rpc("jobs_report", &arguments, deadline).await
    }

    /// Takes or keeps the lease of the one chain of drain-queue invocations.
    pub async fn hold_chain(
        &self,
        chain: Uuid,
        lease: Duration,
        deadline: &Deadline,
    ) -> Result<bool, SupabaseError> {
        let arguments = json!({"p_chain": chain, "p_seconds": lease.as_secs()});
        self.supabase.rpc("jobs_hold_chain", &arguments, deadline).await
    }

    /// Gives work whose message was lost a new one, plans mails anew that came back and would arrive now, and a part of the
    /// alerts that a check has found and not planned.
    pub async fn reconcile(
        &self,
        route: &str,
        now: DateTime<Utc>,
        deadline: &Deadline,
    ) -> Result<Reconciled, SupabaseError> {
        let arguments = json!({"p_route": route, "p_now": now});
        self.supabase.rpc("jobs_reconcile", &arguments, deadline).await
    }

    /// Returns how many items wait in all lanes.
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
