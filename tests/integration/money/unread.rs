//! A month says what was not read of it for as long as that is so: of accounts that are disconnected, that nobody can read
//! any more, or that were out of the books.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::shopify::Tender;
use uuid::Uuid;

use super::{sync_at, world_at, worth};
use crate::{
    clock::at,
    world::{World, encrypt},
};

const ACCOUNT: &str = "acct_unread";
const SHOP: &str = "unread.myshopify.com";
const DISCONNECTED: &str = "update public.integration_tokens set is_active = false where provider = 'stripe'";
const REMOVED: &str = "delete from public.integration_tokens where provider = 'stripe'";

/// Makes a user who connects an account and a shop at `now`, which lies in the first days of a month.
async fn both(now: &str) -> Result<(World, Uuid)> {
    let mut world = world_at(now).await?;
    let user = world.stripe_user(ACCOUNT).await?;
    world.shopify.add_shop(SHOP, "EUR", "shpat_unread");
    world.connect_shopify(user, SHOP, "shpat_unread", None).await?;
    world.run("update public.integration_tokens set connected_at = $now").await?;
    sync_at(&mut world, &now.replace(":00:00Z", ":10:00Z")).await?;
    Ok((world, user))
}

/// Returns the statuses of a month's rows of the books, all of which are the same.
async fn status(world: &World, user: Uuid, month: u32) -> Result<Value> {
    let sql = "select count(distinct metadata ->> 'status') from public.ca_records where user_id = $1 and source = 'auto_sync' \
        and month = $2";
    let kinds: i64 =
        sqlx::query_scalar(sql).bind(user).bind(i32::try_from(month)?).fetch_one(world.pool()).await?;
    assert_eq!(kinds, 1, "all rows of {month}");
    Ok(worth(world, user, month).await?["status"].clone())
}

/// Returns what was not read of a month, as mails say it.
async fn unread(world: &World, user: Uuid, month: &str) -> Result<Value> {
    let sql = "select jobs.month_lacks($1, to_date($2, 'YYYY-MM'), $3) -> 'unread'";
    Ok(sqlx::query_scalar(sql).bind(user).bind(month).bind(world.now()).fetch_one(world.pool()).await?)
}

/// An account is disconnected in the middle of a month, or its row removed: what came in since its last read is missing in
/// that month, and later months owe nothing to it.
#[tokio::test(flavor = "multi_thread")]
async fn the_month_of_a_disconnection_lacks_what_nobody_read() -> Result<()> {
    for how in [DISCONNECTED, REMOVED] {
        let (mut world, user) = both("2026-10-02T12:00:00Z").await?;
        for day in ["2026-11-05T09:00:00Z", "2026-11-16T09:00:00Z"] {
            world.stripe.payment(ACCOUNT, at(day), 10_000, "eur");
        }
        for day in ["2026-10-06T09:00:00Z", "2026-11-06T09:00:00Z", "2026-12-03T09:00:00Z"] {
            world.shopify.tender(SHOP, Tender::new(at(day), "5.0", "EUR"));
        }
        sync_at(&mut world, "2026-11-10T18:10:00Z").await?;
        assert_eq!(status(&world, user, 11).await?, "provisional", "{how}");
        world.run(how).await?;
        sync_at(&mut world, "2026-11-15T06:10:00Z").await?;
        assert_eq!(status(&world, user, 11).await?, "partial", "{how}");
        sync_at(&mut world, "2026-12-05T06:10:00Z").await?;
        sync_at(&mut world, "2027-01-02T06:10:00Z").await?;
        assert_eq!(status(&world, user, 10).await?, "complete", "{how}");
        assert_eq!(status(&world, user, 11).await?, "partial", "{how}");
        assert_eq!(status(&world, user, 12).await?, "complete", "{how}");
        assert_eq!(
            unread(&world, user, "2026-11").await?,
            json!([{"source": "stripe", "since": "2026-11-10T18:10:00+00:00", "wholly": false, "is_former": false,
                "is_disconnected": true}]),
            "{how}"
        );
        assert_eq!(unread(&world, user, "2026-12").await?, json!([]), "{how}");
    }
    Ok(())
}

/// Who disconnects everything is synced no more: the next cron lets the books say what the month lacks, once.
#[tokio::test(flavor = "multi_thread")]
async fn the_books_of_who_disconnects_everything_say_it_too() -> Result<()> {
    let mut world = world_at("2026-11-02T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    world.stripe.payment(ACCOUNT, at("2026-11-05T09:00:00Z"), 10_000, "eur");
    sync_at(&mut world, "2026-11-10T18:10:00Z").await?;
    assert_eq!(status(&world, user, 11).await?, "provisional");
    world.run(DISCONNECTED).await?;
    sync_at(&mut world, "2026-11-11T00:10:00Z").await?;
    assert_eq!(status(&world, user, 11).await?, "partial");
    let ended: i32 = world.value("select jobs.end_months(50, $now)").await?;
    assert_eq!(ended, 0);
    Ok(())
}

/// Connected again, the same account goes on where it was left, and nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_connected_again_fills_its_hole() -> Result<()> {
    let (mut world, user) = both("2026-11-02T12:00:00Z").await?;
    world.stripe.payment(ACCOUNT, at("2026-11-12T09:00:00Z"), 10_000, "eur");
    world.shopify.tender(SHOP, Tender::new(at("2026-11-06T09:00:00Z"), "5.0", "EUR"));
    sync_at(&mut world, "2026-11-10T18:10:00Z").await?;
    world.run(REMOVED).await?;
    sync_at(&mut world, "2026-11-15T06:10:00Z").await?;
    assert_eq!(status(&world, user, 11).await?, "partial");
    world.connect_stripe(user, ACCOUNT, &format!("sk_acct_token_{ACCOUNT}")).await?;
    sync_at(&mut world, "2026-11-20T06:10:00Z").await?;
    assert_eq!(status(&world, user, 11).await?, "provisional");
    sync_at(&mut world, "2026-12-01T06:10:00Z").await?;
    assert_eq!(status(&world, user, 11).await?, "complete");
    assert_eq!(unread(&world, user, "2026-11").await?, json!([]));
    Ok(())
}

/// A month that was read past its end lacks nothing, whenever the account is disconnected; one that was out of the books
/// never does. While an account could not be read, its months went on: they end with the disconnection, too.
#[tokio::test(flavor = "multi_thread")]
async fn only_months_before_the_disconnection_lack_something() -> Result<()> {
    for (is_refused, is_out, november, december) in [
        (false, false, "complete", "partial"),
        (true, false, "partial", "partial"),
        (true, true, "complete", "complete"),
    ] {
        let (mut world, user) = both("2026-11-02T12:00:00Z").await?;
        for day in ["2026-11-06T09:00:00Z", "2026-12-03T09:00:00Z", "2027-01-03T09:00:00Z"] {
            world.shopify.tender(SHOP, Tender::new(at(day), "5.0", "EUR"));
        }
        sync_at(&mut world, "2026-11-10T18:10:00Z").await?;
        if is_out {
            sqlx::query("select jobs.leave_account_out($1, 'stripe', $2, true, $3)")
                .bind(user)
                .bind(ACCOUNT)
                .bind(world.now())
                .execute(world.pool())
                .await?;
        }
        if is_refused {
            world.stripe.revoke(ACCOUNT);
        }
        sync_at(&mut world, "2026-12-01T06:10:00Z").await?;
        world.run(DISCONNECTED).await?;
        sync_at(&mut world, "2026-12-04T06:10:00Z").await?;
        sync_at(&mut world, "2027-01-02T06:10:00Z").await?;
        sync_at(&mut world, "2027-01-04T06:10:00Z").await?;
        let found = (status(&world, user, 11).await?, status(&world, user, 12).await?);
        assert_eq!(found, (json!(november), json!(december)), "{is_refused} {is_out}");
        assert_eq!(status(&world, user, 1).await?, "provisional", "{is_refused} {is_out}");
    }
    Ok(())
}

/// A source that stopped being read makes the month partial once that is more than a late read, beside one that goes on and
/// alone; read again, the month is provisional.
#[tokio::test(flavor = "multi_thread")]
async fn a_month_that_is_not_read_up_to_now_is_not_provisional() -> Result<()> {
    for alone in [false, true] {
        let mut world = world_at("2026-11-02T12:00:00Z").await?;
        let user = world.stripe_user(ACCOUNT).await?;
        if !alone {
            world.shopify.add_shop(SHOP, "EUR", "shpat_unread");
            world.connect_shopify(user, SHOP, "shpat_unread", None).await?;
            world.shopify.tender(SHOP, Tender::new(at("2026-11-03T09:00:00Z"), "5.0", "EUR"));
        }
        world.stripe.payment(ACCOUNT, at("2026-11-04T09:00:00Z"), 10_000, "eur");
        sync_at(&mut world, "2026-11-05T12:10:00Z").await?;
        world.stripe.revoke(ACCOUNT);
        for (now, expected) in [
            ("2026-11-05T18:10:00Z", "provisional"),
            ("2026-11-06T12:10:00Z", "provisional"),
            ("2026-11-07T06:10:00Z", "partial"),
            ("2026-11-28T06:10:00Z", "partial"),
        ] {
            sync_at(&mut world, now).await?;
            assert_eq!(status(&world, user, 11).await?, expected, "{now} {alone}");
        }
        let token = "sk_again";
        world.stripe.reconnect(ACCOUNT, token);
        sqlx::query("update public.integration_tokens set access_token = $1 where provider = 'stripe'")
            .bind(encrypt(token))
            .execute(world.pool())
            .await?;
        sync_at(&mut world, "2026-11-28T12:10:00Z").await?;
        assert_eq!(status(&world, user, 11).await?, "provisional", "{alone}");
        // It is over, and nobody has read its last days.
        world.stripe.revoke(ACCOUNT);
        sync_at(&mut world, "2026-12-01T06:10:00Z").await?;
        assert_eq!(status(&world, user, 11).await?, "partial", "{alone}");
    }
    Ok(())
}

/// In the first hours of a month a source that was read in the last ones of the month before is not late.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_not_late_because_a_month_begins() -> Result<()> {
    let (mut world, user) = both("2026-10-02T12:00:00Z").await?;
    sync_at(&mut world, "2026-10-31T18:10:00Z").await?;
    world.stripe.revoke(ACCOUNT);
    world.shopify.tender(SHOP, Tender::new(at("2026-11-01T00:01:00Z"), "5.0", "EUR"));
    for (now, expected) in [
        ("2026-11-01T00:05:00Z", "provisional"),
        ("2026-11-02T06:00:00Z", "provisional"),
        ("2026-11-02T12:05:00Z", "partial"),
    ] {
        sync_at(&mut world, now).await?;
        assert_eq!(status(&world, user, 11).await?, expected, "{now}");
    }
    Ok(())
}

/// An account has its books since October and was read since November. Taken out of the books, it leaves October to what
/// the shop says; taken back, October lacks it, though no row of its ledger lies there.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_goes_or_comes_back_is_said_in_all_of_its_months() -> Result<()> {
    let (mut world, user) = both("2026-10-02T12:00:00Z").await?;
    world.shopify.tender(SHOP, Tender::new(at("2026-10-10T09:00:00Z"), "500.0", "EUR"));
    world.stripe.payment(ACCOUNT, at("2026-11-03T09:00:00Z"), 7_000, "eur");
    sync_at(&mut world, "2026-11-05T06:10:00Z").await?;
    world
        .run(
            "update jobs.integration_state set covered = covered * '{[2026-11-01 00:00+01,)}'::tstzmultirange \
             where provider = 'stripe'",
        )
        .await?;
    for (is_out, expected) in [(true, "complete"), (false, "partial"), (true, "complete"), (false, "partial")]
    {
        let told: Value = sqlx::query_scalar("select jobs.leave_account_out($1, 'stripe', $2, $3, $4)")
            .bind(user)
            .bind(ACCOUNT)
            .bind(is_out)
            .bind(world.now())
            .fetch_one(world.pool())
            .await?;
        assert_eq!(told["months"], json!(["2026-10", "2026-11"]), "{is_out}");
        assert_eq!(status(&world, user, 10).await?, expected, "{is_out}");
    }
    Ok(())
}

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
