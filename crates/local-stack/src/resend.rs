//! Resend: an emulator that keeps the mails, behind a proxy that is as strict as the real service.
//!
//! The emulator takes what it is sent, replays idempotency keys and shows the mails. The proxy adds what it
//! lacks: the check of the key and of the `User-Agent`, and, through its [`Faults`], rate limits, quotas and
//! answers that never arrive. Not here: permissive batches, webhooks, and more than 5,000 requests to one
//! emulator.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};
use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    faults::{self, Fault, Faults, Server},
    ports,
    process::{Child, Command, Signal},
    proxy::Upstream,
};

/// A mail as Resend keeps it.
#[derive(Clone, Debug, Deserialize)]
pub struct Mail {
    pub id: String,
    pub from: String,
    pub to: Vec<String>,
    pub subject: String,
    pub html: Option<String>,
    pub text: Option<String>,
    pub reply_to: Vec<String>,
    pub headers: BTreeMap<String, String>,
    pub tags: Vec<Value>,
    /// When it was taken, RFC 3339.
    pub created_at: String,
}

/// A running Resend; it stops when this is dropped.
pub struct Resend {
    key: String,
    emulator: Upstream,
    emulator_port: u16,
    proxy: Server,
    /// How many of the mails [`clear`](Self::clear) has put aside: the emulator cannot delete any.
    cleared: AtomicUsize,
    _child: Child,
}

impl Resend {
    /// Starts an emulator and its proxy, with the npm set `Stack` that is installed in `parts`; it logs into
    /// the directory `logs`.
    pub async fn start(parts: &Path, logs: &Path) -> Result<Self> {
        let (emulator_port, child) = start_emulator(parts, logs).await?;
        let key = format!("re_{}", Uuid::new_v4().simple());
        let emulator = Upstream::new(emulator_port);
        let router = Router::new()
            .fallback(pass_on)
            .with_state(Account { key: key.clone(), emulator: emulator.clone() });
        let proxy = faults::serve(router, None).await.context("cannot start the proxy of Resend")?;
        Ok(Self { key, emulator, emulator_port, proxy, cleared: AtomicUsize::new(0), _child: child })
    }

    /// What goes into `RESEND_BASE_URL`.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// What goes into `RESEND_API_KEY`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The page on which a person reads the mails.
    pub fn inbox_url(&self) -> String {
        format!("http://127.0.0.1:{}/inbox", self.emulator_port)
    }

    pub fn faults(&self) -> &Faults {
        self.proxy.faults()
    }

    /// What the functions are to find in their environment to send mails here.
    pub fn env_vars(&self) -> Vec<(&'static str, String)> {
        vec![("RESEND_BASE_URL", self.url()), ("RESEND_API_KEY", self.key.clone())]
    }

    /// The mails taken since the start or the last [`clear`](Self::clear), oldest first.
    pub async fn mails(&self) -> Result<Vec<Mail>> {
        let mut mails = self.all_mails().await?;
        Ok(mails.split_off(self.cleared.load(Ordering::SeqCst).min(mails.len())))
    }

    /// Forgets the mails so far. The page still shows them, and idempotency keys stay known.
    pub async fn clear(&self) -> Result<()> {
        self.cleared.store(self.all_mails().await?.len(), Ordering::SeqCst);
        Ok(())
    }

    async fn all_mails(&self) -> Result<Vec<Mail>> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Mail>,
        }
        // Past the proxy, so that the reading is neither recorded nor hit by a fault.
        let response = self.emulator.send(Request::get("/emails").body(Body::empty())?).await?;
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await?;
        ensure!(status == StatusCode::OK, "the emulator answers {status} to the list of mails");
        let list: List =
            serde_json::from_slice(&body).context("the emulator lists something else than mails")?;
        Ok(list.data)
    }
}

/// The emulator would listen on every interface of the machine: this makes it the loopback one.
const LOOPBACK_ONLY: &str = "--import=data:text/javascript,import net from 'node:net'; \
    const { listen } = net.Server.prototype; \
    net.Server.prototype.listen = function (port) { return listen.call(this, port, '127.0.0.1'); };";

async fn start_emulator(parts: &Path, logs: &Path) -> Result<(u16, Child)> {
    let mut failure = None;
    for _ in 0..ports::ATTEMPTS {
        let port = ports::free()?;
        let mut child = Command::new("node", logs.join(format!("resend-{port}.log")))
            .args([OsStr::new(LOOPBACK_ONLY), parts.join("node_modules/emulate/dist/index.js").as_os_str()])
            .args(["start", "-s", "resend", "-p", &port.to_string()])
            .directory(logs)
            .stop_with(Signal::Kill)
            .start()?;
        let emulator = Upstream::new(port);
        let answers = || async {
            let Ok(request) = Request::get("/inbox").body(Body::empty()) else { return false };
            emulator.send(request).await.is_ok_and(|response| response.status() == StatusCode::OK)
        };
        match child.ready(answers).await {
            Ok(()) => return Ok((port, child)),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.context("the emulator was never started")?).context("cannot start the Resend emulator")
}

#[derive(Clone)]
struct Account {
    key: String,
    emulator: Upstream,
}

async fn pass_on(State(account): State<Account>, request: Request<Body>) -> Response<Body> {
    if let Some(refusal) = account.refusal(request.headers()) {
        return refusal;
    }
    match account.emulator.send(request).await {
        Ok(response) => response,
        Err(error) => answer(502, "application_error", &format!("{error:#}")),
    }
}

impl Account {
    fn refusal(&self, headers: &HeaderMap) -> Option<Response<Body>> {
        if headers.get(header::USER_AGENT).is_none_or(HeaderValue::is_empty) {
            // Not the API's own answer but that of what stands in front of it.
            return Some((StatusCode::FORBIDDEN, "error code: 1010").into_response());
        }
        let key = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match key {
            None => Some(answer(401, "missing_api_key", "Missing API Key")),
            Some(key) if key != self.key => Some(answer(403, "invalid_api_key", "API key is invalid")),
            Some(_) => None,
        }
    }
}

fn error(status: u16, name: &str, message: &str) -> Value {
    json!({"statusCode": status, "name": name, "message": message})
}

fn answer(status: u16, name: &str, message: &str) -> Response<Body> {
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, Json(error(status, name, message))).into_response()
}

/// An error in Resend's form.
pub fn refuse(status: u16, name: &str, message: &str) -> Fault {
    Fault::json(status, &error(status, name, message))
}

/// Too many requests a second: the headers say when to come back.
pub fn rate_limited(retry_after_seconds: u32) -> Fault {
    let body =
        error(429, "rate_limit_exceeded", "Too many requests. You can only make 5 requests per second.");
    let seconds = retry_after_seconds.to_string();
    let headers = [
        ("content-type", "application/json"),
        ("ratelimit-limit", "5"),
        ("ratelimit-remaining", "0"),
        ("ratelimit-reset", &seconds),
        ("retry-after", &seconds),
    ];
    Fault::Answer {
        status: 429,
        headers: headers.map(|(name, value)| (name.into(), value.into())).to_vec(),
        body: body.to_string(),
    }
}

/// The day's mails are used up: the same status as a rate limit, but no use in waiting a second.
pub fn daily_quota_exceeded() -> Fault {
    refuse(429, "daily_quota_exceeded", "You have reached your daily email sending quota.")
}

/// The month's mails are used up.
pub fn monthly_quota_exceeded() -> Fault {
    refuse(429, "monthly_quota_exceeded", "You have reached your monthly email sending quota.")
}

/// Another request with the same idempotency key is still under way.
pub fn concurrent_idempotent_requests() -> Fault {
    refuse(
        409,
        "concurrent_idempotent_requests",
        "Another request with the same idempotency key is currently in progress.",
    )
}
