//! Reads items: what is to be done, and how far it is done.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// Says what is to be done, in the wire form of `job_items.kind` and `payload`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", content = "payload", rename_all = "snake_case")]
pub enum WorkItem {
    /// Reads one integration from its last success (or `days` back) up to the run's instant.
    SyncIntegration {
        /// Reads at least this many days; `None` reads since the last success.
        days: Option<u16>,
    },
    /// Reads a whole Paris month of all of a user's integrations.
    SyncMonth {
        /// Is written `YYYY-MM`.
        month: String,
        /// The month was asked for by name: it is written even where the user typed it before the first sync.
        count_month: bool,
        /// The user gets the month's recap once the item is settled.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        recap: bool,
    },
}

/// This is the only payload version so far.
pub(super) const VERSION: u32 = 1;

/// Says how far an item is stored already: by a holder whose lease was lost, or by this one before the item yielded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Is the worker's own note of its position.
    pub cursor: Option<Value>,
    /// Is the lease under which the last checkpoint was stored.
    pub lease: Option<Uuid>,
    /// Is the number of the last checkpoint of that lease.
    pub chunk: u32,
}

/// Represents an item that this process holds.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub item_id: i64,
    pub run_id: Uuid,
    pub lease: Uuid,
    pub user_id: Uuid,
    pub work: WorkItem,
    pub progress: Progress,
    /// Says how many attempts have failed.
    pub attempts: u32,
    /// Is the instant that the item's run works for.
    pub as_of: DateTime<Utc>,
    /// Says that this is another instant than the one at which the item was planned.
    pub is_replay: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
