//! Our own key, domain or account is refused: nobody's attempt, one message, and all leaves once it is mended.

use anyhow::Result;
use serde_json::json;
use stand_ins::{faults::Rule, resend::refuse};

use super::{BATCH, all, assert_all_sent, attempts, blocking, drain, requests, states, world_of};

const USERS: usize = 230;

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

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_refused_of_ours_blocks() -> Result<()> {
    let world = world_of(5).await?;
    for (status, name, code) in [
        (401, "missing_api_key", "mail_key"),
        (401, "restricted_api_key", "mail_key"),
        (403, "suspended_api_key", "mail_key"),
        (403, "validation_error", "mail_domain"),
        (422, "invalid_from_address", "mail_domain"),
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
