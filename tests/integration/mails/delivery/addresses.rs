//! A bad address keeps no other mail back, however the service says so.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    resend::refuse,
};

use super::{
    BATCH, address, assert_all_sent, assert_each_once, come_back, drain, key, noted, requests, size, states,
    until, world_of,
};
use crate::world::{SECRET, World};

const BAD: &str = "user-37@example.test";

fn invalid() -> Fault {
    refuse(422, "validation_error", "Invalid `to` field: user-37@example.test is none.")
}

/// All but the bad one got their mail, and the bad one's outcome is told without its address.
async fn check(world: &World, users: usize, part: &Value) -> Result<()> {
    assert_each_once(world, (0..users).map(address).filter(|address| address != BAD));
    let sent = users - 1;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(sent), &json!(1)), "{part}");
    assert!(part.get("remaining").is_none(), "{part}");
    assert_eq!(part["problems"][0]["code"], "refused", "{part}");
    assert!(part["problems"][0]["message"].as_str().is_some_and(|m| m.contains("`to`")), "{part}");
    assert!(!part.to_string().contains('@'), "{part}");
    let expected = [("refused".to_owned(), 1), ("sent".to_owned(), i64::try_from(sent)?)];
    assert_eq!(states(world).await?, expected.into());
    assert_eq!(noted(world).await?, i64::try_from(sent)?);
    let reason: String =
        world.value("select reason from jobs.email_deliveries where status = 'refused'").await?;
    assert!(reason.contains("`to`") && !reason.contains('@'), "{reason}");
    // Nothing is left that would be tried again.
    let asked = requests(world).len();
    come_back(world).await?;
    drain(world).await?;
    assert_eq!(requests(world).len(), asked);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_alone() -> Result<()> {
    let world = world_of(100).await?;
    world.resend.refuse_address(BAD);
    let function = world.function("daily-tasks").await?;
    let answer = function.call(Method::GET, "", Some(&format!("Bearer {SECRET}"))).await?.json();
    check(&world, 100, &answer["results"]["upgradeEmails"]).await?;
    assert_eq!(requests(&world).len(), 1);
    assert!(!function.log().contains("example.test"), "{}", function.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_with_its_batch() -> Result<()> {
    let world = world_of(100).await?;
    world.resend.faults().add(Rule::on(BATCH, invalid()).body(BAD));
    let function = world.function("daily-tasks").await?;
    let answer = function.call(Method::GET, "", Some(&format!("Bearer {SECRET}"))).await?.json();
    check(&world, 100, &answer["results"]["upgradeEmails"]).await?;
    assert!(!function.log().contains("example.test"), "{}", function.log());
    let requests = requests(&world);
    assert!(requests.len() <= 15, "halves: {}", requests.len());
    let keys: BTreeSet<&str> = requests.iter().map(key).collect();
    assert_eq!(keys.len(), requests.len(), "each part under a key of its own");
    Ok(())
}

/// The service refuses a batch on a whim: the same mails are accepted in two halves.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_refused_once() -> Result<()> {
    let world = world_of(100).await?;
    world.resend.faults().add(Rule::on(BATCH, invalid()).times(1));
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(100), &json!(0)), "{part}");
    assert_all_sent(&world, 100).await?;
    assert_eq!(requests(&world).iter().map(size).collect::<Vec<_>>(), [100, 50, 50]);
    Ok(())
}

/// An outcome is not known, then the same payload is refused: it never was accepted.
#[tokio::test(flavor = "multi_thread")]
async fn refused_at_the_second_try() -> Result<()> {
    let world = world_of(40).await?;
    world.resend.faults().add(Rule::on(BATCH, Fault::CutBefore).times(1));
    world.resend.faults().add(Rule::on(BATCH, invalid()).body(BAD));
    let part = drain(&world).await?;
    check(&world, 40, &part).await
}

/// The function is killed in the middle of the search, before and after the split is written down,
/// and before and after a part left.
#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_split() -> Result<()> {
    let long = Fault::Delay(Duration::from_mins(5));
    for (function, skip) in [("mail_split", 0), ("mail_split", 2), ("mail_settle", 0), (BATCH, 3)] {
        let world = world_of(40).await?;
        let (gateway, resend) = (world.environment.gateway.faults(), world.resend.faults());
        let faults = if function == BATCH { resend } else { gateway };
        faults.add(Rule::on(function, long.clone()).skip(skip));
        resend.add(Rule::on(BATCH, invalid()).body(BAD));
        let mut process = world.function("daily-tasks").await?;
        let bearer = format!("Bearer {SECRET}");
        {
            let call = process.call(Method::GET, "", Some(&bearer));
            tokio::select! {
                answer = call => panic!("answered before it was killed: {answer:?}"),
                reached = until(function, async || Ok(faults.count(function) == skip + 1)) => reached?,
            }
        }
        process.kill().await?;
        faults.clear();
        resend.clear();
        resend.add(Rule::on(BATCH, invalid()).body(BAD));
        come_back(&world).await?;
        let part = drain(&world).await?;
        check(&world, 40, &part).await?;
    }
    Ok(())
}

/// The answer to a split is lost: it is not split twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_a_split() -> Result<()> {
    let world = world_of(40).await?;
    world.environment.gateway.faults().add(Rule::on("mail_split", Fault::CutAfter).times(2));
    world.resend.faults().add(Rule::on(BATCH, invalid()).body(BAD));
    let part = drain(&world).await?;
    check(&world, 40, &part).await
}
