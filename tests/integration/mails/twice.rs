//! What is in a month twice, and what cannot be: money below zero, money that our mails ask to type; and a recap that leaves
//! late.

use anyhow::Result;
use chrono::TimeDelta;
use serde_json::{Value, json};
use stand_ins::resend::Limits;
use uuid::Uuid;

use super::given::{about, at, last_day, mail_to, says, says_not, text, turnover};
use crate::world::World;

const SERVICES: &str = "Prestation de services";

async fn reminded(world: &World, user: Uuid) -> Result<()> {
    for sql in [
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
        "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
    ] {
        about(world, user, sql).await?;
    }
    Ok(())
}

async fn answers(world: &World, user: Uuid, month: &str, verdict: &str) -> Result<()> {
    let sql = format!(
        "insert into jobs.book_confirmations (user_id, month, verdict, confirmed_at) \
         values ($1, {month}, '{verdict}', $now)"
    );
    about(world, user, &sql).await
}

/// Returns the months in doubt and the sums of the year, typed and imported, as thresholds see them, in euros.
async fn books(world: &World, user: Uuid) -> Result<(i64, i64, i64)> {
    Ok(sqlx::query_as(
        "select (select count(distinct r -> 'month') from jsonb_array_elements(b.years -> 0 -> 'rows') r \
             where r -> 'mixed' = 'true'), \
         sum((s ->> 'typed')::bigint)::bigint / 100, sum((s ->> 'imported')::bigint)::bigint / 100 \
         from jobs.books(array[$1]::uuid[], 2026, 2026) b, jsonb_array_elements(b.years -> 0 -> 'sums') s \
         group by b.years",
    )
    .bind(user)
    .fetch_one(world.pool())
    .await?)
}

/// Sends the reminders again, and returns what the one of `address` says.
async fn reminder(world: &World, address: &str) -> Result<String> {
    world.run("delete from jobs.job_slots").await?;
    world.run("delete from jobs.email_deliveries").await?;
    world.resend.clear().await?;
    world.cron("send-reminders", "").await?;
    Ok(text(&mail_to(world, address)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_below_zero_is_in_nothing_twice() -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at("2026-12-02T07:30:00Z"));
    let user = world.user("camille@example.test").await?;
    reminded(&world, user).await?;
    turnover(&world, user, "2026-11", SERVICES, "500", "manual").await?;
    turnover(&world, user, "2026-11", SERVICES, "-189.90", "auto_sync").await?;
    for answer in [None, Some("same"), Some("distinct")] {
        if let Some(verdict) = answer {
            world.run("delete from jobs.book_confirmations").await?;
            answers(&world, user, "null", verdict).await?;
        }
        let french = reminder(&world, "camille@example.test").await?;
        says(&french, &["Déjà enregistré pour novembre 2026 : 310,10 €", "Prestations de services : 310 €"]);
        says_not(&french, &["deux fois", "double compte", "le plus élevé", "vous avez indiqué"]);
        assert_eq!(books(&world, user).await?, (0, 500, -189), "{answer:?}");
        let asked: i64 =
            world.value("select count(*) from auth.users u, jobs.mixed_months(u.id, 2026)").await?;
        assert_eq!(asked, 0, "the page asks nothing of it");
    }
    Ok(())
}

/// "The same for every month" is not about a month with dollars, which our mails ask to type; an answer for that month is.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_for_another_currency_is_not_swallowed() -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at("2026-11-10T11:00:00Z"));
    let user = world.stripe_user("acct_dollars").await?;
    reminded(&world, user).await?;
    world.stripe.payment("acct_dollars", at("2026-11-05T10:00:00Z"), 10_000, "eur");
    world.stripe.payment("acct_dollars", at("2026-11-05T11:00:00Z"), 5_000_000, "usd");
    world.post("sync-integrations", "").await?;
    turnover(&world, user, "2026-11", SERVICES, "500", "manual").await?;
    turnover(&world, user, "2026-09", SERVICES, "70", "manual").await?;
    turnover(&world, user, "2026-09", SERVICES, "60", "auto_sync").await?;
    world.set_now(at("2026-12-02T07:30:00Z"));
    answers(&world, user, "null", "same").await?;
    let french = reminder(&world, "acct_dollars@example.test").await?;
    says(
        &french,
        &[
            "Déjà enregistré pour novembre 2026 : 600,00 €",
            "Attention au double compte",
            "Si elle convertit les opérations en USD, qui ne sont pas importées",
        ],
    );
    assert_eq!(books(&world, user).await?, (1, 570, 100), "September is settled, November is not");
    answers(&world, user, "'2026-11-01'", "same").await?;
    let french = reminder(&world, "acct_dollars@example.test").await?;
    says(&french, &["Déjà enregistré pour novembre 2026 : 500,00 €", "seul le plus élevé"]);
    assert_eq!(books(&world, user).await?, (0, 570, 0));
    Ok(())
}

/// A recap that a quota held back until its month was read to its end tells that month, and is not provisional.
#[tokio::test(flavor = "multi_thread")]
async fn a_recap_that_leaves_late_is_of_the_whole_month() -> Result<()> {
    let mut world = World::new().await?;
    let (month, now) = last_day(&mut world);
    world.stripe_user("acct_late").await?;
    world.stripe.payment("acct_late", month.start() + TimeDelta::hours(60), 100_000, "eur");
    world.resend.set_limits(Limits { daily: Some(0), ..Limits::default() });
    world.cron("monthly-orchestrator", "").await?;
    world.stripe.payment("acct_late", now + TimeDelta::hours(5), 25_550, "eur");
    world.set_now(month.end() + TimeDelta::hours(8));
    world.post("sync-integrations", "").await?;
    assert_eq!(world.resend.accepted_count(), 0);
    world.resend.set_limits(Limits::default());
    world.set_now(month.end() + TimeDelta::hours(14));
    world.post("sync-integrations", "").await?;
    let said = text(&mail_to(&world, "acct_late@example.test"));
    says(
        &said,
        &["Total importé : 1 255,50 €", "encaissé : 1 255,50 €", "Prestations de services : 1 255,50 €"],
    );
    says_not(&said, &["rovisoire", "incomplet"]);
    world.set_now(month.end() + TimeDelta::hours(32));
    let answer: Value = world.cron("send-reminders", "").await?;
    assert_eq!(answer["recaps"]["sent"].as_i64().unwrap_or(0), 0, "{answer}");
    let facts: Value = world
        .value("select jsonb_build_array(facts -> 'total', facts -> 'provisional_at') from jobs.email_deliveries limit 1")
        .await?;
    assert_eq!(facts, json!([125_550, null]));
    Ok(())
}
