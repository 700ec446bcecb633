//! Our own key, domain or account is refused: nobody's attempt, one message, and all leaves once it is mended.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    resend::refuse,
};

use super::{
    BATCH, address, all, assert_all_sent, assert_each_once, attempts, blocking, come_back, drain, key,
    requests, signed_up, states, world_of,
};
use crate::world::World;

const USERS: usize = 230;
/// The mail service's words for a domain that nobody has verified.
const DOMAIN: &str = "The comptalyze.example domain is not verified. Please, add and verify your domain.";
/// An address that its user has chosen to read like a fault of ours.
const POISON: &str = "sender.domain.verified@example.test";

/// Answers that each of these mails is refused for a reason that all have in common.
fn each_refused(mails: usize) -> Fault {
    let errors: Vec<_> = (0..mails).map(|index| json!({"index": index, "message": DOMAIN})).collect();
    Fault::json(200, &json!({"data": [], "errors": errors}))
}

async fn sealed_batches(world: &World) -> Result<i64> {
    world.value("select count(*) from jobs.email_batches where state = 'sealed'").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_blocks_and_counts_nothing() -> Result<()> {
    let mut world = world_of(USERS).await?;
    let key = world.replace("RESEND_API_KEY", Some("re_wrong_value".to_owned()));
    for _ in 0..6 {
        let part = drain(&world).await?;
        assert_eq!((&part["sent"], &part["remaining"]), (&json!(0), &json!(USERS)), "{part}");
        assert!(blocking(&part, "mail_key"), "{part}");
        assert!(!part.to_string().contains("re_wrong"), "{part}");
    }
    assert_eq!((states(&world).await?, attempts(&world).await?), (all("planned", 230), 0));
    world.replace("RESEND_API_KEY", key);
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(USERS), &json!(0)), "{part}");
    assert_all_sent(&world, USERS).await
}

/// The key's, the sender's or the domain's fault, told under a name that stands for a mail's own: nobody's mail is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_common_cause_told_as_a_mails_own_blocks() -> Result<()> {
    let world = world_of(5).await?;
    for (status, words, code) in [
        (400, "API key is invalid", "mail_key"),
        (401, "API key is invalid", "mail_key"),
        (422, "Invalid `from` field. The email address needs to follow the format.", "mail_domain"),
        (400, DOMAIN, "mail_domain"),
    ] {
        world.resend.faults().add(Rule::on(BATCH, refuse(status, "validation_error", words)));
        let part = drain(&world).await?;
        assert_eq!((&part["sent"], &part["remaining"]), (&json!(0), &json!(5)), "{words}: {part}");
        assert!(blocking(&part, code), "{words}: {part}");
        world.resend.faults().clear();
    }
    // Of each mail alone, and of some only.
    for (ids, refused) in [(0, vec![0, 1, 2, 3, 4]), (3, vec![1, 3])] {
        let data: Vec<_> = (0..ids).map(|id| json!({"id": format!("mail-{id}")})).collect();
        let errors: Vec<_> = refused.iter().map(|index| json!({"index": index, "message": DOMAIN})).collect();
        let answer = Fault::json(200, &json!({"data": data, "errors": errors}));
        world.resend.faults().add(Rule::on(BATCH, answer));
        let part = drain(&world).await?;
        assert_eq!((&part["sent"], &part["remaining"]), (&json!(ids), &json!(refused.len())), "{part}");
        assert!(blocking(&part, "mail_domain"), "{part}");
        assert_eq!(attempts(&world).await?, 0, "nobody's attempt");
        assert_eq!(sealed_batches(&world).await?, 0, "no batch is left open");
        world.resend.faults().clear();
    }
    let expected = [("planned".to_owned(), 2), ("sent".to_owned(), 3)];
    assert_eq!(states(&world).await?, expected.into(), "three are known to have left");
    let part = drain(&world).await?;
    assert_eq!((&part["remaining"], &part["errors"]), (&Value::Null, &json!(0)), "{part}");
    assert_eq!((states(&world).await?, world.resend.accepted_count()), (all("sent", 5), 2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_refused_of_ours_blocks() -> Result<()> {
    let world = world_of(5).await?;
    for (status, name, code) in [
        (401, "missing_api_key", "mail_key"),
        (401, "restricted_api_key", "mail_key"),
        (403, "suspended_api_key", "mail_key"),
        (403, "validation_error", "mail_domain"),
        (422, "invalid_from_address", "mail_domain"),
        (451, "security_error", "mail_domain"),
    ] {
        world.resend.faults().add(Rule::on(BATCH, refuse(status, name, "No.")));
        let before = requests(&world).len();
        let part = drain(&world).await?;
        assert_eq!((&part["sent"], &part["remaining"]), (&json!(0), &json!(5)), "{name}: {part}");
        assert!(blocking(&part, code), "{name}: {part}");
        assert_eq!(requests(&world).len(), before + 1, "{name}: once is enough");
        world.resend.faults().clear();
    }
    assert_eq!((states(&world).await?, attempts(&world).await?), (all("planned", 5), 0));
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(5), &json!(0)), "{part}");
    assert_all_sent(&world, 5).await
}

/// The first request was accepted and its answer lost: what the next one is told of the domain lets no mail leave under
/// another key.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_left_stays_under_its_key() -> Result<()> {
    let world = world_of(5).await?;
    world.resend.faults().add(Rule::on(BATCH, Fault::CutAfter).times(1));
    world.resend.faults().add(Rule::on(BATCH, each_refused(5)));
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["remaining"]), (&json!(0), &json!(5)), "{part}");
    assert!(blocking(&part, "mail_domain"), "{part}");
    assert_eq!((states(&world).await?, attempts(&world).await?), (all("sealed", 5), 0));
    world.resend.faults().clear();
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["remaining"], &part["errors"]), (&Value::Null, &json!(0)), "{part}");
    assert_all_sent(&world, 5).await?;
    let requests = requests(&world);
    assert!(requests.iter().all(|request| key(request) == key(&requests[0])));
    Ok(())
}

/// The service quotes the address that it refuses, whose words its user has chosen: that mail is refused, and keeps no
/// other one back.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_reads_like_our_fault_blocks_nothing() -> Result<()> {
    let world = world_of(5).await?;
    signed_up(&world, POISON, "Camille Moreau", 4).await?;
    let words = format!("The address {POISON} is not allowed.");
    world.resend.faults().add(Rule::on(BATCH, refuse(422, "validation_error", &words)).body(POISON));
    for _ in 0..3 {
        drain(&world).await?;
        come_back(&world).await?;
    }
    assert_each_once(&world, (0..5).map(address));
    let expected = [("refused".to_owned(), 1), ("sent".to_owned(), 5)];
    assert_eq!(states(&world).await?, expected.into());
    Ok(())
}

/// Somebody else's site answers in the mail service's place, with a redirect or a page: no mail is ever asked of it, so none
/// becomes unknown, and the variable is named.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_somebody_else_answers_loses_no_mail() -> Result<()> {
    let world = world_of(3).await?;
    let html = || vec![("content-type".to_owned(), "text/html".to_owned())];
    let moved = vec![("location".to_owned(), "https://elsewhere.example/".to_owned())];
    let page = "<html><body>Connexion</body></html>".to_owned();
    for answer in [
        Fault::Answer { status: 302, headers: moved, body: String::new() },
        Fault::Answer { status: 307, headers: html(), body: page.clone() },
        Fault::Answer { status: 200, headers: html(), body: page },
    ] {
        world.resend.faults().add(Rule::on("", answer));
        for _ in 0..2 {
            come_back(&world).await?;
            let part = drain(&world).await?;
            assert_eq!((&part["sent"], &part["remaining"]), (&json!(0), &json!(3)), "{part}");
            assert!(blocking(&part, "mail_address"), "{part}");
            assert!(part.to_string().contains("RESEND_BASE_URL"), "{part}");
        }
        assert_eq!((states(&world).await?, attempts(&world).await?), (all("planned", 3), 0));
        world.resend.faults().clear();
    }
    assert!(requests(&world).is_empty(), "nothing was asked of it");
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(3), &json!(0)), "{part}");
    assert_all_sent(&world, 3).await
}

/// It answers in the mail service's place once a batch is under way: the batch keeps its key, and this counts no attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_answer_to_a_batch_counts_no_attempt() -> Result<()> {
    let world = world_of(3).await?;
    let answer = Fault::Answer { status: 200, headers: Vec::new(), body: "<html></html>".into() };
    world.resend.faults().add(Rule::on(BATCH, answer));
    for _ in 0..6 {
        come_back(&world).await?;
        let part = drain(&world).await?;
        assert!(blocking(&part, "mail_address"), "{part}");
    }
    assert_eq!((states(&world).await?, attempts(&world).await?), (all("sealed", 3), 0));
    world.resend.faults().clear();
    come_back(&world).await?;
    let part = drain(&world).await?;
    assert_eq!((&part["sent"], &part["errors"]), (&json!(3), &json!(0)), "{part}");
    let requests = requests(&world);
    assert!(requests.iter().all(|request| key(request) == key(&requests[0])));
    assert_all_sent(&world, 3).await
}
