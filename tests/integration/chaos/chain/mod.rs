//! When one invocation's time is not enough, the work goes on by itself: `drain-queue` calls itself through the
//! deployment's own address, hop by hop, until nothing waits.

mod hops;
mod lost;

use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::json;
use sqlx::{Postgres, Transaction};
use stand_ins::{faults::Seen, relay::Relay};
use uuid::Uuid;

use super::{Company, Seller, bearer, crosses, time_passes, until};
use crate::{
    promises::{USER_LOCK, rpc},
    world::{Function, World},
};

const DRAIN: &str = jobs::Route::DrainQueue.path();
const CHAIN: &str = "x-jobs-chain";
const HOP: &str = "x-jobs-hop";
/// More than three invocations are needed to work off so many in the second that each of them has.
const SELLERS: usize = 7;
/// Each seller takes two requests, one seller after another.
const ROUND_TRIP: Duration = Duration::from_millis(300);

/// Represents a deployment that knows its own address and has hardly any time.
struct Deployment {
    company: Company,
    relay: Relay,
}

impl Deployment {
    async fn of(mut company: Company) -> Result<Self> {
        let relay = Relay::start().await?;
        for (name, value) in [
            ("VERCEL_ENV", "production"),
            ("JOBS_BASE_URL", &relay.url()),
            ("JOB_BUDGET_SECONDS", "1"),
            ("JOB_CONCURRENCY", "1"),
        ] {
            company.world.set(name, value);
        }
        company.world.stripe.faults().set_round_trip(ROUND_TRIP);
        Ok(Self { company, relay })
    }

    /// Shops that cross a threshold, all of them planned, and nobody works on them.
    async fn with_work() -> Result<Self> {
        let mut company = Company::new(0, 0).await?;
        for n in 0..SELLERS {
            let account = format!("acct_{n}");
            let user = crosses(&company.world, &account, 3).await?;
            company.due.push((format!("{account}@example.test"), "threshold_alert"));
            company.sellers.push(Seller { user, account: Some(account), shop_cents: 0, shop_movements: 0 });
        }
        let arguments = json!({
            "p_run_id": Uuid::new_v4(), "p_task": "sync_integrations", "p_kind": "sync_integration",
            "p_slot": null, "p_trigger": "manual", "p_route": "/test", "p_as_of": super::SECOND,
            "p_parameters": {}, "p_payload": {"days": null}, "p_user_id": null, "p_dry_run": false,
            "p_most_days": jobs::schedule::MOST_DAYS, "p_now": super::SECOND,
        });
        let planned = rpc(&company.world, "jobs_plan_sync", &arguments).await?;
        assert_eq!(planned["plan"]["items"], SELLERS, "{planned}");
        Self::of(company).await
    }

    fn world(&self) -> &World {
        &self.company.world
    }

    /// Starts so many instances of drain-queue, which the address leads to by turns.
    async fn instances(&self, count: usize) -> Result<Vec<Function>> {
        let instances = try_join_all((0..count).map(|_| self.world().function("drain-queue"))).await?;
        self.relay.pass_to(instances.iter().map(Function::port));
        Ok(instances)
    }

    /// Returns the hops that were asked for, oldest first.
    fn hops(&self) -> Vec<Seen> {
        self.relay.faults().seen()
    }

    /// Waits until every invocation has come to its end. Each leaves a row after it has asked for the next one;
    /// `others` were called, too, and `lost` never began or were killed.
    async fn quiet(&self, others: usize, lost: usize) -> Result<()> {
        until("the end of all hops", async || {
            Ok(rows(self.world()).await?.len() + lost == self.hops().len() + others)
        })
        .await
    }

    /// Whoever settles waits for the end of this.
    async fn settling_is_held_up(&self) -> Result<Transaction<'static, Postgres>> {
        let mut lock = self.world().pool().begin().await?;
        for seller in &self.company.sellers {
            sqlx::query(USER_LOCK).bind(seller.user.to_string()).execute(&mut *lock).await?;
        }
        Ok(lock)
    }

    async fn left(&self) -> Result<i64> {
        self.world().value("select count(*) from jobs.job_items where status = 'queued'").await
    }

    /// Lets whatever a dead invocation left pass: a lease, a visibility timeout, a pause.
    async fn later(&self) -> Result<()> {
        self.world().run("update jobs.job_chain set held_until = '-infinity'").await?;
        time_passes(self.world()).await
    }

    /// Somebody calls, later, and the work goes on to its end.
    async fn taken_up(&self, by: &Function) -> Result<()> {
        self.later().await?;
        let (rows_before, hops_before) = (rows(self.world()).await?.len(), self.hops().len());
        call(by).await?;
        until("the end of the later chain", async || {
            Ok(rows(self.world()).await?.len() - rows_before == self.hops().len() - hops_before + 1)
        })
        .await?;
        self.company.check().await
    }
}

/// Returns what the invocations of drain-queue said of themselves: (status, hop, settled, message).
async fn rows(world: &World) -> Result<Vec<(String, i64, Option<i64>, Option<String>)>> {
    let sql = "select status, (metadata ->> 'hop')::bigint, (metadata ->> 'settled')::bigint, error_message \
               from public.sync_logs where sync_type = 'drain' order by xmin::text::bigint";
    Ok(sqlx::query_as(sql).fetch_all(world.pool()).await?)
}

async fn held(world: &World) -> Result<bool> {
    world.value("select exists (select from jobs.job_chain where held_until > clock_timestamp())").await
}

async fn call(function: &Function) -> Result<()> {
    let answer = function.call(Method::POST, "", Some(&bearer())).await?;
    assert_eq!(answer.status, 202, "{}", answer.text);
    Ok(())
}

/// Calls as the hop before would.
async fn call_as_hop(function: &Function, hop: u32) -> Result<()> {
    let request = jobs::http::client()?.post(function.url()).header("authorization", bearer());
    let request = request.header(CHAIN, Uuid::new_v4().to_string()).header(HOP, hop);
    let answer = function.send(request).await?;
    assert_eq!(answer.status, 202, "{}", answer.text);
    Ok(())
}

fn header<'a>(seen: &'a Seen, name: &str) -> &'a str {
    seen.headers[name].to_str().expect("ASCII")
}
