//! A month says what was not read of it for as long as that is so.

use anyhow::Result;
use serde_json::json;

use super::{sync_at, world_at, worth};
use crate::clock::at;

const ACCOUNT: &str = "acct_unread";

/// A refund waits for its money in a month that was read to its end. A replay of a day in that month hides it no more than
/// it takes back that the month is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_hides_nothing_of_a_month_that_is_over() -> Result<()> {
    let mut world = world_at("2026-11-05T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    let paid = world.stripe.payment(ACCOUNT, at("2026-11-02T09:00:00Z"), 10_000, "eur");
    let asked = at("2026-11-10T09:00:00Z");
    world.stripe.waiting_refund(ACCOUNT, &paid.charge, asked, 4_000, "insufficient_funds");
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    sync_at(&mut world, "2026-12-10T06:10:00Z").await?;
    let expected = json!({"status": "partial", "flaws": {"pending": 1}});
    assert_eq!(worth(&world, user, 11).await?, expected);
    for query in ["at=2026-11-20T18:00:00Z", "days=3&at=2026-11-20T18:00:00Z"] {
        world.post("sync-integrations", query).await?;
        assert_eq!(worth(&world, user, 11).await?, expected, "{query}");
    }
    Ok(())
}
