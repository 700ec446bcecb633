//! The mail service does not answer, or with something that says nothing: no mail twice, none lost.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    resend::refuse,
};

use super::{
    BATCH, all, assert_all_sent, assert_each_once, attempts, blocking, come_back, drain, key, noted, plan,
    requests, states, world_of,
};
use crate::world::World;

const USERS: usize = 5;

fn page(status: u16) -> Fault {
    let headers = vec![("content-type".to_owned(), "text/html".to_owned())];
    Fault::Answer { status, headers, body: "<html>gateway</html>".to_owned() }
}

/// Returns what does not say whether the mails were accepted.
fn silences() -> Vec<Fault> {
    vec![
        Fault::CutBefore,
        Fault::CutAfter,
        refuse(500, "application_error", "An unexpected error occurred."),
        refuse(503, "service_unavailable", "Try later."),
        page(502),
        Fault::json(200, &json!({"data": [{"id": "not-all-of-them"}]})),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn once_is_made_good_within_the_call() -> Result<()> {
    for silence in silences() {
        let world = world_of(USERS).await?;
        world.resend.faults().add(Rule::on(BATCH, silence.clone()).times(1));
        let part = drain(&world).await?;
        assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{silence:?} {part}");
        assert_all_sent(&world, USERS).await?;
        let requests = requests(&world);
        assert_eq!((requests.len(), attempts(&world).await?), (2, 0));
        assert_eq!((key(&requests[0]), &requests[0].body), (key(&requests[1]), &requests[1].body));
    }
    Ok(())
}

/// Twice is an attempt: told as an error, and tried again as sealed.
#[tokio::test(flavor = "multi_thread")]
async fn twice_is_made_good_by_the_next_call() -> Result<()> {
    for silence in [Fault::CutAfter, Fault::CutBefore] {
        let world = world_of(USERS).await?;
        world.resend.faults().add(Rule::on(BATCH, silence).times(2));
        let part = drain(&world).await?;
        assert_eq!(
            (&part["sent"], &part["errors"], &part["remaining"]),
            (&json!(0), &json!(USERS), &json!(USERS)),
            "{part}"
        );
        assert_eq!((states(&world).await?, attempts(&world).await?), (all("sealed", 5), 5));
        come_back(&world).await?;
        let part = drain(&world).await?;
        assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
        assert_all_sent(&world, USERS).await?;
        let requests = requests(&world);
        assert!(requests.iter().all(|request| key(request) == key(&requests[0])));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fifth_attempt_ends_as_unknown() -> Result<()> {
    let world = world_of(USERS).await?;
    world
        .resend
        .faults()
        .add(Rule::on(BATCH, refuse(500, "application_error", "An unexpected error occurred.")));
    for attempt in 1..=5 {
        come_back(&world).await?;
        let part = drain(&world).await?;
        assert_eq!((&part["sent"], &part["errors"]), (&json!(0), &json!(USERS)), "{attempt}: {part}");
        assert_eq!(part.get("remaining").is_some(), attempt < 5, "{attempt}: {part}");
    }
    assert_eq!(states(&world).await?, all("unknown", 5));
    assert_eq!(noted(&world).await?, 5, "nobody writes to them again");
    let requests_made = requests(&world);
    assert_eq!(requests_made.len(), 10);
    assert!(requests_made.iter().all(|request| key(request) == key(&requests_made[0])));
    world.resend.faults().clear();
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(0), &json!(USERS)), "{part}");
    assert_eq!((requests(&world).len(), world.resend.accepted_count()), (10, 0));
    Ok(())
}

/// No connection comes about: nothing was asked, so another batch may carry the mails; and nobody's
/// mail is to blame, however often.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_be_reached() -> Result<()> {
    let mut world = world_of(USERS).await?;
    plan(&world).await?;
    // A port of nobody's: it was free a moment ago.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let there = world.replace("RESEND_BASE_URL", Some(format!("http://{closed}")));
    for _ in 0..6 {
        let part = drain(&world).await?;
        assert_eq!((&part["errors"], &part["remaining"]), (&json!(1), &json!(USERS)), "{part}");
        assert!(blocking(&part, "connect"), "{part}");
    }
    assert_eq!((states(&world).await?, attempts(&world).await?), (all("planned", 5), 0));
    world.replace("RESEND_BASE_URL", there);
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await
}

async fn stalled(world: &World) -> Result<()> {
    let answer = super::call(world).await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let part = &answer.json()["results"]["upgradeEmails"];
    assert_eq!((&part["sent"], &part["remaining"]), (&json!(0), &json!(USERS)), "{part}");
    assert_eq!(states(world).await?, all("sealed", 5));
    assert_each_once(world, []);
    Ok(())
}

/// The last request of the budget stalls: there is time left to give its batch back and to tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_stall_at_the_end_of_the_budget() -> Result<()> {
    let mut world = world_of(USERS).await?;
    world.set("JOB_BUDGET_SECONDS", "1");
    world.resend.faults().add(Rule::on(BATCH, Fault::Delay(Duration::from_mins(5))).times(1));
    stalled(&world).await?;
    let held: i64 = world.value("select count(*) from jobs.job_items where lease_id is not null").await?;
    assert_eq!(held, 0, "given back");
    world.set("JOB_BUDGET_SECONDS", "270");
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await
}

/// The service takes longer than we wait, and accepts: the second request gets the first one's answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_stall_beyond_the_timeout() -> Result<()> {
    let world = world_of(USERS).await?;
    world.resend.set_work(Duration::from_millis(20_500));
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await?;
    assert_eq!(requests(&world).len(), 2);
    Ok(())
}
