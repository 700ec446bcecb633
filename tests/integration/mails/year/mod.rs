//! A year replayed day by day: each user gets exactly the mails that the calendar says.

mod planner;
mod routes;

use anyhow::Result;
use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, TimeDelta, Utc, Weekday};
use stand_ins::resend::Limits;

use super::{received, signed_up_at};
use crate::world::World;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("an instant")
}

/// Returns how far Paris is ahead of UTC: by the directive, summer is from 1 h UTC of March's last
/// Sunday to 1 h UTC of October's.
fn ahead(at: DateTime<Utc>) -> TimeDelta {
    let change = |month| {
        let last = NaiveDate::from_ymd_opt(at.year(), month, 31).expect("both have 31 days");
        let since_sunday = last.weekday().days_since(Weekday::Sun);
        (last - Days::new(since_sunday.into())).and_time(NaiveTime::MIN).and_utc() + TimeDelta::hours(1)
    };
    TimeDelta::hours(if (change(3)..change(10)).contains(&at) { 2 } else { 1 })
}

/// Returns the date in Paris.
fn paris_date(at: DateTime<Utc>) -> NaiveDate {
    (at + ahead(at)).date_naive()
}

/// Returns the first instant of a Paris day.
fn paris_start(day: NaiveDate) -> DateTime<Utc> {
    let midnight = day.and_time(NaiveTime::MIN).and_utc();
    midnight - ahead(midnight - TimeDelta::hours(2))
}

#[tokio::test(flavor = "multi_thread")]
async fn mails_are_held_against_the_day_that_is_played() -> Result<()> {
    let mut world = World::new().await?;
    let user =
        signed_up_at(&world, "camille@example.test", "Camille Moreau", at("2028-02-26T10:00:00Z")).await?;
    sqlx::query(
        "update public.user_profiles set trial_plan = 'premium', trial_ends_at = '2028-02-29 00:00Z' \
         where id = $1",
    )
    .bind(user)
    .execute(world.pool())
    .await?;
    signed_up_at(&world, "late@example.test", "Léo Petit", at("2028-02-24T10:00:00Z")).await?;

    // Of two, one may leave; the trial is over on that day, so the plan is no reason against it.
    world.set_now(at("2028-03-01T09:00:00Z"));
    world.resend.set_limits(Limits { daily: Some(1), ..Limits::default() });
    let answer = world.cron("daily-tasks", "").await?;
    let part = &answer["results"]["upgradeEmails"];
    assert_eq!((&part["sent"], &part["remaining"]), (&1.into(), &1.into()), "{answer}");

    // The other one's seventh day has come, whatever the day is outside.
    let sent = received(&world)[0].0.clone();
    let (other, expired) = if sent == "camille@example.test" {
        ("late@example.test", "2028-03-02T09:00:00Z")
    } else {
        ("camille@example.test", "2028-03-04T09:00:00Z")
    };
    world.set_now(at(expired));
    world.resend.set_limits(Limits::default());
    world.cron("daily-tasks", "").await?;
    assert_eq!(received(&world).len(), 1);
    let status: String = sqlx::query_scalar(
        "select d.status from jobs.email_deliveries d join auth.users u on u.id = d.user_id where u.email = $1",
    )
    .bind(other)
    .fetch_one(world.pool())
    .await?;
    assert_eq!(status, "expired");
    Ok(())
}
