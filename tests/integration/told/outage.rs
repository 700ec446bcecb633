//! When most integrations of a provider fail alike, the operator is told and the users' mails wait.

use anyhow::Result;
use chrono::TimeDelta;
use serde_json::{Value, json};
use stand_ins::{faults::Rule, stripe};

use crate::{
    mails::received,
    world::{SECRET, World},
};

const SUBJECT: &str = "Votre connexion à Stripe est à refaire";

fn asked(world: &World) -> usize {
    received(world).iter().filter(|(_, subject)| subject == SUBJECT).count()
}

async fn status(world: &World) -> Result<Value> {
    let function = world.function("status").await?;
    let request = jobs::http::client()?.get(function.url()).bearer_auth(SECRET);
    Ok(function.send(request.header("accept", "application/json")).await?.json())
}

/// Syncs, once what waits may be looked at again.
async fn sync(world: &World) -> Result<Value> {
    world.run("update pgmq.q_jobs_alerts set vt = '-infinity'").await?;
    world.post("sync-integrations", "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn mails_wait_while_most_fail_alike_and_only_what_is_still_true_leaves() -> Result<()> {
    let world = World::new().await?;
    let accounts: Vec<String> = (0..12).map(|number| format!("acct_outage{number}")).collect();
    for account in &accounts {
        world.stripe_user(account).await?;
    }
    sync(&world).await?;
    for account in &accounts {
        world.stripe.revoke(account);
    }
    let mut told = Value::Null;
    for _ in 0..4 {
        told = sync(&world).await?;
    }
    assert_eq!(asked(&world), 0, "twelve of twelve: it is not them");
    let problems = told["problems"].as_array().cloned().unwrap_or_default();
    let outages: Vec<_> = problems.iter().filter(|problem| problem["code"] == "outage").collect();
    assert_eq!(outages.len(), 1, "{told}");
    assert!(
        outages[0]["message"].as_str().is_some_and(|said| said.contains("12 connexions sur 12")),
        "{told}"
    );
    let page = status(&world).await?;
    assert_eq!(page["state"], "à corriger", "{page}");
    assert!(page["attention"].to_string().contains("12 connexions sur 12"), "{page}");

    // It is over for ten of them; two are really gone.
    for account in &accounts[..10] {
        world.stripe.reconnect(account, &format!("sk_acct_token_{account}"));
    }
    sync(&world).await?;
    assert_eq!(asked(&world), 2);
    let dropped: i64 = world
        .value("select count(*) from jobs.email_deliveries where kind = 'integration_trouble' and reason = 'connection_good'")
        .await?;
    assert_eq!(dropped, 10);
    Ok(())
}

/// The work is done: that nobody can say whether many fail alike is one fault of its answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_that_cannot_be_looked_up_is_a_fault() -> Result<()> {
    let mut world = World::new().await?;
    let monitor = super::monitor().await?;
    world.set("PING_URL_SYNC_INTEGRATIONS", &format!("{}/sync", monitor.url()));
    for number in 0..12 {
        let account = format!("acct_slow{number}");
        world.stripe_user(&account).await?;
        world.stripe.revoke(&account);
    }
    world.environment.gateway.faults().add(Rule::on("integration_outages", super::timed_out()));
    let told = world.post("sync-integrations", "").await?;
    assert_eq!((&told["errors"], told["results"].as_array().map(Vec::len)), (&json!(13), Some(12)), "{told}");
    let problems = told["problems"].to_string();
    assert!(problems.contains(r#""code":"outages_unknown""#), "{told}");
    let heard = super::heard(&monitor);
    assert!(heard.len() == 2 && heard[1].starts_with("POST /sync/fail: "), "{heard:?}");
    Ok(())
}

/// Nine who fail alike may be nine users.
#[tokio::test(flavor = "multi_thread")]
async fn a_few_are_no_outage() -> Result<()> {
    let world = World::new().await?;
    for number in 0..9 {
        let account = format!("acct_few{number}");
        world.stripe_user(&account).await?;
        world.stripe.revoke(&account);
    }
    for _ in 0..3 {
        sync(&world).await?;
    }
    assert_eq!(asked(&world), 9);
    Ok(())
}

/// Neither nine nor the half are an outage; ten and one more than the half are. What was kept back leaves once, of whom it is
/// still true.
#[tokio::test(flavor = "multi_thread")]
async fn the_bound_is_more_than_half_and_ten() -> Result<()> {
    for (failing, of, held) in [(9, 12, false), (10, 19, true), (10, 20, false), (11, 20, true)] {
        let world = World::new().await?;
        let accounts: Vec<String> = (0..of).map(|number| format!("acct_bound{number}")).collect();
        for account in &accounts {
            world.stripe_user(account).await?;
        }
        sync(&world).await?;
        for account in &accounts[..failing] {
            world.stripe.revoke(account);
        }
        for _ in 0..3 {
            sync(&world).await?;
        }
        assert_eq!(asked(&world), if held { 0 } else { failing }, "{failing} of {of}");
        let told = status(&world).await?["attention"].to_string();
        assert_eq!(
            told.contains(&format!("{failing} connexions sur {of}")),
            held,
            "{failing} of {of}: {told}"
        );
        for account in &accounts[1..failing] {
            world.stripe.reconnect(account, &format!("sk_acct_token_{account}"));
        }
        for _ in 0..2 {
            sync(&world).await?;
        }
        assert_eq!(asked(&world), if held { 1 } else { failing }, "{failing} of {of}, after its end");
    }
    Ok(())
}

/// As long as our own key lacks something, a refusal of its accounts proves nothing against their users.
#[tokio::test(flavor = "multi_thread")]
async fn mails_wait_while_we_are_refused() -> Result<()> {
    let mut world = World::new().await?;
    world.stripe_user("acct_doubted").await?;
    sync(&world).await?;
    world.stripe.revoke("acct_doubted");
    for _ in 0..2 {
        sync(&world).await?;
    }
    world.stripe.faults().add(Rule::on("/v1/balance_transactions", stripe::restricted("rak_charge_read")));
    sync(&world).await?;
    world.stripe.faults().clear();
    sync(&world).await?;
    assert_eq!(asked(&world), 0, "the third refusal, just after ours");
    assert_eq!(status(&world).await?["state"], "à corriger");
    world.set_now(world.now() + TimeDelta::hours(8));
    sync(&world).await?;
    assert_eq!(asked(&world), 1, "it is still true");
    Ok(())
}

/// A mail that waits as long as the outage lasts is not sent late.
#[tokio::test(flavor = "multi_thread")]
async fn what_waited_too_long_expires_unsent() -> Result<()> {
    let world = World::new().await?;
    for number in 0..10 {
        let account = format!("acct_long{number}");
        world.stripe_user(&account).await?;
        world.stripe.revoke(&account);
    }
    for _ in 0..3 {
        sync(&world).await?;
    }
    world.run("update jobs.email_deliveries set expires_at = $now - interval '1 minute'").await?;
    sync(&world).await?;
    assert_eq!(asked(&world), 0);
    let expired: i64 =
        world.value("select count(*) from jobs.email_deliveries where status = 'expired'").await?;
    assert_eq!(expired, 10);
    Ok(())
}

/// What was held until it expired has asked nobody: the outage goes on, and who is really gone is told after its end.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_eight_days_does_not_end_itself() -> Result<()> {
    let mut world = World::new().await?;
    let accounts: Vec<String> = (0..12).map(|number| format!("acct_week{number}")).collect();
    for account in &accounts {
        world.stripe_user(account).await?;
    }
    sync(&world).await?;
    for account in &accounts {
        world.stripe.revoke(account);
    }
    for _ in 0..3 {
        sync(&world).await?;
    }
    world.set_now(world.now() + TimeDelta::days(8));
    for _ in 0..2 {
        sync(&world).await?;
        assert_eq!(asked(&world), 0, "nobody was asked, and most still fail alike");
    }
    assert_eq!(status(&world).await?["state"], "à corriger");
    for account in &accounts[..10] {
        world.stripe.reconnect(account, &format!("sk_acct_token_{account}"));
    }
    sync(&world).await?;
    assert_eq!(asked(&world), 2, "these two are really gone");
    sync(&world).await?;
    assert_eq!(asked(&world), 2, "once");
    Ok(())
}

/// Who can get no mail is never asked: what their connections say is no news of a provider.
#[tokio::test(flavor = "multi_thread")]
async fn whom_no_mail_reaches_makes_no_outage() -> Result<()> {
    let world = World::new().await?;
    for number in 0..12 {
        let account = format!("acct_mute{number}");
        world.stripe_user(&account).await?;
        world.stripe.revoke(&account);
    }
    world.run("update auth.users set email_confirmed_at = null where email not like 'acct_mute0@%'").await?;
    for _ in 0..3 {
        sync(&world).await?;
    }
    assert_eq!(asked(&world), 1);
    Ok(())
}
