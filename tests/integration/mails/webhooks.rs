//! What the mail service reports: believed when it is signed, of these minutes, and new.

use anyhow::Result;
use chrono::TimeDelta;
use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    resend::webhooks::{Bounce, bounced, complained, delivered, signing_secret, svix_headers},
};

use super::given::{mail_to, recipients};
use super::signed_up_at;
use crate::world::{Answer, Function, World};

async fn post(function: &Function, headers: HeaderMap, body: &str) -> Result<Answer> {
    function.send(jobs::http::client()?.post(function.url()).headers(headers).body(body.to_owned())).await
}

/// Sends an event that is signed as Resend does, now.
async fn send(world: &World, function: &Function, id: &str, body: &str) -> Result<Answer> {
    let headers = svix_headers(world.var("RESEND_WEBHOOK_SECRET"), id, world.now().timestamp(), body)?;
    post(function, headers, body).await
}

fn received(new: bool) -> Value {
    json!({"received": true, "new": new})
}

async fn suppressed(world: &World) -> Result<i64> {
    world.value("select count(*) from jobs.email_suppressions").await
}

#[tokio::test(flavor = "multi_thread")]
async fn bounces_and_complaints_keep_mails_away() -> Result<()> {
    let mut world = World::new().await?;
    let noon = world.midday();
    let names = ["permanent", "complains", "transient", "undetermined", "together", "well"];
    for name in names {
        signed_up_at(&world, &format!("{name}@example.test"), name, noon - TimeDelta::days(4)).await?;
    }
    world.cron("daily-tasks", "").await?;
    assert_eq!(world.resend.accepted_count(), names.len());
    let id = |name: &str| mail_to(&world, &format!("{name}@example.test")).id;
    let mut many = bounced(&id("together"), "together@example.test", Bounce::Permanent, "General");
    many["data"]["to"] = json!(["together@example.test", "well@example.test"]);
    let events = [
        // As somebody's own mail program writes the address.
        (
            "msg_1",
            bounced(&id("permanent"), "Permanent <PERMANENT@example.test>", Bounce::Permanent, "NoEmail"),
        ),
        ("msg_2", complained(&id("complains"), "complains@example.test")),
        ("msg_3", bounced(&id("transient"), "transient@example.test", Bounce::Transient, "MailboxFull")),
        (
            "msg_4",
            bounced(&id("undetermined"), "undetermined@example.test", Bounce::Undetermined, "Undetermined"),
        ),
        ("msg_5", many),
        ("msg_6", delivered(&id("well"), "well@example.test")),
        ("msg_7", json!({"type": "contact.created", "data": {"email": "x@example.test", "to": []}})),
        ("msg_8", json!({"type": "un.jour.peut-être"})),
    ];
    let function = world.function("resend").await?;
    for (id, event) in &events {
        let body = event.to_string();
        let answer = send(&world, &function, id, &body).await?;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, received(true)), "{event}");
        let again = send(&world, &function, id, &body).await?;
        assert_eq!((again.status.as_u16(), again.json()), (200, received(false)), "{event}");
    }
    assert_eq!(suppressed(&world).await?, 2);
    // An id that is known has no effect, whatever comes under it.
    let body = complained(&id("well"), "well@example.test").to_string();
    assert_eq!(send(&world, &function, "msg_1", &body).await?.json(), received(false));
    assert_eq!(suppressed(&world).await?, 2);
    let feedback: Value = world
        .value(
            "select jsonb_object_agg(split_part(address, '@', 1), feedback) from jobs.email_deliveries \
             where feedback is not null",
        )
        .await?;
    assert_eq!(
        (&feedback["permanent"], &feedback["complains"], feedback.get("transient")),
        (&json!("bounced"), &json!("complained"), None),
        "{feedback}"
    );
    let kept: String = world
        .value("select string_agg(encode(address_hash, 'escape'), ' ') from jobs.email_suppressions")
        .await?;
    assert!(!kept.contains("example.test"), "suppressions remember no address");

    // The next mail does not go to those two.
    world.resend.clear().await?;
    world.run("delete from jobs.email_deliveries").await?;
    world.run("delete from public.marketing_emails").await?;
    world.run("delete from jobs.job_slots").await?;
    let tried = world.cron("daily-tasks", "dry_run=true").await?;
    assert_eq!(tried["results"]["upgradeEmails"]["dryRun"]["skipped"], json!({"suppressed": 2}), "{tried}");
    world.cron("daily-tasks", "").await?;
    assert_eq!(
        recipients(&world),
        ["together", "transient", "undetermined", "well"].map(|name| format!("{name}@example.test"))
    );
    let log = function.log();
    assert!(!log.contains("@example.test"), "{log}");
    Ok(())
}

/// It is noted, and the database's answer is lost: once is enough, and Resend need not send it
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_of_the_database_notes_once() -> Result<()> {
    let mut world = World::new().await?;
    let noon = world.midday();
    signed_up_at(&world, "gone@example.test", "Camille", noon - TimeDelta::days(4)).await?;
    world.cron("daily-tasks", "").await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("mail_feedback", Fault::CutAfter).times(1));
    let function = world.function("resend").await?;
    let mail = mail_to(&world, "gone@example.test").id;
    let event = bounced(&mail, "gone@example.test", Bounce::Permanent, "NoEmail").to_string();
    let answer = send(&world, &function, "msg_1", &event).await?;
    assert_eq!((answer.status.as_u16(), &answer.json()["received"]), (200, &json!(true)), "{}", answer.text);
    assert_eq!((gateway.count("mail_feedback"), suppressed(&world).await?), (2, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_resend_has_signed_these_minutes() -> Result<()> {
    let world = World::new().await?;
    let function = world.function("resend").await?;
    let secret = world.var("RESEND_WEBHOOK_SECRET");
    let body = complained("x", "victim@example.test").to_string();
    let now = world.now().timestamp();
    let good = svix_headers(secret, "msg_x", now, &body)?;
    let with = |name: &'static str, value: &str| -> Result<HeaderMap> {
        let mut headers = good.clone();
        headers.insert(name, value.parse()?);
        Ok(headers)
    };
    let without = |name: &str| {
        let mut headers = good.clone();
        headers.remove(name);
        headers
    };
    let refused = [
        ("another secret", svix_headers(&signing_secret(), "msg_x", now, &body)?),
        ("another body", svix_headers(secret, "msg_x", now, "{}")?),
        ("another id", with("svix-id", "msg_y")?),
        ("another time", with("svix-timestamp", &(now - 1).to_string())?),
        ("no time", with("svix-timestamp", "hier")?),
        ("too old", svix_headers(secret, "msg_x", now - 301, &body)?),
        // Far enough that it is still too new when it arrives.
        ("too new", svix_headers(secret, "msg_x", now + 420, &body)?),
        ("no id", without("svix-id")),
        ("no timestamp", without("svix-timestamp")),
        ("no signature", without("svix-signature")),
        ("none of them", HeaderMap::new()),
        ("no version", with("svix-signature", good["svix-signature"].to_str()?.trim_start_matches("v1,"))?),
        ("version 2", with("svix-signature", &good["svix-signature"].to_str()?.replace("v1,", "v2,"))?),
    ];
    for (what, headers) in refused {
        let answer = post(&function, headers, &body).await?;
        assert_eq!(answer.status, 401, "{what}: {}", answer.text);
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        let expected = if what.starts_with("too ") { "Horodatage refusé" } else { "Signature refusée" };
        assert!(error.starts_with(expected), "{what}: {error}");
    }
    assert_eq!(suppressed(&world).await?, 0);
    assert_eq!(world.value::<i64>("select count(*) from jobs.email_events").await?, 0);

    // While the secret is being changed there are several signatures.
    let other = svix_headers(&signing_secret(), "msg_x", now, &body)?;
    let both =
        [&other, &good].map(|headers| headers["svix-signature"].to_str().unwrap_or_default()).join(" ");
    let answer = post(&function, with("svix-signature", &both)?, &body).await?;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, received(true)));
    assert_eq!(suppressed(&world).await?, 1);
    // Late, and not too late.
    let late = svix_headers(secret, "msg_late", now - 200, &body)?;
    assert_eq!(post(&function, late, &body).await?.status, 200);

    for (method, status) in
        [(Method::GET, 405), (Method::PUT, 405), (Method::HEAD, 204), (Method::OPTIONS, 204)]
    {
        let answer = function.call(method.clone(), "", None).await?;
        assert_eq!(answer.status.as_u16(), status, "{method}");
        assert!(answer.headers["allow"].to_str()?.contains("POST"), "{method}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_events_are_refused() -> Result<()> {
    let world = World::new().await?;
    let function = world.function("resend").await?;
    let long = "x".repeat(300_000);
    let garbage = [
        "",
        "null",
        "[]",
        "{}",
        "pas du JSON",
        r#"{"type": 7}"#,
        r#"{"data": {}}"#,
        "\u{0}",
        &long,
        r#"{"type": "email.bounced", "data": {"to": "a@example.test"}}"#,
        r#"{"type": "email.bounced", "data": {"to": [7]}}"#,
    ];
    for (number, body) in garbage.into_iter().enumerate() {
        let answer = send(&world, &function, &format!("msg_{number}"), body).await?;
        assert_eq!(answer.status, 400, "{body:.40}: {}", answer.text);
        assert!(answer.json()["error"].as_str().is_some_and(|error| error.starts_with("Corps illisible")));
    }
    assert_eq!(world.value::<i64>("select count(*) from jobs.email_events").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_secret_it_says_which() -> Result<()> {
    let mut world = World::new().await?;
    let body = complained("x", "victim@example.test").to_string();
    for (value, hint) in
        [(None, "n’est pas définie"), (Some("re_wrong"), "whsec_"), (Some("whsec_%%%"), "illisible")]
    {
        let right = world.replace("RESEND_WEBHOOK_SECRET", value.map(str::to_owned));
        let function = world.function("resend").await?;
        let headers =
            svix_headers(right.as_deref().unwrap_or_default(), "msg_x", world.now().timestamp(), &body)?;
        let answer = post(&function, headers, &body).await?;
        assert_eq!(answer.status, 500, "{}", answer.text);
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains("RESEND_WEBHOOK_SECRET") && error.contains(hint), "{error}");
        world.replace("RESEND_WEBHOOK_SECRET", right);
    }
    assert_eq!(suppressed(&world).await?, 0);
    Ok(())
}
