//! The mails, end to end: planned, sealed, sent, settled, each exactly once.

mod confirm;
mod definitive;
pub(crate) mod delivery;
mod disconnected;
pub(crate) mod dry_run;
pub(crate) mod given;
mod made_up;
mod many;
mod offers;
mod plans;
mod recaps;
mod reminders;
mod second_chance;
mod thresholds;
mod twice;
mod undelivered;
mod unsubscribe;
mod waiting_recaps;
mod webhooks;
mod year;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use jobs::mail_kind::MailKind;
use serde_json::json;
use stand_ins::resend::Accepted;
use uuid::Uuid;

use crate::world::World;

/// Signs a user up so many days ago, as the application does.
pub(crate) async fn signed_up(world: &World, email: &str, name: &str, days_ago: i64) -> Result<Uuid> {
    signed_up_at(world, email, name, world.now() - TimeDelta::days(days_ago)).await
}

pub(crate) async fn signed_up_at(world: &World, email: &str, name: &str, at: DateTime<Utc>) -> Result<Uuid> {
    Ok(sqlx::query_scalar(
        "insert into auth.users (email, email_confirmed_at, raw_user_meta_data, created_at) \
         values ($1, $2, jsonb_build_object('full_name', $3::text), $2) returning id",
    )
    .bind(email)
    .bind(at)
    .bind(name)
    .fetch_one(world.pool())
    .await?)
}

/// Returns who got what, sorted.
pub(crate) fn received(world: &World) -> Vec<(String, String)> {
    let mut mails: Vec<(String, String)> = world
        .resend
        .accepted()
        .iter()
        .map(|accepted| (accepted.mail.to.join(","), accepted.mail.subject.clone()))
        .collect();
    mails.sort();
    mails
}

/// Returns a mail's kind, by the link that stops it, which only alerts have not.
pub(crate) fn kind(accepted: &Accepted) -> &'static str {
    let link = accepted.mail.headers.get("List-Unsubscribe").map(String::as_str).unwrap_or_default();
    let linked = MailKind::ALL.into_iter().filter(|kind| kind.has_unsubscribe_link()).map(MailKind::as_str);
    let mut linked = linked.filter(|kind| link.contains(&format!(".{kind}.")));
    linked.next().unwrap_or(MailKind::ThresholdAlert.as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_j3_mail_goes_to_free_users_of_these_days_once() -> Result<()> {
    let mut world = World::new().await?;
    world.midday();
    for days in [2, 3, 6, 7] {
        signed_up(&world, &format!("day{days}@example.test"), "Camille Moreau", days).await?;
    }
    let answer = world.cron("daily-tasks", "").await?;
    assert_eq!(answer["success"], true, "{answer}");
    assert_eq!(answer["results"]["upgradeEmails"]["sent"], 2, "{answer}");
    assert_eq!(answer["results"]["upgradeEmails"]["errors"], 0, "{answer}");
    let to: Vec<String> = received(&world).into_iter().map(|(to, _)| to).collect();
    assert_eq!(to, ["day3@example.test", "day6@example.test"]);
    let written: i64 =
        world.value("select count(*) from public.marketing_emails where email_type = 'upgrade_day3'").await?;
    assert_eq!(written, 2);

    let again = world.cron("daily-orchestrator", "").await?;
    let part = &again["results"]["marketingEmails"];
    assert_eq!((&part["sent"], &part["skipped"]), (&json!(2), &json!(true)), "{again}");
    assert_eq!(world.resend.accepted_count(), 2);
    Ok(())
}
