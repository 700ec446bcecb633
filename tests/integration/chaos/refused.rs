//! The database refuses each function that a run calls, in each way it can, for a whole run or for the first call only. A run
//! that says success has done its work; and once the fault is over, one more run brings everybody everything, each mail once.
//!
//! Each function meets two of the faults. All of them, with each fault (some minutes):
//! `JOBS_TEST_REFUSALS=all cargo test --test integration -- chaos::refused`

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use jobs::supabase::FUNCTIONS;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    shopify::Tender,
};
use uuid::Uuid;

use super::{bearer, drained, ended, time_passes};
use crate::{
    mails::signed_up_at,
    promises::{imported_cents, listed_cents},
    world::World,
};

/// So many worlds share the cases.
const WORLDS: usize = 6;
const ACCOUNT: &str = "acct_refused";
const SHOP: &str = "refused.myshopify.com";
/// These routes do everything that a day brings.
const ROUTES: [(Method, &str); 3] =
    [(Method::GET, "daily-orchestrator"), (Method::POST, "check-thresholds"), (Method::POST, "drain-queue")];
/// No run of a day calls these: they belong to links, webhooks and the status page, or to trouble that has tests of its own
/// (tokens that run out, limits of a provider, attempts, batches that are refused).
const ELSEWHERE: [&str; 31] = [
    "integration_outages",
    "integration_refresh_begin",
    "integration_refresh_end",
    "integration_refresh_store",
    "jobs_confirm_books",
    "jobs_confirmations",
    "jobs_find_user",
    "jobs_give_back",
    "jobs_heartbeat",
    "jobs_hold_turns",
    "jobs_learn_pace",
    "jobs_leave_account_out",
    "jobs_lift_suppression",
    "jobs_plan_digest",
    "jobs_release",
    "jobs_resend_mails",
    "jobs_retry",
    "jobs_session_epoch",
    "jobs_sign_in",
    "jobs_sign_out",
    "jobs_signed_in",
    "jobs_slot_missed",
    "jobs_status",
    "jobs_user",
    "jobs_user_exists",
    "jobs_user_receipts",
    "mail_extend",
    "mail_feedback",
    "mail_give_back",
    "mail_split",
    "mail_unsubscribe",
];

fn faults() -> [(&'static str, Fault); 9] {
    let html = |status, words: &str| Fault::Answer {
        status,
        headers: vec![("content-type".into(), "text/html".into())],
        body: format!("<html><title>{words}</title></html>"),
    };
    let said =
        |status, code: &str, message: &str| Fault::json(status, &json!({"code": code, "message": message}));
    [
        ("no connection", said(503, "PGRST001", "no connection")),
        ("a limit", Fault::json(429, &json!({"message": "too many requests"}))),
        ("a page with a 500", html(500, "Internal server error")),
        ("unauthorized", Fault::json(401, &json!({"message": "Unauthorized"}))),
        ("forbidden", Fault::json(403, &json!({"message": "Forbidden"}))),
        ("cut before", Fault::CutBefore),
        ("cut after", Fault::CutAfter),
        ("a page with a 200", html(200, "Welcome")),
        ("a statement's time", said(500, "57014", "canceling statement due to statement timeout")),
    ]
}

/// Represents what one round adds to the work: each is to be done once.
struct Days {
    world: World,
    seller: Uuid,
    shopkeeper: Uuid,
    shop_cents: i64,
    rounds: usize,
}

impl Days {
    async fn new() -> Result<Self> {
        let mut world = World::new().await?;
        world.set_now(crate::clock::at("2026-11-18T12:05:00Z"));
        world.set("OPERATOR_EMAIL", "operator@example.test");
        let seller = world.stripe_user(ACCOUNT).await?;
        let shopkeeper = world.shopify_user(SHOP).await?;
        Ok(Self { world, seller, shopkeeper, shop_cents: 0, rounds: 0 })
    }

    /// Makes it another day for whatever is due once: money at both providers, somebody above a ceiling, a newcomer.
    async fn dawn(&mut self) -> Result<()> {
        let (world, n) = (&self.world, self.rounds);
        world.run("delete from jobs.job_slots").await?;
        world.stripe.payment(ACCOUNT, world.earlier(90), 1_000, "eur");
        world.shopify.tender(SHOP, Tender::new(world.earlier(90), "5.0", "EUR"));
        let above = world.user(&format!("above-{n}@example.test")).await?;
        sqlx::query(
            "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) \
             values ($1, 2026, 1, 'Prestation de services', 80000)",
        )
        .bind(above)
        .execute(world.pool())
        .await?;
        let day = crate::clock::at("2026-11-15T08:00:00Z");
        signed_up_at(world, &format!("new-{n}@example.test"), "Camille Moreau", day).await?;
        self.shop_cents += 500;
        self.rounds += 1;
        Ok(())
    }

    /// Returns what each address has got.
    fn mails(&self) -> BTreeMap<String, usize> {
        let mut mails = BTreeMap::new();
        for accepted in self.world.resend.accepted() {
            *mails.entry(accepted.mail.to.join(",")).or_default() += 1;
        }
        mails.remove("operator@example.test");
        mails
    }

    /// Whether a route has done what it is there for.
    async fn is_done(&self, route: &str) -> Result<bool> {
        let world = &self.world;
        let (mails, last) = (self.mails(), self.rounds - 1);
        let has = |who: &str| mails.contains_key(&format!("{who}-{last}@example.test"));
        Ok(match route {
            "check-thresholds" => has("above"),
            "daily-orchestrator" => {
                has("new")
                    && imported_cents(world, self.seller).await? == listed_cents(world, ACCOUNT)
                    && imported_cents(world, self.shopkeeper).await? == self.shop_cents
            }
            _ => {
                world.value::<i64>("select count(*) from jobs.job_items where status = 'queued'").await? == 0
            }
        })
    }

    /// Calls a route; answers whether it says success, in its answer and in its row.
    async fn call(&self, (method, route): &(Method, &str)) -> Result<(bool, String)> {
        let world = &self.world;
        world.run("delete from public.sync_logs where user_id is null").await?;
        let (answer, is_drain) = if *route == "drain-queue" {
            let function = world.function(route).await?;
            let answer = function.call(Method::POST, "", Some(&bearer())).await?;
            if answer.status == 202 {
                drained(&function).await?;
            }
            (answer, true)
        } else {
            (world.call(method.clone(), route, "").await?, false)
        };
        let rows: Vec<String> =
            sqlx::query_scalar("select status from public.sync_logs where user_id is null")
                .fetch_all(world.pool())
                .await?;
        ensure!(!answer.text.contains("Erreur interne"), "{}", answer.text);
        let status = answer.status.as_u16();
        ensure!([200, 202, 500, 503].contains(&status), "{status} {}", answer.text);
        let body: Value = serde_json::from_str(&answer.text).context("JSON")?;
        let is_well = if is_drain {
            status == 202 && rows.iter().all(|row| row == "success")
        } else {
            status == 200 && !troubled(&body)
        };
        if !is_well && !is_drain {
            ensure!(rows.iter().all(|row| row != "success"), "{rows:?} {}", answer.text);
        }
        Ok((is_well, answer.text))
    }

    /// One more run of everything, after which nothing is missing and nothing was done twice.
    async fn heal(&self) -> Result<()> {
        self.world.environment.gateway.faults().clear();
        time_passes(&self.world).await?;
        self.world.run("update jobs.job_chain set held_until = '-infinity'").await?;
        for call in &ROUTES[..2] {
            let (is_well, text) = self.call(call).await?;
            ensure!(is_well, "after the fault: {text}");
        }
        for (_, route) in ROUTES {
            ensure!(self.is_done(route).await?, "{route} is not done");
        }
        let people =
            (0..self.rounds).flat_map(|n| ["above", "new"].map(|who| format!("{who}-{n}@example.test")));
        assert_eq!(self.mails(), people.map(|address| (address, 1)).collect(), "each mail once");
        ended(&self.world).await
    }
}

/// Whether an answer tells of an error, of something left, or of a blocking problem, anywhere.
fn troubled(answer: &Value) -> bool {
    match answer {
        Value::Object(fields) => fields.iter().any(|(name, value)| match name.as_str() {
            "errors" => value != 0,
            "remaining" | "error" => true,
            _ => troubled(value),
        }),
        Value::Array(values) => values.iter().any(troubled),
        _ => false,
    }
}

type Case = (&'static str, usize, bool);

/// Plays the cases of one world. Before that a day without faults shows which route calls what.
async fn play(cases: Vec<Case>) -> Result<()> {
    let mut days = Days::new().await?;
    let gateway = days.world.environment.gateway.faults().clone();
    days.dawn().await?;
    let mut calls: Vec<BTreeSet<String>> = Vec::new();
    for call in &ROUTES {
        gateway.forget();
        let (is_well, text) = days.call(call).await?;
        ensure!(is_well, "{text}");
        let name = |target: &str| Some(target.split_once("/rpc/")?.1.split('?').next()?.to_owned());
        calls.push(gateway.seen().iter().filter_map(|seen| name(&seen.target)).collect());
    }
    days.heal().await?;
    let called: BTreeSet<&str> = calls.iter().flatten().map(String::as_str).collect();
    let expected: BTreeSet<&str> = FUNCTIONS.into_iter().filter(|name| !ELSEWHERE.contains(name)).collect();
    assert_eq!(called, expected, "what a day calls of the database");

    for (name, fault, once) in cases {
        days.dawn().await?;
        let (words, fault) = faults()[fault].clone();
        let rule = Rule::on(&format!("/rpc/{name}"), fault);
        gateway.add(if once { rule.times(1) } else { rule });
        let what = format!("{name}, {words}, {}", if once { "once" } else { "always" });
        for (call, _) in ROUTES.iter().zip(&calls).filter(|(_, calls)| calls.contains(name)) {
            let (is_well, text) = days.call(call).await.with_context(|| what.clone())?;
            if is_well {
                ensure!(days.is_done(call.1).await?, "{what}: {} says success: {text}", call.1);
            }
        }
        days.heal().await.with_context(|| what)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_says_success_has_done_it_and_the_next_run_does_the_rest() -> Result<()> {
    let all = std::env::var("JOBS_TEST_REFUSALS").is_ok_and(|value| value == "all");
    let kinds = faults().len();
    let names = FUNCTIONS.into_iter().filter(|name| !ELSEWHERE.contains(name));
    let of = |(n, name): (usize, &'static str)| {
        let chosen = move |fault: usize, other: usize| all || (n + fault) % kinds == other;
        let always = (0..kinds).filter(move |fault| chosen(*fault, 0)).map(move |fault| (name, fault, false));
        always.chain((0..kinds).filter(move |fault| chosen(*fault, 4)).map(move |fault| (name, fault, true)))
    };
    let mut worlds: Vec<Vec<Case>> = vec![Vec::new(); WORLDS];
    for (n, case) in names.enumerate().flat_map(of).enumerate() {
        worlds[n % WORLDS].push(case);
    }
    try_join_all(worlds.into_iter().map(play)).await.map(drop)
}
