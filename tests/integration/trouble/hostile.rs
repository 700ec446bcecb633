//! Answers that lead elsewhere, or are not what they should be: nothing of ours follows, nothing ends in a panic.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    resend::Resend,
};

use super::{SYNC, ask, heal, turnover};
use crate::{
    mails,
    world::{SECRET, World},
};

/// Every service that we send a credential to tells us to go elsewhere with it.
#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_is_followed() -> Result<()> {
    let mut world = World::new().await?;
    world.midday();
    let elsewhere = Resend::bare().await?;
    world.stripe_user("acct_lured").await?;
    world.shopify_user("lured.myshopify.com").await?;
    mails::signed_up(&world, "lured@example.test", "Camille", 4).await?;
    world.set("PING_URL_SYNC_INTEGRATIONS", &format!("{}/5f0c0e52-private", world.resend.url()));
    for status in [301, 302, 303, 307, 308] {
        let location = format!("{}/?secret=x", elsewhere.url());
        let away = || Fault::Answer {
            status,
            headers: vec![("location".into(), location.clone())],
            body: String::new(),
        };
        for faults in [world.stripe.faults(), world.shopify.faults(), world.resend.faults()] {
            faults.clear();
            faults.add(Rule::on("", away()));
        }
        let told = ask(&world, Method::POST, SYNC, "").await?;
        // And, after three refusals, the mail that asks to connect again.
        let errors = told.body["errors"].as_u64().unwrap_or_default();
        assert!(told.status == 200 && errors >= 2, "{status}: {}", told.text);
        let told = ask(&world, Method::GET, "daily-tasks", "").await?;
        assert!(told.body["results"]["upgradeEmails"]["sent"] == json!(0), "{status}: {}", told.text);

        world.environment.gateway.faults().add(Rule::on("/rpc/", away()));
        let told = ask(&world, Method::POST, SYNC, "").await?;
        assert_eq!(told.status, 500, "{status}: {}", told.text);
        world.environment.gateway.faults().clear();
    }
    for faults in [world.stripe.faults(), world.shopify.faults(), world.resend.faults()] {
        assert!(!faults.seen().is_empty(), "each was asked");
    }
    assert!(elsewhere.faults().seen().is_empty(), "{:?}", elsewhere.faults().seen());
    Ok(())
}

/// A parameter's name is the caller's: it comes back as text, in JSON and on a page.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_parameters_are_answered_as_text() -> Result<()> {
    let world = World::new().await?;
    let bearer = format!("Bearer {SECRET}");
    let hostile = "%3Cscript%3Ealert(1)%3C/script%3E%22%27%0D%0Ax=1";
    let function = world.function(SYNC).await?;
    let answer = function.call(Method::POST, hostile, Some(&bearer)).await?;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["x-content-type-options"]),
        (400, &"nosniff".parse()?)
    );
    assert!(answer.headers["content-type"].to_str()?.starts_with("application/json"));
    let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
    assert!(
        error.contains("<script>alert(1)</script>\"'\r\nx") && !answer.text.contains('\n'),
        "{}",
        answer.text
    );
    let page = world.function("status").await?;
    for authorization in [None, Some(bearer.as_str())] {
        let answer = page.call(Method::GET, hostile, authorization).await?;
        assert_eq!(answer.status, 400, "{}", answer.text);
        let html = answer.headers["content-type"].to_str()?.starts_with("text/html");
        let escaped = answer.text.contains("&#60;script&#62;alert(1)") && !answer.text.contains("<script");
        assert!(html && escaped, "{}", answer.text);
    }
    Ok(())
}

/// The database is another version's: what is not as expected is a fault that is said, at whatever
/// step.
#[tokio::test(flavor = "multi_thread")]
async fn database_answers_without_their_fields() -> Result<()> {
    let mut world = World::new().await?;
    let user = world.stripe_user("acct_odd").await?;
    world.stripe.payment("acct_odd", world.earlier(90), 4_200, "eur");
    world.set("JOB_BUDGET_SECONDS", "2");
    let answers = [
        json!({}),
        json!([{}]),
        json!("camille@example.test shpat_x"),
        json!([{"item_id": "camille@example.test", "provider": "camille@example.test"}]),
        json!(7),
    ];
    let faults = world.environment.gateway.faults().clone();
    for function in
        ["jobs_plan_sync", "jobs_claim", "integration_context", "integration_settle", "jobs_report"]
    {
        for answer in &answers {
            faults.clear();
            faults.add(Rule::on(&format!("/rpc/{function}"), Fault::json(200, answer)));
            let told = ask(&world, Method::POST, SYNC, "").await?;
            assert!(!told.log.contains("panic"), "{function} {answer}: {}", told.log);
            let whole =
                told.status == 200 && told.body["errors"] == 0 && told.body.get("remaining").is_none();
            assert!(!whole, "{function} {answer}: {}", told.text);
            // Whoever holds the items lets go of them.
            faults.clear();
            for lane in [
                "update pgmq.q_jobs_stripe set vt = '-infinity'",
                "update jobs.job_items set leased_until = '-infinity' where status = 'queued'",
            ] {
                world.run(lane).await?;
            }
        }
    }
    world.set("JOB_BUDGET_SECONDS", "270");
    heal(&world).await?;
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}
