//! Measures the sync where Stripe limits how fast it is asked: from the pace of a first run, and from a learned one.

use std::{
    fmt::Write as _,
    future::pending,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use chrono::TimeDelta;

use super::{
    bounds::synced,
    report::{Run, float},
    seed::Integrations,
    workloads::{INTEGRATIONS, NO_LIMIT, open_books, stored, sync_at},
    world::{Called, Vendors, World},
};
use crate::seed::calendar::Calendar;
use stand_ins::Environment;

/// Stripe limits a live account to so many requests a second
/// (<https://docs.stripe.com/rate-limits>).
const LIVE: usize = 100;
/// Stripe limits one endpoint to so many requests a second.
const OF_EACH_ACCOUNT: f64 = 25.0;
/// A limit that changes falls to this.
const LOW: f64 = 30.0;
const CHANGES_EVERY: Duration = Duration::from_mins(1);
/// So many accounts keep Stripe busy for three minutes, with two requests each.
const SMALL_ACCOUNTS: usize = 5_500;
const PAYMENTS_OF_EACH: usize = 3;

impl World {
    /// Runs W1p: the sync of W1 under a limit in all, from the first pace and from the learned one.
    pub(super) async fn paced_sync(&self) -> Result<Vec<Run>> {
        let vendors = Vendors::start(None).await?;
        let limit = |vendors: &Vendors| vendors.stripe.set_rate_limit(Some(float(LIVE)));
        self.twice(&vendors, limit, ["w1p", "w1p-learned"], Some(LIVE)).await
    }

    /// Runs the same under a limit for each account.
    pub(super) async fn paced_accounts(&self) -> Result<Vec<Run>> {
        let vendors = Vendors::start(None).await?;
        let limit = |vendors: &Vendors| vendors.stripe.set_account_rate_limit(Some(OF_EACH_ACCOUNT));
        self.twice(&vendors, limit, ["w1p-accounts", "w1p-accounts-learned"], None).await
    }

    async fn twice(
        &self,
        vendors: &Vendors,
        limit_stripe: impl Fn(&Vendors),
        names: [&'static str; 2],
        limit: Option<usize>,
    ) -> Result<Vec<Run>> {
        let at = Calendar::new(self.now).missed_sync();
        let integrations = Integrations::named(INTEGRATIONS);
        let movements = open_books(vendors, &integrations, at);
        for (shop, _) in &integrations.shops {
            vendors.shopify.set_bucket(shop, 1e9, 1e9);
        }
        vendors.stripe.remember_pages();
        vendors.shopify.faults().remember_answers();
        let seeded = self.connected(&integrations, at - TimeDelta::days(90)).await?;
        println!(
            "· {}, after a run without limits for the stand-ins, which remember their answers",
            names.join(", ")
        );
        self.repeat(&seeded, 1, async |environment| {
            self.call(environment, vendors, sync_at(at, NO_LIMIT)).await?;
            Ok(Vec::new())
        })
        .await?;
        limit_stripe(vendors);
        let (mut names, mut learned) = (names.into_iter(), None);
        self.repeat(&seeded, 2, async |environment| {
            let name = names.next().unwrap_or_default();
            if let Some(learned) = learned.take() {
                remember(environment, learned).await?;
            }
            let called = self.call(environment, vendors, sync_at(at, &[])).await?;
            ensure!(
                called.answer["totalSynced"] == movements,
                "not all were synced: {}",
                called.answer["totalSynced"]
            );
            ensure!(stored(environment).await? == movements, "not all movements were stored");
            learned = Some(pace(environment).await?);
            let mut run = synced(name, INTEGRATIONS, &called, limit);
            run.notes.push(refused(&called, &vendors.stripe.rate_refusals()));
            Ok(vec![run])
        })
        .await
    }

    /// Runs a sync during which the limit falls and rises again, a minute each.
    pub(super) async fn changing_limits(&self) -> Result<Vec<Run>> {
        let at = Calendar::new(self.now).missed_sync();
        let mut integrations = Integrations::named(2 * SMALL_ACCOUNTS);
        integrations.shops.clear();
        let vendors = Vendors::start(None).await?;
        for (account, token) in &integrations.accounts {
            vendors.stripe.add_account(account, token);
            let from = at - TimeDelta::days(20);
            vendors.stripe.payments(account, from, TimeDelta::days(1), PAYMENTS_OF_EACH, "eur");
        }
        let seeded = self.connected(&integrations, at - TimeDelta::days(90)).await?;
        println!("· w1p-changes");
        self.repeat(&seeded, 1, async |environment| {
            let changes = async {
                for limit in [float(LIVE), LOW, float(LIVE)] {
                    vendors.stripe.set_rate_limit(Some(limit));
                    tokio::time::sleep(CHANGES_EVERY).await;
                }
                pending::<()>().await;
            };
            let called = tokio::select! {
                called = self.call(environment, &vendors, sync_at(at, &[])) => called?,
                () = changes => unreachable!("it never ends"),
            };
            ensure!(called.answer["totalSynced"] == SMALL_ACCOUNTS * PAYMENTS_OF_EACH, "{}", called.answer);
            let mut run = synced("w1p-changes", SMALL_ACCOUNTS, &called, Some(LIVE));
            run.notes.push(refused(&called, &vendors.stripe.rate_refusals()));
            run.notes.push(each_ten_seconds(&called, &vendors.stripe.rate_refusals()));
            Ok(vec![run])
        })
        .await
    }
}

async fn pace(environment: &Environment) -> Result<String> {
    let pace = sqlx::query_scalar("select learned::text from jobs.job_paces where name = 'stripe'");
    Ok(pace.fetch_one(environment.db.pool()).await?)
}

async fn remember(environment: &Environment, learned: String) -> Result<()> {
    sqlx::query(
        "insert into jobs.job_paces (name, next_at, since, version, learned)
         values ('stripe', now(), now(), 1, $1::jsonb)",
    )
    .bind(learned)
    .execute(environment.db.pool())
    .await?;
    Ok(())
}

/// Says which part of the requests was refused, in all and after the first minute.
fn refused(called: &Called, refusals: &[Instant]) -> String {
    let Some(first) = called.stripe.first().map(|seen| seen.at) else { return String::new() };
    let since = |begun: Instant| {
        let asked = called.stripe.iter().filter(|seen| seen.at >= begun).count();
        let refused = refusals.iter().filter(|at| **at >= begun).count();
        let percent = if asked == 0 { 0.0 } else { 100.0 * float(refused) / float(asked) };
        format!("{refused} of {asked} refused ({percent:.2} %)")
    };
    let minute = since(first + Duration::from_mins(1));
    format!("{}, after the first minute {minute}", since(first))
}

/// Says how many requests were answered a second and how many were refused, each ten seconds.
fn each_ten_seconds(called: &Called, refusals: &[Instant]) -> String {
    let Some(first) = called.stripe.first().map(|seen| seen.at) else { return String::new() };
    let mut out = String::from("answered a second (refused), each ten seconds:");
    let mut from = first;
    while called.stripe.last().is_some_and(|seen| seen.at >= from) {
        let span = from..from + Duration::from_secs(10);
        let asked = called.stripe.iter().filter(|seen| span.contains(&seen.at)).count();
        let refused = refusals.iter().filter(|at| span.contains(at)).count();
        let _ = write!(out, " {:.0} ({refused})", float(asked.saturating_sub(refused)) / 10.0);
        from = span.end;
    }
    out
}
