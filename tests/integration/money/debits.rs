//! Money that is expected is not money that was received: direct debits have their row from the day they are sent.

use anyhow::Result;

use super::{books, excluded, said, sync_at, world_at};
use crate::clock::at;

/// With 40 000 € typed, a debit of 2 000 € on its way fails, then a card pays: the alert leaves
/// with the card.
#[tokio::test(flavor = "multi_thread")]
async fn an_alert_waits_for_the_money() -> Result<()> {
    let mut world = world_at("2026-10-30T12:00:00Z").await?;
    let user = world.stripe_user("acct_debit").await?;
    sqlx::query(
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) \
         select $1, 2026, m, 'Prestation de services', 4000 from generate_series(1, 10) m",
    )
    .bind(user)
    .execute(world.pool())
    .await?;
    world.run("update public.integration_tokens set connected_at = '2026-10-30'").await?;
    let increased = "select count(*) from jobs.threshold_alerts where threshold = 'vat_increased_services' and step = 100";
    sync_at(&mut world, "2026-10-30T18:10:00Z").await?;

    let debit =
        world.stripe.debit("acct_debit", at("2026-11-05T09:00:00Z"), 200_000, at("2026-11-12T09:00:00Z"));
    sync_at(&mut world, "2026-11-05T18:10:00Z").await?;
    assert_eq!(excluded(&world, &debit.transaction).await?.as_deref(), Some("pending"));
    assert_eq!(books(&world, user).await?, []);
    assert_eq!(world.value::<i64>(increased).await?, 0, "nothing was received");

    world.stripe.fail_debit("acct_debit", &debit, at("2026-11-12T09:00:00Z"));
    sync_at(&mut world, "2026-11-12T18:10:00Z").await?;
    assert_eq!(excluded(&world, &debit.transaction).await?.as_deref(), Some("failed"));
    assert_eq!(books(&world, user).await?, []);
    assert_eq!(world.value::<i64>(increased).await?, 0, "and nothing was taken back");

    world.stripe.payment("acct_debit", at("2026-12-20T09:00:00Z"), 200_000, "eur");
    sync_at(&mut world, "2026-12-20T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-12", "2000.00")]));
    assert_eq!(world.value::<i64>(increased).await?, 1, "the step was not spent on the debit");
    Ok(())
}

/// A debit that is sent on 27 November and paid on 4 December, seen by the crons alone, counts
/// once, in December.
#[tokio::test(flavor = "multi_thread")]
async fn a_debit_counts_once_when_its_money_is_there() -> Result<()> {
    let mut world = world_at("2026-11-20T12:00:00Z").await?;
    let user = world.stripe_user("acct_late").await?;
    let debit =
        world.stripe.debit("acct_late", at("2026-11-27T09:00:00Z"), 5_000, at("2026-12-04T09:00:00Z"));
    sync_at(&mut world, "2026-11-27T12:10:00Z").await?;
    for (now, expected) in [
        ("2026-11-30T18:10:00Z", said(&[])),
        ("2026-12-04T06:10:00Z", said(&[])),
        ("2026-12-04T12:10:00Z", said(&[("2026-12", "50.00")])),
        ("2026-12-04T18:10:00Z", said(&[("2026-12", "50.00")])),
        ("2026-12-05T06:10:00Z", said(&[("2026-12", "50.00")])),
    ] {
        if now == "2026-12-04T12:10:00Z" {
            world.stripe.settle_debit("acct_late", &debit);
        }
        sync_at(&mut world, now).await?;
        assert_eq!(books(&world, user).await?, expected, "{now}");
    }
    Ok(())
}

/// However old it is: a debit that lies before every window is asked for by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_debit_is_followed_until_it_is_settled() -> Result<()> {
    let mut world = world_at("2026-11-20T12:00:00Z").await?;
    let user = world.stripe_user("acct_slow").await?;
    let debit =
        world.stripe.debit("acct_slow", at("2026-11-20T09:00:00Z"), 7_000, at("2026-12-28T09:00:00Z"));
    sync_at(&mut world, "2026-11-20T12:10:00Z").await?;
    sync_at(&mut world, "2026-12-30T12:10:00Z").await?;
    assert_eq!(excluded(&world, &debit.transaction).await?.as_deref(), Some("pending"));
    world.stripe.settle_debit("acct_slow", &debit);
    sync_at(&mut world, "2026-12-30T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-12", "70.00")]));
    // Known stays known: a source that is not expanded any more says less, and changes nothing.
    let stored: String = world.value("select state from jobs.integration_transactions").await?;
    assert_eq!(stored, "succeeded");
    Ok(())
}

/// A month has one debit, which was paid and is taken back: its row goes, and what was told of it is withdrawn in the same run.
#[tokio::test(flavor = "multi_thread")]
async fn a_total_that_vanishes_is_checked() -> Result<()> {
    let mut world = world_at("2026-11-05T12:00:00Z").await?;
    let user = world.stripe_user("acct_vanishes").await?;
    let sent = at("2026-11-05T09:00:00Z");
    let debit = world.stripe.debit("acct_vanishes", sent, 3_500_000, at("2026-11-12T09:00:00Z"));
    sync_at(&mut world, "2026-11-05T18:10:00Z").await?;
    world.stripe.settle_debit("acct_vanishes", &debit);
    sync_at(&mut world, "2026-11-12T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "35000.00")]));
    let standing = "select count(*) from jobs.threshold_alerts where withdrawn_at is null";
    assert!(world.value::<i64>(standing).await? > 0);
    world.stripe.fail_debit("acct_vanishes", &debit, at("2026-11-13T09:00:00Z"));
    sync_at(&mut world, "2026-11-13T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, []);
    assert_eq!(world.value::<i64>(standing).await?, 0);
    Ok(())
}
