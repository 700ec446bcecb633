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
    assert!(cookie.starts_with("__Host-jobs-status=2."), "{cookie}");
    assert!(cookie.ends_with("; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=1800"), "{cookie}");
    assert!(!cookie.contains(SECRET));

    let page = browser.get("").await?;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("Santé") && page.text.contains("Se déconnecter"), "{}", page.text);
    let kept = browser.cookie.clone();

    // Half an hour later the cookie is worth nothing, whoever kept it.
    world.set_now(at("2026-11-25T08:30:00Z"));
    let later = world.function("status").await?;
    let mut browser = Browser { cookie: kept, ..Browser::new(&later)? };
    assert!(browser.get("").await?.text.contains("type=\"password\""));
    let answer = browser.form(&[("action", "retry"), ("lane", "stripe"), ("csrf", "x")]).await?;
    assert_eq!(answer.status, 401, "{}", answer.text);
    Ok(())
}

/// Signing out ends every session that began before, here and elsewhere, and none that begins afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn signing_out_makes_every_earlier_cookie_worthless() -> Result<()> {
    let world = World::new().await?;
    let function = world.function("status").await?;
    let (mut one, mut other) = (Browser::signed_in(&function).await?, Browser::signed_in(&function).await?);
    let kept = one.cookie.clone();
    // The answer is lost on its way back: it is asked again, and ends nothing more.
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("jobs_sign_out", Fault::CutAfter).times(1));
    let answer = one.own_form(&[("action", "sign-out")]).await?;
    assert_eq!(answer.status, 303, "{}", answer.text);
    assert!(answer.headers["set-cookie"].to_str()?.contains("Max-Age=0"));
    one.cookie = kept;
    for browser in [&mut one, &mut other] {
        let page = browser.get("").await?;
        assert!(page.text.contains("type=\"password\"") && !page.text.contains("Santé"), "{}", page.text);
        let answer = browser.form(&[("action", "retry"), ("lane", "stripe"), ("csrf", "x")]).await?;
        assert_eq!(answer.status, 401, "{}", answer.text);
    }
    // Another process knows it, too; a new session is good there.
    let elsewhere = world.function("status").await?;
    let mut third = Browser { cookie: one.cookie.clone(), ..Browser::new(&elsewhere)? };
    assert!(third.get("").await?.text.contains("type=\"password\""));
    let mut third = Browser::signed_in(&elsewhere).await?;
    assert!(third.get("").await?.text.contains("Santé"));
    // The Bearer ends them as well.
    assert_eq!(super::post(&function, &[("action", "sign-out")]).await?.status, 303);
    assert!(third.get("").await?.text.contains("type=\"password\""));
    Ok(())
}

/// Where the database cannot be asked nobody is let in by a cookie, and nobody is told that they are signed out.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_be_verified_opens_nothing() -> Result<()> {
    let world = World::new().await?;
    let function = world.function("status").await?;
    let mut browser = Browser::signed_in(&function).await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("jobs_session_epoch", Fault::json(500, &serde_json::json!({"message": "no"}))));
    for query in ["", "?fait=rejeu"] {
        let page = browser.get(query).await?;
        assert_eq!(page.status, 503, "{}", page.text);
        assert!(page.text.contains("ne peut pas être vérifiée") && page.text.contains("Authorization"));
        assert!(!page.text.contains("Santé"), "{}", page.text);
    }
    let answer = browser.form(&[("action", "retry"), ("lane", "stripe"), ("csrf", "x")]).await?;
    assert_eq!(answer.status, 503, "{}", answer.text);
    json(&function).await?;
    gateway.clear();
    assert!(browser.get("").await?.text.contains("Santé"), "the session is as good as before");

    gateway.add(Rule::on("jobs_sign_out", Fault::json(500, &serde_json::json!({"message": "no"}))));
    let answer = browser.own_form(&[("action", "sign-out")]).await?;
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert!(answer.text.contains("n’a pas pu être notée") && answer.text.contains("CRON_SECRET"));
    assert!(answer.headers["set-cookie"].to_str()?.contains("Max-Age=0"));
    Ok(())
}

/// Tries to sign in from an address, and returns what comes of it.
async fn tried(function: &crate::world::Function, address: &str, secret: &str) -> Result<u16> {
    Ok(Browser::from(function, address)?.form(&[("secret", secret)]).await?.status.as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_are_limited_for_an_address_and_never_for_the_bearer() -> Result<()> {
    let mut world = World::new().await?;
    let function = world.function("status").await?;
    let (stranger, operator) = ("203.0.113.7", "198.51.100.4");
    // The right one does not count, however often.
    for _ in 0..12 {
        assert_eq!(tried(&function, stranger, SECRET).await?, 303);
    }
    let tries = (0..14).map(|n| {
        let mut browser = Browser::from(&function, stranger);
        async move {
            // What a client says of itself changes nothing.
            let browser = browser.as_mut().map_err(|error| anyhow::anyhow!("{error}"))?;
            let request = browser.http.post(browser.function.url()).form(&[("secret", format!("wrong-{n}"))]);
            let request = request.header("x-forwarded-for", format!("192.0.2.{n}"));
            anyhow::Ok(browser.send(request).await?.status.as_u16())
        }
    });
    // Many at once do not pass either.
    let mut answers = futures_util::future::try_join_all(tries).await?;
    answers.sort_unstable();
    assert_eq!(answers, [[401; 10].as_slice(), &[429; 4]].concat());
    let mut browser = Browser::from(&function, stranger)?;
    let answer = browser.form(&[("secret", SECRET)]).await?;
    assert_eq!(answer.status, 429, "not even the right one");
    assert_eq!(answer.headers["retry-after"].to_str()?, "900");
    assert!(
        answer.text.contains("Trop d’essais") && answer.text.contains("Authorization"),
        "{}",
        answer.text
    );
    // Another process, the same limit; the Bearer is not limited, nor is anybody from elsewhere.
    let other = world.function("status").await?;
    assert_eq!(tried(&other, stranger, SECRET).await?, 429);
    json(&other).await?;
    assert_eq!(tried(&other, operator, "wrong").await?, 401);
    assert_eq!(tried(&other, operator, SECRET).await?, 303);

    let kept: Vec<(String, i64)> =
        sqlx::query_as("select address, count(*) from jobs.job_sign_ins group by 1 order by 2")
            .fetch_all(world.pool())
            .await?;
    assert_eq!(kept.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1, 10]);
    assert!(kept.iter().all(|(address, _)| address.len() == 43 && !address.contains("203.0")), "{kept:?}");

    // The window is the function's: a second before its end, and at it.
    let begun = world.now();
    world.set_now(begun + chrono::TimeDelta::seconds(899));
    assert_eq!(tried(&world.function("status").await?, stranger, SECRET).await?, 429);
    world.set_now(begun + chrono::TimeDelta::seconds(900));
    assert_eq!(tried(&world.function("status").await?, stranger, SECRET).await?, 303);
    let left: i64 = world.value("select count(*) from jobs.job_sign_ins").await?;
    assert_eq!(left, 0, "old ones are deleted");
    Ok(())
}

/// A network is one client; all of them together have a limit, too.
#[tokio::test(flavor = "multi_thread")]
async fn many_addresses_are_limited_together() -> Result<()> {
    let world = World::new().await?;
    let function = world.function("status").await?;
    for n in 0..10 {
        assert_eq!(tried(&function, &format!("2001:db8:0:1:{n:x}::1"), "wrong").await?, 401);
    }
    assert_eq!(tried(&function, "2001:db8:0:1:ffff::1", SECRET).await?, 429, "the same /64");
    assert_eq!(tried(&function, "2001:db8:0:2::1", SECRET).await?, 303, "another one");
    // Without a word of the platform's all are one.
    for _ in 0..10 {
        assert_eq!(Browser::new(&function)?.form(&[("secret", "wrong")]).await?.status, 401);
    }
    assert_eq!(Browser::new(&function)?.form(&[("secret", SECRET)]).await?.status, 429);

    let now = world.now().to_rfc3339();
    let many = format!(
        "insert into jobs.job_sign_ins (try_id, address, tried_at) \
         select gen_random_uuid(), 'x' || n, '{now}'::timestamptz - interval '5 minutes' from generate_series(1, 279) n"
    );
    sqlx::query(sqlx::AssertSqlSafe(many)).execute(world.pool()).await?;
    assert_eq!(tried(&function, "192.0.2.1", "wrong").await?, 401, "the 300th");
    let mut browser = Browser::from(&function, "192.0.2.2")?;
    let answer = browser.form(&[("secret", SECRET)]).await?;
    assert_eq!((answer.status.as_u16(), answer.headers["retry-after"].to_str()?), (429, "600"));
    json(&function).await?;
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
