//! When an account's books begin and end, by the day of its connection.

use anyhow::Result;
use serde_json::json;

use super::{accounts::connect, books, said, sync_at, world_at, worth};
use crate::clock::at;

/// Another account is connected in the last minute of a month, or in the evening of its last day, and is first seen in the
/// next month: that month is the new account's alone, and is whole without what nobody read of the old one.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_was_replaced_at_a_months_end_has_nothing_in_the_next() -> Result<()> {
    for replaced in ["2026-11-30T19:00:00Z", "2026-11-30T22:59:30Z"] {
        let mut world = world_at("2026-11-02T12:00:00Z").await?;
        let user = world.stripe_user("acct_old").await?;
        connect(&world, user, "acct_old", "2026-11-02T08:00:00Z").await?;
        world.stripe.payment("acct_old", at("2026-11-05T09:00:00Z"), 1_000, "eur");
        sync_at(&mut world, "2026-11-02T12:10:00Z").await?;
        sync_at(&mut world, "2026-11-30T18:10:00Z").await?;
        connect(&world, user, "acct_new", replaced).await?;
        world.stripe.payment("acct_new", at("2026-11-30T22:59:40Z"), 200, "eur");
        world.stripe.payment("acct_new", at("2026-12-01T00:01:00Z"), 30, "eur");
        sync_at(&mut world, "2026-12-01T00:05:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "12.00"), ("2026-12", "0.30")]));
        assert_eq!(
            worth(&world, user, 11).await?,
            json!({"status": "partial"}),
            "the old one was not read to its end"
        );
        assert_eq!(worth(&world, user, 12).await?, json!({"status": "provisional"}), "{replaced}");
        sync_at(&mut world, "2027-01-01T06:10:00Z").await?;
        assert_eq!(worth(&world, user, 12).await?, json!({"status": "complete"}), "{replaced}");
    }
    Ok(())
}
