//! Stands in for Stripe: connected accounts, their balance transactions, and Stripe's way of refusing.
//!
//! It answers `GET /v1/account`, `GET /v1/balance_transactions` and one of them by its id with the paths, paging, error bodies,
//! headers and shapes of the real API, from data that a test or the seed has put in. What it does not know
//! (other endpoints, `ending_before`, the `payout` filter) it refuses loudly rather than answering wrongly.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use stand_ins::stripe::StandIn;
//!
//! let stripe = StandIn::start().await?;
//! stripe.add_account("acct_camille", "sk_test_camille");
//! let paid = stripe.payment("acct_camille", "2026-11-03T10:00:00Z".parse()?, 12_000, "eur");
//! stripe.refund("acct_camille", &paid.charge, "2026-11-09T08:00:00Z".parse()?, 2_000);
//! // The product reads stripe.url() with stripe.secret_key() and sees +120.00 and -20.00.
//! # Ok(())
//! # }
//! ```

mod builders;
mod errors;
mod http;
mod ledger;
mod limits;
mod list;
mod objects;
mod state;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use builders::{Movement, Payment};
pub use errors::{
    lock_timeout, more_permissions, no_connect, rate_limited, restricted, server_error, test_account,
};
pub use ledger::{BalanceTransaction, Entry};
pub use objects::PassedOn;

use crate::faults::{InjectedFaults, Server, serve};
use state::State;

/// The API version this stand-in speaks, and wants every request to be pinned to.
pub const API_VERSION: &str = "2026-10-28.endive";

/// Represents a running stand-in for Stripe; it stops when dropped.
pub struct StandIn {
    server: Server,
    state: Shared,
}

type Shared = Arc<Mutex<State>>;

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StandIn {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> io::Result<Self> {
        Self::start_on(None).await
    }

    /// Starts one on `port`, or on a free one.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn start_on(port: Option<u16>) -> io::Result<Self> {
        let state = Shared::default();
        let server = serve(http::router(state.clone()), port).await?;
        Ok(Self { server, state })
    }

    /// Returns the value for `STRIPE_API_BASE`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Returns the injected faults and the recorded requests.
    pub fn faults(&self) -> &InjectedFaults {
        self.server.faults()
    }

    /// Returns the platform's secret key, the value for `STRIPE_SECRET_KEY`.
    pub fn secret_key(&self) -> String {
        self.state().secret_key.clone()
    }

    /// Makes this the platform's secret key.
    pub fn set_secret_key(&self, key: &str) {
        self.state().secret_key = key.into();
    }

    /// Returns the platform's own account: what a call without `Stripe-Account` reads.
    pub fn platform_account(&self) -> String {
        state::PLATFORM.into()
    }

    /// Connects the account `id`; `token` is the OAuth access token that was issued for it.
    pub fn add_account(&self, id: &str, token: &str) {
        self.state().add_account(id, token);
    }

    /// The user takes the platform's access back: 403 with the platform key, 401 with the account's token.
    ///
    /// # Panics
    /// When there is no such account.
    pub fn revoke(&self, id: &str) {
        self.state().account_mut(id).revoked = true;
    }

    /// The user connects again, with a new token.
    ///
    /// # Panics
    /// When there is no such account.
    pub fn reconnect(&self, id: &str, token: &str) {
        let mut state = self.state();
        let account = state.account_mut(id);
        account.revoked = false;
        account.token = token.into();
    }

    /// Refuses what goes over this many requests a second, of all accounts together; `None` takes the limit away.
    pub fn set_rate_limit(&self, per_second: Option<f64>) {
        self.state().limits.set_all(per_second);
    }

    /// Refuses what goes over this many requests a second for one account; `None` takes the limit away.
    pub fn set_account_rate_limit(&self, per_second: Option<f64>) {
        self.state().limits.set_of_each(per_second);
    }

    /// Returns when a request was refused for a limit, from the beginning.
    pub fn rate_refusals(&self) -> Vec<std::time::Instant> {
        self.state().limits.refusals().to_vec()
    }

    /// Also answers requests that are pinned to another version, or to none.
    pub fn accept_any_version(&self) {
        self.state().any_version = true;
    }

    /// Remembers pages: from now on a list that was asked for before is answered as it was then, for benchmarks. Unlike
    /// [`remember_answers`](InjectedFaults::remember_answers) this leaves the limits as they are.
    pub fn remember_pages(&self) {
        self.state().pages.get_or_insert_default();
    }

    /// Returns the balance transactions of an account as a reader would see them now, newest first.
    ///
    /// # Panics
    /// When there is no such account.
    pub fn listed(&self, account: &str) -> Vec<BalanceTransaction> {
        self.state().account(account).listed().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}
