//! The platform kills the function, at every step of a mail's life: one mail each after the next drain.

use std::time::Duration;

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use stand_ins::faults::{Fault, Rule};

use super::{
    BATCH, all, assert_all_sent, assert_each_once, attempts, come_back, drain, key, noted, plan, requests,
    states, until, world_of,
};
use crate::{
    promises::WAITING,
    world::{SECRET, World},
};

const USERS: usize = 5;
const LONG: Fault = Fault::Delay(Duration::from_mins(5));

/// Starts a drain and kills it once `reached` says so.
async fn killed_once<F>(world: &World, what: &str, reached: F) -> Result<()>
where
    F: AsyncFnMut() -> Result<bool>,
{
    let mut function = world.function("daily-tasks").await?;
    let bearer = format!("Bearer {SECRET}");
    {
        let call = function.call(Method::GET, "", Some(&bearer));
        tokio::select! {
            answer = call => panic!("{what}: answered before it was killed: {answer:?}"),
            reached = until(what, reached) => reached?,
        }
    }
    function.kill().await
}

/// Checks what must hold after the next drain, whatever was lost before it; and a further one
/// changes nothing.
async fn check(world: &World) -> Result<()> {
    come_back(world).await?;
    for _ in 0..2 {
        let part = drain(world).await?;
        assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
        assert_all_sent(world, USERS).await?;
    }
    assert_eq!(attempts(world).await?, 0, "a kill is no attempt");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn at_each_step_before_the_request_arrives() -> Result<()> {
    for step in ["jobs_plan_mails", "mail_claim", "mail_seal"] {
        let world = world_of(USERS).await?;
        let gateway = world.environment.gateway.faults();
        gateway.add(Rule::on(step, LONG));
        killed_once(&world, step, async || Ok(gateway.count(step) == 1)).await?;
        gateway.clear();
        assert_eq!(world.resend.accepted_count(), 0);
        check(&world).await?;
        assert_eq!(requests(&world).len(), 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_seal_before_the_service_begins() -> Result<()> {
    let world = world_of(USERS).await?;
    world.resend.faults().add(Rule::on(BATCH, LONG).times(1));
    killed_once(&world, "the request", async || Ok(!requests(&world).is_empty())).await?;
    assert_eq!((world.resend.accepted_count(), states(&world).await?), (0, all("sealed", 5)));
    check(&world).await?;
    let requests = requests(&world);
    assert_eq!(key(&requests[0]), key(&requests[1]), "sent again as sealed");
    assert_eq!(requests[0].body, requests[1].body, "another process writes the same bytes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_service_accepted_and_before_we_noted_it() -> Result<()> {
    let world = world_of(USERS).await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("mail_settle", LONG));
    killed_once(&world, "the settle", async || Ok(gateway.count("mail_settle") == 1)).await?;
    gateway.clear();
    assert_eq!((world.resend.accepted_count(), states(&world).await?), (USERS, all("sealed", 5)));
    assert_eq!(noted(&world).await?, 0);
    check(&world).await
}

/// Nobody helps: the next cron waits until the dead worker's lease has passed.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_cron_waits_for_what_a_dead_one_held() -> Result<()> {
    let world = world_of(USERS).await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("mail_settle", LONG));
    killed_once(&world, "the settle", async || Ok(gateway.count("mail_settle") == 1)).await?;
    gateway.clear();
    // The lease passes in the middle of the next call.
    let second = world.function("daily-tasks").await?;
    let bearer = format!("Bearer {SECRET}");
    let pass = async {
        until("a look at what is held", async || Ok(gateway.count("jobs_run_waits") >= 1)).await?;
        come_back(&world).await
    };
    let (answer, passed) = tokio::join!(second.call(Method::GET, "", Some(&bearer)), pass);
    passed?;
    let answer = answer?.json();
    assert_eq!(answer["results"]["upgradeEmails"]["sent"], USERS, "{answer}");
    assert_all_sent(&world, USERS).await
}

/// PostgREST commits although the client has gone.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_notes_it() -> Result<()> {
    let world = world_of(USERS).await?;
    let slow = Fault::Delay(Duration::from_secs(2));
    world.resend.faults().add(Rule::on(BATCH, slow).times(1));
    let mut held = world.pool().begin().await?;
    let mut locked = false;
    killed_once(&world, "the settle waits for the ledger", async || {
        if !locked && !requests(&world).is_empty() {
            let sql = "select pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.mails', 0))";
            sqlx::query(sql).execute(&mut *held).await?;
            locked = true;
        }
        // Beside the settle a claim: the drain goes on meanwhile.
        let settles = world.environment.gateway.faults().count("mail_settle") == 1;
        Ok(settles && world.value::<i64>(WAITING).await? == 2)
    })
    .await?;
    assert_eq!(states(&world).await?, all("sealed", 5));
    held.rollback().await?;
    until("the orphaned settle commits", async || Ok(states(&world).await? == all("sent", 5))).await?;
    check(&world).await?;
    assert_eq!(requests(&world).len(), 1);
    Ok(())
}

/// The function is killed while the service is still at it: it finishes, and who asks meanwhile is
/// told to wait.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_service_works() -> Result<()> {
    let world = world_of(USERS).await?;
    world.resend.set_work(Duration::from_secs(6));
    killed_once(&world, "the request", async || Ok(!requests(&world).is_empty())).await?;
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["remaining"]), (&json!(0), &json!(USERS)), "{part}");
    assert_eq!(states(&world).await?, all("sealed", 5));
    until("the service has finished", async || Ok(world.resend.accepted_count() == USERS)).await?;
    world.resend.set_work(Duration::ZERO);
    check(&world).await?;
    let requests = requests(&world);
    assert!(requests.iter().all(|request| key(request) == key(&requests[0])));
    Ok(())
}

/// The database did its part, and the answer was lost on the way: the repeated call changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn answers_of_the_database_that_are_lost() -> Result<()> {
    let world = world_of(USERS).await?;
    let gateway = world.environment.gateway.faults();
    for function in
        ["jobs_plan_mails", "mail_claim", "mail_seal", "mail_extend", "mail_settle", "jobs_report"]
    {
        gateway.add(Rule::on(function, Fault::CutAfter).times(1));
    }
    // So that something is extended.
    world.resend.faults().add(Rule::on(BATCH, Fault::CutAfter).times(1));
    let function = world.function("daily-tasks").await?;
    let answer = function.call(Method::GET, "", Some(&format!("Bearer {SECRET}"))).await?.json();
    let part = &answer["results"]["upgradeEmails"];
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert!(!function.log().contains("taken over"), "{}", function.log());
    check(&world).await?;
    assert_eq!(requests(&world).len(), 2);
    let items: i64 = world.value("select count(*) from jobs.job_items").await?;
    assert_eq!(items, 5);
    Ok(())
}

/// A mail is given back, and the answer to that is lost: one attempt is counted, not two.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_giving_back_counts_once() -> Result<()> {
    let world = world_of(USERS).await?;
    plan(&world).await?;
    world.environment.gateway.faults().add(Rule::on("mail_give_back", Fault::CutAfter).times(1));
    world.resend.faults().add(Rule::on(BATCH, Fault::CutBefore).times(2));
    let part = drain(&world).await?;
    assert_eq!(
        (&part["sent"], &part["errors"], &part["remaining"]),
        (&json!(0), &json!(USERS), &json!(USERS)),
        "{part}"
    );
    assert_eq!(attempts(&world).await?, 5, "one each");
    assert_each_once(&world, []);
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await
}
