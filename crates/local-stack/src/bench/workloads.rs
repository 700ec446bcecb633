//! Defines the workloads: who is seeded, what is called, what must have come of it.

use anyhow::{Result, ensure};
use chrono::{DateTime, Months, TimeDelta, Utc};
use jobs::routes::Route;

use super::{
    bounds::{account_of, database_lane, longest, mail_lane, mailed, run, shop_of, synced},
    report::{Lane, Run},
    seed::{self, Integrations},
    world::{CONCURRENCY, Call, PROVIDER_TRIP, Vendors, World},
};
use crate::seed::calendar::{self, Calendar};
use processes::database::{Database, Template};
use stand_ins::Environment;

/// The mail service allows so many where nothing is limited here: the product keeps to what it says.
const NOMINAL_MAILS: u32 = 10;
/// This is far above what 32 workers can ask.
pub(super) const NO_LIMIT: &[(&str, &str)] = &[("STRIPE_REQUESTS_PER_SECOND", "1000")];

/// W1 and W2 have so many integrations, W5 so many users.
pub(super) const INTEGRATIONS: usize = 1_000;
/// This is just above two full pages of 100.
const THREE_PAGES_OF_STRIPE: usize = 201;
/// This is just above two full pages of 200.
const THREE_PAGES_OF_SHOPIFY: usize = 401;
/// A month of W5 is one page.
const ONE_PAGE: usize = 60;

impl World {
    /// Makes a database that is seeded once; runs get copies.
    async fn seeded(&self, seed: impl AsyncFnOnce(&Database) -> Result<()>) -> Result<Database> {
        let db = self.stack.database(Template::Migrated).await?;
        seed(&db).await?;
        seed::settle(&db).await?;
        Ok(db)
    }

    /// Calls over a copy of `seeded`, `runs` times.
    pub(super) async fn repeat(
        &self,
        seeded: &Database,
        runs: usize,
        mut one: impl AsyncFnMut(&Environment) -> Result<Vec<Run>>,
    ) -> Result<Vec<Run>> {
        let mut all = Vec::new();
        for _ in 0..runs {
            let db = seeded.copy(self.stack.cluster()).await?;
            let environment = self.stack.environment_over(db).await?;
            for run in one(&environment).await? {
                println!(
                    "    {} {:.2} s (bound {:.2} s), load {:.1}",
                    run.workload, run.wall, run.lower_bound, run.load
                );
                all.push(run);
            }
            let db = environment.db.clone();
            drop(environment);
            db.remove(self.stack.cluster()).await?;
        }
        Ok(all)
    }

    /// Runs W1 and, on the same databases, W2: a sync of 1,000 integrations, and another one that finds nothing new.
    pub(super) async fn sync(&self, runs: usize) -> Result<Vec<Run>> {
        let second = Calendar::new(self.now).missed_sync();
        let first = second - TimeDelta::hours(6);
        let integrations = Integrations::named(INTEGRATIONS);
        let vendors = Vendors::start(None).await?;
        let movements = open_books(&vendors, &integrations, first);
        for (shop, _) in &integrations.shops {
            vendors.shopify.set_bucket(shop, 1e9, 1e9);
        }
        vendors.stripe.faults().remember_answers();
        vendors.shopify.faults().remember_answers();
        let seeded = self.connected(&integrations, first - TimeDelta::days(90)).await?;
        // One more for the stand-ins, which remember their answers.
        println!("· w1, w2 (the first run is not counted)");
        let all = self.repeat(&seeded, runs + 1, async |environment| {
            let called = self.call(environment, &vendors, sync_at(first, NO_LIMIT)).await?;
            ensure!(
                called.answer["totalSynced"] == movements,
                "not all were synced: {}",
                called.answer["totalSynced"]
            );
            ensure!(stored(environment).await? == movements, "not all movements were stored");
            let w1 = synced("w1", INTEGRATIONS, &called, None);

            let mark = mark(environment).await?;
            let query = format!("at={}", rfc3339(second));
            let cron = Call { route: Route::DailyOrchestrator, query, vars: NO_LIMIT };
            let called = self.call(environment, &vendors, cron).await?;
            let counted = &called.answer["results"]["syncIntegrations"];
            ensure!(counted["synced"] == INTEGRATIONS && counted["errors"] == 0, "{}", called.answer);
            let mut w2 = synced("w2", INTEGRATIONS, &called, None);
            w2.notes.push(format!(
                "{} rows of movements or turnover rewritten",
                rewritten(environment, mark).await?
            ));
            Ok(vec![w1, w2])
        });
        Ok(all.await?.split_off(2))
    }

    pub(super) async fn connected(
        &self,
        integrations: &Integrations,
        since: DateTime<Utc>,
    ) -> Result<Database> {
        let count = integrations.accounts.len() + integrations.shops.len();
        self.seeded(async |db| {
            seed::people(db, i32::try_from(count)?, 0, self.now).await?;
            integrations.connect(db, &self.key, since).await
        })
        .await
    }

    /// Runs W3: the J+3 mail to 5,000 of 100,000 users.
    pub(super) async fn marketing(&self, runs: usize) -> Result<Vec<Run>> {
        const RECIPIENTS: usize = 5_000;
        let seeded = self
            .seeded(async |db| seed::people(db, 100_000, i32::try_from(RECIPIENTS)?, self.now).await)
            .await?;
        println!("· w3");
        self.repeat(&seeded, runs, async |environment| {
            let vendors = Vendors::start(Some(5)).await?;
            let cron = Call { route: Route::DailyTasks, query: String::new(), vars: &[] };
            let called = self.call(environment, &vendors, cron).await?;
            ensure!(vendors.resend.accepted_count() == RECIPIENTS, "{}", called.answer);
            let drained = called.wall - called.planned;
            let mut run = mailed("w3", RECIPIENTS, &called, 5);
            run.notes
                .push(format!("drained in {drained:.2} s, {:.2} × the bound", drained / run.lower_bound));
            Ok(vec![run])
        })
        .await
    }

    /// Runs W4: thresholds of so many users with 24 records each, one in a hundred of whom crosses some.
    pub(super) async fn thresholds(&self, name: &'static str, users: usize, runs: usize) -> Result<Vec<Run>> {
        let seeded = self.seeded(async |db| {
            seed::people(db, i32::try_from(users)?, 0, self.now).await?;
            seed::records(db, self.now).await
        });
        let seeded = seeded.await?;
        println!("· {name}");
        let all = self.repeat(&seeded, runs, async |environment| {
            let vendors = Vendors::start(None).await?;
            let post = Call { route: Route::CheckThresholds, query: String::new(), vars: &[] };
            let called = self.call(environment, &vendors, post).await?;
            ensure!(vendors.resend.accepted_count() == users / 100, "{}", called.answer);
            let checked = called.planned;
            let mut run = mailed(name, users, &called, NOMINAL_MAILS);
            run.notes.push(format!("checked and planned in {checked:.2} s; the rest are its mails"));
            Ok(vec![run])
        });
        let all = all.await?;
        seeded.remove(self.stack.cluster()).await?;
        Ok(all)
    }

    /// Runs W5: last month of 1,000 users with one integration each, and its recap.
    pub(super) async fn month(&self, runs: usize) -> Result<Vec<Run>> {
        let calendar = Calendar::new(self.now);
        let month = calendar.previous_month();
        let integrations = Integrations::named(INTEGRATIONS);
        let vendors = Vendors::start(None).await?;
        for (account, token) in &integrations.accounts {
            vendors.stripe.add_account(account, token);
            vendors.stripe.payments(
                account,
                calendar.previous(2, 9, 0),
                TimeDelta::hours(10),
                ONE_PAGE,
                "eur",
            );
        }
        for (shop, token) in &integrations.shops {
            vendors.shopify.add_shop(shop, "EUR", token);
            vendors.shopify.tenders(shop, calendar.previous(2, 9, 0), TimeDelta::hours(10), ONE_PAGE);
            vendors.shopify.set_bucket(shop, 1e9, 1e9);
        }
        vendors.stripe.faults().remember_answers();
        vendors.shopify.faults().remember_answers();
        let connected = month.and_time(chrono::NaiveTime::MIN).and_utc() - Months::new(3);
        let seeded = self.connected(&integrations, connected).await?;
        println!("· w5 (the first run is not counted)");
        let all = self.repeat(&seeded, runs + 1, async |environment| {
            vendors.resend.clear().await?;
            let query = format!("month={}", calendar::name(month));
            let post = Call { route: Route::MonthlySync, query, vars: NO_LIMIT };
            let called = self.call(environment, &vendors, post).await?;
            ensure!(called.answer["totalUsers"] == INTEGRATIONS, "{}", called.answer["totalUsers"]);
            let mails = vendors.resend.accepted_count();
            ensure!(mails == INTEGRATIONS, "{mails} recaps, not {INTEGRATIONS}");
            // One lane for both providers.
            let requests = called.stripe.len() + called.shopify.len();
            let chain = longest(&called.stripe, account_of).max(longest(&called.shopify, shop_of));
            let months =
                Lane::new("months", requests, PROVIDER_TRIP, CONCURRENCY).chain(chain, PROVIDER_TRIP);
            let lanes = vec![months, mail_lane(&called, NOMINAL_MAILS), database_lane(&called)];
            Ok(vec![run("w5", INTEGRATIONS, &called, lanes)])
        });
        Ok(all.await?.split_off(1))
    }
}

/// Writes three pages for each integration, over the 29 days before `end`; returns how many movements that makes.
pub(super) fn open_books(vendors: &Vendors, integrations: &Integrations, end: DateTime<Utc>) -> i64 {
    let from = end - TimeDelta::days(29);
    let every = |count: usize| TimeDelta::minutes(29 * 24 * 60 / i64::try_from(count).unwrap_or(i64::MAX));
    for (account, token) in &integrations.accounts {
        vendors.stripe.add_account(account, token);
        vendors.stripe.payments(account, from, every(THREE_PAGES_OF_STRIPE), THREE_PAGES_OF_STRIPE, "eur");
    }
    for (shop, token) in &integrations.shops {
        vendors.shopify.add_shop(shop, "EUR", token);
        vendors.shopify.tenders(shop, from, every(THREE_PAGES_OF_SHOPIFY), THREE_PAGES_OF_SHOPIFY);
    }
    let count =
        |integrations: usize, movements: usize| i64::try_from(integrations * movements).unwrap_or(i64::MAX);
    count(integrations.accounts.len(), THREE_PAGES_OF_STRIPE)
        + count(integrations.shops.len(), THREE_PAGES_OF_SHOPIFY)
}

pub(super) fn sync_at<'a>(at: DateTime<Utc>, vars: &'a [(&'a str, &'a str)]) -> Call<'a> {
    Call { route: Route::SyncIntegrations, query: format!("at={}", rfc3339(at)), vars }
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

pub(super) async fn stored(environment: &Environment) -> Result<i64> {
    let count = sqlx::query_scalar("select count(*) from jobs.integration_transactions");
    Ok(count.fetch_one(environment.db.pool()).await?)
}

/// Returns the next transaction's number: what is written from now on bears a higher one, or this.
async fn mark(environment: &Environment) -> Result<i64> {
    let mark = sqlx::query_scalar("select pg_current_xact_id()::text::bigint");
    Ok(mark.fetch_one(environment.db.pool()).await?)
}

/// Counts the rows of movements, totals and records that were written since.
async fn rewritten(environment: &Environment, mark: i64) -> Result<i64> {
    let count = sqlx::query_scalar(
        "select (select count(*) from jobs.integration_transactions where xmin::text::bigint > $1)
             + (select count(*) from jobs.auto_sync_totals where xmin::text::bigint > $1)
             + (select count(*) from public.ca_records where xmin::text::bigint > $1)",
    );
    Ok(count.bind(mark).fetch_one(environment.db.pool()).await?)
}
