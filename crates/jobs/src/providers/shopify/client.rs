//! The requests we make of a shop.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::{Client, RequestBuilder};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::bucket::Buckets;
use super::disputes::{self, DisputePage, Disputes};
use super::order_payments::OrderPage;
use super::orders::Orders;
use super::tenders::Tenders;
use super::wire::{self, Shop};
use super::{API_VERSION, ApiBase, ShopDomain, TokenPair, answer, documents, refresh, search};
use crate::deadline::Deadline;
use crate::http::{self, Answer};
use crate::money::Currency;
use crate::providers::movement::word;
use crate::providers::{ErrorKind, Page, Provider, ProviderError, RefusedReason};
use crate::retry::RetryPolicy;
use crate::schedule::Window;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Says how much is asked for at once. A query above 1000 points is refused.
#[derive(Clone, Copy)]
struct Size {
    points_per_row: u32,
    rows: u32,
    /// A page this small that is still too expensive will not get cheaper.
    fewest: u32,
}

/// A row of tenders or disputes costs one point for each object in it: itself, its amount, its order.
const MOVEMENTS: Size = Size { points_per_row: 3, rows: 200, fewest: 10 };
/// An order costs one point, and three for each of four transactions: itself, its bag, one amount.
const ORDERS: Size = Size { points_per_row: 13, rows: 75, fewest: 2 };
/// A page costs these points besides its rows: the connection, its page info and the shop.
const POINTS_PER_PAGE: u32 = 4;

/// A transaction of an order costs these points: itself, its bag, two amounts.
const POINTS_PER_TRANSACTION: u32 = 4;
const ORDERS_AT_ONCE: usize = 8;
const TRANSACTIONS_AT_FIRST: u32 = 25;
/// So many transactions are asked for of the rare order that has more, which is asked alone.
const TRANSACTIONS_AT_MOST: u32 = 240;

/// Reads shops, each with its own token. Clones share the connections and what is known of the shops' limits.
#[derive(Clone, Debug)]
pub struct ShopifyClient {
    http: Client,
    base: Arc<ApiBase>,
    client_id: Arc<str>,
    client_secret: SecretString,
    buckets: Buckets,
    /// Holds the version that answered instead of ours.
    other_version: Arc<OnceLock<String>>,
    policy: RetryPolicy,
}

/// Holds what every request to one shop needs.
#[derive(Clone, Copy)]
struct Access<'a> {
    shop: &'a ShopDomain,
    token: &'a SecretString,
    deadline: &'a Deadline,
}

impl ShopifyClient {
    /// `client_id` and `client_secret` are our app's; only [`refresh`](Self::refresh) and
    /// [`exchange`](Self::exchange) send them.
    pub fn new(http: Client, base: ApiBase, client_id: &str, client_secret: SecretString) -> Self {
        Self {
            http,
            base: Arc::new(base),
            client_id: client_id.into(),
            client_secret,
            other_version: Arc::default(),
            buckets: Buckets::default(),
            policy: RetryPolicy::PROVIDER,
        }
    }

    /// Replaces the pauses between retries.
    #[must_use]
    pub fn with_retries(self, policy: RetryPolicy) -> Self {
        Self { policy, ..self }
    }

    /// Exchanges a refresh token for a new pair. One at a time per shop: the caller holds its lease.
    ///
    /// Repeating it after a lost answer is safe: Shopify keeps the old refresh token until the new pair is used
    /// (changelog, "More resilient refreshes for expiring offline access tokens").
    pub async fn refresh(
        &self,
        shop: &ShopDomain,
        refresh_token: &SecretString,
        deadline: &Deadline,
    ) -> Result<TokenPair, ProviderError> {
        let form = [
            ("client_id", &*self.client_id),
            ("client_secret", self.client_secret.expose_secret()),
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose_secret()),
        ];
        self.token_pair(shop, &form, deadline).await
    }

    /// Exchanges a permanent token for a pair that expires, without the merchant; the permanent one is worth nothing
    /// afterwards. Repeating it after a lost answer is safe for seven days
    /// (<https://shopify.dev/changelog/more-resilient-token-exchanges-when-migrating-tokens-without-a-user-session>).
    pub async fn exchange(
        &self,
        shop: &ShopDomain,
        permanent: &SecretString,
        deadline: &Deadline,
    ) -> Result<TokenPair, ProviderError> {
        let offline = "urn:shopify:params:oauth:token-type:offline-access-token";
        let form = [
            ("client_id", &*self.client_id),
            ("client_secret", self.client_secret.expose_secret()),
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token", permanent.expose_secret()),
            ("subject_token_type", offline),
            ("requested_token_type", offline),
            ("expiring", "1"),
        ];
        self.token_pair(shop, &form, deadline).await
    }

    async fn token_pair(
        &self,
        shop: &ShopDomain,
        form: &[(&str, &str)],
        deadline: &Deadline,
    ) -> Result<TokenPair, ProviderError> {
        let url = self.base.url(shop, "/admin/oauth/access_token");
        self.policy
            .run(deadline, || async {
                let request = self.http.post(&url).header("Accept", "application/json").form(form);
                refresh::read(&send(request, deadline).await?)
            })
            .await
    }

    /// Returns the shop's currency, the cheapest proof that a token works, and whether orders of
    /// any age are within the token's reach (`None`: not told).
    pub async fn shop(
        &self,
        shop: &ShopDomain,
        token: &SecretString,
        deadline: &Deadline,
    ) -> Result<(Currency, Option<bool>), ProviderError> {
        let mut data = self.graphql(Access { shop, token, deadline }, documents::SHOP, &json!({}), 3).await?;
        let shop: Shop = wire::shape(data["shop"].take(), "shop").map_err(refused)?;
        Ok((shop.currency_code, wire::reads_all_orders(&data["currentAppInstallation"])))
    }

    /// Reads one page of the money that moved within `window`, refunds negative. `cursor` is the
    /// `next` of the page before.
    ///
    /// With the scope `read_orders`, orders older than 60 days are out of reach and look deleted.
    pub async fn tender_page(
        &self,
        shop: &ShopDomain,
        token: &SecretString,
        window: Window,
        cursor: Option<&str>,
        deadline: &Deadline,
    ) -> Result<Page, ProviderError> {
        let access = Access { shop, token, deadline };
        let query = search::within("processed_at", window);
        let data = self.page(access, documents::TENDER_TRANSACTIONS, MOVEMENTS, &query, cursor).await?;
        let tenders = Tenders::read(data).map_err(refused)?;
        let orders = self.orders(access, tenders.orders_to_ask().map_err(refused)?).await?;
        let mut page = tenders.settle(cursor, &orders).map_err(refused)?;
        page.forget_dates_after(window.to, window.to);
        Ok(page)
    }

    /// Reads one page of the disputes that may be of interest within `window`, each with its state.
    ///
    /// Disputes are searched by when they began, so each call reads well before the window; pages without any
    /// movement are normal.
    pub async fn dispute_page(
        &self,
        shop: &ShopDomain,
        token: &SecretString,
        window: Window,
        cursor: Option<&str>,
        now: DateTime<Utc>,
        deadline: &Deadline,
    ) -> Result<Disputes, ProviderError> {
        let access = Access { shop, token, deadline };
        let query = search::within("initiated_at", disputes::begun(window));
        let data = match self.page(access, documents::DISPUTES, MOVEMENTS, &query, cursor).await {
            Err(error) if error.kind == ErrorKind::Refused(RefusedReason::MissingScope) => {
                return Ok(Disputes::NotAvailable);
            }
            result => result?,
        };
        let disputes = DisputePage::read(data).map_err(refused)?;
        let orders = self.orders(access, disputes.orders_to_ask().map_err(refused)?).await?;
        let mut page = disputes.settle(cursor, &orders).map_err(refused)?;
        page.forget_dates_after(window.to, now);
        Ok(Disputes::Page(page))
    }

    /// Reads one page of the shop's orders that were paid within `window`: what they say was paid until `now`.
    pub async fn order_page(
        &self,
        shop: &ShopDomain,
        token: &SecretString,
        window: Window,
        cursor: Option<&str>,
        now: DateTime<Utc>,
        deadline: &Deadline,
    ) -> Result<Page, ProviderError> {
        let access = Access { shop, token, deadline };
        let query = search::orders_paid_within(window);
        let data = self.page(access, documents::ORDERS, ORDERS, &query, cursor).await?;
        let page = OrderPage::read(data).map_err(refused)?;
        let more = self.orders(access, page.orders_to_ask()).await?;
        page.settle(cursor, window, more, now).map_err(refused)
    }

    /// Reads one page of a searched connection, halved for as long as Shopify finds it too
    /// expensive.
    async fn page(
        &self,
        access: Access<'_>,
        document: &'static str,
        size: Size,
        query: &str,
        cursor: Option<&str>,
    ) -> Result<Value, ProviderError> {
        let mut first = size.rows;
        loop {
            let variables = json!({"first": first, "after": cursor, "query": query});
            let points = first * size.points_per_row + POINTS_PER_PAGE;
            match self.graphql(access, document, &variables, points).await {
                Err(error) if is_too_expensive(&error) && first / 2 >= size.fewest => first /= 2,
                result => return result,
            }
        }
    }

    /// Reads the transactions of these orders, several orders a request.
    async fn orders(&self, access: Access<'_>, ids: Vec<String>) -> Result<Orders, ProviderError> {
        let mut orders = Orders::default();
        let mut batches: Vec<(Vec<String>, u32)> =
            ids.chunks(ORDERS_AT_ONCE).map(|ids| (ids.to_vec(), TRANSACTIONS_AT_FIRST)).collect();
        while let Some((mut ids, first)) = batches.pop() {
            let variables = json!({"ids": ids, "first": first});
            let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
            let points = count * (1 + first * POINTS_PER_TRANSACTION);
            let data = match self.graphql(access, documents::ORDER_TRANSACTIONS, &variables, points).await {
                Err(error) if is_too_expensive(&error) && ids.len() > 1 => {
                    let half = ids.split_off(ids.len() / 2);
                    batches.extend([(ids, first), (half, first)]);
                    continue;
                }
                result => result?,
            };
            let cut = orders.add(data, first as usize).map_err(refused)?;
            if first < TRANSACTIONS_AT_MOST {
                batches.extend(cut.into_iter().map(|id| (vec![id], TRANSACTIONS_AT_MOST)));
            }
        }
        Ok(orders)
    }

    /// Returns the version of Shopify's interface that answered instead of the one that was asked
    /// for: ours was retired, and the oldest that is left answers in its place, without an error.
    pub fn other_version(&self) -> Option<&str> {
        self.other_version.get().map(String::as_str)
    }

    fn note_version(&self, answer: &Answer) {
        if let Some(version) = other_version(answer)
            && self.other_version.set(version).is_ok()
        {
            let version = self.other_version().unwrap_or_default();
            tracing::warn!(asked = API_VERSION, answered = version, "Shopify answered with another version");
        }
    }

    async fn graphql(
        &self,
        access: Access<'_>,
        document: &'static str,
        variables: &Value,
        points: u32,
    ) -> Result<Value, ProviderError> {
        let Access { shop, token, deadline } = access;
        let url = self.base.url(shop, &format!("/admin/api/{API_VERSION}/graphql.json"));
        let body = json!({"query": document, "variables": variables});
        self.policy
            .run(deadline, || async {
                let turn = self.buckets.turn(shop, points, deadline).await;
                turn.map_err(|_| ProviderError::out_of_time(Provider::Shopify))?;
                let request =
                    self.http.post(&url).header("X-Shopify-Access-Token", token.expose_secret()).json(&body);
                let answer = send(request, deadline).await?;
                self.note_version(&answer);
                let (result, cost) = answer::read(&answer);
                if let Some(cost) = cost {
                    self.buckets.observe(shop, cost);
                }
                result
            })
            .await
    }
}

/// Returns the version that an answer says it is of, where that is not ours.
fn other_version(answer: &Answer) -> Option<String> {
    let version = answer.headers.get("x-shopify-api-version")?.to_str().ok()?;
    let told = word(version);
    (answer.status.is_success() && !told.is_empty() && told != API_VERSION).then_some(told)
}

async fn send(request: RequestBuilder, deadline: &Deadline) -> Result<Answer, ProviderError> {
    let timeout = deadline
        .request_timeout(REQUEST_TIMEOUT)
        .ok_or_else(|| ProviderError::out_of_time(Provider::Shopify))?;
    http::fetch(request, timeout)
        .await
        .map_err(|fault| ProviderError::network(Provider::Shopify, fault, timeout < REQUEST_TIMEOUT))
}

fn refused(reason: RefusedReason) -> ProviderError {
    ProviderError::refused(Provider::Shopify, reason)
}

fn is_too_expensive(error: &ProviderError) -> bool {
    error.kind == ErrorKind::Refused(RefusedReason::TooExpensive)
}

#[cfg(test)]
mod tests;
