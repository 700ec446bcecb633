//! Batches whose outcome nobody knows, when it is too late to ask again or the mail looks different by now.

use anyhow::Result;
use serde_json::json;
use stand_ins::faults::{Fault, Rule};

use super::{
    BATCH, all, assert_all_sent, assert_each_once, come_back, drain, key, noted, requests, states, world_of,
};

const USERS: usize = 5;

/// The service has forgotten the key: another request could be a second mail.
#[tokio::test(flavor = "multi_thread")]
async fn older_than_the_key_is_not_sent_again() -> Result<()> {
    for lost in [Fault::CutAfter, Fault::CutBefore] {
        let accepted = if matches!(lost, Fault::CutAfter) { USERS } else { 0 };
        let world = world_of(USERS).await?;
        world.resend.faults().add(Rule::on(BATCH, lost).times(2));
        drain(&world).await?;
        world.resend.forget_keys();
        world.run("update jobs.email_batches set sealed_at = sealed_at - interval '24 hours'").await?;
        for _ in 0..2 {
            come_back(&world).await?;
            let part = drain(&world).await?;
            assert_eq!((&part["sent"], &part["errors"]), (&json!(0), &json!(USERS)), "{part}");
            assert_eq!(part["problems"][0]["code"], "unknown_outcome", "{part}");
            assert!(part.get("remaining").is_none(), "{part}");
        }
        assert_eq!((requests(&world).len(), world.resend.accepted_count()), (2, accepted));
        assert_eq!((states(&world).await?, noted(&world).await?), (all("unknown", 5), 5));
    }
    Ok(())
}

/// A deploy changes what the mail says. The service took it as it was, and refuses the key with another payload.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_changed_after_the_service_accepted() -> Result<()> {
    let mut world = world_of(USERS).await?;
    world.resend.faults().add(Rule::on(BATCH, Fault::CutAfter).times(2));
    drain(&world).await?;
    world.set("SENDER_IDENTITY", "Comptalyze SAS, 2 rue d’Ailleurs, 69000 Lyon");
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await?;
    assert!(
        world.resend.accepted().iter().all(|a| a.mail.text.as_deref().is_some_and(|t| t.contains("75000")))
    );
    Ok(())
}

/// Nothing had been accepted: the new mail leaves, under the old key.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_changed_before_the_service_accepted() -> Result<()> {
    let mut world = world_of(USERS).await?;
    world.resend.faults().add(Rule::on(BATCH, Fault::CutBefore).times(2));
    drain(&world).await?;
    world.set("SENDER_IDENTITY", "Comptalyze SAS, 2 rue d’Ailleurs, 69000 Lyon");
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await?;
    let requests = requests(&world);
    assert!(requests.iter().all(|request| key(request) == key(&requests[0])));
    Ok(())
}

/// A changed mail that is refused says nothing about the one that was sealed.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_mail_that_is_refused_is_not_split() -> Result<()> {
    let mut world = world_of(USERS).await?;
    world.resend.faults().add(Rule::on(BATCH, Fault::CutBefore).times(2));
    drain(&world).await?;
    world.set("SENDER_IDENTITY", "Comptalyze SAS, 2 rue d’Ailleurs, 69000 Lyon");
    let refusal = stand_ins::resend::refuse(422, "validation_error", "Not this.");
    world.resend.faults().add(Rule::on(BATCH, refusal));
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(0), &json!(USERS)), "{part}");
    assert_eq!((states(&world).await?, requests(&world).len()), (all("unknown", 5), 3));
    assert_each_once(&world, []);
    Ok(())
}

/// One sealed mail cannot be rendered any more: the others of its batch leave, or are known to have left.
#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_cannot_be_rendered_again_is_lost_alone() -> Result<()> {
    for (lost, accepted) in [(Fault::CutAfter, USERS), (Fault::CutBefore, USERS - 1)] {
        let world = world_of(USERS).await?;
        world.resend.faults().add(Rule::on(BATCH, lost).times(2));
        drain(&world).await?;
        world
            .run("update jobs.email_deliveries set facts = '{\"first_name\": 5}' where address = 'user-2@example.test'")
            .await?;
        come_back(&world).await?;
        let part = drain(&world).await?;
        assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS - 1), &json!(1)), "{part}");
        assert_eq!(part["problems"][0]["code"], "unknown_outcome", "{part}");
        let expected = [("sent".to_owned(), 4), ("unknown".to_owned(), 1)];
        assert_eq!(states(&world).await?, expected.into());
        let requests = requests(&world);
        assert!(requests.iter().all(|request| key(request) == key(&requests[0])));
        assert_eq!(world.resend.accepted().len(), accepted);
    }
    Ok(())
}
