//! Our own address is looked at: a redirect, a login or somebody else there is red before a chain stops in silence.

use anyhow::Result;
use serde_json::Value;
use stand_ins::{
    faults::{Fault, Rule},
    resend::Resend,
};

use super::json;
use crate::{mails::received, world::World};

async fn told(world: &World) -> Result<Value> {
    let told = json(&world.function("status").await?).await?;
    let checks = told["health"].as_array().cloned().unwrap_or_default();
    Ok(checks.into_iter().find(|check| check["name"] == "Adresse de ce déploiement").unwrap_or_default())
}

fn page(status: u16, headers: &[(&str, &str)], body: &str) -> Fault {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Fault::Answer { status, headers, body: body.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_looked_at_in_production() -> Result<()> {
    let mut world = World::new().await?;
    world.midday();
    assert_eq!(told(&world).await?, Value::Null, "elsewhere no address is this deployment's own");
    world.set("VERCEL_ENV", "production");
    world.set("OPERATOR_EMAIL", "operator@example.test");

    // The function that mails link to, with our keys: it leads here.
    let own = world.function("unsubscribe").await?;
    world.set("JOBS_BASE_URL", own.url().trim_end_matches("/api/unsubscribe"));
    assert_eq!(told(&world).await?["state"], "bon");
    // The same service with other keys: another deployment.
    let keys = world.replace("ENCRYPTION_KEY", Some("another-key-of-thirty-two-bytes!".into()));
    let check = told(&world).await?;
    assert_eq!(check["state"], "à corriger", "{check}");
    assert!(check["message"].as_str().is_some_and(|words| words.contains("autre déploiement")), "{check}");
    world.replace("ENCRYPTION_KEY", keys);

    let other = Resend::bare().await?;
    world.set("JOBS_BASE_URL", &other.url());
    for (answer, words) in [
        (page(308, &[("location", "https://elsewhere.example/")], ""), "redirige"),
        (page(401, &[("content-type", "text/html")], "<title>Login</title>"), "connexion"),
        (page(200, &[("content-type", "text/html")], "<h1>Comptalyze</h1>"), "autre service"),
    ] {
        other.faults().clear();
        other.faults().add(Rule::on("", answer));
        let check = told(&world).await?;
        assert_eq!(check["state"], "à corriger", "{check}");
        assert!(check["message"].as_str().is_some_and(|message| message.contains(words)), "{check}");
        assert!(!check.to_string().contains("127.0.0.1"), "{check}");
    }
    assert!(other.faults().seen().iter().all(|seen| !seen.headers.contains_key("authorization")));
    // The operator reads it without looking at the page.
    world.cron("daily-orchestrator", "").await?;
    assert!(received(&world).iter().any(|(to, _)| to == "operator@example.test"));
    let mail = world.resend.accepted().last().and_then(|mail| mail.mail.text.clone()).unwrap_or_default();
    assert!(mail.contains("Adresse de ce déploiement"), "{mail}");
    Ok(())
}
