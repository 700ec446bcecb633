//! Alerts are planned in parts of a bounded size. Whatever comes between two parts, each alert is planned once, the run is
//! not over before, and whoever works next goes on.

use anyhow::Result;
use chrono::Datelike;
use jobs::schedule::paris;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::faults::{Fault, Rule};

use super::until;
use crate::world::{SECRET, World};

const PEOPLE: u64 = 10;
/// Selects how many alerts were planned, and how many are found and wait for their plan.
const STATE: &str = "select (select count(*) from jobs.email_deliveries where kind = 'threshold_alert'), \
                     (select count(*) from jobs.found_alerts)";

/// Makes people above a ceiling, and parts of three.
async fn above_a_ceiling() -> Result<World> {
    let world = World::new().await?;
    world.run("create or replace function jobs.alerts_of_a_part() returns integer language sql immutable as 'select 3'").await?;
    for n in 0..PEOPLE {
        let user = world.user(&format!("above{n}@example.test")).await?;
        sqlx::query(
            "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) \
             values ($1, $2, 1, 'Prestation de services', 80000)",
        )
        .bind(user)
        .bind(paris::date(world.now()).year())
        .execute(world.pool())
        .await?;
    }
    Ok(world)
}

async fn state(world: &World) -> Result<(i64, i64)> {
    Ok(sqlx::query_as(STATE).fetch_one(world.pool()).await?)
}

/// Checks that each of them got one mail, and that the run says so.
async fn check(world: &World) -> Result<()> {
    let mut reached: Vec<String> =
        world.resend.accepted().iter().map(|accepted| accepted.mail.to.join(",")).collect();
    reached.sort_unstable();
    let expected: Vec<String> = (0..PEOPLE).map(|n| format!("above{n}@example.test")).collect();
    assert_eq!(reached, expected);
    assert_eq!(state(world).await?, (10, 0));
    let run: Value = world
        .value("select jsonb_build_object('items', plan -> 'items', 'status', status) from jobs.job_runs where task = 'check_thresholds'")
        .await?;
    assert_eq!(run, json!({"items": PEOPLE, "status": "success"}));
    Ok(())
}

/// Calls `drain-queue` and waits for the row that it leaves.
async fn drain(world: &World) -> Result<()> {
    world.run("delete from public.sync_logs where sync_type = 'drain'").await?;
    let function = world.function("drain-queue").await?;
    function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
    let row = "select count(*) from public.sync_logs where sync_type = 'drain'";
    until("the row of the call", async || Ok(world.value::<i64>(row).await? > 0)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_parts_are_planned_in_one_run() -> Result<()> {
    let world = above_a_ceiling().await?;
    let gateway = world.environment.gateway.faults();
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!((&answer["sent"], &answer["errors"]), (&json!(PEOPLE), &json!(0)), "{answer}");
    assert_eq!(gateway.count("/rpc/jobs_plan_alerts"), 4, "three, three, three, one");
    check(&world).await?;
    let again = world.post("check-thresholds", "").await?;
    assert_eq!(again["sent"], 0, "{again}");
    Ok(())
}

/// Each part's answer is lost after it was planned: the repeated call plans the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_whose_answer_is_lost_is_planned_once() -> Result<()> {
    let world = above_a_ceiling().await?;
    let gateway = world.environment.gateway.faults();
    for skip in [0, 1, 2] {
        gateway.add(Rule::on("/rpc/jobs_plan_alerts", Fault::CutAfter).skip(skip).times(1));
    }
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!((&answer["sent"], &answer["errors"]), (&json!(PEOPLE), &json!(0)), "{answer}");
    check(&world).await
}

/// Nothing more can be planned after the first part: the run says what is left, is not over, and the next call goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_said_and_planned_by_the_next_call() -> Result<()> {
    let world = above_a_ceiling().await?;
    let gateway = world.environment.gateway.faults();
    let refused = || Fault::json(503, &json!({"code": "PGRST001", "message": "no connection"}));
    gateway.add(Rule::on("/rpc/jobs_plan_alerts", refused()).skip(1));
    gateway.add(Rule::on("/rpc/jobs_reconcile", refused()));
    let answer = world.post("check-thresholds", "").await?;
    assert_eq!((&answer["sent"], &answer["remaining"]), (&json!(3), &json!(7)), "{answer}");
    assert!(answer["errors"].as_u64() >= Some(1), "{answer}");
    assert_eq!(state(&world).await?, (3, 7));
    let status: String =
        world.value("select status from jobs.job_runs where task = 'check_thresholds'").await?;
    assert_eq!(status, "running", "what is not planned is not done");
    let log: String = world.value("select status from public.sync_logs where user_id is null").await?;
    assert_eq!(log, "partial");
    gateway.clear();
    drain(&world).await?;
    check(&world).await
}

/// The function is killed between two parts. Two calls at once go on; each alert is planned by one of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_two_parts_loses_nothing() -> Result<()> {
    let world = above_a_ceiling().await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("/rpc/jobs_plan_alerts", Fault::CutBefore).skip(2));
    let mut function = world.function("check-thresholds").await?;
    {
        let bearer = format!("Bearer {SECRET}");
        let call = function.call(Method::POST, "", Some(&bearer));
        tokio::select! {
            answer = call => panic!("answered before it was killed: {answer:?}"),
            reached = until("the third part", async || Ok(gateway.count("/rpc/jobs_plan_alerts") >= 3)) => reached?,
        }
    }
    function.kill().await?;
    assert_eq!(state(&world).await?, (6, 4));
    gateway.clear();
    let (drained, other) = tokio::join!(drain(&world), world.post("check-thresholds", ""));
    drained?;
    let other = other?;
    assert_eq!(other["errors"], 0, "{other}");
    drain(&world).await?;
    let reached = world.resend.accepted().len() as u64;
    assert_eq!((reached, state(&world).await?), (PEOPLE, (10, 0)));
    let open: i64 = world.value("select count(*) from jobs.job_runs where finished_at is null").await?;
    assert_eq!(open, 0);
    Ok(())
}
