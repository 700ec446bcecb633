//! The truth of the money: what providers really do, and what the books make of it (docs/field-reports.md).

mod accounts;
mod both;
mod cards;
mod changes;
mod connections;
mod debits;
mod doubts;
mod expected;
mod histories;
mod in_euros;
mod later;
mod nameless;
mod odd_rows;
mod poorer;
mod reach;
mod refunds;
mod renamed;
mod replayed;
mod reports;
mod rules;
mod source;
mod strange;
mod switches;
mod taken_over;
mod twins;
mod unlisted;
mod unread;

use anyhow::Result;
use serde_json::Value;
use uuid::Uuid;

use crate::{clock::at, world::World};

/// Returns what the imported rows of a user say: (month, euros).
async fn books(world: &World, user: Uuid) -> Result<Vec<(String, String)>> {
    Ok(world.imported(user).await?.into_iter().map(|(month, _, euros)| (month, euros)).collect())
}

fn said(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(month, euros)| ((*month).to_owned(), (*euros).to_owned())).collect()
}

/// Makes a world in which it is `now`.
async fn world_at(now: &str) -> Result<World> {
    World::at(at(now)).await
}

/// Lets a cron read at this instant; its answer's part about the sync.
async fn sync_at(world: &mut World, now: &str) -> Result<Value> {
    world.set_now(at(now));
    let answer = world.cron("daily-orchestrator", "").await?;
    let part = answer["results"]["syncIntegrations"].clone();
    anyhow::ensure!(part["skipped"] == false, "{now} is no hour of the sync: {answer}");
    Ok(part)
}

/// Returns why a row of the ledger does not count.
async fn excluded(world: &World, external_id: &str) -> Result<Option<String>> {
    let sql = "select excluded from jobs.integration_transactions where external_id = $1";
    Ok(sqlx::query_scalar(sql).bind(external_id).fetch_one(world.pool()).await?)
}

/// Returns what a month's figure is worth, as its row of the books says.
async fn worth(world: &World, user: Uuid, month: u32) -> Result<Value> {
    let sql = "select metadata - 'sources' from public.ca_records where user_id = $1 and source = 'auto_sync' and month = $2";
    Ok(sqlx::query_scalar(sql).bind(user).bind(i32::try_from(month)?).fetch_one(world.pool()).await?)
}
