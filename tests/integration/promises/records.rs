//! The user's own turnover table: what is ours is kept right, what is theirs is left alone.

use anyhow::Result;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{imported_cents, replay};
use crate::world::World;

const SERVICES: &str = "Prestation de services";
const GOODS: &str = "Vente de marchandises";

async fn execute(world: &World, sql: &'static str, user: Uuid) -> Result<u64> {
    Ok(sqlx::query(sql).bind(user).execute(world.pool()).await?.rows_affected())
}

/// Returns the rows as (activity, cents), in a stable order.
async fn rows(world: &World, user: Uuid) -> Result<Vec<(String, i64)>> {
    let sql = "select activity_type, (amount_eur * 100)::bigint from public.ca_records where user_id = $1 order by 1, 2";
    Ok(sqlx::query_as(sql).bind(user).fetch_all(world.pool()).await?)
}

fn row(activity: &str, cents: i64) -> (String, i64) {
    (activity.to_owned(), cents)
}

/// Whatever the user changes of a row makes it theirs; what it would be is reported, until it is the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_edited_row_is_the_users() -> Result<()> {
    let edits: [(&str, &str, Value); 4] = [
        ("amount", "update public.ca_records set amount_eur = 99 where user_id = $1", json!(99.00)),
        (
            "activity",
            "update public.ca_records set activity_type = 'Activité libérale' where user_id = $1",
            json!(10.00),
        ),
        ("month", "update public.ca_records set year = 2020 where user_id = $1", json!(10.00)),
        ("deletion", "delete from public.ca_records where user_id = $1", Value::Null),
    ];
    for (what, edit, recorded) in edits {
        let world = World::new().await?;
        let user = world.stripe_user("acct_edit").await?;
        world.stripe.payment("acct_edit", world.earlier(90), 1_000, "eur");
        world.post("sync-integrations", "").await?;
        assert_eq!(rows(&world, user).await?, [row(SERVICES, 1_000)], "{what}");
        execute(&world, edit, user).await?;
        let theirs = rows(&world, user).await?;

        world.stripe.payment("acct_edit", world.earlier(80), 500, "eur");
        for _ in 0..2 {
            let answer = world.post("sync-integrations", "").await?;
            assert_eq!(rows(&world, user).await?, theirs, "{what}");
            let result = &answer["results"][0];
            let left = &result["left_alone"][0];
            assert_eq!(result["status"], "partial", "{what}: {answer}");
            assert_eq!(
                (&left["computed"], &left["recorded"]),
                (&json!(15.00), &recorded),
                "{what}: {answer}"
            );
            assert_eq!(left["month"], world.months_ago(0).to_string(), "{what}");
        }
        let logged: Value =
            world.value("select metadata from public.sync_logs where user_id is not null order by xmin::text::bigint desc limit 1").await?;
        assert_eq!(logged["left_alone"][0]["computed"], json!(15.00), "{what}: {logged}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_set_right_by_hand_is_no_difference() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_right").await?;
    world.stripe.payment("acct_right", world.earlier(90), 1_000, "eur");
    world.post("sync-integrations", "").await?;
    execute(&world, "update public.ca_records set amount_eur = 15 where user_id = $1", user).await?;
    world.stripe.payment("acct_right", world.earlier(80), 500, "eur");
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["results"][0]["left_alone"], Value::Null, "{answer}");
    assert_eq!(answer["results"][0]["status"], "success", "{answer}");
    Ok(())
}

/// What else the user writes into the row (their own estimates) stays, and the row stays ours.
#[tokio::test(flavor = "multi_thread")]
async fn the_users_other_columns_are_kept() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_cols").await?;
    world.stripe.payment("acct_cols", world.earlier(90), 1_000, "eur");
    world.post("sync-integrations", "").await?;
    execute(
        &world,
        "update public.ca_records set computed_net_eur = 7.77, ir_mode = 'vl' where user_id = $1",
        user,
    )
    .await?;
    world.stripe.payment("acct_cols", world.earlier(80), 500, "eur");
    world.post("sync-integrations", "").await?;
    let kept: String = world
        .value("select amount_eur || ' ' || computed_net_eur || ' ' || ir_mode from public.ca_records")
        .await?;
    assert_eq!(kept, "15.00 7.77 vl");
    Ok(())
}

/// A row under our key that we did not write is not believed, not overwritten, and reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_row_is_left_and_reported() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_forged").await?;
    let month = world.months_ago(0);
    sqlx::query(
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id) \
         values ($1, $2, $3, $4, 1, 'auto_sync', $5)",
    )
    .bind(user)
    .bind(month.year())
    .bind(i32::try_from(month.month())?)
    .bind(SERVICES)
    .bind(format!("{month}/{SERVICES}"))
    .execute(world.pool())
    .await?;
    world.stripe.payment("acct_forged", world.earlier(90), 1_000, "eur");
    for _ in 0..2 {
        let answer = world.post("sync-integrations", "").await?;
        assert_eq!(rows(&world, user).await?, [row(SERVICES, 100)]);
        let left = &answer["results"][0]["left_alone"][0];
        assert_eq!((&left["computed"], &left["recorded"]), (&json!(10.00), &json!(1.00)), "{answer}");
    }
    Ok(())
}

/// A forged row of another user's, or one that points at theirs, is never touched.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_elses_row_is_touched() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_mine").await?;
    let other = world.user("other@example.test").await?;
    execute(
        &world,
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) values ($1, 2026, 11, 'Prestation de services', 5)",
        other,
    )
    .await?;
    world.stripe.payment("acct_mine", world.earlier(90), 1_000, "eur");
    world.post("sync-integrations", "").await?;
    // The user hands their row to somebody else (no policy lets them; the database must hold all the same).
    execute(&world, "update public.ca_records set user_id = $1 where source = 'auto_sync'", other).await?;
    world.stripe.payment("acct_mine", world.earlier(80), 100, "eur");
    world.post("sync-integrations", "").await?;
    assert_eq!(rows(&world, other).await?, [row(SERVICES, 500), row(SERVICES, 1_000)]);
    assert_eq!(rows(&world, user).await?, []);
    Ok(())
}

/// What the user has typed most often decides, and stays as long as one entry says it.
#[tokio::test(flavor = "multi_thread")]
async fn the_activity_follows_the_users_entries() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_kind").await?;
    for (activity, count) in [(GOODS, 3), ("services", 2), (SERVICES, 2), ("autre", 9)] {
        for _ in 0..count {
            sqlx::query("insert into public.ca_records (user_id, year, month, activity_type, amount_eur) values ($1, 2020, 1, $2, 1)")
                .bind(user)
                .bind(activity)
                .execute(world.pool())
                .await?;
        }
    }
    world.stripe.payment("acct_kind", world.earlier(90), 1_000, "eur");
    world.post("sync-integrations", "").await?;
    assert_eq!(
        world.imported(user).await?[0].1,
        SERVICES,
        "2 'services' and 2 of today's spelling against 3"
    );
    let edits = [
        (
            "update public.ca_records set activity_type = 'Vente de marchandises' where user_id = $1 and activity_type = 'services'",
            SERVICES,
        ),
        (
            "update public.ca_records set activity_type = 'Vente de marchandises' where user_id = $1 and source = 'manual'",
            GOODS,
        ),
        ("delete from public.ca_records where user_id = $1 and source = 'manual'", GOODS),
    ];
    for (edit, expected) in edits {
        execute(&world, edit, user).await?;
        world.post("sync-integrations", "").await?;
        let imported = world.imported(user).await?;
        assert_eq!(
            (imported.len(), imported[0].1.as_str(), imported[0].2.as_str()),
            (1, expected, "10.00"),
            "{edit}"
        );
    }
    Ok(())
}

/// An activity that is said later moves every month, also those that the window does not reach.
#[tokio::test(flavor = "multi_thread")]
async fn an_activity_that_is_said_later_moves_all_months() -> Result<()> {
    let mut world = World::new().await?;
    world.set("REPLAY_MAX_DAYS", "366");
    let user = world.stripe_user("acct_said").await?;
    let old = world.months_ago(4);
    let first = old.start() + chrono::TimeDelta::days(10);
    world.stripe.payment("acct_said", first, 1_000, "eur");
    world.post("sync-integrations", &replay(first + chrono::TimeDelta::days(1))).await?;
    world.stripe.payment("acct_said", world.earlier(90), 500, "eur");
    world.post("sync-integrations", "").await?;
    execute(
        &world,
        "update public.integration_tokens set activity_type = 'Activité libérale' where user_id = $1",
        user,
    )
    .await?;
    world.post("sync-integrations", "days=1").await?;
    let imported = world.imported(user).await?;
    let expected = [(old.to_string(), "10.00"), (world.months_ago(0).to_string(), "5.00")];
    assert_eq!(imported.len(), 2, "{imported:?}");
    for ((month, activity, amount), (expected, cents)) in imported.iter().zip(&expected) {
        assert_eq!((month, activity.as_str(), amount.as_str()), (expected, "Activité libérale", *cents));
    }
    // What is no activity of ours is not believed.
    execute(&world, "update public.integration_tokens set activity_type = 'BNC' where user_id = $1", user)
        .await?;
    world.post("sync-integrations", "days=1").await?;
    assert_eq!(world.imported(user).await?, imported);
    Ok(())
}

/// When Stripe turns out to report what the shop reported, the shop's row goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_goes_when_nothing_is_left() -> Result<()> {
    let world = World::new().await?;
    let user = world.shopify_user("gone.myshopify.com").await?;
    world.stripe.add_account("acct_gone", "sk_gone");
    let paid = world.stripe.payment("acct_gone", world.earlier(90), 4_000, "eur");
    world.shopify.tender(
        "gone.myshopify.com",
        stand_ins::shopify::Tender::new(world.earlier(90), "40.0", "EUR").reference(&paid.charge),
    );
    world.post("sync-integrations", "").await?;
    assert_eq!(rows(&world, user).await?, [row(GOODS, 4_000)]);
    world.connect_stripe(user, "acct_gone", "sk_gone").await?;
    world.post("sync-integrations", "").await?;
    assert_eq!(rows(&world, user).await?, [row(SERVICES, 4_000)], "once, as Stripe's");
    assert_eq!(imported_cents(&world, user).await?, 4_000);
    assert_eq!(world.value::<i64>("select count(*) from jobs.auto_sync_totals").await?, 1);
    Ok(())
}

/// An amount that no book holds costs its own row alone: it is kept and named, and everything else of its owner is written;
/// one of before amounts were judged, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_amount_that_no_book_holds_costs_its_row_alone() -> Result<()> {
    let world = World::new().await?;
    let rich = world.stripe_user("acct_rich").await?;
    world.stripe.payment("acct_rich", world.earlier(90), i64::from(i32::MAX) * 1_000_000, "eur");
    world.stripe.payment("acct_rich", world.earlier(80), 700, "eur");
    sqlx::query(
        "insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency) \
         select $1, 'stripe', 'txn_' || n, 'acct_rich', 'payment', $2, n, 'EUR' from unnest($3::bigint[]) n",
    )
    .bind(rich)
    .bind(world.earlier(85))
    .bind([1_000_000_000_000, -1_000_000_000_000, i64::MIN, i64::MAX].as_slice())
    .execute(world.pool())
    .await?;
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!((&answer["errors"], &answer["remaining"]), (&json!(0), &Value::Null), "{answer}");
    assert_eq!(answer["results"][0]["unreadable_movements"], json!({"amount_not_read": 5}), "{answer}");
    assert_eq!(rows(&world, rich).await?, [row(SERVICES, 700)]);
    let worth: Value = world.value("select metadata - 'sources' from public.ca_records").await?;
    assert_eq!(worth, json!({"status": "partial", "flaws": {"amount_not_read": 5}}));
    Ok(())
}

/// A sum that no column holds is written as the most that it holds, and is no figure; another month is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_sum_that_no_column_holds_is_no_figure() -> Result<()> {
    for sign in [1, -1] {
        let world = World::new().await?;
        let rich = world.stripe_user("acct_sum").await?;
        let paid = world.stripe.payment("acct_sum", world.earlier(90), 1_000, "eur");
        world.post("sync-integrations", "").await?;
        assert_eq!(rows(&world, rich).await?, [row(SERVICES, 1_000)], "{}", paid.charge);
        sqlx::query(
            "insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency) \
             select $1, 'stripe', 'txn_' || n, 'acct_sum', 'payment', $2, $3, 'EUR' from generate_series(1, 3) n",
        )
        .bind(rich)
        .bind(world.earlier(85))
        .bind(sign * 600_000_000_000_i64)
        .execute(world.pool())
        .await?;
        let answer = world.post("sync-integrations", "").await?;
        assert_eq!((&answer["errors"], &answer["remaining"]), (&json!(0), &Value::Null), "{answer}");
        assert_eq!(rows(&world, rich).await?, [row(SERVICES, sign * 999_999_999_999)]);
        let worth: Value = world.value("select metadata - 'sources' from public.ca_records").await?;
        assert_eq!(
            (&worth["status"], &worth["flaws"]["amount_not_read"]),
            (&json!("partial"), &json!(1)),
            "{worth}"
        );
    }
    Ok(())
}

/// More goes back than came in.
#[tokio::test(flavor = "multi_thread")]
async fn a_negative_month_is_written() -> Result<()> {
    let mut world = World::new().await?;
    world.set("REPLAY_MAX_DAYS", "366");
    let user = world.stripe_user("acct_minus").await?;
    let (before, this) = (world.months_ago(2), world.months_ago(1));
    let paid = world.stripe.payment("acct_minus", before.start() + chrono::TimeDelta::days(3), 10_000, "eur");
    world.post("sync-integrations", &replay(before.start() + chrono::TimeDelta::days(5))).await?;
    world.stripe.refund("acct_minus", &paid.charge, this.start() + chrono::TimeDelta::days(1), 2_500);
    world.stripe.dispute("acct_minus", &paid.charge, this.start() + chrono::TimeDelta::days(2), 7_500);
    world.post("sync-integrations", &replay(this.start() + chrono::TimeDelta::days(5))).await?;
    let imported = world.imported(user).await?;
    let expected = [
        (before.to_string(), SERVICES.to_owned(), "100.00".to_owned()),
        (this.to_string(), SERVICES.to_owned(), "-100.00".to_owned()),
    ];
    assert_eq!(imported, expected);
    Ok(())
}
