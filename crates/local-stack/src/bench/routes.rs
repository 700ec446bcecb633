//! Measures every route from the start of its process: to the answer of a refused request, and to its own first
//! request.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use jobs::{
    email::{LinkKeys, links},
    mail_kind::MailKind,
    routes::{Kind, Route},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process,
    time::timeout,
};
use uuid::Uuid;

use super::{report::Cold, world::SECRET};
use processes::ports;
use stand_ins::resend::webhooks;

const KEY: &str = "0123456789abcdef0123456789abcdef";
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts each route this often; the medians.
pub async fn measure(binaries: &Path, starts: usize) -> Result<Vec<Cold>> {
    let mut routes = Vec::with_capacity(Route::ALL.len());
    for route in Route::ALL {
        let binary = binaries.join(route.binary());
        let (mut refusals, mut upstreams) = (Vec::new(), Vec::new());
        for _ in 0..starts {
            refusals.push(refusal(route, &binary).await.with_context(|| route.binary())?);
            upstreams.push(upstream(route, &binary).await.with_context(|| route.binary())?);
        }
        routes.push(Cold {
            route: route.binary(),
            starts,
            refusal_ms: median(&mut refusals),
            upstream_ms: median(&mut upstreams),
            binary: binary.metadata()?.len(),
        });
    }
    Ok(routes)
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1_000.0)
}

/// Represents a started process and the port on which it will listen.
struct Started {
    at: Instant,
    port: u16,
    _child: process::Child,
}

impl Started {
    fn new(binary: &Path, database: u16) -> Result<Self> {
        let port = ports::free()?;
        let mut command = process::Command::new(binary);
        command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        for (name, value) in [
            ("VERCEL_DEV_PORT", port.to_string()),
            ("CRON_SECRET", SECRET.into()),
            ("SUPABASE_URL", format!("http://127.0.0.1:{database}")),
            ("SUPABASE_SECRET_KEY", "sb_secret_bench".into()),
            ("STRIPE_SECRET_KEY", "sk_test_bench".into()),
            ("SHOPIFY_CLIENT_ID", "bench".into()),
            ("SHOPIFY_CLIENT_SECRET", "bench".into()),
            ("ENCRYPTION_KEY", KEY.into()),
            ("RESEND_API_KEY", "re_bench".into()),
            ("RESEND_WEBHOOK_SECRET", webhook_secret()),
            ("COMPANY_FROM_EMAIL", "Comptalyze <bonjour@exemple.fr>".into()),
            ("SENDER_IDENTITY", "Comptalyze, 1 rue de la Paix, 75002 Paris".into()),
            ("JOBS_BASE_URL", "https://jobs.exemple.fr".into()),
            ("STRIPE_PRICE_PRO", "price_pro".into()),
            ("STRIPE_PRICE_PREMIUM", "price_premium".into()),
        ] {
            command.env(name, value);
        }
        let at = Instant::now();
        let child = command.spawn().context("cannot start the function")?;
        Ok(Self { at, port, _child: child })
    }

    /// Sends a request as soon as somebody listens.
    async fn request(&self, request: &str) -> Result<TcpStream> {
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", self.port)).await {
                Ok(stream) => break stream,
                Err(_) if self.at.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_micros(100)).await;
                }
                Err(error) => return Err(error).context("the function does not listen"),
            }
        };
        stream.write_all(request.as_bytes()).await?;
        Ok(stream)
    }
}

fn webhook_secret() -> String {
    // Always the same: the process and the signature are made apart.
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into()
}

/// Writes a request of `route`, by the method that makes it work.
fn http(route: Route, target: &str, headers: &str, body: &str) -> String {
    format!(
        "{} {target} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {}\r\n\r\n{body}",
        route.kind().method(),
        body.len()
    )
}

/// Returns where `route` is called so that it does something on every day.
fn target(route: Route) -> String {
    match route {
        Route::MonthlySync => format!("{}?force=true", route.path()),
        _ => route.path().to_owned(),
    }
}

/// Measures the time to the answer of a request without credentials.
async fn refusal(route: Route, binary: &Path) -> Result<Duration> {
    let started = Started::new(binary, 1)?;
    let request = http(route, &target(route), "accept: application/json\r\n", "");
    let mut stream = started.request(&request).await?;
    let mut answer = [0; 512];
    let read = timeout(PATIENCE, stream.read(&mut answer)).await.context("no answer")??;
    let took = started.at.elapsed();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    let status = answer.split(' ').nth(1).unwrap_or_default();
    ensure!(matches!(status, "400" | "401"), "not refused: {answer}");
    Ok(took)
}

/// Measures the time to the first byte that the function sends to the database.
async fn upstream(route: Route, binary: &Path) -> Result<Duration> {
    let database = TcpListener::bind(("127.0.0.1", 0)).await?;
    let started = Started::new(binary, database.local_addr()?.port())?;
    let request = match route.kind() {
        Kind::Link => {
            let (keys, user) = (LinkKeys::derive(&KEY.to_owned().into()), Uuid::new_v4());
            let (link, form) = match route {
                Route::Confirm => (links::confirm("", &keys, user, 2026), "verdict=none&month="),
                _ => (links::unsubscribe("", &keys, user, MailKind::MarketingDay3).unwrap_or_default(), ""),
            };
            http(route, &link, "", form)
        }
        Kind::Webhook => {
            let body = webhooks::complained(&Uuid::new_v4().to_string(), "a@exemple.fr").to_string();
            let now = chrono::Utc::now().timestamp();
            let signed = webhooks::svix_headers(&webhook_secret(), "msg_bench", now, &body)?;
            let headers = signed.iter().fold(String::new(), |headers, (name, value)| {
                format!("{headers}{name}: {}\r\n", value.to_str().unwrap_or_default())
            });
            http(route, route.path(), &headers, &body)
        }
        Kind::Cron | Kind::Manual | Kind::Drain | Kind::Page => {
            http(route, &target(route), &format!("authorization: Bearer {SECRET}\r\n"), "")
        }
    };
    let _open = started.request(&request).await?;
    let (mut caller, _) = timeout(PATIENCE, database.accept()).await.context("it asks nothing")??;
    let mut first = [0; 64];
    timeout(PATIENCE, caller.read(&mut first)).await.context("it asks nothing")??;
    Ok(started.at.elapsed())
}
