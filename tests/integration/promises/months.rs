//! Months are Paris months, and a month's figure says what it is worth.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use jobs::schedule::Month;
use serde_json::{Value, json};
use stand_ins::shopify::Tender;
use uuid::Uuid;

use super::{at, imported_cents, listed_cents, replay};
use crate::world::World;

const SHOP: &str = "months.myshopify.com";

/// Makes a world that may replay a year, and a user with an account and a shop.
async fn world() -> Result<(World, Uuid)> {
    let mut world = World::new().await?;
    world.set("REPLAY_MAX_DAYS", "366");
    let user = world.stripe_user("acct_months").await?;
    Ok((world, user))
}

async fn add_shop(world: &World, user: Uuid) -> Result<()> {
    world.shopify.add_shop(SHOP, "EUR", "shpat_months");
    world.connect_shopify(user, SHOP, "shpat_months", None).await?;
    Ok(())
}

/// Returns what a month's figure is worth, looked at in the middle of that month or after its end.
async fn status(world: &World, user: Uuid, month: Month, at: DateTime<Utc>) -> Result<String> {
    let sql = "select jobs.month_status($1, $2, $3)";
    Ok(sqlx::query_scalar(sql).bind(user).bind(month.first_day()).bind(at).fetch_one(world.pool()).await?)
}

/// Returns noon of a day of a month.
fn day(month: Month, day: i64) -> DateTime<Utc> {
    month.start() + TimeDelta::days(day - 1) + TimeDelta::hours(12)
}

fn row(month: Month, amount: &str) -> (String, String, String) {
    (month.to_string(), "Prestation de services".to_owned(), amount.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_is_a_paris_month() -> Result<()> {
    // (month, last second before, first second, clock change, last second, first second behind)
    let months = [
        (
            "2026-10",
            "2026-09-30T21:59:59Z",
            "2026-09-30T22:00:00Z",
            "2026-10-25T00:59:59Z",
            "2026-10-25T01:00:00Z",
            "2026-10-31T22:59:59Z",
            "2026-10-31T23:00:00Z",
        ),
        (
            "2026-03",
            "2026-02-28T22:59:59Z",
            "2026-02-28T23:00:00Z",
            "2026-03-29T00:59:59Z",
            "2026-03-29T01:00:00Z",
            "2026-03-31T21:59:59Z",
            "2026-03-31T22:00:00Z",
        ),
        (
            "2024-02",
            "2024-01-31T22:59:59Z",
            "2024-01-31T23:00:00Z",
            "2024-02-28T23:00:00Z",
            "2024-02-29T12:00:00Z",
            "2024-02-29T22:59:59Z",
            "2024-02-29T23:00:00Z",
        ),
    ];
    let (mut world, user) = world().await?;
    world.set_now(at("2026-11-18T10:20:00Z")); // after all of them
    add_shop(&world, user).await?;
    for (month, before, first, change, changed, last, behind) in months {
        for outside in [before, behind] {
            world.stripe.payment("acct_months", at(outside), 99_900, "eur");
            world.shopify.tender(SHOP, Tender::new(at(outside), "999.0", "EUR"));
        }
        for inside in [first, change, changed, last] {
            world.stripe.payment("acct_months", at(inside), 1_000, "eur");
            world.shopify.tender(SHOP, Tender::new(at(inside), "1.5", "EUR"));
        }
        let answer = world.post("monthly-sync", &format!("month={month}")).await?;
        let result = &answer["results"][0];
        let details = json!([{"source": "shopify", "amount": 6.00}, {"source": "stripe", "amount": 40.00}]);
        assert_eq!((&result["totalCA"], &result["details"]), (&json!(46.00), &details), "{month}: {answer}");
        assert_eq!(result["month_status"], "complete", "{month}: {answer}");
    }
    let imported = world.imported(user).await?;
    let amounts: Vec<_> = imported.iter().map(|row| (row.0.as_str(), row.2.as_str())).collect();
    let expected: Vec<_> = ["2024-02", "2026-03", "2026-10"]
        .into_iter()
        .flat_map(|month| [(month, "40.00"), (month, "6.00")])
        .collect();
    assert_eq!(amounts, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_figure_is_worth() -> Result<()> {
    let (world, user) = world().await?;
    let [this, last, before, old] = [1, 2, 3, 4].map(|n| world.months_ago(n));
    // First synced in the middle of a month, five days back: its beginning is read all the same.
    world.post("sync-integrations", &format!("days=5&{}", replay(day(last, 15)))).await?;
    assert_eq!(status(&world, user, last, day(last, 15)).await?, "provisional");
    assert_eq!(status(&world, user, last, world.now()).await?, "partial", "over, and not read to its end");
    assert_eq!(status(&world, user, before, world.now()).await?, "partial", "never read");
    world.post("sync-integrations", &replay(day(this, 5))).await?;
    assert_eq!(status(&world, user, last, world.now()).await?, "complete");
    assert_eq!(status(&world, user, this, day(this, 5)).await?, "provisional");
    world.post("monthly-sync", &format!("month={old}")).await?;
    assert_eq!(
        (
            status(&world, user, old, world.now()).await?.as_str(),
            status(&world, user, before, world.now()).await?.as_str()
        ),
        ("complete", "partial")
    );

    // A hole, and a beginning that was never read.
    for hole in ["[1, 5) [9, 28)", "[2, 28)"] {
        let ranges: Vec<String> = hole
            .split(") ")
            .map(|range| {
                let numbers: Vec<i64> =
                    range.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
                format!(
                    "[{},{})",
                    (day(this, numbers[0]) - TimeDelta::hours(12)).to_rfc3339(),
                    day(this, numbers[1]).to_rfc3339()
                )
            })
            .collect();
        sqlx::query("update jobs.integration_state set covered = $1::text::tstzmultirange")
            .bind(format!("{{{}}}", ranges.join(",")))
            .execute(world.pool())
            .await?;
        assert_eq!(status(&world, user, this, day(this, 27)).await?, "partial", "{hole}");
    }
    // Somebody's currency that nobody counts.
    world.stripe.payment("acct_months", day(old, 3), 1_000, "usd");
    let answer = world.post("monthly-sync", &format!("month={old}")).await?;
    let result = &answer["results"][0];
    assert_eq!((&result["month_status"], &result["totalCA"]), (&json!("partial"), &json!(0)), "{answer}");
    assert_eq!(result["uncounted_currencies"], json!(["USD"]), "{answer}");
    Ok(())
}

/// One of a user's two integrations fails: the other is counted, the figure is partial, and the run is no success.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_integration_makes_the_month_partial() -> Result<()> {
    let (world, user) = world().await?;
    add_shop(&world, user).await?;
    world.shopify.set_status(SHOP, Some(404));
    let month = world.months_ago(1);
    world.stripe.payment("acct_months", day(month, 3), 1_000, "eur");
    let answer = world.post("monthly-sync", &format!("month={month}")).await?;
    let result = &answer["results"][0];
    assert_eq!((&result["totalCA"], &result["month_status"]), (&json!(10.00), &json!("partial")), "{answer}");
    assert_eq!(answer["errors"], 1, "{answer}");
    assert!(answer["problems"][0]["message"].is_string(), "{answer}");
    let row: Value = world.value("select metadata from public.ca_records").await?;
    assert_eq!(row["status"], "partial");
    let logged: String = world.value("select status from public.sync_logs where user_id is null").await?;
    assert_eq!(logged, "partial");
    // Once the shop is back, it is complete.
    world.shopify.set_status(SHOP, None);
    world.post("monthly-sync", &format!("month={month}")).await?;
    let row: Value = world.value("select metadata from public.ca_records").await?;
    assert_eq!(row["status"], "complete");
    Ok(())
}

/// Nothing ran for two months: neither an operator's 30 days nor a cron leaves a hole.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_sixty_days_leaves_no_hole() -> Result<()> {
    for cron in [false, true] {
        let (world, user) = world().await?;
        let [end, middle, start] = [1, 2, 3].map(|n| world.months_ago(n));
        let begun = day(start, 2);
        world.stripe.payment("acct_months", begun, 100, "eur");
        world.post("sync-integrations", &replay(begun + TimeDelta::hours(1))).await?;
        assert_eq!(imported_cents(&world, user).await?, 100);

        let ended = begun + TimeDelta::days(62);
        let mut at = begun + TimeDelta::hours(2);
        while at < ended {
            let paid = world.stripe.payment("acct_months", at, 1_000, "eur");
            world.stripe.refund("acct_months", &paid.charge, at + TimeDelta::minutes(1), 10);
            at += TimeDelta::days(4);
        }
        let replayed = replay(ended);
        let answer = if cron {
            world.cron("sync-integrations", &replayed).await?
        } else {
            world.post("sync-integrations", &format!("days=30&{replayed}")).await?
        };
        assert_eq!(answer["totalSynced"], 32, "{answer}");
        assert_eq!(imported_cents(&world, user).await?, listed_cents(&world, "acct_months"));
        assert_eq!(status(&world, user, middle, ended).await?, "complete");
        assert_eq!(status(&world, user, end, ended).await?, "provisional");
    }
    Ok(())
}

/// What came before the first sync was typed by hand: only a month that an operator names is written.
#[tokio::test(flavor = "multi_thread")]
async fn months_before_the_first_sync_are_the_users() -> Result<()> {
    let (world, user) = world().await?;
    let [first, before] = [1, 2].map(|n| world.months_ago(n));
    sqlx::query(
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) values ($1, $2, $3, 'services', 77)",
    )
    .bind(user)
    .bind(before.year())
    .bind(i32::try_from(before.month())?)
    .execute(world.pool())
    .await?;
    world.stripe.payment("acct_months", day(before, 25), 2_000, "eur");
    world.stripe.payment("acct_months", day(first, 2), 1_000, "eur");
    let answer = world.post("sync-integrations", &replay(day(first, 5))).await?;
    assert_eq!(answer["totalSynced"], 2, "both are kept: {answer}");
    assert_eq!(world.imported(user).await?, [row(first, "10.00")]);
    let answer = world.post("monthly-sync", &format!("force=true&{}", replay(day(first, 6)))).await?;
    assert_eq!(answer["results"][0]["totalCA"], json!(20.00), "told, not written: {answer}");
    assert_eq!(world.imported(user).await?, [row(first, "10.00")]);
    world.post("monthly-sync", &format!("month={before}")).await?;
    assert_eq!(world.imported(user).await?, [row(before, "20.00"), row(first, "10.00")]);
    let typed: String =
        world.value("select amount_eur::text from public.ca_records where source = 'manual'").await?;
    assert_eq!(typed, "77.00");
    // From now on that month is kept right, too.
    world.stripe.payment("acct_months", day(before, 26), 500, "eur");
    world.post("sync-integrations", &format!("days=60&{}", replay(day(first, 7)))).await?;
    assert_eq!(world.imported(user).await?, [row(before, "25.00"), row(first, "10.00")]);
    Ok(())
}

/// On the last day the orchestrator reads the month, and only then.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_day_of_the_month() -> Result<()> {
    let (world, user) = world().await?;
    let month = world.months_ago(1);
    world.stripe.payment("acct_months", day(month, 3), 1_000, "eur");
    let last = month.end() - TimeDelta::hours(6);
    let early = world.cron("monthly-orchestrator", &replay(last - TimeDelta::days(1))).await?;
    assert_eq!(early["results"]["monthlySync"]["skipped"], true, "{early}");
    let answer = world.cron("monthly-orchestrator", &replay(last)).await?;
    let sync = &answer["results"]["monthlySync"];
    assert_eq!(
        (&sync["synced"], &sync["errors"], &sync["skipped"]),
        (&json!(1), &json!(0), &json!(false)),
        "{answer}"
    );
    assert_eq!(world.imported(user).await?, [row(month, "10.00")]);
    let again = world.cron("monthly-orchestrator", &replay(last + TimeDelta::hours(1))).await?;
    assert_eq!(again["results"]["monthlySync"]["skipped"], true, "{again}");
    Ok(())
}

/// A refund that names no payment is recognised once its sale is known, in whatever month that is read.
#[tokio::test(flavor = "multi_thread")]
async fn the_sale_tells_whose_refund_it_is() -> Result<()> {
    let (world, user) = world().await?;
    add_shop(&world, user).await?;
    let (old, month) = (world.months_ago(4), world.months_ago(1));
    let paid = world.stripe.payment("acct_months", day(old, 3), 10_000, "eur");
    let sold = world.shopify.tender(SHOP, Tender::new(day(old, 3), "100.0", "EUR").reference(&paid.charge));
    world.stripe.refund("acct_months", &paid.charge, day(month, 3), 1_000);
    world.shopify.refund(SHOP, &sold, day(month, 3), "10.0");
    world.post("sync-integrations", &replay(day(month, 10))).await?;
    // The shop's side of the old sale is read; Stripe's fails for now.
    world.stripe.revoke("acct_months");
    world.post("monthly-sync", &format!("month={old}")).await?;
    let of_month: Vec<_> = world
        .imported(user)
        .await?
        .into_iter()
        .filter(|row| row.0 == month.to_string())
        .map(|row| row.2)
        .collect();
    assert_eq!(of_month, ["-10.00"], "once, as Stripe's");
    Ok(())
}

/// An order is paid half by card through Stripe, half in cash, and both are paid back: only the
/// card's half is reported twice.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_paid_in_two_ways() -> Result<()> {
    let (world, user) = world().await?;
    add_shop(&world, user).await?;
    let paid = world.stripe.payment("acct_months", world.earlier(90), 5_000, "eur");
    let card =
        world.shopify.tender(SHOP, Tender::new(world.earlier(90), "50.0", "EUR").reference(&paid.charge));
    world
        .shopify
        .tender(SHOP, Tender::new(world.earlier(90), "50.0", "EUR").method("cash").same_order(&card));
    world.post("sync-integrations", "").await?;
    assert_eq!(imported_cents(&world, user).await?, 10_000);
    world.stripe.refund("acct_months", &paid.charge, world.earlier(60), 5_000);
    for _ in 0..2 {
        world.shopify.refund(SHOP, &card, world.earlier(60), "50.0");
    }
    world.post("sync-integrations", "").await?;
    assert_eq!(imported_cents(&world, user).await?, 0);
    Ok(())
}
