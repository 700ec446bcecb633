//! A random run of sales, refunds, disputes and late rows at both providers, over several syncs, against a model
//! that shares no code with the product.

use std::collections::BTreeMap;

use anyhow::Result;
use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Utc};
use stand_ins::shopify::{Dispute, Sold, Tender};
use uuid::Uuid;

use super::replay;
use crate::world::World;

/// Returns `YYYY-MM` in Paris, by the rule of the law: summer time from the last Sunday of March to
/// the last Sunday of October, 01:00 UTC.
fn paris_month(at: DateTime<Utc>) -> String {
    let change = |month: u32| {
        let last = NaiveDate::from_ymd_opt(at.year(), month, 31).expect("31 days");
        let sunday = last - TimeDelta::days(last.weekday().num_days_from_sunday().into());
        sunday.and_hms_opt(1, 0, 0).expect("a time").and_utc()
    };
    let summer = at >= change(3) && at < change(10);
    (at + TimeDelta::hours(if summer { 2 } else { 1 })).format("%Y-%m").to_string()
}

/// Generates numbers, so that a seed is a run for ever (xorshift64*).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    fn cents(&mut self) -> i64 {
        i64::try_from(self.below(50_000)).expect("small") + 1
    }
}

/// Represents one movement of money as it really was.
#[derive(Clone, Debug)]
struct Truth {
    at: DateTime<Utc>,
    cents: i64,
    /// Is `None` where it is not at this provider, `Some(false)` where it is there and not shown
    /// yet.
    stripe: Option<bool>,
    shopify: Option<bool>,
}

/// Represents something sold, that can be refunded or disputed later.
struct Sale {
    charge: Option<String>,
    sold: Option<Sold>,
    left: i64,
    at: DateTime<Utc>,
}

/// Represents a row that the provider shows later.
enum Late {
    Stripe(usize, String),
    Shopify(usize, Sold),
}

struct Books {
    world: World,
    user: Uuid,
    account: String,
    shop: String,
    dice: Dice,
    truth: Vec<Truth>,
    sales: Vec<Sale>,
    late: Vec<Late>,
}

fn decimal(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

impl Books {
    async fn new(seed: u64) -> Result<Self> {
        let mut world = World::new().await?;
        world.set("REPLAY_MAX_DAYS", "366");
        let (account, shop) = (format!("acct_model{seed}"), format!("model-{seed}.myshopify.com"));
        let user = world.stripe_user(&account).await?;
        world.shopify.add_shop(&shop, "EUR", "shpat_model");
        world.connect_shopify(user, &shop, "shpat_model", None).await?;
        let (truth, sales, late) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { world, user, account, shop, dice: Dice(seed * 2 + 1), truth, sales, late })
    }

    fn sell(&mut self, at: DateTime<Utc>) {
        let cents = self.dice.cents();
        let mut truth = Truth { at, cents, stripe: None, shopify: None };
        let (mut charge, mut sold) = (None, None);
        let way = self.dice.below(4);
        if way != 0 {
            let paid = self.world.stripe.payment(&self.account, at, cents, "eur");
            let hidden = self.dice.below(6) == 0;
            if hidden {
                self.world.stripe.hide(&self.account, &paid.transaction);
                self.late.push(Late::Stripe(self.truth.len(), paid.transaction.clone()));
            }
            truth.stripe = Some(!hidden);
            charge = Some(if self.dice.below(2) == 0 { paid.charge.clone() } else { paid.intent.clone() });
            if way >= 2 {
                let mut tender =
                    Tender::new(at, &decimal(cents), "EUR").reference(charge.as_deref().expect("set"));
                let late = self.dice.below(6) == 0;
                if late {
                    tender = tender.late();
                }
                let put = self.world.shopify.tender(&self.shop, tender);
                if late {
                    self.late.push(Late::Shopify(self.truth.len(), put.clone()));
                }
                truth.shopify = Some(!late);
                sold = Some(put);
            }
            charge = Some(paid.charge);
        } else {
            let put =
                self.world.shopify.tender(&self.shop, Tender::new(at, &decimal(cents), "EUR").method("cash"));
            truth.shopify = Some(true);
            sold = Some(put);
        }
        self.truth.push(truth);
        self.sales.push(Sale { charge, sold, left: cents, at });
    }

    fn give_back(&mut self, at: DateTime<Utc>) {
        let count = u64::try_from(self.sales.len()).expect("small");
        if count == 0 {
            return;
        }
        let n = usize::try_from(self.dice.below(count)).expect("small");
        if self.sales[n].left == 0 || self.sales[n].at >= at {
            return;
        }
        let part = self.dice.cents().min(self.sales[n].left);
        self.sales[n].left -= part;
        let mut truth = Truth { at, cents: -part, stripe: None, shopify: None };
        // The shop's refund may name no payment: then its order tells, once its sale is shown.
        let shown = !self
            .late
            .iter()
            .any(|late| matches!(late, Late::Shopify(_, sold) if Some(sold) == self.sales[n].sold.as_ref()));
        let named = self.dice.below(2) == 0 || !shown;
        let dispute = self.dice.below(4) == 0;
        let Sale { charge, sold, .. } = &self.sales[n];
        if let Some(charge) = charge {
            if dispute {
                self.world.stripe.dispute(&self.account, charge, at, part);
            } else {
                self.world.stripe.refund(&self.account, charge, at, part);
            }
            truth.stripe = Some(true);
        }
        if let Some(sold) = sold.as_ref().filter(|_| charge.is_none() || !dispute) {
            let mut tender = Tender::new(at, &format!("-{}", decimal(part)), "EUR").same_order(sold);
            if let Some(charge) = charge.as_ref().filter(|_| named) {
                tender = tender.reference(charge);
            }
            self.world.shopify.tender(&self.shop, tender);
            truth.shopify = Some(true);
        }
        self.truth.push(truth);
    }

    fn noise(&mut self, at: DateTime<Utc>) {
        let cents = self.dice.cents();
        match self.dice.below(4) {
            0 => drop(self.world.stripe.payout(&self.account, at, cents, "eur")),
            1 => drop(self.world.stripe.fee(&self.account, at, cents, "eur")),
            2 => drop(
                self.world.shopify.tender(&self.shop, Tender::new(at, &decimal(cents), "EUR").gift_card()),
            ),
            _ => {
                // A chargeback of Shopify Payments: money of its own.
                let lost =
                    Dispute::new(at - TimeDelta::days(9), &decimal(cents), "EUR").finalized("LOST", at);
                self.world.shopify.dispute(&self.shop, lost);
                self.truth.push(Truth { at, cents: -cents, stripe: None, shopify: Some(true) });
            }
        }
    }

    fn reveal(&mut self) {
        for late in self.late.drain(..) {
            match late {
                Late::Stripe(n, transaction) => {
                    self.world.stripe.reveal(&self.account, &transaction);
                    self.truth[n].stripe = Some(true);
                }
                Late::Shopify(n, sold) => {
                    self.world.shopify.reveal(&self.shop, &sold);
                    self.truth[n].shopify = Some(true);
                }
            }
        }
    }

    /// Totals by month and source: what both show is Stripe's.
    fn expected(&self) -> BTreeMap<(String, &'static str), i64> {
        let mut totals: BTreeMap<(String, &'static str), i64> = BTreeMap::new();
        for truth in &self.truth {
            let source = match (truth.stripe, truth.shopify) {
                (Some(true), _) => "Prestation de services",
                (_, Some(true)) => "Vente de marchandises",
                _ => continue,
            };
            *totals.entry((paris_month(truth.at), source)).or_default() += truth.cents;
        }
        totals
    }

    async fn check(&self, what: &str) -> Result<()> {
        let expected: Vec<(String, String, String)> = self
            .expected()
            .into_iter()
            .map(|((month, activity), cents)| {
                let sign = if cents < 0 { "-" } else { "" };
                (month, activity.to_owned(), format!("{sign}{}", decimal(cents.abs())))
            })
            .collect();
        assert_eq!(self.world.imported(self.user).await?, expected, "{what}");
        Ok(())
    }
}

async fn run(seed: u64) -> Result<()> {
    let mut books = Books::new(seed).await?;
    let start = books.world.months_ago(4).start();
    // The first sync, of a month in which nothing has happened yet.
    books.world.post("sync-integrations", &replay(start + TimeDelta::hours(1))).await?;
    let mut now = start + TimeDelta::hours(2);
    for round in 0..9 {
        let end = now + TimeDelta::days(11);
        for _ in 0..10 {
            let at = now + TimeDelta::seconds(i64::try_from(books.dice.below(11 * 86_400))?);
            match books.dice.below(8) {
                0..4 => books.sell(at),
                4..7 => books.give_back(at),
                _ => books.noise(at),
            }
        }
        now = end;
        let query = match books.dice.below(3) {
            0 => format!("days=30&{}", replay(now)),
            1 => format!("days=13&{}", replay(now)),
            _ => replay(now),
        };
        books.world.post("sync-integrations", &query).await?;
        books.check(&format!("seed {seed}, round {round}, {query}")).await?;
        // What is shown late is found by the next run that reaches back to it.
        books.reveal();
        let answer = books.world.post("sync-integrations", &format!("days=20&{}", replay(now))).await?;
        assert_eq!(answer["errors"], 0, "{answer}");
        books.check(&format!("seed {seed}, round {round}, all shown")).await?;
        let again = books.world.post("sync-integrations", &format!("days=120&{}", replay(now))).await?;
        assert_eq!(again["totalSynced"], 0, "seed {seed}, round {round}: {again}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_books_one() -> Result<()> {
    run(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn random_books_two() -> Result<()> {
    run(2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn random_books_three() -> Result<()> {
    run(3).await
}
