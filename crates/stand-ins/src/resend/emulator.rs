//! The emulator: npm `emulate`, which keeps the mails of tests that want to look at them.
//!
//! It takes 4,999 requests an hour from one key and answers 403 to more, so each of ours comes with a key of
//! its own. What it does with idempotency keys (it compares payloads once they are normalised, and looks
//! through all keys each time) does not matter here: it is sent none.

use std::{ffi::OsStr, path::Path};

use anyhow::{Context, Result, ensure};
use axum::{
    body::Body,
    http::{Request, Response, StatusCode, header},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use uuid::Uuid;

use super::mail::Mail;
use processes::{
    child::{Child, Command, Signal},
    ports,
    proxy::Upstream,
};

/// It would listen on every interface of the machine: this makes it the loopback one.
const LOOPBACK_ONLY: &str = "--import=data:text/javascript,import net from 'node:net'; \
    const { listen } = net.Server.prototype; \
    net.Server.prototype.listen = function (port) { return listen.call(this, port, '127.0.0.1'); };";

pub(super) struct Emulator {
    upstream: Upstream,
    port: u16,
}

impl Emulator {
    /// Starts one that is installed in `parts` and logs into the directory `logs`; it lives as long as its
    /// process.
    pub(super) async fn start(parts: &Path, logs: &Path) -> Result<(Self, Child)> {
        let mut failure = None;
        for _ in 0..ports::ATTEMPTS {
            let port = ports::free()?;
            let mut child = Command::new("node", logs.join(format!("resend-{port}.log")))
                .args([
                    OsStr::new(LOOPBACK_ONLY),
                    parts.join("node_modules/emulate/dist/index.js").as_os_str(),
                ])
                .args(["start", "-s", "resend", "-p", &port.to_string()])
                .directory(logs)
                .stop_with(Signal::Kill)
                .start()?;
            let upstream = Upstream::new(port);
            let answers = || async {
                let Ok(request) = Request::get("/inbox").body(Body::empty()) else { return false };
                upstream.send(request).await.is_ok_and(|response| response.status() == StatusCode::OK)
            };
            match child.ready(answers).await {
                Ok(()) => return Ok((Self { upstream, port }, child)),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("the emulator was never started")?).context("cannot start the Resend emulator")
    }

    /// Returns the page on which a person reads the mails.
    pub(super) fn inbox_url(&self) -> String {
        format!("http://127.0.0.1:{}/inbox", self.port)
    }

    /// Keeps these mails; their ids.
    pub(super) async fn keep(&self, mails: &[&Value]) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Kept {
            id: String,
        }
        let request = Request::post("/emails/batch")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(serde_json::to_vec(mails)?))?;
        let kept: Vec<Kept> = self.data(request).await?;
        ensure!(kept.len() == mails.len(), "the emulator kept {} of {} mails", kept.len(), mails.len());
        Ok(kept.into_iter().map(|mail| mail.id).collect())
    }

    /// Returns all mails, oldest first.
    pub(super) async fn mails(&self) -> Result<Vec<Mail>> {
        self.data(Request::get("/emails").body(Body::empty())?).await
    }

    /// Returns what is under `data` in the answer to this request.
    async fn data<T: DeserializeOwned>(&self, request: Request<Body>) -> Result<T> {
        #[derive(Deserialize)]
        struct Answer<T> {
            data: T,
        }
        let response = self.pass_on(request).await?;
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await?;
        ensure!(
            status == StatusCode::OK,
            "the emulator answers {status}: {}",
            String::from_utf8_lossy(&body)
        );
        let answer: Answer<T> =
            serde_json::from_slice(&body).context("the emulator answers something unknown")?;
        Ok(answer.data)
    }

    /// Passes on any other request.
    pub(super) async fn pass_on(&self, mut request: Request<Body>) -> Result<Response<Body>> {
        let key = format!("Bearer re_{}", Uuid::new_v4().simple());
        request.headers_mut().insert(header::AUTHORIZATION, key.parse()?);
        self.upstream.send(request).await
    }
}
