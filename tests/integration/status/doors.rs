//! Who is let in, and how.

use anyhow::Result;
use reqwest::Method;
use stand_ins::faults::{Fault, Rule};

use super::{Browser, json, wrong};
use crate::{
    clock::at,
    world::{SECRET, World},
};

#[tokio::test(flavor = "multi_thread")]
async fn only_the_secret_opens_it_and_never_in_the_address() -> Result<()> {
    let world = World::new().await?;
    let function = world.function("status").await?;
    for authorization in ["Bearer wrong", "Bearer ", "Basic eDp5", SECRET] {
        let answer = wrong(&function, Method::GET, Some(authorization), "").await?;
        assert_eq!(answer.status, 401, "{authorization}: {}", answer.text);
        assert!(answer.text.contains("Non autorisé") && !answer.text.contains("Santé"), "{}", answer.text);
    }
    // Nobody: a form in a browser, a refusal for programs.
    let answer = wrong(&function, Method::GET, None, "").await?;
    assert_eq!(answer.status, 200);
    assert!(answer.text.contains("type=\"password\"") && !answer.text.contains("Santé"), "{}", answer.text);
    assert!(answer.headers["content-security-policy"].to_str()?.contains("default-src 'none'"));
    assert!(answer.headers["cache-control"].to_str()?.contains("no-store"));
    let request = jobs::http::client()?.get(function.url()).header("accept", "application/json");
    assert_eq!(request.send().await?.status(), 401);

    for authorization in [None, Some(format!("Bearer {SECRET}"))] {
        let answer =
            wrong(&function, Method::GET, authorization.as_deref(), &format!("secret={SECRET}")).await?;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert!(
            answer.text.contains("jamais dans l’adresse") && !answer.text.contains(SECRET),
            "{}",
            answer.text
        );
    }
    for method in [Method::HEAD, Method::OPTIONS] {
        let answer = wrong(&function, method, Some(&format!("Bearer {SECRET}")), "").await?;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (204, ""));
    }
    assert_eq!(wrong(&function, Method::DELETE, Some(&format!("Bearer {SECRET}")), "").await?.status, 405);
    assert_eq!(json(&function).await?["state"], "à corriger", "no cron has come by yet");
    assert!(!function.log().contains(SECRET));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_signs_in_and_out() -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at("2026-11-25T08:00:00Z"));
    let function = world.function("status").await?;
    let mut browser = Browser::new(&function)?;
    let answer = browser.form(&[("secret", SECRET)]).await?;
    assert_eq!((answer.status.as_u16(), answer.headers["location"].to_str()?), (303, "/api/status"));
    let cookie = answer.headers["set-cookie"].to_str()?.to_owned();
    assert!(cookie.starts_with("__Host-jobs-status=1."), "{cookie}");
    assert!(cookie.ends_with("; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=1800"), "{cookie}");
    assert!(!cookie.contains(SECRET));

    let page = browser.get("").await?;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("Santé") && page.text.contains("Se déconnecter"), "{}", page.text);
    let kept = browser.cookie.clone();
    let answer = browser.own_form(&[("action", "sign-out")]).await?;
    assert_eq!(answer.status, 303);
    assert!(answer.headers["set-cookie"].to_str()?.contains("Max-Age=0"));
    let page = browser.get("").await?;
    assert!(page.text.contains("type=\"password\""), "{}", page.text);

    // Half an hour later the cookie is worth nothing, whoever kept it.
    world.set_now(at("2026-11-25T08:30:00Z"));
    let later = world.function("status").await?;
    let mut browser = Browser { cookie: kept, ..Browser::new(&later)? };
    assert!(browser.get("").await?.text.contains("type=\"password\""));
    let answer = browser.form(&[("action", "retry"), ("lane", "stripe"), ("csrf", "x")]).await?;
    assert_eq!(answer.status, 401, "{}", answer.text);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_are_limited_for_everybody_but_the_bearer() -> Result<()> {
    let world = World::new().await?;
    let function = world.function("status").await?;
    let mut browser = Browser::new(&function)?;
    // The right one does not count, however often.
    for _ in 0..12 {
        assert_eq!(browser.form(&[("secret", SECRET)]).await?.status, 303);
    }
    let mut browser = Browser::new(&function)?;
    let tries = (0..14).map(|n| {
        let request = browser.http.post(function.url()).form(&[("secret", format!("wrong-{n}"))]);
        async move { anyhow::Ok(request.send().await?.status().as_u16()) }
    });
    // Many at once do not pass either.
    let mut answers = futures_util::future::try_join_all(tries).await?;
    answers.sort_unstable();
    assert_eq!(answers, [[401; 10].as_slice(), &[429; 4]].concat());
    let answer = browser.form(&[("secret", SECRET)]).await?;
    assert_eq!(answer.status, 429, "not even the right one");
    let seconds: u64 = answer.headers["retry-after"].to_str()?.parse()?;
    assert!((800..=900).contains(&seconds), "{seconds}");
    assert!(
        answer.text.contains("Trop d’essais") && answer.text.contains("Authorization"),
        "{}",
        answer.text
    );
    // Another process, the same limit; the Bearer is not limited.
    let other = world.function("status").await?;
    assert_eq!(Browser::new(&other)?.form(&[("secret", SECRET)]).await?.status, 429);
    json(&other).await?;

    world.run("update jobs.job_sign_ins set tried_at = tried_at - interval '16 minutes'").await?;
    assert_eq!(browser.form(&[("secret", SECRET)]).await?.status, 303);
    assert_eq!(
        world.value::<i64>("select count(*) from jobs.job_sign_ins").await?,
        0,
        "old ones are forgotten"
    );
    Ok(())
}

/// A try whose note was lost on its way back is one try.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_one_try() -> Result<()> {
    let world = World::new().await?;
    let function = world.function("status").await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("jobs_sign_in", Fault::CutAfter).times(2));
    gateway.add(Rule::on("jobs_signed_in", Fault::CutAfter).times(1));
    let mut browser = Browser::new(&function)?;
    assert_eq!(browser.form(&[("secret", "wrong-one")]).await?.status, 401);
    assert_eq!(browser.form(&[("secret", SECRET)]).await?.status, 303);
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_sign_ins").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_without_the_sessions_token_does_nothing() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    let function = world.function("status").await?;
    let (mut one, mut other) = (Browser::signed_in(&function).await?, Browser::signed_in(&function).await?);
    let page = other.get("").await?.text;
    let token = page.split_once("name=\"csrf\" value=\"").unwrap().1.split('"').next().unwrap().to_owned();
    let retry = [("action", "retry"), ("lane", "stripe")];
    for csrf in [None, Some(""), Some("AAAA"), Some(token.as_str())] {
        let fields: Vec<_> = retry.into_iter().chain(csrf.map(|csrf| ("csrf", csrf))).collect();
        let answer = one.form(&fields).await?;
        assert_eq!(answer.status, 403, "{csrf:?}: {}", answer.text);
    }
    assert_eq!(other.form(&[("action", "retry"), ("lane", "stripe"), ("csrf", &token)]).await?.status, 303);
    // Nor does a look change anything.
    let rows = "select (select count(*) from public.sync_logs) + (select count(*) from jobs.job_runs)";
    super::eventually(&world, "select count(*) = 1 from public.sync_logs").await?;
    let before: i64 = world.value(rows).await?;
    one.get("").await?;
    one.get("?fait=rejeu").await?;
    json(&function).await?;
    assert_eq!(world.value::<i64>(rows).await?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_nobody_gets_in() -> Result<()> {
    let mut world = World::new().await?;
    world.set("CRON_SECRET", "  ");
    let function = world.function("status").await?;
    for secret in ["", " ", "undefined"] {
        let answer = Browser::new(&function)?.form(&[("secret", secret)]).await?;
        assert_eq!(answer.status, 401, "{}", answer.text);
        let answer = wrong(&function, Method::GET, Some(&format!("Bearer {secret}")), "").await?;
        assert_eq!(answer.status, 401);
    }
    Ok(())
}
