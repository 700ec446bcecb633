//! The planner's SQL, called day by day, against a model that shares nothing with it: not even the zone's rules.

use std::collections::BTreeSet;

use anyhow::Result;
use chrono::{DateTime, Datelike, Days, Months, NaiveDate, TimeDelta, Utc};
use jobs::schedule::DAYS_AFTER_SIGN_UP;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use super::{at, paris_date, paris_start};
use crate::world::World;

/// Generates numbers: it is small, and the same everywhere for a seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).expect("small")]
    }

    /// Draws some instant of a Paris day: its edges, the hours of the clock changes, or any second.
    fn instant(&mut self, day: NaiveDate) -> DateTime<Utc> {
        let (start, end) = (paris_start(day), paris_start(day + Days::new(1)));
        match self.below(6) {
            0 => start,
            1 => end - TimeDelta::microseconds(1),
            2 => start + TimeDelta::minutes(i64::try_from(self.below(240)).expect("small")),
            _ => {
                let seconds = (end - start).num_seconds().unsigned_abs();
                start + TimeDelta::seconds(i64::try_from(self.below(seconds)).expect("small"))
            }
        }
    }
}

/// Holds what the database knows of somebody's plan and wishes.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "so many things are said of an account, each by itself")]
struct Account {
    confirmed: bool,
    subscription: Option<(&'static str, &'static str)>,
    trial: Option<(&'static str, DateTime<Utc>)>,
    profile: Option<(&'static str, &'static str)>,
    /// Holds (reminders, offers); without a row there is no reminder, but the offer.
    preferences: Option<(bool, bool)>,
    says_paid: bool,
    suppressed: bool,
    deleted: bool,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Confirms,
    Subscribes(&'static str, &'static str),
    Tries(&'static str, DateTime<Utc>),
    Pays(&'static str, &'static str),
    Prefers(bool, bool),
    SaysPaid,
    Complains,
    Leaves,
}

#[derive(Debug, PartialEq)]
enum Plan {
    Free,
    Pro,
    Premium,
    Suspended,
    Unknown,
}

impl Account {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Confirms => self.confirmed = true,
            Change::Subscribes(status, price) => self.subscription = Some((status, price)),
            Change::Tries(plan, until) => self.trial = Some((plan, until)),
            Change::Pays(plan, status) => self.profile = Some((plan, status)),
            Change::Prefers(reminders, offers) => self.preferences = Some((reminders, offers)),
            Change::SaysPaid => self.says_paid = true,
            Change::Complains => self.suppressed = true,
            Change::Leaves => self.deleted = true,
        }
    }

    fn plan(&self, now: DateTime<Utc>) -> Plan {
        if let Some(("active" | "trialing", price)) = self.subscription {
            return match price {
                "price_pro" => Plan::Pro,
                "price_premium" => Plan::Premium,
                _ => Plan::Unknown,
            };
        }
        match (self.trial, self.profile) {
            (Some(("premium", until)), _) if now < until => Plan::Premium,
            (Some(("pro", until)), _) if now < until => Plan::Pro,
            (_, Some(("premium", "active"))) => Plan::Premium,
            (_, Some(("pro", "active"))) => Plan::Pro,
            _ => match self.subscription {
                Some(("past_due", "price_pro")) => Plan::Pro,
                Some(("past_due", "price_premium")) => Plan::Premium,
                Some(("past_due", _)) => Plan::Unknown,
                Some(("unpaid", _)) => Plan::Suspended,
                _ => Plan::Free,
            },
        }
    }

    fn reachable(&self) -> bool {
        self.confirmed && !self.suppressed && !self.deleted
    }
}

struct Person {
    id: Uuid,
    signs_up: DateTime<Utc>,
    account: Account,
    /// Lists what is to come, the last one first.
    changes: Vec<(DateTime<Utc>, Change)>,
    offered: bool,
    reminded: BTreeSet<NaiveDate>,
}

impl Person {
    fn wants_offer(&self, now: DateTime<Utc>) -> bool {
        let days = (paris_date(now) - paris_date(self.signs_up)).num_days();
        self.signs_up <= now
            && (3..=6).contains(&days)
            && !self.offered
            && self.account.plan(now) == Plan::Free
            && !self.account.says_paid
            && self.account.reachable()
            && self.account.preferences.is_none_or(|(_, offers)| offers)
    }

    fn wants_reminder(&self, now: DateTime<Utc>, month: NaiveDate) -> bool {
        self.signs_up <= now
            && !self.reminded.contains(&month)
            && self.account.plan(now) == Plan::Premium
            && self.account.reachable()
            && self.account.preferences.is_some_and(|(reminders, _)| reminders)
    }
}

/// Draws somebody, with what will become of them in the year from `first` on.
fn somebody(rng: &mut Rng, first: NaiveDate, special: &[NaiveDate]) -> Person {
    let day = |rng: &mut Rng| first + Days::new(rng.below(366));
    let signed_up_on = match rng.below(4) {
        0 => first - Days::new(1 + rng.below(10)),
        // Their days of J+3 to J+6 lie about a day that is not like others.
        1 => rng.pick(special) - Days::new(rng.below(8)),
        _ => day(rng),
    };
    let signs_up = rng.instant(signed_up_on);
    let mut changes = Vec::new();
    if rng.chance(90) {
        let after = if rng.chance(70) { 0 } else { rng.below(9 * 86_400) };
        changes.push((signs_up + TimeDelta::seconds(i64::try_from(after).expect("small")), Change::Confirms));
    }
    for _ in 0..rng.below(6) {
        // Half of what changes does so in the days that count for the offer.
        let on = if rng.chance(50) { paris_date(signs_up) + Days::new(rng.below(8)) } else { day(rng) };
        let when = rng.instant(on).max(signs_up);
        let change = match rng.below(12) {
            0..=2 => Change::Subscribes(
                rng.pick(&["active", "trialing", "canceled", "canceled", "canceled", "past_due", "unpaid"]),
                rng.pick(&["price_premium", "price_premium", "price_pro", "price_of_old"]),
            ),
            3 | 4 => {
                let over = on + Days::new(rng.below(40));
                Change::Tries(rng.pick(&["premium", "pro"]), rng.instant(over))
            }
            5 => Change::Pays(rng.pick(&["premium", "pro", "free"]), rng.pick(&["active", "canceled"])),
            6..=8 => Change::Prefers(rng.chance(80), rng.chance(60)),
            9 => Change::SaysPaid,
            10 => Change::Complains,
            _ if rng.chance(30) => Change::Leaves,
            _ => Change::Prefers(true, true),
        };
        changes.push((when, change));
    }
    // A third pays for Premium and is reminded, for as long as nothing else is said.
    if rng.chance(33) {
        changes.push((signs_up, Change::Prefers(true, true)));
        changes.push((signs_up, Change::Subscribes("active", "price_premium")));
    }
    changes.sort_by_key(|(when, _)| std::cmp::Reverse(*when));
    Person {
        id: Uuid::new_v4(),
        signs_up,
        account: Account::default(),
        changes,
        offered: false,
        reminded: BTreeSet::new(),
    }
}

async fn write(pool: &PgPool, person: Uuid, change: Change) -> Result<()> {
    let query = match change {
        Change::Confirms => {
            sqlx::query("update auth.users set email_confirmed_at = '2026-01-01' where id = $1")
        }
        Change::Subscribes(..) => sqlx::query(
            "insert into public.subscriptions (user_id, status, price_id) values ($1, $2, $3) \
             on conflict (user_id) do update set status = excluded.status, price_id = excluded.price_id",
        ),
        Change::Tries(..) => {
            sqlx::query("update public.user_profiles set trial_plan = $2, trial_ends_at = $3 where id = $1")
        }
        Change::Pays(..) => {
            sqlx::query("update public.user_profiles set plan = $2, plan_status = $3 where id = $1")
        }
        Change::Prefers(..) => sqlx::query(
            "insert into public.email_preferences (user_id, monthly_reminder, marketing_email) values ($1, $2, $3) \
             on conflict (user_id) do update set monthly_reminder = excluded.monthly_reminder, \
             marketing_email = excluded.marketing_email",
        ),
        Change::SaysPaid => sqlx::query(
            "update auth.users set raw_user_meta_data = raw_user_meta_data || '{\"is_pro\": true}' where id = $1",
        ),
        Change::Complains => sqlx::query(
            "insert into jobs.email_suppressions (address_hash, reason) \
             select jobs.address_hash(email), 'complained' from auth.users where id = $1 \
             on conflict do nothing",
        ),
        Change::Leaves => sqlx::query("update auth.users set deleted_at = '2026-01-01' where id = $1"),
    };
    let query = query.bind(person);
    let query = match change {
        Change::Subscribes(one, two) | Change::Pays(one, two) => query.bind(one).bind(two),
        Change::Tries(plan, until) => query.bind(plan).bind(until),
        Change::Prefers(reminders, offers) => query.bind(reminders).bind(offers),
        Change::Confirms | Change::SaysPaid | Change::Complains | Change::Leaves => query,
    };
    query.execute(pool).await?;
    Ok(())
}

/// Lets everything happen that does until `now`.
async fn live(pool: &PgPool, people: &mut [Person], since: DateTime<Utc>, now: DateTime<Utc>) -> Result<()> {
    for person in people {
        if person.signs_up <= now && person.signs_up > since {
            sqlx::query("insert into auth.users (id, email, created_at) values ($1, $2, $3)")
                .bind(person.id)
                .bind(format!("{}@example.test", person.id))
                .bind(person.signs_up)
                .execute(pool)
                .await?;
        }
        while person.changes.last().is_some_and(|(when, _)| *when <= now) {
            let Some((_, change)) = person.changes.pop() else { break };
            person.account.apply(change);
            write(pool, person.id, change).await?;
        }
    }
    Ok(())
}

/// Plans, and answers who is to get a mail, and until when.
async fn plan(
    pool: &PgPool,
    kind: &str,
    month: Option<NaiveDate>,
    now: DateTime<Utc>,
) -> Result<BTreeSet<(Uuid, DateTime<Utc>)>> {
    let run = Uuid::new_v4();
    let prices = json!({"price_pro": "pro", "price_premium": "premium"});
    let answer: Value = sqlx::query_scalar(
        "select public.jobs_plan_mails($1, $2, $2, null, 'cron', '/', $3, '{}', null, false, $4, $7, $8, $5, $6, $3)",
    )
    .bind(run)
    .bind(kind)
    .bind(now)
    .bind(prices)
    .bind(month)
    .bind(month.map(|first| jobs::schedule::paris::month(jobs::schedule::paris::start_of(first)).next().end()))
    .bind(DAYS_AFTER_SIGN_UP.start().cast_signed())
    .bind(DAYS_AFTER_SIGN_UP.end().cast_signed())
    .fetch_one(pool)
    .await?;
    let planned: Vec<(Uuid, DateTime<Utc>)> = sqlx::query_as(
        "select d.user_id, d.expires_at from jobs.email_deliveries d \
         join jobs.job_items i on i.run_id = d.run_id \
             and (i.payload ->> 'delivery_id')::bigint = d.delivery_id and i.status = 'queued' \
         where d.run_id = $1 and d.kind = $2",
    )
    .bind(run)
    .bind(kind)
    .fetch_all(pool)
    .await?;
    assert_eq!(answer["plan"]["items"], planned.len(), "{answer}");
    Ok(planned.into_iter().collect())
}

/// Plays a year from `first` on; answers how many offers and reminders there were.
async fn year(
    world: &World,
    rng: &mut Rng,
    first: NaiveDate,
    special: &[NaiveDate],
) -> Result<(usize, usize)> {
    let pool = world.pool();
    let mut people: Vec<Person> = (0..80).map(|_| somebody(rng, first, special)).collect();
    let (mut since, mut offers, mut reminders) = (DateTime::<Utc>::MIN_UTC, 0, 0);
    for day in first.iter_days().take(366) {
        let now = rng.instant(day);
        live(pool, &mut people, since, now).await?;
        since = now;

        let mut expected = BTreeSet::new();
        for person in people.iter_mut().filter(|person| person.wants_offer(now)) {
            person.offered = true;
            expected.insert((person.id, paris_start(paris_date(person.signs_up) + Days::new(7))));
        }
        offers += expected.len();
        assert_eq!(plan(pool, "marketing_day3", None, now).await?, expected, "offers of {day}, {now}");

        // On the 2nd, and now and then again in the same month.
        if day.day() == 2 || (day.day() > 2 && rng.chance(3)) {
            let this = day - Days::new(u64::from(day.day0()));
            let month = this - Months::new(1);
            let mut expected = BTreeSet::new();
            for person in people.iter_mut().filter(|person| person.wants_reminder(now, month)) {
                person.reminded.insert(month);
                expected.insert((person.id, paris_start(this + Months::new(1))));
            }
            reminders += expected.len();
            let planned = plan(pool, "monthly_reminder", Some(month), now).await?;
            assert_eq!(planned, expected, "reminders of {day}, {now}");
        }
    }
    Ok((offers, reminders))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_planner_plans_what_the_calendar_says() -> Result<()> {
    let day = |text: &str| text.parse::<NaiveDate>().expect("a day");
    // The leap day, both clock changes of each year, and the turn of a year.
    let special =
        ["2028-02-29", "2028-03-26", "2028-10-29", "2027-03-28", "2027-10-31", "2028-01-01"].map(day);
    let years = [(1, "2028-01-01"), (2, "2027-07-01"), (3, "2028-01-01"), (4, "2027-03-01")];
    let years = years.map(async |(seed, first)| {
        let world = World::new().await?;
        let (offers, reminders) = year(&world, &mut Rng(seed), day(first), &special).await?;
        assert!(
            offers > 10 && reminders > 50,
            "seed {seed} says little: {offers} offers, {reminders} reminders"
        );
        anyhow::Ok(())
    });
    futures_util::future::try_join_all(years).await?;
    Ok(())
}

#[test]
fn the_model_knows_when_days_begin() {
    for (day, start) in [
        ("2028-02-29", "2028-02-28T23:00:00Z"),
        ("2028-03-26", "2028-03-25T23:00:00Z"),
        ("2028-03-27", "2028-03-26T22:00:00Z"),
        ("2028-10-29", "2028-10-28T22:00:00Z"),
        ("2028-10-30", "2028-10-29T23:00:00Z"),
    ] {
        let day: NaiveDate = day.parse().expect("a day");
        assert_eq!(paris_start(day), at(start));
        assert_eq!(paris_date(at(start)), day);
        assert_eq!(paris_date(at(start) - TimeDelta::seconds(1)), day - Days::new(1));
    }
}
