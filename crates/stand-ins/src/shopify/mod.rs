//! Stands in for Shopify: shops, their Admin GraphQL API of version 2026-10, and their OAuth tokens.
//!
//! Documents are parsed, validated against [the part of Shopify's schema it knows](schema) and executed, so
//! it answers exactly what is asked, with aliases, fragments and variables; searches, cursors, costs,
//! throttling and errors behave as Shopify's. What it does not know (mutations, paging backwards, `OR` in a
//! search) it refuses loudly.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use stand_ins::shopify::{StandIn, Tender};
//!
//! let shopify = StandIn::start().await?;
//! shopify.add_shop("atelier.myshopify.com", "EUR", "shpat_atelier");
//! let at = "2026-11-03T10:00:00Z".parse()?;
//! let sale = shopify.tender("atelier.myshopify.com", Tender::new(at, "120.0", "EUR").reference("ch_1"));
//! shopify.refund("atelier.myshopify.com", &sale, "2026-11-09T08:00:00Z".parse()?, "20.0");
//! // The product reads shopify.api_base(), the value for SHOPIFY_API_BASE.
//! # Ok(())
//! # }
//! ```

mod builders;
mod cost;
mod errors;
mod execute;
mod http;
mod oauth;
mod page;
mod resolve;
pub mod schema;
mod search;
mod state;
mod validate;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use builders::{Dispute, Sold, Tender};
pub use errors::{graphql_error, http_error, not_approved};
pub use oauth::Tokens;
pub use state::{Misbehaviour, PaymentsAccess, RefreshReuse};

use crate::{
    bucket::Bucket,
    clock::Clock,
    faults::{InjectedFaults, Server, serve},
};
use state::State;

/// This stand-in speaks this API version.
pub const API_VERSION: &str = "2026-10";

/// Represents a running stand-in for Shopify; it stops when dropped.
pub struct StandIn {
    server: Server,
    state: Shared,
}

type Shared = Arc<Mutex<State>>;

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What takes a shop's domain panics when there is no such shop.
impl StandIn {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> io::Result<Self> {
        Self::start_on(None).await
    }

    /// Starts one whose tokens live and end by this clock.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start_at(clock: Clock) -> io::Result<Self> {
        let stand_in = Self::start().await?;
        stand_in.state().clock = clock;
        Ok(stand_in)
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

    /// Returns `http://127.0.0.1:PORT`; a shop's own address is `{url}/{domain}`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Returns the value for `SHOPIFY_API_BASE`, with its literal `{shop}`.
    pub fn api_base(&self) -> String {
        format!("{}/{{shop}}", self.server.url())
    }

    /// Returns the injected faults and the recorded requests. Their paths start with `/{domain}`.
    pub fn faults(&self) -> &InjectedFaults {
        self.server.faults()
    }

    /// Returns the value for `SHOPIFY_CLIENT_ID`.
    pub fn client_id(&self) -> String {
        self.state().client_id.clone()
    }

    /// Returns the value for `SHOPIFY_CLIENT_SECRET`.
    pub fn client_secret(&self) -> String {
        self.state().client_secret.clone()
    }

    /// Adds a shop with a permanent access token.
    pub fn add_shop(&self, domain: &str, currency: &str, token: &str) {
        self.state().add_shop(domain, currency).oauth.add_permanent(token);
    }

    /// Gives a shop another `myshopify.com` name, as a merchant may once, and a token under it. What was sold keeps its ids
    /// (<http://sdzcsy.com/chexingsheji/2024/0206/47.html>, <https://allaboutweb.co/change-myshopify-subdomain>).
    ///
    /// # Panics
    /// When there is no such shop.
    pub fn rename(&self, domain: &str, other: &str, token: &str) {
        let mut state = self.state();
        let mut shop =
            state.shops.remove(domain).unwrap_or_else(|| panic!("the stand-in has no shop {domain}"));
        shop.domain = other.into();
        shop.oauth.add_permanent(token);
        state.shops.insert(other.into(), shop);
    }

    /// Adds a shop with an access token that lives an hour, and its refresh token.
    ///
    /// One pair for application and shop: it replaces the one before
    /// (<https://shopify.dev/changelog/more-resilient-token-exchanges-when-migrating-tokens-without-a-user-session>).
    pub fn add_expiring_shop(&self, domain: &str, currency: &str) -> Tokens {
        let mut state = self.state();
        let now = state.now();
        state.add_shop(domain, currency).oauth.acquire(now)
    }

    /// From now on, a refreshed pair comes without a word on how long it lives
    /// (<https://github.com/Shopify/shopify-app-js/issues/3400>).
    pub fn omit_lifetimes(&self, domain: &str) {
        self.state().shop(domain).oauth.omits_lifetimes = true;
    }

    /// Returns how often the shop's tokens were refreshed.
    pub fn refreshes(&self, domain: &str) -> usize {
        self.state().shop(domain).oauth.refreshes
    }

    /// From now on, no access token of the shop is valid; refresh tokens are.
    pub fn expire_access_tokens(&self, domain: &str) {
        self.state().shop(domain).oauth.expire_access_tokens();
    }

    /// From now on, no shop takes a permanent access token, which can still be exchanged
    /// (<https://github.com/chatwoot/chatwoot/issues/14462>, <https://github.com/Shopify/shopify-app-js/issues/3234>).
    pub fn retire_permanent_tokens(&self) {
        self.state().permanent_retired = true;
    }

    /// Uninstalls the application, as a merchant does: no token of the shop is valid any more.
    pub fn uninstall(&self, domain: &str) {
        self.state().shop(domain).oauth.revoke_all();
    }

    /// Chooses what happens to a refresh token that was used before, on every shop.
    pub fn set_refresh_reuse(&self, reuse: RefreshReuse) {
        self.state().refresh_reuse = reuse;
    }

    /// Lets time pass for the lifetimes of tokens.
    pub fn advance(&self, by: Duration) {
        self.state().advanced += by;
    }

    /// Answers every GraphQL request of the shop with this HTTP status (402, 403, 404, 423, 429, 5xx);
    /// `None` ends it.
    pub fn set_status(&self, domain: &str, status: Option<u16>) {
        self.state().shop(domain).status = status;
    }

    /// From now on this version answers, whichever is asked for, as where that one is retired
    /// (<https://community.shopify.com/t/is-the-older-version-of-shopify-api-2021-10-still-working/164634/2>).
    pub fn answer_with_version(&self, version: &'static str) {
        self.state().answering_version = version;
    }

    /// Chooses whether the application may read the shop's payments account and disputes.
    pub fn set_payments_access(&self, domain: &str, access: PaymentsAccess) {
        self.state().shop(domain).payments_access = access;
    }

    /// Chooses how the shop's lists go wrong; `None` ends it.
    pub fn misbehave(&self, domain: &str, how: Option<Misbehaviour>) {
        self.state().shop(domain).misbehaviour = how;
    }

    /// Sets the size of the shop's bucket and how many points a second it gets back.
    pub fn set_bucket(&self, domain: &str, capacity: f64, per_second: f64) {
        self.state().shop(domain).bucket = Bucket::new(capacity, per_second);
    }

    /// Sets the cost above which a single query is refused (1000 unless told otherwise).
    pub fn set_max_cost(&self, domain: &str, max: u64) {
        self.state().shop(domain).max_cost = max;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}
