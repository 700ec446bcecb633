//! What makes a figure another one without a movement: another rule, books that are put aside, a month that is asked for.

use anyhow::Result;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use stand_ins::{shopify::Tender, stripe::Entry};

use super::{accounts::connect, books, said, sync_at, world_at, worth};
use crate::clock::at;

/// A version that knew nothing of payments that both report has counted one twice, in September. The one after it mends
/// that with the first settlement, which reads three days of November; then there is nothing left to do.
#[tokio::test(flavor = "multi_thread")]
async fn another_rule_reaches_every_month() -> Result<()> {
    let mut world = world_at("2026-09-10T12:00:00Z").await?;
    let user = world.stripe_user("acct_rules").await?;
    world.shopify.add_shop("regles.myshopify.com", "EUR", "shpat_rules");
    world.connect_shopify(user, "regles.myshopify.com", "shpat_rules", None).await?;
    world.run("update public.integration_tokens set connected_at = '2026-09-01T08:00:00Z'").await?;
    let paid = world.stripe.payment("acct_rules", at("2026-09-08T09:00:00Z"), 10_000, "eur");
    let tender = Tender::new(at("2026-09-08T09:00:00Z"), "100.0", "EUR").reference(&paid.charge);
    world.shopify.tender("regles.myshopify.com", tender);
    let rule: String =
        world.value("select pg_get_functiondef('jobs.movements_reported_twice'::regproc)").await?;
    world
        .run(
            "create or replace function jobs.movements_reported_twice(p_user_id uuid, p_months date[], p_written boolean) \
             returns table (external_id text) language sql stable as 'select null::text where false'",
        )
        .await?;
    sync_at(&mut world, "2026-09-10T12:10:00Z").await?;
    let counted =
        |all: Vec<(String, String)>| all.into_iter().filter(|(month, _)| month == "2026-09").count();
    assert_eq!(counted(books(&world, user).await?), 2, "as goods and as services");

    sqlx::query(AssertSqlSafe(rule)).execute(world.pool()).await?;
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-09", "100.00")]));
    let written: String = world.value("select max(updated_at)::text from jobs.integration_state").await?;
    let by: i64 = world.value("select count(distinct totals_by) from jobs.integration_state").await?;
    sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!((books(&world, user).await?, by), (said(&[("2026-09", "100.00")]), 1), "{written}");
    Ok(())
}

/// A is replaced by B, proven again, and replaced once more before anything of it was read.
#[tokio::test(flavor = "multi_thread")]
async fn books_that_were_taken_up_and_not_read_are_put_aside_again() -> Result<()> {
    let mut world = world_at("2026-09-02T12:00:00Z").await?;
    let user = world.stripe_user("acct_a").await?;
    connect(&world, user, "acct_a", "2026-09-02T08:00:00Z").await?;
    world.stripe.payment("acct_a", at("2026-09-10T09:00:00Z"), 1_000, "eur");
    sync_at(&mut world, "2026-09-12T12:10:00Z").await?;
    connect(&world, user, "acct_b", "2026-11-10T08:00:00Z").await?;
    world.stripe.payment("acct_b", at("2026-11-10T09:00:00Z"), 400, "eur");
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    let expected = said(&[("2026-09", "10.00"), ("2026-11", "4.00")]);
    assert_eq!(books(&world, user).await?, expected);

    connect(&world, user, "acct_a", "2026-11-11T08:00:00Z").await?;
    let proven: Value = world
        .value("select public.integration_prove(id, access_token, 'acct_a', null) from public.integration_tokens")
        .await?;
    assert_eq!(proven, json!({"proven": true}));
    connect(&world, user, "acct_b", "2026-11-12T08:00:00Z").await?;
    world.stripe.payment("acct_b", at("2026-11-10T09:00:00Z"), 400, "eur");
    for now in ["2026-11-12T12:10:00Z", "2026-11-13T06:10:00Z"] {
        sync_at(&mut world, now).await?;
        let kept: Vec<_> =
            books(&world, user).await?.into_iter().filter(|(month, _)| month == "2026-09").collect();
        assert_eq!(kept, said(&[("2026-09", "10.00")]), "{now}");
    }
    Ok(())
}

/// The account that the row named before has been there since September; the one that it names now has not.
#[tokio::test(flavor = "multi_thread")]
async fn another_accounts_first_sighting_dates_no_books() -> Result<()> {
    let mut world = world_at("2026-09-02T12:00:00Z").await?;
    let user = world.stripe_user("acct_first").await?;
    connect(&world, user, "acct_first", "2026-09-02T08:00:00Z").await?;
    sync_at(&mut world, "2026-09-02T12:10:00Z").await?;
    sync_at(&mut world, "2026-11-10T12:10:00Z").await?;
    // Connected between the plan of a run and its reading; the day of connection is still the old one.
    connect(&world, user, "acct_second", "2026-09-02T08:00:00Z").await?;
    let begin: String = world
        .value(
            "select public.integration_context(array[max(item_id)]) -> 0 ->> 'books_from' \
             from jobs.job_items where kind = 'sync_integration'",
        )
        .await?;
    assert!(begin.starts_with("2026-10-31T23:00:00"), "{begin}");
    Ok(())
}

/// October is asked for and cannot be read: it does not become a month of the books by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_month_that_could_not_be_read_is_not_in_the_books() -> Result<()> {
    let mut world = world_at("2026-11-02T12:00:00Z").await?;
    let user = world.stripe_user("acct_asked").await?;
    connect(&world, user, "acct_asked", "2026-11-02T08:00:00Z").await?;
    world.stripe.payment("acct_asked", at("2026-10-20T09:00:00Z"), 2_000, "eur");
    world.stripe.payment("acct_asked", at("2026-11-02T09:00:00Z"), 100, "eur");
    sync_at(&mut world, "2026-11-02T12:10:00Z").await?;
    let key = world.var("STRIPE_SECRET_KEY").to_owned();
    world.set("STRIPE_SECRET_KEY", "sk_test_refused");
    world.post("monthly-sync", "month=2026-10").await?;
    world.set("STRIPE_SECRET_KEY", &key);
    sync_at(&mut world, "2026-11-03T06:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "1.00")]));
    world.post("monthly-sync", "month=2026-10").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-10", "20.00"), ("2026-11", "1.00")]));
    Ok(())
}

/// Two subscriptions renew in the same second. One is told with its id, the other without: the first explains nothing of
/// the second.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_known_before_explains_none_without_an_id() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user("acct_twice").await?;
    let when = at("2026-11-17T09:00:00Z");
    let entry = || Entry::new(when, 2_000, "eur");
    world.stripe.add("acct_twice", entry());
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    let odd = world.stripe.add("acct_twice", entry().oddities(json!({"id": null})));
    for now in ["2026-11-18T18:10:00Z", "2026-11-19T06:10:00Z"] {
        sync_at(&mut world, now).await?;
        let flaw = json!({"status": "partial", "flaws": {"unknown_kind": 1}});
        assert_eq!(
            (books(&world, user).await?, worth(&world, user, 11).await?),
            (said(&[("2026-11", "20.00")]), flaw),
            "{now}"
        );
    }
    world.stripe.show("acct_twice", &odd.transaction, json!({}));
    sync_at(&mut world, "2026-11-19T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "40.00")]));
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));
    Ok(())
}
