//! Stripe, Shopify, the mail service and the database's gateway, each with 500, 503, 504 and ten seconds of silence:
//! once is made good within the call, and what lasts is told and made good by the next one.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::Value;
use stand_ins::faults::{Fault, Rule};

use super::{BATCH, Company, time_passes};

/// A day and a month ask these of the database, each of which is refused once.
const CALLS: [&str; 17] = [
    "jobs_plan_sync",
    "jobs_plan_mails",
    "jobs_plan_alerts",
    "jobs_lease_turns",
    "jobs_claim",
    "jobs_report",
    "jobs_run_waits",
    "jobs_log",
    "jobs_prune",
    "integration_context",
    "integration_prove",
    "integration_settle",
    "threshold_books",
    "jobs_note_alerts",
    "mail_claim",
    "mail_seal",
    "mail_settle",
];
const DUE: [(Method, &str, &str); 3] = [
    (Method::POST, "monthly-sync", "force=true"),
    (Method::GET, "daily-orchestrator", ""),
    (Method::GET, "monthly-orchestrator", ""),
];

fn page(status: u16) -> Fault {
    let headers = vec![("content-type".to_owned(), "text/html".to_owned())];
    Fault::Answer { status, headers, body: "<html>No.</html>".to_owned() }
}

/// Counts the errors of an answer, of all its tasks.
fn errors(answer: &Value) -> u64 {
    match answer {
        Value::Object(fields) => {
            let of_fields = fields.iter().map(|(name, value)| match name.as_str() {
                "errors" => value.as_u64().unwrap_or_default(),
                _ => errors(value),
            });
            of_fields.sum()
        }
        _ => 0,
    }
}

async fn once(status: u16) -> Result<()> {
    let company = Company::new(3, 5).await?;
    let world = &company.world;
    for (faults, steps) in [
        (world.stripe.faults(), ["/v1/account", "balance_transactions"].as_slice()),
        (world.shopify.faults(), &["graphql"]),
        (world.resend.faults(), &[BATCH]),
        (world.environment.gateway.faults(), &CALLS),
    ] {
        for step in steps {
            faults.add(Rule::on(step, page(status)).times(1));
        }
    }
    world.run("update jobs.integration_state set proof = null").await?;
    for call in DUE {
        let name = call.1;
        let answer = company.call(call).await?;
        assert_eq!(
            (answer.status.as_u16(), errors(&answer.json())),
            (200, 0),
            "{status}, {name}: {}",
            answer.text
        );
        assert!(!answer.text.contains("remaining"), "{status}, {name}: {}", answer.text);
    }
    let gateway = world.environment.gateway.faults();
    for name in CALLS {
        assert!(gateway.count(&format!("/rpc/{name}")) >= 2, "{name} was asked again");
    }
    company.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_each_is_made_good_within_the_call() -> Result<()> {
    try_join_all([500, 503, 504].map(once)).await.map(drop)
}

/// The database's are in `trouble::database`.
#[tokio::test(flavor = "multi_thread")]
async fn ten_seconds_of_silence_of_each_are_waited_for() -> Result<()> {
    let company = Company::new(3, 5).await?;
    let world = &company.world;
    let all = [
        (world.stripe.faults(), "balance_transactions"),
        (world.shopify.faults(), "graphql"),
        (world.resend.faults(), BATCH),
    ];
    for (faults, step) in all {
        faults.forget();
        faults.add(Rule::on(step, Fault::Delay(Duration::from_secs(10))).times(1));
    }
    // The first of them asks all three side by side.
    let [month, daily, reminders] = DUE;
    for call in [daily, month, reminders] {
        let answer = company.call(call).await?;
        assert_eq!((answer.status.as_u16(), errors(&answer.json())), (200, 0), "{}", answer.text);
    }
    let batches = world.resend.faults().seen().into_iter().filter(|seen| seen.target.contains(BATCH));
    let mut keys: Vec<String> =
        batches.map(|seen| seen.headers["idempotency-key"].to_str().expect("ASCII").to_owned()).collect();
    keys.sort();
    let asked = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), asked, "no batch was asked for twice");
    company.check().await
}

/// All three services are out of order for whole calls: each is named, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_lasts_is_told_and_made_good_by_the_next_call() -> Result<()> {
    let company = Company::new(3, 5).await?;
    let world = &company.world;
    for (faults, status) in
        [(world.stripe.faults(), 503), (world.shopify.faults(), 504), (world.resend.faults(), 500)]
    {
        faults.add(Rule::on("", page(status)));
    }
    let [_, daily, monthly] = DUE;
    for answer in try_join_all([daily, monthly].map(|call| company.call(call))).await? {
        assert_eq!(answer.status, 200, "{}", answer.text);
        let body = answer.json();
        assert!(errors(&body) > 0, "{body}");
        assert!(!answer.text.contains("<html"), "{body}");
        if let Some(sync) = body["results"].get("syncIntegrations") {
            for words in ["Stripe ne répond", "Shopify ne répond"] {
                assert!(sync.to_string().contains(words), "{words}: {sync}");
            }
        }
    }
    let told: String = world.value("select string_agg(error::text, ' ') from jobs.job_items").await?;
    for words in ["Stripe ne répond", "Shopify ne répond", "Resend"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let sound: i64 = world
        .value("select count(*) from public.sync_logs where provider = 'jobs' and sync_type = 'cron' and status = 'success'")
        .await?;
    assert_eq!(sound, 0, "none is reported as a success");
    for faults in [world.stripe.faults(), world.shopify.faults(), world.resend.faults()] {
        faults.clear();
    }
    time_passes(world).await?;
    for call in DUE {
        let answer = company.call(call).await?;
        assert_eq!((answer.status.as_u16(), errors(&answer.json())), (200, 0), "{}", answer.text);
    }
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_runs where finished_at is null").await?, 0);
    company.check().await
}
