//! Deletes what is old: logs, runs and items are deleted once they are older than 90 days.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::{Months, TimeDelta};
use serde::Deserialize;
use serde_json::json;

use crate::{failure::Failure, tasks::Context};

/// Logs, events, finished runs and their items are kept for so long.
pub(crate) const KEPT: TimeDelta = TimeDelta::days(90);
/// What is personal in the ledger of mails is kept for so long after the mail.
const KEPT_PERSONAL: Months = Months::new(13);
/// A sealed batch of users who are gone may be sent again as sealed for so long.
const SEALED_OPEN: TimeDelta = TimeDelta::hours(24);

/// One call deletes at most 20,000 rows per table; 100,000 users leave 100,000 and more per cron.
const MOST_PRUNES: u32 = 50;
/// After this long the rest is left to the next cron, because somebody waits for the answer.
const PRUNING: Duration = Duration::from_secs(15);

/// Holds what one call of `jobs_prune` deleted, by table.
#[derive(Deserialize)]
struct Pruned {
    /// There is more. Unknown to databases that are a migration behind.
    #[serde(default)]
    left: bool,
    #[serde(flatten)]
    deleted: BTreeMap<String, u64>,
}

/// Deletes what is older than it is kept, slice by slice, as far as time allows; the next cron goes on with the rest.
/// A fault changes nothing for the call's own work; the operator hears of it.
pub async fn prune(context: &Context) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut deleted: BTreeMap<String, u64> = BTreeMap::new();
    let mut left = true;
    let arguments = json!({
        "p_before": context.now - KEPT, "p_personal_before": context.now - KEPT_PERSONAL,
        "p_sealed_until": context.now - SEALED_OPEN, "p_now": context.now,
    });
    for call in 0..MOST_PRUNES {
        if call > 0 && (begun.elapsed() > PRUNING || !context.deadline.may_start_work()) {
            break;
        }
        let pruned: Result<Pruned, _> =
            context.supabase.rpc("jobs_prune", &arguments, &context.deadline).await;
        let pruned = pruned.map_err(|error| {
            let reason = error.user_message();
            Failure::new("retention", format!("Ce qui a dépassé sa durée de conservation n’a pas été effacé ; le prochain cron recommence. {reason}"))
        })?;
        for (table, rows) in pruned.deleted {
            *deleted.entry(table).or_default() += rows;
        }
        left = pruned.left;
        if !left {
            break;
        }
    }
    tracing::info!(deleted = %json!(deleted), left, "old logs and runs deleted");
    Ok(())
}
