//! The two requests we make of Stripe, and one that only asks whether our key is good for them.

use std::time::Duration;

use chrono::TimeDelta;
use reqwest::{Client, RequestBuilder};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::answer::{self, Key};
use super::refusals::{Asked, Reason};
use super::{API_VERSION, Pacer, StripeAccountId, balance};
use crate::deadline::Deadline;
use crate::http::{self, Answer};
use crate::providers::{ErrorKind, Movement, Page, Provider, ProviderError, RefusedReason};
use crate::retry::RetryPolicy;
use crate::schedule::Window;

/// Stripe documents this as the upper bound of `limit`.
const PAGE_SIZE: &str = "100";
/// The money of a payment is there at most so long after it was sent.
const LONGEST_WAY: TimeDelta = TimeDelta::days(180);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Account {
    id: String,
}

/// Reads connected accounts with the platform's key. Clones share the connections and the pace.
#[derive(Clone)]
pub struct StripeClient {
    http: Client,
    api_base: String,
    secret_key: SecretString,
    pacer: Pacer,
    policy: RetryPolicy,
}

impl StripeClient {
    /// Creates a client of `api_base`, which has no path, e.g. [`super::DEFAULT_API_BASE`].
    pub fn new(http: Client, api_base: &str, secret_key: SecretString, pacer: Pacer) -> Self {
        let api_base = api_base.trim_end_matches('/').to_owned();
        Self { http, api_base, secret_key, pacer, policy: RetryPolicy::PROVIDER }
    }

    /// Replaces the pauses between retries.
    #[must_use]
    pub fn with_retries(self, policy: RetryPolicy) -> Self {
        Self { policy, ..self }
    }

    /// Returns whose account a row's own access token opens ("Retrieve account": `GET
    /// /v1/account`).
    ///
    /// The user can write `stripe_account_id`, and our platform key opens every account that ever connected:
    /// read an account only for the row whose token has answered its id. A token that is refused is a
    /// [`Reconnect`](crate::providers::ErrorKind::Reconnect).
    pub async fn prove_account(
        &self,
        access_token: &SecretString,
        deadline: &Deadline,
    ) -> Result<StripeAccountId, ProviderError> {
        let answer = self.get("/v1/account", access_token, Key::Row, deadline, |request| request).await?;
        serde_json::from_slice::<Account>(&answer.body)
            .ok()
            .and_then(|account| account.id.parse().ok())
            .ok_or_else(|| refused(RefusedReason::InvalidAnswer("account"), &answer))
    }

    /// Reads one page of the account's movements, newest first ("List all balance transactions").
    ///
    /// `cursor` is the `next` of the page before. A row can become visible some time after its own timestamp:
    /// overlap the windows of two runs.
    pub async fn balance_transactions(
        &self,
        account: &StripeAccountId,
        window: Window,
        cursor: Option<&str>,
        deadline: &Deadline,
    ) -> Result<Page, ProviderError> {
        let Window { from, to } = window.in_whole_seconds();
        let mut query = vec![
            ("limit", PAGE_SIZE.to_owned()),
            ("created[gte]", from.timestamp().to_string()),
            ("created[lt]", to.timestamp().to_string()),
            ("expand[]", "data.source".to_owned()),
        ];
        query.extend(cursor.map(|cursor| ("starting_after", cursor.to_owned())));
        let answer = self
            .get("/v1/balance_transactions", &self.secret_key, Key::Platform, deadline, |request| {
                request.header("Stripe-Account", account.as_str()).query(&query)
            })
            .await?;
        // Stripe repeats whose answer it is (https://github.com/stripe/stripe-node/blob/master/src/RequestSender.ts).
        if answer.header("stripe-account").is_some_and(|named| named != account.as_str()) {
            return Err(refused(RefusedReason::InvalidAnswer("account"), &answer));
        }
        let mut page = balance::page(&answer.body, cursor).map_err(|reason| refused(reason, &answer))?;
        page.forget_dates_after(to, to + LONGEST_WAY);
        Ok(page)
    }

    /// Reads one movement by its id ("Retrieve a balance transaction"); `None` where the account does not know it, or the
    /// answer tells nothing of it: what is known of it stays, and one row keeps no other back.
    pub async fn balance_transaction(
        &self,
        account: &StripeAccountId,
        id: &str,
        deadline: &Deadline,
    ) -> Result<Option<Movement>, ProviderError> {
        if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Ok(None);
        }
        let path = format!("/v1/balance_transactions/{id}");
        let asked = self.get(&path, &self.secret_key, Key::Platform, deadline, |request| {
            request.header("Stripe-Account", account.as_str()).query(&[("expand[]", "source")])
        });
        match asked.await {
            Ok(answer) => {
                let found = balance::single(&answer.body).ok();
                Ok(found.filter(|movement| movement.external_id == id))
            }
            Err(ProviderError {
                kind:
                    ErrorKind::Refused(
                        RefusedReason::Unknown | RefusedReason::BadRequest | RefusedReason::InvalidAnswer(_),
                    ),
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns whether the platform's key may read movements: the request of every sync, once, of
    /// `account` where one is known. What that account alone refuses says nothing of the key: then
    /// the platform itself is asked.
    pub async fn check_key(
        &self,
        account: Option<&StripeAccountId>,
        deadline: &Deadline,
    ) -> Result<(), ProviderError> {
        let asked = self.clone().with_retries(RetryPolicy { retries: 0, ..RetryPolicy::PROVIDER });
        if let Some(account) = account {
            match asked.one_movement(Some(account), deadline).await {
                Err(ProviderError { kind: ErrorKind::Reconnect(_) | ErrorKind::Refused(_), .. }) => {}
                answer => return answer,
            }
        }
        asked.one_movement(None, deadline).await
    }

    async fn one_movement(
        &self,
        account: Option<&StripeAccountId>,
        deadline: &Deadline,
    ) -> Result<(), ProviderError> {
        let query = [("limit", "1"), ("expand[]", "data.source")];
        self.get("/v1/balance_transactions", &self.secret_key, Key::Platform, deadline, |request| {
            let request = request.query(&query);
            match account {
                Some(account) => request.header("Stripe-Account", account.as_str()),
                None => request,
            }
        })
        .await
        .map(drop)
    }

    async fn get(
        &self,
        path: &str,
        key: &SecretString,
        whose: Key,
        deadline: &Deadline,
        shape: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer, ProviderError> {
        self.policy
            .run(deadline, || async {
                let request = self
                    .http
                    .get(format!("{}{path}", self.api_base))
                    .bearer_auth(key.expose_secret())
                    .header("Stripe-Version", API_VERSION);
                let request = shape(request);
                let out_of_time = |_| ProviderError::out_of_time(Provider::Stripe);
                let turn = self.pacer.turn(Asked::by(&request), deadline).await.map_err(out_of_time)?;
                let timeout = deadline
                    .request_timeout(REQUEST_TIMEOUT)
                    .ok_or_else(|| ProviderError::out_of_time(Provider::Stripe))?;
                let answer = http::fetch(request, timeout).await.map_err(|fault| {
                    ProviderError::network(Provider::Stripe, fault, timeout < REQUEST_TIMEOUT)
                })?;
                let reason = Reason::of(&answer);
                let checked = answer::check(answer, whose);
                self.pacer.heard(turn, reason, &checked, deadline).await;
                checked
            })
            .await
    }
}

fn refused(reason: RefusedReason, answer: &Answer) -> ProviderError {
    ProviderError::refused(Provider::Stripe, reason).of(answer)
}

#[cfg(test)]
mod tests;
