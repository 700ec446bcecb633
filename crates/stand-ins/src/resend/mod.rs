//! Resend: a service that is as strict as the real one, and the emulator behind it that keeps the mails.
//!
//! The proxy does what the service does: keys, rate limits and quotas ([`Limits`]), validation of mails and
//! of batches (strict and permissive), idempotency keys, `/usage`. Through its [`InjectedFaults`] it also gives
//! answers that the service gives on a bad day, or none. There are two of them:
//!
//! * [`Resend::start`] hands every mail on to the npm emulator, which shows them as a page and knows the rest
//!   of the API (`GET /emails/{id}`…). For tests that look at mails, and for people.
//! * [`Resend::bare`] keeps the mails itself and knows nothing but sending, `/usage` and `/domains`. It starts at once
//!   and takes 100,000 mails in seconds: for tests of how sending behaves, and for benchmarks. With
//!   [`drop_contents`](Resend::drop_contents) it does not keep their texts either.
//!
//! Not here: mails refused for their domain (`/domains` tells the states of some), scheduling, and sending webhooks; [`webhooks`] makes them.

mod emulator;
mod idempotency;
mod limits;
mod mail;
mod refusals;
mod service;
pub mod webhooks;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};

use self::{emulator::Emulator, service::Service};
pub use self::{
    limits::Limits,
    mail::{Accepted, Mail},
    refusals::{
        concurrent_idempotent_requests, daily_quota_exceeded, monthly_quota_exceeded, rate_limited, refuse,
        restricted_api_key,
    },
};
use crate::{
    clock::Clock,
    faults::{self, InjectedFaults, Server},
};
use processes::child::Child;

/// Represents a running Resend; it stops when this is dropped.
pub struct Resend {
    service: Arc<Service>,
    proxy: Server,
    /// Says how many of the mails [`clear`](Self::clear) has put aside: the emulator cannot delete
    /// any.
    cleared: AtomicUsize,
    /// Is the emulator's process; here, so that it stops at once and not when the last connection
    /// lets go of the service.
    _child: Option<Child>,
}

impl Resend {
    /// Starts an emulator and the proxy in front of it, with the npm set `Stack` that is installed in
    /// `parts`; it logs into the directory `logs`.
    pub async fn start(parts: &Path, logs: &Path) -> Result<Self> {
        let (emulator, child) = Emulator::start(parts, logs).await?;
        Self::serve(Some(emulator), Some(child), Clock::default()).await
    }

    /// Starts the proxy alone: it keeps the mails itself.
    pub async fn bare() -> Result<Self> {
        Self::bare_at(Clock::default()).await
    }

    /// Starts the same by another clock than the machine's.
    pub async fn bare_at(clock: Clock) -> Result<Self> {
        Self::serve(None, None, clock).await
    }

    async fn serve(emulator: Option<Emulator>, child: Option<Child>, clock: Clock) -> Result<Self> {
        let service = Arc::new(Service::new(emulator, clock));
        let router = service::router(service.clone());
        let proxy = faults::serve(router, None).await.context("cannot start the proxy of Resend")?;
        Ok(Self { service, proxy, cleared: AtomicUsize::new(0), _child: child })
    }

    /// Returns what goes into `RESEND_BASE_URL`.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// Returns what goes into `RESEND_API_KEY`.
    pub fn key(&self) -> &str {
        &self.service.key
    }

    /// Returns the page on which a person reads the mails; a [`bare`](Self::bare) Resend has none
    /// there.
    pub fn inbox_url(&self) -> String {
        let own = || format!("{}/inbox", self.url());
        self.service.emulator.as_ref().map_or_else(own, Emulator::inbox_url)
    }

    pub fn faults(&self) -> &InjectedFaults {
        self.proxy.faults()
    }

    /// Returns what the functions are to find in their environment to send mails here.
    pub fn env_vars(&self) -> Vec<(&'static str, String)> {
        vec![("RESEND_BASE_URL", self.url()), ("RESEND_API_KEY", self.key().into())]
    }

    /// Limits the account from now on; what it has used stays used.
    pub fn set_limits(&self, limits: Limits) {
        self.service.books().meter.set(limits);
    }

    /// The daily quota begins anew, the month goes on.
    pub fn new_day(&self) {
        self.service.books().meter.new_day();
    }

    /// Chooses what `/domains` says of a domain from now on: `verified`, `pending`, `failed` …
    pub fn set_domain(&self, name: &str, state: &str) {
        self.service.books().domains.insert(name.to_owned(), state.to_owned());
    }

    /// Refuses this address from now on, as if it were not one, whatever its case.
    pub fn refuse_address(&self, address: &str) {
        self.service.books().refused.insert(address.to_ascii_lowercase());
    }

    /// Has a request that sends take this long from now on, with its idempotency key taken: a
    /// second one under the same key meets the first. A caller that hangs up meanwhile does not
    /// stop it.
    pub fn set_work(&self, work: Duration) {
        self.service.books().work = work;
    }

    /// As if 24 hours had passed: idempotency keys are forgotten, and the same request sends again.
    pub fn forget_keys(&self) {
        self.service.keys.forget();
    }

    /// Records, from now on, neither the bodies of requests nor `html` and `text` of mails, so that
    /// very many fit into memory.
    pub fn drop_contents(&self) {
        self.faults().drop_bodies();
        self.service.books().contents_dropped = true;
    }

    /// Returns the mails taken since the start or the last [`clear`](Self::clear), oldest first, as
    /// the proxy took them. It is cheap: the mails are shared.
    pub fn accepted(&self) -> Vec<Arc<Accepted>> {
        self.service.books().accepted.clone()
    }

    /// Returns how many mails that is.
    pub fn accepted_count(&self) -> usize {
        self.service.books().accepted.len()
    }

    /// Returns the same mails as the emulator lists them, at its pace; from a [`bare`](Self::bare)
    /// Resend, as [`accepted`](Self::accepted) has them.
    pub async fn mails(&self) -> Result<Vec<Mail>> {
        let Some(emulator) = &self.service.emulator else {
            return Ok(self.accepted().iter().map(|accepted| accepted.mail.clone()).collect());
        };
        let mut mails = emulator.mails().await?;
        Ok(mails.split_off(self.cleared.load(Ordering::SeqCst).min(mails.len())))
    }

    /// Forgets the mails so far. The page still shows them, idempotency keys stay known, and what is used of
    /// the [`Limits`] stays used.
    pub async fn clear(&self) -> Result<()> {
        if let Some(emulator) = &self.service.emulator {
            self.cleared.store(emulator.mails().await?.len(), Ordering::SeqCst);
        }
        self.service.books().accepted.clear();
        Ok(())
    }
}
