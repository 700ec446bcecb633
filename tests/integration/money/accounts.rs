//! The books of an account belong to that account.

use std::time::Duration;

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use stand_ins::faults::Fault;
use uuid::Uuid;

use super::{books, said, sync_at, world_at, worth};
use crate::{
    chaos::killed_at,
    clock::at,
    world::{World, encrypt},
};

/// Connects an account at Stripe, which is new and empty, in place of the present one.
pub(super) async fn connect(world: &World, user: Uuid, account: &str, since: &str) -> Result<()> {
    let token = format!("sk_{account}");
    world.stripe.add_account(account, &token);
    sqlx::query(
        "update public.integration_tokens set stripe_account_id = $2, access_token = $3, connected_at = $4 where user_id = $1",
    )
    .bind(user)
    .bind(account)
    .bind(encrypt(&token))
    .bind(at(since))
    .execute(world.pool())
    .await?;
    Ok(())
}

/// Connected in October, with our own key refused until November, an account has October in its
/// books, whichever read comes first.
#[tokio::test(flavor = "multi_thread")]
async fn the_books_begin_with_the_connection() -> Result<()> {
    for month_first in [false, true] {
        let mut world = world_at("2026-10-15T12:00:00Z").await?;
        let user = world.stripe_user("acct_begins").await?;
        world.run("update public.integration_tokens set connected_at = '2026-10-15T08:00:00Z'").await?;
        world.stripe.payment("acct_begins", at("2026-09-30T09:00:00Z"), 100, "eur");
        world.stripe.payment("acct_begins", at("2026-10-20T09:00:00Z"), 4_200, "eur");
        let key = world.var("STRIPE_SECRET_KEY").to_owned();
        world.set("STRIPE_SECRET_KEY", "sk_test_refused");
        sync_at(&mut world, "2026-10-15T12:10:00Z").await?;
        world.set("STRIPE_SECRET_KEY", &key);
        if month_first {
            world.set_now(at("2026-11-01T05:00:00Z"));
            world.post("monthly-sync", "month=2026-11").await?;
        }
        sync_at(&mut world, "2026-11-01T06:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-10", "42.00")]), "{month_first}");
    }
    Ok(())
}

/// An account is connected in the evening of a month's last day, and first read in the next month.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_evening_of_a_month_is_not_lost() -> Result<()> {
    let mut world = world_at("2026-11-30T19:00:00Z").await?;
    let user = world.stripe_user("acct_evening").await?;
    world.run("update public.integration_tokens set connected_at = '2026-11-30T19:00:00Z'").await?;
    world.stripe.payment("acct_evening", at("2026-11-30T20:30:00Z"), 1_500, "eur");
    sync_at(&mut world, "2026-12-01T00:05:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "15.00")]));
    Ok(())
}

/// The user may write the day of the connection: a day that lies far back is not believed.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_day_of_connection_reaches_no_month_of_the_users_own() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_old").await?;
    world.stripe.payment("acct_old", at("2026-10-20T09:00:00Z"), 100, "eur");
    world.stripe.payment("acct_old", at("2026-11-02T09:00:00Z"), 200, "eur");
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "2.00")]));
    Ok(())
}

/// Account A is there since September, B since 10 November, and then A again: each counts in the
/// months in which it was connected.
#[tokio::test(flavor = "multi_thread")]
async fn two_accounts_one_after_the_other() -> Result<()> {
    let mut world = world_at("2026-09-02T12:00:00Z").await?;
    let user = world.stripe_user("acct_a").await?;
    connect(&world, user, "acct_a", "2026-09-02T08:00:00Z").await?;
    world.stripe.add_account("acct_b", "sk_acct_b");
    for (account, day, amount) in [
        ("acct_a", "2026-09-10T09:00:00Z", 1_000),
        ("acct_a", "2026-10-10T09:00:00Z", 2_000),
        ("acct_a", "2026-11-05T09:00:00Z", 4_000),
        ("acct_b", "2026-10-20T09:00:00Z", 50_000),
        ("acct_b", "2026-11-12T09:00:00Z", 8_000),
    ] {
        world.stripe.payment(account, at(day), amount, "eur");
    }
    for now in
        ["2026-09-02T12:10:00Z", "2026-10-01T06:10:00Z", "2026-11-01T06:10:00Z", "2026-11-09T18:10:00Z"]
    {
        sync_at(&mut world, now).await?;
    }
    sqlx::query(
        "update public.integration_tokens set stripe_account_id = 'acct_b', access_token = $1, connected_at = '2026-11-10T08:00:00Z'",
    )
    .bind(encrypt("sk_acct_b"))
    .execute(world.pool())
    .await?;
    sync_at(&mut world, "2026-11-13T12:10:00Z").await?;
    let both = said(&[("2026-09", "10.00"), ("2026-10", "20.00"), ("2026-11", "120.00")]);
    assert_eq!(books(&world, user).await?, both, "October of B is not mixed into October of A");
    assert_eq!(worth(&world, user, 10).await?, json!({"status": "complete"}));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "partial"}), "A was not read up to its end");

    // B was connected by mistake.
    let told: serde_json::Value = sqlx::query_scalar(
        "select jobs.leave_account_out($1, 'stripe', 'acct_b', true, '2026-11-13T13:00:00Z')",
    )
    .bind(user)
    .fetch_one(world.pool())
    .await?;
    assert_eq!(told["months"], json!(["2026-10", "2026-11"]));
    let of_a = said(&[("2026-09", "10.00"), ("2026-10", "20.00"), ("2026-11", "40.00")]);
    assert_eq!(books(&world, user).await?, of_a);
    sync_at(&mut world, "2026-11-13T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, of_a, "and stays out");

    // Read on request, too.
    world.set_now(at("2026-11-13T19:00:00Z"));
    let told = world.post("monthly-sync", "month=2026-10").await?;
    assert_eq!(told["results"][0]["totalCA"], json!(20.00), "{told}");
    assert_eq!(books(&world, user).await?, of_a);
    let wrong =
        sqlx::query("select jobs.leave_account_out($1, 'stripe', 'acct_typo', true, '2026-11-13T13:00:00Z')");
    assert!(
        wrong.bind(user).execute(world.pool()).await.is_err(),
        "an account that is not theirs is no success"
    );

    sqlx::query(
        "update public.integration_tokens set stripe_account_id = 'acct_a', access_token = $1, connected_at = '2026-11-14T08:00:00Z'",
    )
    .bind(encrypt("sk_acct_a"))
    .execute(world.pool())
    .await?;
    world.stripe.payment("acct_a", at("2026-11-14T09:00:00Z"), 500, "eur");
    sync_at(&mut world, "2026-11-14T12:10:00Z").await?;
    let again = said(&[("2026-09", "10.00"), ("2026-10", "20.00"), ("2026-11", "45.00")]);
    assert_eq!(books(&world, user).await?, again, "A finds its books");
    let former: Vec<(String, bool)> =
        sqlx::query_as("select account, left_out from jobs.former_accounts").fetch_all(world.pool()).await?;
    assert_eq!(former, [("acct_b".to_owned(), true)]);
    Ok(())
}

/// Goods stay goods: what another account sells does not change what the one before it has sold.
#[tokio::test(flavor = "multi_thread")]
async fn each_account_has_its_activity() -> Result<()> {
    let mut world = world_at("2026-10-02T12:00:00Z").await?;
    let user = world.stripe_user("acct_goods").await?;
    world
        .run("update public.integration_tokens set activity_type = 'Vente de marchandises', connected_at = '2026-10-02'")
        .await?;
    world.stripe.payment("acct_goods", at("2026-10-01T09:00:00Z"), 1_000, "eur");
    sync_at(&mut world, "2026-10-02T12:10:00Z").await?;
    connect(&world, user, "acct_services", "2026-11-03T08:00:00Z").await?;
    world.run("update public.integration_tokens set activity_type = 'Prestation de services'").await?;
    world.stripe.payment("acct_services", at("2026-11-04T09:00:00Z"), 2_000, "eur");
    sync_at(&mut world, "2026-11-04T12:10:00Z").await?;
    let rows: Vec<_> = world.imported(user).await?;
    let row =
        |month: &str, activity: &str, euros: &str| (month.to_owned(), activity.to_owned(), euros.to_owned());
    assert_eq!(
        rows,
        [row("2026-10", "Vente de marchandises", "10.00"), row("2026-11", "Prestation de services", "20.00")]
    );
    Ok(())
}

/// An account that was taken out by mistake and taken back has all months that it had before, those of a request, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_taken_back_finds_its_months() -> Result<()> {
    let mut world = world_at("2026-09-02T12:00:00Z").await?;
    let user = world.stripe_user("acct_back").await?;
    world.run("update public.integration_tokens set connected_at = '2026-09-02T08:00:00Z'").await?;
    for (day, amount) in [("2026-06-10T09:00:00Z", 600), ("2026-09-01T09:00:00Z", 900)] {
        world.stripe.payment("acct_back", at(day), amount, "eur");
    }
    sync_at(&mut world, "2026-09-02T12:10:00Z").await?;
    world.post("monthly-sync", "month=2026-06").await?;
    let before = said(&[("2026-06", "6.00"), ("2026-09", "9.00")]);
    assert_eq!(books(&world, user).await?, before);
    for (out, expected) in [(true, said(&[])), (true, said(&[])), (false, before.clone()), (false, before)] {
        sqlx::query("select jobs.leave_account_out($1, 'stripe', 'acct_back', $2, $3)")
            .bind(user)
            .bind(out)
            .bind(world.now())
            .execute(world.pool())
            .await?;
        assert_eq!(books(&world, user).await?, expected, "{out}");
    }
    Ok(())
}

/// A replay of an instant before the connection reaches no month before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_reaches_no_month_before_the_connection() -> Result<()> {
    let mut world = world_at("2026-11-04T12:00:00Z").await?;
    let user = world.stripe_user("acct_replayed").await?;
    world.run("update public.integration_tokens set connected_at = '2026-11-03T08:00:00Z'").await?;
    world.stripe.payment("acct_replayed", at("2026-10-20T09:00:00Z"), 9_900, "eur");
    world.stripe.payment("acct_replayed", at("2026-11-03T09:00:00Z"), 100, "eur");
    world.cron("daily-orchestrator", "at=2026-10-31T18:00:00Z").await?;
    sync_at(&mut world, "2026-11-04T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "1.00")]));
    Ok(())
}

/// Another account is connected, and the first call after it is a replay of the month before: what the account before has
/// sold in this month stays in the books.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_takes_no_month_from_the_account_before() -> Result<()> {
    let mut world = world_at("2026-10-02T12:00:00Z").await?;
    let user = world.stripe_user("acct_before").await?;
    connect(&world, user, "acct_before", "2026-10-02T08:00:00Z").await?;
    world.stripe.payment("acct_before", at("2026-11-05T09:00:00Z"), 4_000, "eur");
    sync_at(&mut world, "2026-10-02T12:10:00Z").await?;
    sync_at(&mut world, "2026-11-09T18:10:00Z").await?;
    connect(&world, user, "acct_after", "2026-11-10T08:00:00Z").await?;
    world.stripe.payment("acct_after", at("2026-11-10T09:00:00Z"), 500, "eur");
    world.set_now(at("2026-11-10T10:00:00Z"));
    world.cron("daily-orchestrator", "at=2026-10-31T18:00:00Z").await?;
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    world.post("monthly-sync", "month=2026-11").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "45.00")]));
    Ok(())
}

/// An account that is out of the books is replaced; taken back, or connected again, it has all months that it had.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_was_replaced_while_it_was_out_finds_its_months() -> Result<()> {
    for is_connected_again in [false, true] {
        let mut world = world_at("2026-09-02T12:00:00Z").await?;
        let user = world.stripe_user("acct_out").await?;
        connect(&world, user, "acct_out", "2026-09-02T08:00:00Z").await?;
        for (day, amount) in [("2026-06-10T09:00:00Z", 600), ("2026-09-01T09:00:00Z", 900)] {
            world.stripe.payment("acct_out", at(day), amount, "eur");
        }
        sync_at(&mut world, "2026-09-02T12:10:00Z").await?;
        world.post("monthly-sync", "month=2026-06").await?;
        let leave = "select jobs.leave_account_out($1, 'stripe', 'acct_out', $2, $3)";
        sqlx::query(leave).bind(user).bind(true).bind(world.now()).execute(world.pool()).await?;
        connect(&world, user, "acct_in", "2026-11-03T08:00:00Z").await?;
        world.stripe.payment("acct_in", at("2026-11-03T09:00:00Z"), 70, "eur");
        sync_at(&mut world, "2026-11-03T12:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "0.70")]));
        if is_connected_again {
            connect(&world, user, "acct_out", "2026-11-12T08:00:00Z").await?;
            sync_at(&mut world, "2026-11-12T12:10:00Z").await?;
        } else {
            sqlx::query(leave).bind(user).bind(false).bind(world.now()).execute(world.pool()).await?;
        }
        let all = said(&[("2026-06", "6.00"), ("2026-09", "9.00"), ("2026-11", "0.70")]);
        assert_eq!(books(&world, user).await?, all, "{is_connected_again}");
    }
    Ok(())
}

/// An account is taken out of the books when it is proven and not read yet: taken back, it has its months.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_was_out_before_its_first_read_has_its_months() -> Result<()> {
    let mut world = world_at("2026-11-03T12:00:00Z").await?;
    let user = world.stripe_user("acct_early").await?;
    world.stripe.payment("acct_early", at("2026-11-02T09:00:00Z"), 4_200, "eur");
    let before = ("integration_settle", Fault::Delay(Duration::from_mins(5)));
    killed_at(&world, (Method::POST, "sync-integrations", "days=30"), before).await?;
    let leave = "select jobs.leave_account_out($1, 'stripe', 'acct_early', $2, $3)";
    sqlx::query(leave).bind(user).bind(true).bind(world.now()).execute(world.pool()).await?;
    sync_at(&mut world, "2026-11-03T18:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[]));
    let in_books: bool =
        world.value("select jobs.is_in_books(user_id, '2026-11-01') from jobs.integration_state").await?;
    assert!(!in_books, "nobody's books have the month");
    sqlx::query(leave).bind(user).bind(false).bind(world.now()).execute(world.pool()).await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "42.00")]));
    Ok(())
}
