//! A year through the real routes: each call a process of its own, whose clock is the day that is played.

use std::collections::BTreeSet;

use anyhow::Result;
use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{at, paris_date, paris_start, signed_up_at};
use crate::{mails::kind, world::World};

/// Holds somebody's address, and what they got.
type Got = BTreeSet<(String, &'static str)>;

fn address(name: &str) -> String {
    format!("{name}@example.test")
}

/// These routes are called at these hours (UTC) of a day.
const CALLS: [(i64, &str); 5] = [
    (0, "daily-orchestrator"),
    (6, "daily-orchestrator"),
    (7, "monthly-orchestrator"),
    (12, "daily-orchestrator"),
    (18, "daily-orchestrator"),
];

/// Returns all calls of the leap day, of both clock changes, and of the days about them, and the
/// morning's calls of each month's last day and its 2nd.
fn calls() -> BTreeSet<(DateTime<Utc>, &'static str)> {
    let special = ["2028-02-29", "2028-03-26", "2028-10-29"].map(|day| day.parse().expect("a day"));
    let is_special = |day: NaiveDate| special.iter().any(|of: &NaiveDate| (*of - day).num_days().abs() <= 1);
    let first = NaiveDate::from_ymd_opt(2028, 1, 1).expect("a day");
    let mut calls = BTreeSet::new();
    for day in first.iter_days().take(366) {
        let turning = day.day() == 2 || (day + Days::new(1)).day() == 1;
        for (hour, route) in CALLS {
            if is_special(day) || (turning && (hour == 6 || hour == 7)) {
                calls.insert((day.and_time(NaiveTime::MIN).and_utc() + TimeDelta::hours(hour), route));
            }
        }
    }
    calls
}

/// Says who there is, and what they get: a model of a few lines for each rule.
struct Model {
    /// Lists who is free: (name, signed up).
    free: Vec<(&'static str, DateTime<Utc>)>,
    /// Lists who is Premium with reminders, in these spans.
    reminded: Vec<(&'static str, DateTime<Utc>, DateTime<Utc>)>,
    /// Lists payments: (account, instant, cents). All are services of users with Stripe.
    payments: Vec<(&'static str, DateTime<Utc>, i64)>,
    offered: BTreeSet<&'static str>,
    offers_on: Option<NaiveDate>,
    imported: Vec<(&'static str, DateTime<Utc>, i64)>,
    first_sync: Option<DateTime<Utc>>,
    alerted: Vec<(&'static str, i64)>,
}

impl Model {
    /// Calls `GET daily-orchestrator` at a sync hour.
    fn daily(&mut self, now: DateTime<Utc>) -> Got {
        let today = paris_date(now);
        let mut got = Got::new();
        // Once a day, from 7 h in Paris on.
        if now >= paris_start(today) + TimeDelta::hours(7) && self.offers_on != Some(today) {
            self.offers_on = Some(today);
            for &(name, signed_up) in &self.free {
                let age = (today - paris_date(signed_up)).num_days();
                if (3..=6).contains(&age) && self.offered.insert(name) {
                    got.insert((address(name), "marketing_day3"));
                }
            }
        }
        // A sync reads 30 days; what it counts begins with the month of the first one.
        let first = *self.first_sync.get_or_insert(now);
        let from = now - TimeDelta::days(30);
        let counted = paris_start(paris_date(first).with_day(1).expect("a first"));
        self.import(now, from.max(counted));
        got.extend(self.alerts());
        got
    }

    fn import(&mut self, now: DateTime<Utc>, from: DateTime<Utc>) {
        for payment in &self.payments {
            if (from..now).contains(&payment.1) && !self.imported.contains(payment) {
                self.imported.push(*payment);
            }
        }
    }

    /// Steps of the base VAT threshold of services, 37 500 €, that the year's turnover newly reaches.
    fn alerts(&mut self) -> Got {
        let mut got = Got::new();
        let names: BTreeSet<&'static str> = self.imported.iter().map(|(name, ..)| *name).collect();
        for name in names {
            let total: i64 =
                self.imported.iter().filter(|(of, ..)| *of == name).map(|(.., cents)| cents).sum();
            for step in [80, 90, 100] {
                if total * 100 >= 3_750_000 * step && !self.alerted.contains(&(name, step)) {
                    self.alerted.push((name, step));
                    got.insert((address(name), "threshold_alert"));
                }
            }
        }
        got
    }

    /// Calls `GET monthly-orchestrator`.
    fn monthly(&mut self, now: DateTime<Utc>) -> Got {
        let today = paris_date(now);
        let mut got = Got::new();
        if today.day() == 2 {
            let reminded = self.reminded.iter().filter(|(_, from, to)| (*from..*to).contains(&now));
            got.extend(reminded.map(|(name, ..)| (address(name), "monthly_reminder")));
        }
        if (today + Days::new(1)).day() == 1 {
            let start = paris_start(today.with_day(1).expect("a first"));
            self.import(now, start);
            // Of what moved, or that nothing did, to whoever had turnover before.
            let told = self.imported.iter().filter(|(_, when, _)| *when < now);
            got.extend(told.map(|(name, ..)| (address(name), "monthly_recap")));
            got.extend(self.alerts());
        }
        got
    }
}

async fn stripe_user(world: &World, name: &str) -> Result<Uuid> {
    let user = signed_up_at(world, &address(name), name, at("2026-01-15T10:00:00Z")).await?;
    let (account, token) = (format!("acct_{name}"), format!("sk_test_{name}"));
    world.stripe.add_account(&account, &token);
    world.connect_stripe(user, &account, &token).await?;
    Ok(user)
}

async fn people(world: &World) -> Result<Model> {
    let free = [
        ("new_year", "2027-12-27T23:00:00Z"),
        ("leap", "2028-02-25T23:00:00Z"),
        ("leap_eve", "2028-02-25T22:59:59Z"),
        ("spring", "2028-03-22T22:59:59Z"),
        ("spring_day", "2028-03-26T01:00:00Z"),
        ("summer", "2028-06-28T22:00:00Z"),
        ("autumn", "2028-10-25T22:00:00Z"),
        ("autumn_night", "2028-10-29T01:30:00Z"),
        ("never", "2028-05-10T12:00:00Z"), // no day is played in their window
    ]
    .map(|(name, signed_up)| (name, at(signed_up)));
    for (name, signed_up) in free {
        signed_up_at(world, &address(name), name, signed_up).await?;
    }
    let always = (at("2020-01-01T00:00:00Z"), at("2040-01-01T00:00:00Z"));
    // Trials begin and end by the clock alone; the second one is over in the night to a 2nd.
    let reminded = vec![
        ("premium", always.0, always.1),
        ("trial", always.0, at("2028-05-02T06:59:59Z")),
        ("trial_night", always.0, at("2028-09-01T22:00:00Z")),
        ("camille", always.0, always.1),
    ];
    for &(name, _, until) in &reminded {
        let user = if name == "camille" {
            stripe_user(world, name).await?
        } else {
            signed_up_at(world, &address(name), name, at("2026-01-15T10:00:00Z")).await?
        };
        if until == always.1 {
            local_stack::seed::subscription(&world.environment.db, user, "price_premium").await?;
        } else {
            sqlx::query(
                "update public.user_profiles set trial_plan = 'premium', trial_ends_at = $2 where id = $1",
            )
            .bind(user)
            .bind(until)
            .execute(world.pool())
            .await?;
        }
        local_stack::seed::wants_reminders(&world.environment.db, user).await?;
    }
    for name in ["julien", "ines"] {
        stripe_user(world, name).await?;
    }
    let payments: Vec<(&'static str, DateTime<Utc>, i64)> = [
        ("camille", "2028-01-31T05:00:00Z", 10_000),
        ("camille", "2028-02-29T06:30:00Z", 10_000), // before the call of its last day
        ("camille", "2028-03-31T08:00:00Z", 10_000), // after it: a recap of nothing so far
        ("camille", "2028-03-31T22:00:00Z", 10_000), // April in Paris
        ("camille", "2028-10-31T22:59:59Z", 10_000), // October in Paris, after the call
        ("julien", "2028-02-10T12:00:00Z", 250_000),
        ("julien", "2028-10-29T00:30:00Z", 250_000),
        ("julien", "2028-12-31T01:00:00Z", 250_000),
        ("ines", "2028-01-15T12:00:00Z", 1_000_000),
        ("ines", "2028-03-25T12:00:00Z", 2_100_000), // 82 %
        ("ines", "2028-07-15T12:00:00Z", 290_000),   // 90.4 %
        ("ines", "2028-10-29T13:00:00Z", 400_000),   // 101 %
    ]
    .map(|(name, when, cents)| (name, at(when), cents))
    .to_vec();
    for (name, when, cents) in &payments {
        world.stripe.payment(&format!("acct_{name}"), *when, *cents, "eur");
    }
    Ok(Model {
        free: free.to_vec(),
        reminded,
        payments,
        offered: BTreeSet::new(),
        offers_on: None,
        imported: Vec::new(),
        first_sync: None,
        alerted: Vec::new(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_year_of_crons_sends_what_the_calendar_says() -> Result<()> {
    let mut world = World::new().await?;
    let mut model = people(&world).await?;
    let (mut seen, mut kinds) = (0, BTreeSet::new());
    for (now, route) in calls() {
        world.set_now(now);
        let answer = world.cron(route, "").await?;
        let expected = if route == "monthly-orchestrator" { model.monthly(now) } else { model.daily(now) };

        let accepted = world.resend.accepted();
        let fresh = &accepted[seen..];
        let got: Got = fresh.iter().map(|mail| (mail.mail.to.join(","), kind(mail))).collect();
        assert_eq!(got, expected, "{now} {answer}");
        assert_eq!(fresh.len(), expected.len(), "twice: {now} {answer}");
        kinds.extend(got.into_iter().map(|(_, kind)| kind));
        seen = accepted.len();
    }
    assert_eq!(kinds.len(), 4, "{kinds:?}");
    assert_eq!(model.offered.len(), model.free.len() - 1, "{:?}", model.offered);
    let unsent: i64 =
        world.value("select count(*) from jobs.email_deliveries where status <> 'sent'").await?;
    assert_eq!(unsent, 0);
    Ok(())
}
