//! Who is let in, and how.

use anyhow::Result;
use reqwest::Method;

use super::{SYNC, ask_again, eventually, harmless, traces};
use crate::world::{SECRET, World};

/// Returns authorization headers and queries that open nothing.
fn wrong() -> Vec<(Option<String>, String)> {
    let header = |text: &str| (Some(text.to_owned()), String::new());
    let query = |text: &str| (None, text.to_owned());
    vec![
        (None, String::new()),
        header(""),
        header("Bearer"),
        header("Bearer "),
        header("Bearer \t "),
        header("Bearer wrong"),
        header("Bearer undefined"),
        header("Bearer null"),
        header(SECRET),
        header(&format!("Basic {SECRET}")),
        header(&format!("Bearer {}", &SECRET[..SECRET.len() - 1])),
        header(&format!("Bearer {SECRET}x")),
        header(&format!("Bearer  {SECRET}")),
        header(&format!("Bearer {}", SECRET.to_uppercase())),
        query("secret="),
        query("secret=%20"),
        query("secret=wrong"),
        query(&format!("secret={SECRET}%0A")),
        query(&format!("secret=%0A{SECRET}")),
        query(&format!("secret={SECRET}%00")),
        query(&format!("Secret={SECRET}")),
        // A wrong header is not made good by a right query.
        (Some("Bearer wrong".into()), format!("secret={SECRET}")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_secret_opens() -> Result<()> {
    let world = World::new().await?;
    for (name, method) in
        [("daily-orchestrator", Method::GET), (SYNC, Method::POST), ("drain-queue", Method::POST)]
    {
        let function = world.function(name).await?;
        for (authorization, query) in wrong() {
            let told = ask_again(&world, &function, method.clone(), &query, authorization.as_deref()).await?;
            assert_eq!(told.status, 401, "{name} {authorization:?} {query}: {}", told.text);
            assert_eq!(told.error(), "Non autorisé : secret absent ou incorrect.");
            assert_eq!(told.headers["www-authenticate"], "Bearer");
            assert_eq!(told.headers["cache-control"], "no-store");
        }
    }
    assert!(world.environment.gateway.faults().seen().is_empty(), "the database was not asked");
    assert_eq!(traces(&world).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_without_a_usable_secret_is_closed() -> Result<()> {
    let mut world = World::new().await?;
    for unusable in [None, Some(""), Some("   "), Some("\n"), Some("\t\r\n")] {
        match unusable {
            Some(value) => world.set("CRON_SECRET", value),
            None => world.unset("CRON_SECRET"),
        }
        let function = world.function(SYNC).await?;
        let tries = [
            (None, String::new()),
            (Some("Bearer ".to_owned()), String::new()),
            (Some(format!("Bearer {}", unusable.unwrap_or("undefined").trim())), String::new()),
            (Some(format!("Bearer {SECRET}")), String::new()),
            (None, "secret=".to_owned()),
            (None, "secret=%0A".to_owned()),
            (None, "secret=%20%20%20".to_owned()),
        ];
        for (authorization, query) in tries {
            let told = ask_again(&world, &function, Method::POST, &query, authorization.as_deref()).await?;
            assert_eq!(told.status, 401, "{unusable:?} {authorization:?} {query}");
            assert_eq!(told.error(), "Non autorisé : secret absent ou incorrect.");
        }
        assert!(function.log().contains("CRON_SECRET"), "the operator finds the reason in the log");
    }
    assert_eq!(traces(&world).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_pasted_with_a_newline_works_without_it() -> Result<()> {
    let mut world = World::new().await?;
    world.set("CRON_SECRET", &format!(" {SECRET}\r\n"));
    let function = world.function(SYNC).await?;
    let right = format!("Bearer {SECRET}");
    let told = ask_again(&world, &function, Method::POST, "", Some(&right)).await?;
    assert_eq!(told.status, 200, "{}", told.text);
    let told = ask_again(&world, &function, Method::POST, &format!("secret={SECRET}%0A"), None).await?;
    assert_eq!(told.status, 401);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_the_query_is_kept_out_of_every_trace() -> Result<()> {
    let world = World::new().await?;
    let secret = format!("secret={SECRET}");
    for (name, method, query, status) in [
        (SYNC, Method::POST, secret.clone(), 200),
        ("daily-orchestrator", Method::GET, secret.clone(), 200),
        (SYNC, Method::POST, format!("{secret}&days=zero"), 400),
        (SYNC, Method::POST, format!("{secret}&{secret}"), 200),
    ] {
        let function = world.function(name).await?;
        let told = ask_again(&world, &function, method, &query, None).await?;
        assert_eq!(told.status, status, "{}", told.text);
    }
    let stored: String = world
        .value(
            "select coalesce((select string_agg(l::text, '') from public.sync_logs l), '') \
             || coalesce((select string_agg(r::text, '') from jobs.job_runs r), '')",
        )
        .await?;
    harmless(&world, &stored);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_that_must_not_run_anything_do_not() -> Result<()> {
    let world = World::new().await?;
    let right = format!("Bearer {SECRET}");
    let (head, options) = (Method::HEAD, Method::OPTIONS);
    let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
    let by_query = format!("secret={SECRET}");
    let table = [
        ("daily-orchestrator", &head, "", true, 204, "GET"),
        ("daily-orchestrator", &options, "", true, 204, "GET"),
        ("daily-orchestrator", &post, "", true, 405, "GET"),
        ("daily-orchestrator", &put, "", true, 405, "GET"),
        ("daily-orchestrator", &Method::DELETE, "", true, 405, "GET"),
        (SYNC, &head, "", true, 204, "GET, POST"),
        (SYNC, &options, "", true, 204, "GET, POST"),
        (SYNC, &head, &by_query, false, 204, "GET, POST"),
        (SYNC, &put, "", true, 405, "GET, POST"),
        (SYNC, &Method::PATCH, "", true, 405, "GET, POST"),
        // A link never starts anything.
        (SYNC, &get, &by_query, false, 405, "GET, POST"),
        (SYNC, &get, &by_query, true, 405, "GET, POST"),
        (SYNC, &get, "secret=wrong", false, 405, "GET, POST"),
        ("drain-queue", &get, "", true, 405, "POST"),
        ("drain-queue", &head, "", true, 204, "POST"),
    ];
    for (name, method, query, authorized, status, allow) in table {
        let function = world.function(name).await?;
        let authorization = authorized.then_some(right.as_str());
        let told = ask_again(&world, &function, method.clone(), query, authorization).await?;
        assert_eq!(told.status, status, "{name} {method} {query}: {}", told.text);
        assert_eq!(told.headers["allow"], allow, "{name} {method}");
        let use_instead = format!("utilisez {}.", allow.replace(", ", " ou "));
        let says_what_to_do = if query.contains("secret") && *method == get {
            "GET avec secret : utilisez POST."
        } else {
            &use_instead
        };
        assert!(status == 204 || told.error().contains(says_what_to_do), "{}", told.text);
    }
    for name in ["check-thresholds", "monthly-sync", SYNC] {
        let function = world.function(name).await?;
        let told = ask_again(&world, &function, get.clone(), "", None).await?;
        assert_eq!(told.status, 200);
        assert!(
            told.text.contains("curl -X POST") && told.text.contains("VOTRE_CRON_SECRET"),
            "{}",
            told.text
        );
        let told = ask_again(&world, &function, get.clone(), "force=true&month=2026-10", None).await?;
        assert_eq!((told.status, told.text.contains("curl")), (200, true), "still only the instructions");
        let told = ask_again(&world, &function, get.clone(), "", Some("Bearer wrong")).await?;
        assert_eq!(told.status, 401);
    }
    assert!(world.environment.gateway.faults().seen().is_empty(), "the database was not asked");
    assert_eq!(traces(&world).await?, 0);
    Ok(())
}

/// No HTTP client would send this.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_with_a_line_break_opens_nothing() -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let world = World::new().await?;
    let function = world.function(SYNC).await?;
    let url = reqwest::Url::parse(&function.url())?;
    let authority = format!("127.0.0.1:{}", url.port().unwrap_or_default());
    for header in
        [format!("Bearer\r\n {SECRET}"), format!("Bearer {SECRET}\u{b}"), format!("Bearer {SECRET}\u{a0}")]
    {
        let mut stream = tokio::net::TcpStream::connect(&authority).await?;
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Length: 0\r\nAuthorization: {header}\r\n\r\n",
            url.path()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let refused = answer.starts_with("HTTP/1.1 401") || answer.starts_with("HTTP/1.1 400");
        assert!(refused, "{header:?}: {answer}");
    }
    eventually("an answer", || function.log().is_empty() || function.log().contains("401")).await?;
    assert_eq!(traces(&world).await?, 0);
    Ok(())
}
