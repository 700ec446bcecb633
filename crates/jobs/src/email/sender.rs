//! Asks the mail service: one request a batch. What its answer means, `outcome` says.
//!
//! `resend-rs` builds and sends. Its limiter is not what paces us: each request gets a client value of its own, with
//! its own limiter, over the one HTTP client of the process. It drops the body of a 429, so that a quota looks like
//! a rate limit: `GET /usage` tells them apart. It keeps headers in a `HashMap`, whose order changes from process to
//! process: mails are written down as JSON with sorted keys, so that a retry has the same payload byte for byte.

use std::time::Duration;

use reqwest::{Method, header::HeaderMap};
use resend_rs::{ConfigBuilder, Resend, types::CreateEmailBaseOptions};
use secrecy::ExposeSecret;
use serde_json::Value;
use uuid::Uuid;

use super::{
    allowance::Allowance,
    outcome::{Sent, accepted, classify, failure, foreign, is_foreign, kind},
    render::Rendered,
    settings::MailConfig,
};
use crate::{deadline::Deadline, failure::Failure};

/// One request holds so many mails at most.
pub(super) const LARGEST_BATCH: usize = 100;
const TIMEOUT: Duration = Duration::from_secs(20);
/// An idempotency key is remembered for 24 hours; an hour less, for clocks.
pub(super) const KEY_REMEMBERED: Duration = Duration::from_hours(23);

/// Composes a mail as the service takes it.
pub(super) fn compose(from: &str, to: &str, mail: &Rendered, unsubscribe: Option<&str>) -> Value {
    let mut options =
        CreateEmailBaseOptions::new(from, [to], &mail.subject).with_html(&mail.html).with_text(&mail.text);
    if let Some(link) = unsubscribe {
        // RFC 8058: both, or it is no one-click.
        options = options
            .with_header("List-Unsubscribe", &format!("<{link}>"))
            .with_header("List-Unsubscribe-Post", "List-Unsubscribe=One-Click");
    }
    // Through text, so that keys are sorted whatever map serde_json was built with.
    sorted(serde_json::to_value(options).unwrap_or_default())
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: std::collections::BTreeMap<_, _> = fields.into_iter().collect();
            Value::Object(fields.into_iter().map(|(name, value)| (name, sorted(value))).collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

/// Asks the mail service.
pub(super) struct Sender {
    http: reqwest::Client,
    config: std::sync::Arc<MailConfig>,
}

impl Sender {
    pub(super) fn new(http: reqwest::Client, config: std::sync::Arc<MailConfig>) -> Self {
        Self { http, config }
    }

    pub(super) fn from(&self) -> &str {
        &self.config.from
    }

    pub(super) fn resend(&self) -> Resend {
        let key = self.config.api_key.expose_secret();
        let config = ConfigBuilder::new(key).base_url(self.config.api_base.clone()).client(self.http.clone());
        Resend::with_config(config.build())
    }

    /// Sends a batch under its key. Made again with the same batch and mails, it sends nothing twice.
    pub(super) async fn send(&self, batch: Uuid, mails: &[&Value], deadline: &Deadline) -> Sent {
        let Some(timeout) = deadline.request_timeout(TIMEOUT) else { return Sent::OutOfTime };
        let mut headers = HeaderMap::new();
        let key = format!("comptalyze-jobs/{batch}");
        headers.insert("idempotency-key", key.parse().expect("letters, digits, - and /"));
        // One address that the service will not take keeps no other mail back.
        headers.insert("x-batch-validation", reqwest::header::HeaderValue::from_static("permissive"));
        let resend = self.resend();
        let request = resend.send_raw(Method::POST, "/emails/batch", None::<()>, Some(mails), Some(headers));
        match tokio::time::timeout(timeout, request).await {
            Ok(Ok(answer)) => accepted(answer, mails.len()),
            Ok(Err(error)) => classify(&error),
            Err(_) => Sent::Unknown(failure("timeout", "Resend n’a pas répondu à temps.")),
        }
    }

    /// Returns what is left of the quotas. `None` where the service does not say. It fails where something else than the
    /// mail service answers.
    pub(super) async fn allowance(&self, deadline: &Deadline) -> Result<Option<Allowance>, Failure> {
        let Some(timeout) = deadline.request_timeout(TIMEOUT) else { return Ok(None) };
        let resend = self.resend();
        match tokio::time::timeout(timeout, resend.usage.get()).await {
            Ok(Ok(usage)) => Ok(Some(Allowance::of(&usage))),
            Ok(Err(error)) if is_foreign(&error) => Err(foreign()),
            Ok(Err(error)) => {
                tracing::warn!(kind = kind(&error), "the mail service does not tell its quotas");
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    }
}
