//! A question that is too large for the database, since some users have very much in their books, is asked of fewer of them
//! at once: nobody else waits for a morning on which they have less.

use std::collections::BTreeSet;

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::faults::{Fault, Rule};

use super::{ORDINARY_DAY, SECOND, call, sound_users};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_long_is_asked_of_fewer_users_at_once() -> Result<()> {
    let mut world = World::new().await?;
    let users = sound_users(&world).await?;
    let gateway = world.environment.gateway.faults().clone();
    let slow = json!({"code": "57014", "message": "canceling statement due to statement timeout"});
    // As many as are usually asked about, and the next smaller number.
    for (function, limits) in [("mail_claim", ["100", "10"]), ("threshold_books", ["20000", "2000"])] {
        for limit in limits {
            gateway.add(Rule::on(function, Fault::json(500, &slow)).body(&format!("\"p_limit\":{limit},")));
        }
    }
    let told = call(&mut world, ORDINARY_DAY, Method::POST, "check-thresholds").await?;
    assert_eq!((&told["sent"], &told["errors"]), (&json!(users.len()), &json!(0)), "{told}");
    assert_eq!(told["checked"], users.len(), "everybody was looked at once: {told}");
    let told = call(&mut world, SECOND, Method::GET, "send-reminders").await?;
    assert_eq!((&told["sent"], &told["errors"]), (&json!(2), &json!(0)), "{told}");
    // It was asked of many, of fewer, and then of fewer still.
    let seen = gateway.seen();
    for function in ["mail_claim", "threshold_books"] {
        let sizes: BTreeSet<u64> = seen
            .iter()
            .filter(|call| call.target.ends_with(function))
            .filter_map(|call| serde_json::from_str::<Value>(&call.body).ok()?["p_limit"].as_u64())
            .collect();
        assert!(sizes.len() > 2, "{function}: {sizes:?}");
    }

    // Where even one user is too much, it is said.
    gateway.clear();
    gateway.add(Rule::on("threshold_books", Fault::json(500, &slow)));
    let answer = world.call(Method::POST, "check-thresholds", "").await?;
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert!(answer.text.contains("threshold_books"), "{}", answer.text);
    Ok(())
}
