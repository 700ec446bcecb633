//! Chaos: a whole company's work (shops, thresholds, recaps, reminders, offers) while everything around it fails,
//! and what must hold in the end, whatever happened: every movement once, every mail once, every run ended.

mod chain;
mod deploys;
mod everything;
mod killed;
mod long_orders;
mod overlaps;
mod refused;
mod restarts;
mod side_by_side;
mod terminated;
mod twice;
mod upstreams;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use chrono::TimeDelta;
use jobs::lane::Lane;
use reqwest::Method;
use stand_ins::faults::Fault;
use uuid::Uuid;

pub(crate) use self::killed::killed_at;
use crate::{
    mails::{kind, signed_up_at},
    promises::{at, imported_cents, listed_cents, movements, until},
    world::{Answer, Function, SECRET, World},
};

/// On this afternoon everything but the month's last day is due: a sync hour, the 2nd, after seven.
const SECOND: &str = "2026-11-02T12:05:00Z";
/// Batches go there.
const BATCH: &str = "/emails/batch";

fn bearer() -> String {
    format!("Bearer {SECRET}")
}

/// Returns something slow to be caught in the middle of; long enough for a signal, short enough to
/// wait for.
fn slow() -> Fault {
    Fault::Delay(Duration::from_millis(400))
}

/// Represents somebody who sells, and what they sold.
struct Seller {
    user: Uuid,
    account: Option<String>,
    shop_cents: i64,
    shop_movements: i64,
}

/// Represents a world of people, and what each of them has to get.
struct Company {
    world: World,
    sellers: Vec<Seller>,
    /// Holds (address, kind) of the mails that are due by [`SECOND`].
    due: Vec<(String, &'static str)>,
}

impl Company {
    /// Makes so many people with shops, whose October is there to be read, and so many who have
    /// just signed up. The clock is at [`SECOND`].
    async fn new(sellers: usize, newcomers: usize) -> Result<Self> {
        let mut company = Self { world: World::new().await?, sellers: Vec::new(), due: Vec::new() };
        company.clock(SECOND);
        for n in 0..newcomers {
            let address = format!("newcomer-{n}@example.test");
            signed_up_at(&company.world, &address, "Camille Moreau", at("2026-10-28T08:00:00Z")).await?;
            company.due.push((address, "marketing_day3"));
        }
        for n in 0..sellers {
            company.seller(n).await?;
        }
        if sellers > 0 {
            // The first sync says which months are imported. Nothing has happened yet.
            company
                .world
                .run("update auth.users set created_at = '2025-03-01' where email not like 'new%'")
                .await?;
            company.clock("2026-10-01T00:05:00Z");
            company.world.post("sync-integrations", "").await?;
            company.clock(SECOND);
            for n in 0..sellers {
                company.october(n);
            }
        }
        Ok(company)
    }

    fn clock(&mut self, at: &str) {
        self.world.set_now(crate::clock::at(at));
    }

    /// Makes sellers by turns: Stripe and close to a threshold; a shop; both, for one activity,
    /// close to a threshold, and Premium.
    async fn seller(&mut self, n: usize) -> Result<()> {
        let name = format!("seller{n}");
        let (with_stripe, with_shop) = (n % 3 != 1, !n.is_multiple_of(3));
        let address = format!("{name}@example.test");
        let user = self.world.user(&address).await?;
        let account = with_stripe.then(|| format!("acct_{name}"));
        if let Some(account) = &account {
            self.world.stripe.add_account(account, &format!("sk_acct_token_{account}"));
            self.world.connect_stripe(user, account, &format!("sk_acct_token_{account}")).await?;
            // 80 % of the services' threshold are 30,000 euros.
            sqlx::query(
                "insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source) \
                 values ($1, 2026, 3, 'Prestation de services', 29500, 'manual')",
            )
            .bind(user)
            .execute(self.world.pool())
            .await?;
            self.due.push((address.clone(), "threshold_alert"));
        }
        if with_shop {
            let shop = format!("{name}.myshopify.com");
            self.world.shopify.add_shop(&shop, "EUR", &format!("shpat_{name}"));
            self.world.connect_shopify(user, &shop, &format!("shpat_{name}"), None).await?;
        }
        if with_stripe && with_shop {
            for sql in [
                "update public.integration_tokens set activity_type = 'Prestation de services' where user_id = $1",
                "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
                "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
            ] {
                sqlx::query(sql).bind(user).execute(self.world.pool()).await?;
            }
            self.due.push((address.clone(), "monthly_reminder"));
        }
        self.due.push((address, "monthly_recap"));
        let shop_cents = i64::from(with_shop);
        self.sellers.push(Seller { user, account, shop_cents, shop_movements: 0 });
        Ok(())
    }

    /// Sells in October: two pages at Stripe, with a refund and a dispute; one of the shop.
    fn october(&mut self, n: usize) {
        let (from, every) = (at("2026-10-03T09:00:00Z"), TimeDelta::hours(4));
        let seller = &mut self.sellers[n];
        if let Some(account) = &seller.account {
            self.world.stripe.payments(account, from, every, 110, "eur");
            let paid = self.world.stripe.payment(account, from, 12_345, "eur");
            self.world.stripe.refund(account, &paid.charge, from + every, 1_005);
            let contested = self.world.stripe.payment(account, from, 777, "eur");
            self.world.stripe.dispute(account, &contested.charge, from + every, 777);
            self.world.stripe.payout(account, from + every, 9_999, "eur");
        }
        if seller.shop_cents > 0 {
            seller.shop_cents =
                self.world.shopify.tenders(&format!("seller{n}.myshopify.com"), from, every, 30);
            seller.shop_movements = 30;
        }
    }

    /// Sells on the 1st of November.
    fn november(&mut self) {
        let from = at("2026-11-01T10:00:00Z");
        for (n, seller) in self.sellers.iter_mut().enumerate() {
            if let Some(account) = &seller.account {
                self.world.stripe.payment(account, from, 4_321, "eur");
            }
            if seller.shop_cents > 0 {
                let shop = format!("seller{n}.myshopify.com");
                seller.shop_cents += self.world.shopify.tenders(&shop, from, TimeDelta::minutes(1), 2);
                seller.shop_movements += 2;
            }
        }
    }

    async fn call(&self, (method, name, query): (Method, &str, &str)) -> Result<Answer> {
        self.world.call(method, name, query).await
    }

    /// Calls drain-queue and waits for the end of what it does.
    async fn drain(&self) -> Result<()> {
        drain(&self.world).await
    }

    /// Checks what must hold once everything is done.
    async fn check(&self) -> Result<()> {
        let world = &self.world;
        let mut all = 0;
        for (n, seller) in self.sellers.iter().enumerate() {
            let (mut cents, mut count) = (seller.shop_cents, seller.shop_movements);
            if let Some(account) = &seller.account {
                cents += listed_cents(world, account);
                count += i64::try_from(
                    world
                        .stripe
                        .listed(account)
                        .iter()
                        .filter(|row| row.reporting_category != "payout")
                        .count(),
                )?;
            }
            assert_eq!(imported_cents(world, seller.user).await?, cents, "seller {n}");
            let stored = movements(world, seller.user).await?;
            assert_eq!(stored, count, "seller {n}");
            all += stored;
        }
        let new: i64 = world
            .value("select coalesce(sum((result ->> 'records')::bigint), 0)::bigint from jobs.job_items where kind like 'sync%'")
            .await?;
        assert_eq!(new, all, "each movement was new once");

        let mut got: BTreeMap<(String, &str), usize> = BTreeMap::new();
        for accepted in world.resend.accepted() {
            *got.entry((accepted.mail.to.join(","), kind(&accepted))).or_default() += 1;
        }
        let due: BTreeMap<(String, &str), usize> = self.due.iter().cloned().map(|mail| (mail, 1)).collect();
        assert_eq!(got, due, "each mail once");
        let told: Vec<(String, i64)> =
            sqlx::query_as("select status, count(*) from jobs.email_deliveries group by 1")
                .fetch_all(world.pool())
                .await?;
        assert_eq!(told, [("sent".to_owned(), i64::try_from(due.len())?)], "and noted");
        let offers = self.due.iter().filter(|(_, kind)| *kind == "marketing_day3").count();
        let noted: i64 = world.value("select count(*) from public.marketing_emails").await?;
        assert_eq!(noted, i64::try_from(offers)?);
        ended(world).await
    }
}

/// Makes somebody whose payments cross a threshold: a sync with a mail at its end.
async fn crosses(world: &World, name: &str, payments: usize) -> Result<Uuid> {
    let user = world.stripe_user(name).await?;
    sqlx::query(
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source) \
         values ($1, 2026, 3, 'Prestation de services', 29999, 'manual')",
    )
    .bind(user)
    .execute(world.pool())
    .await?;
    world.stripe.payments(name, at("2026-11-01T10:00:00Z"), TimeDelta::zero(), payments, "eur");
    Ok(user)
}

async fn drain(world: &World) -> Result<()> {
    let function = world.function("drain-queue").await?;
    let answer = function.call(Method::POST, "", Some(&bearer())).await?;
    assert_eq!(answer.status, 202, "{}", answer.text);
    drained(&function).await
}

/// Waits until a drain-queue has done what it could.
async fn drained(function: &Function) -> Result<()> {
    until("the end of the drain", async || {
        let log = function.log();
        Ok(["queue drained", "drain failed", "another chain"].iter().any(|end| log.contains(end)))
    })
    .await
}

/// Nothing waits, nothing is open: every run and every call ended as one of three things.
async fn ended(world: &World) -> Result<()> {
    for sql in [
        "select count(*) from jobs.job_items where status = 'queued'",
        "select count(*) from jobs.email_batches where state = 'sealed'",
        "select count(*) from jobs.job_runs where finished_at is null or status not in ('success', 'partial', 'error')",
        "select count(*) from public.sync_logs where status not in ('success', 'partial', 'error')",
    ] {
        assert_eq!(world.value::<i64>(sql).await?, 0, "{sql}");
    }
    for lane in Lane::ALL.map(Lane::as_str) {
        let sql = format!(
            "select count(*) from pgmq.q_jobs_{lane} m where not exists (select from jobs.job_items i where i.item_id = (m.message ->> 'item_id')::bigint and i.status <> 'queued')"
        );
        let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(world.pool()).await?;
        assert_eq!(left, 0, "{lane}");
    }
    Ok(())
}

/// Lets every visibility timeout and every pause pass.
async fn time_passes(world: &World) -> Result<()> {
    for lane in Lane::ALL.map(Lane::as_str) {
        let sql = format!("select pgmq.set_vt('jobs_{lane}', msg_id, 0) from pgmq.q_jobs_{lane}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(world.pool()).await?;
    }
    world.run("update jobs.job_items set leased_until = '-infinity' where status = 'queued'").await?;
    Ok(())
}

/// Puts every message of these lanes there a second time, visible, as a queue may deliver one.
async fn deliver_again(world: &World, lanes: &[&str]) -> Result<()> {
    for lane in lanes {
        let sql = format!("select pgmq.send('jobs_{lane}', message) from pgmq.q_jobs_{lane}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(world.pool()).await?;
    }
    Ok(())
}
