//! A user is deleted while a run works for them, at each of its steps: nothing of theirs is left behind, everybody else is
//! served, and the run is no failure.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use stand_ins::{
    faults::{Fault, InjectedFaults, Rule},
    resend::Resend,
};
use uuid::Uuid;

use super::{ORDINARY_DAY, assert_imported, busy_user, write};
use crate::{clock::at, promises::until, world::World};

/// Each is held, the user is deleted, and it goes on: from the plan to the claim, to the settlement, to the mail, to the end.
const DATABASE: [&str; 11] = [
    "/rpc/jobs_claim",
    "/rpc/integration_context",
    "/rpc/integration_prove",
    "/rpc/integration_settle",
    "/rpc/threshold_books",
    "/rpc/threshold_details",
    "/rpc/jobs_note_alerts",
    "/rpc/jobs_plan_alerts",
    "/rpc/mail_claim",
    "/rpc/mail_seal",
    "/rpc/mail_settle",
];
const STRIPE: [&str; 2] = ["/v1/account", "balance_transactions"];
const MAILS: [&str; 1] = ["/emails/batch"];

/// Returns where a user's id still stands, in any column of any of our tables and of the application's.
async fn left_behind(world: &World, user: Uuid) -> Result<Vec<String>> {
    let columns: Vec<(String, String)> = sqlx::query_as(
        "select c.oid::regclass::text, a.attname::text from pg_class c join pg_attribute a on a.attrelid = c.oid \
         where c.relnamespace in ('public'::regnamespace, 'jobs'::regnamespace, 'pgmq'::regnamespace) and c.relkind = 'r' \
         and a.attnum > 0 and not a.attisdropped and a.atttypid in ('uuid'::regtype, 'jsonb'::regtype, 'text'::regtype) \
         order by 1, 2",
    )
    .fetch_all(world.pool())
    .await?;
    let mut left = Vec::new();
    for (table, column) in columns {
        let sql = format!("select count(*) from {table} where {column}::text like '%{user}%'");
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(world.pool()).await?;
        if rows > 0 {
            left.push(format!("{table}.{column}"));
        }
    }
    Ok(left)
}

/// Holds a step of a run, deletes one of its two users, and lets it go on.
async fn deleted_at(world: &World, faults: &InjectedFaults, step: &str, n: usize) -> Result<()> {
    let gone = busy_user(world, &format!("gone{n}"), true).await?;
    let other = busy_user(world, &format!("other{n}"), true).await?;
    // The checks that follow a sync are of those whose totals changed.
    faults.forget();
    faults.add(Rule::on(step, Fault::Held));
    let run = world.post("sync-integrations", "");
    let deletion = async {
        until(step, async || Ok(faults.count(step) > 0)).await?;
        write(world, format!("delete from auth.users where id = '{gone}'")).await?;
        faults.clear();
        anyhow::Ok(())
    };
    let (answer, deleted) = tokio::join!(run, deletion);
    deleted?;
    let answer: Value = answer?;
    ensure!(answer["errors"] == 0 && answer.get("remaining").is_none(), "{answer}");
    assert_imported(world, other).await?;
    let mails = |name: &str| {
        let address = format!("acct_{name}{n}@example.test");
        world.resend.accepted().iter().filter(|accepted| accepted.mail.to == [address.clone()]).count()
    };
    ensure!(mails("other") == 1, "{} mails to the other", mails("other"));
    // It may have been on its way.
    ensure!(mails("gone") <= usize::from(step.contains("mail")), "{} mails to nobody", mails("gone"));
    let left = left_behind(world, gone).await?;
    // The ledger of mails outlives its people, by whom its links are signed; what is personal in it goes with the next cron.
    let ledger = ["jobs.email_deliveries.dedupe_key", "jobs.email_deliveries.recipient"];
    ensure!(left.iter().all(|column| ledger.contains(&column.as_str())), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_deleted_while_a_run_works_costs_nobody_anything() -> Result<()> {
    let mut world = World::at(at(ORDINARY_DAY)).await?;
    let monitor = Resend::bare().await?;
    monitor.faults().add(Rule::on("", Fault::Answer { status: 200, headers: Vec::new(), body: "OK".into() }));
    world.set("PING_URL_SYNC_INTEGRATIONS", &format!("{}/sync", monitor.url()));
    let servers = [
        (world.environment.gateway.faults().clone(), DATABASE.as_slice()),
        (world.stripe.faults().clone(), &STRIPE),
        (world.resend.faults().clone(), &MAILS),
    ];
    let steps = servers.iter().flat_map(|(faults, steps)| steps.iter().map(move |step| (faults, *step)));
    for (n, (faults, step)) in steps.enumerate() {
        deleted_at(&world, faults, step, n).await.with_context(|| step.to_owned())?;
    }
    let heard = monitor.faults().seen();
    assert!(heard.iter().all(|seen| !seen.target.ends_with("/fail")), "{:?}", heard.last());
    // What waits for nobody any more is nowhere.
    let queued: i64 = world.value("select count(*) from jobs.job_items where status = 'queued'").await?;
    let sealed: i64 = world.value("select count(*) from jobs.email_batches where state = 'sealed'").await?;
    let open: i64 = world.value("select count(*) from jobs.job_runs where finished_at is null").await?;
    assert_eq!((queued, sealed, open), (0, 0, 0));
    // The next cron takes away what is personal.
    world.cron("daily-orchestrator", "").await?;
    let kept: i64 = world
        .value("select count(*) from jobs.email_deliveries where user_id is null and kind <> 'operator_digest' and (address is not null or facts <> '{}')")
        .await?;
    assert_eq!(kept, 0);
    Ok(())
}
