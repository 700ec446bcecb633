//! Classifies what can go wrong with a provider, once.
//!
//! The kind says who acts: the user reconnects, the item is given up, the item waits, the operator repairs our
//! own key, or the next invocation goes on. No error carries a token, a URL or a body; Stripe's and Shopify's
//! request ids are kept, their support asks for them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::http::{Answer, NetworkError};
use crate::retry::{RetryDecision, Retryable};

listed! {
    /// Represents a source of movements.
    #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Provider {
        /// Stripe is read as a connected account of our platform.
        Stripe,
        /// Shopify is read through the Admin API.
        Shopify,
    }
}

impl Provider {
    /// Returns the value of the column `provider`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Shopify => "shopify",
        }
    }

    /// Returns the name that its users know.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stripe => "Stripe",
            Self::Shopify => "Shopify",
        }
    }
}

/// Says why a user has to connect again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReconnectReason {
    /// The row's access token is not accepted (any more).
    TokenRejected,
    /// The account no longer grants us access.
    AccessRevoked,
    /// The refresh token is spent, expired or revoked.
    RefreshRejected,
}

/// Says why an item is given up: trying again changes nothing until a person acts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RefusedReason {
    /// The shop is frozen or closed by Shopify.
    FrozenShop,
    /// The connection lacks a permission, which its user can grant by connecting again.
    MissingScope,
    /// A permission is lacking that no user can grant.
    PermissionLacking,
    /// The account is a test account, and our key a live one.
    TestMode,
    /// No such shop or account (any more), or it has moved.
    Unknown,
    /// The provider understood our request and refused it: the request is wrong.
    BadRequest,
    /// A search term was dropped, so the rows would be unfiltered.
    SearchIgnored,
    /// The smallest page is still too expensive.
    TooExpensive,
    /// Pagination does not get anywhere.
    EndlessPages,
    /// The answer is not what the provider documents; says which part.
    InvalidAnswer(&'static str),
}

/// Says why a request failed for a while.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TransientCause {
    /// No complete answer came.
    Network(NetworkError),
    /// We made too many requests, which is not the item's fault.
    RateLimited,
    /// Another request holds a lock on the object (409).
    Locked,
    /// The provider itself failed, with this HTTP status.
    Server(u16),
}

/// Represents a failure that passes by itself, and when to come back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Transient {
    pub cause: TransientCause,
    /// Is the wait that the provider asks for, at most an hour.
    pub retry_after: Option<Duration>,
    /// Is `false` where the provider asks not to repeat the request now (`Stripe-Should-Retry:
    /// false`).
    pub retry_now: bool,
}

/// Says who has to act.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ErrorKind {
    /// This user must connect again.
    Reconnect(ReconnectReason),
    /// This item is given up.
    Refused(RefusedReason),
    /// This item waits.
    Transient(Transient),
    /// Our own key or client secret is bad: no item that needs it can succeed until somebody mends it.
    OwnCredentials,
    /// Our own key is good and lacks a permission; `everybody`: it can read no account at all.
    OwnPermission { everybody: bool },
    /// The provider has not approved our application for this data.
    NotApproved,
    /// The provider takes no token any more that does not expire: our application has to ask for others.
    PermanentToken,
    /// The invocation's time is over; nothing is wrong.
    OutOfTime,
}

/// Represents a provider's failure. `Display` is for logs, [`user_message`](Self::user_message) for
/// people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProviderError {
    pub provider: Provider,
    /// Says who has to act.
    pub kind: ErrorKind,
    /// Is Stripe's `Request-Id`, or Shopify's `X-Request-Id`.
    pub request_id: Option<String>,
}

impl ProviderError {
    pub(super) fn new(provider: Provider, kind: ErrorKind) -> Self {
        Self { provider, kind, request_id: None }
    }

    pub(super) fn refused(provider: Provider, reason: RefusedReason) -> Self {
        Self::new(provider, ErrorKind::Refused(reason))
    }

    pub(super) fn out_of_time(provider: Provider) -> Self {
        Self::new(provider, ErrorKind::OutOfTime)
    }

    /// Classifies a failure of the network. A timeout that only came early because the invocation's
    /// end did is no failure of the provider.
    pub(super) fn network(provider: Provider, fault: NetworkError, shortened: bool) -> Self {
        if shortened && fault == NetworkError::Timeout {
            return Self::out_of_time(provider);
        }
        let transient =
            Transient { cause: TransientCause::Network(fault), retry_after: None, retry_now: true };
        Self::new(provider, ErrorKind::Transient(transient))
    }

    /// Keeps the request id of the answer that caused this.
    pub(super) fn of(mut self, answer: &Answer) -> Self {
        let id = answer.header("request-id").or_else(|| answer.header("x-request-id"));
        self.request_id = id
            .filter(|id| {
                id.len() <= 100 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            })
            .map(str::to_owned);
        self
    }

    /// Returns a stable name for logs, metrics and the database.
    pub fn code(&self) -> &'static str {
        match self.kind {
            ErrorKind::Reconnect(ReconnectReason::TokenRejected) => "token_rejected",
            ErrorKind::Reconnect(ReconnectReason::AccessRevoked) => "access_revoked",
            ErrorKind::Reconnect(ReconnectReason::RefreshRejected) => "refresh_rejected",
            ErrorKind::Refused(RefusedReason::FrozenShop) => "frozen_shop",
            ErrorKind::Refused(RefusedReason::MissingScope) => "missing_scope",
            ErrorKind::Refused(RefusedReason::PermissionLacking) => "permission_lacking",
            ErrorKind::Refused(RefusedReason::TestMode) => "test_mode",
            ErrorKind::Refused(RefusedReason::Unknown) => "unknown_account",
            ErrorKind::Refused(RefusedReason::BadRequest) => "bad_request",
            ErrorKind::Refused(RefusedReason::SearchIgnored) => "search_ignored",
            ErrorKind::Refused(RefusedReason::TooExpensive) => "too_expensive",
            ErrorKind::Refused(RefusedReason::EndlessPages) => "endless_pages",
            ErrorKind::Refused(RefusedReason::InvalidAnswer(_)) => "invalid_answer",
            ErrorKind::Transient(Transient { cause: TransientCause::Network(_), .. }) => "network",
            ErrorKind::Transient(Transient { cause: TransientCause::RateLimited, .. }) => "rate_limited",
            ErrorKind::Transient(Transient { cause: TransientCause::Locked, .. }) => "locked",
            ErrorKind::Transient(Transient { cause: TransientCause::Server(_), .. }) => "server_error",
            ErrorKind::OwnCredentials => "own_credentials",
            ErrorKind::OwnPermission { .. } => "own_permission",
            ErrorKind::NotApproved => "app_not_approved",
            ErrorKind::PermanentToken => "permanent_token",
            ErrorKind::OutOfTime => "out_of_time",
        }
    }

    /// Tells whether this uses up one of the item's attempts: time, quotas and our own key are not
    /// the item's fault.
    pub fn counts_as_attempt(&self) -> bool {
        match self.kind {
            ErrorKind::OutOfTime
            | ErrorKind::OwnCredentials
            | ErrorKind::OwnPermission { .. }
            | ErrorKind::NotApproved
            | ErrorKind::PermanentToken => false,
            ErrorKind::Transient(transient) => transient.cause != TransientCause::RateLimited,
            ErrorKind::Reconnect(_) | ErrorKind::Refused(_) => true,
        }
    }

    /// Returns how long the provider asks to wait, if it does.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            ErrorKind::Transient(transient) => transient.retry_after,
            _ => None,
        }
    }
}

impl Retryable for ProviderError {
    fn retry(&self) -> RetryDecision {
        match self.kind {
            ErrorKind::Transient(Transient { retry_now: true, retry_after, .. }) => {
                RetryDecision::After(retry_after)
            }
            _ => RetryDecision::No,
        }
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.provider.as_str(), self.code())?;
        match self.kind {
            ErrorKind::Refused(RefusedReason::InvalidAnswer(part)) => write!(f, " ({part})")?,
            ErrorKind::Transient(Transient { cause: TransientCause::Network(fault), .. }) => {
                write!(f, " ({fault})")?;
            }
            ErrorKind::Transient(Transient { cause: TransientCause::Server(status), .. }) => {
                write!(f, " (HTTP {status})")?;
            }
            _ => {}
        }
        if let Some(id) = &self.request_id {
            write!(f, ", request {id}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ProviderError {}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns one failure of each kind.
    pub(crate) fn all() -> Vec<ProviderError> {
        let network = [NetworkError::Connect, NetworkError::Timeout].map(TransientCause::Network);
        let causes = [TransientCause::RateLimited, TransientCause::Locked, TransientCause::Server(503)];
        let transient = network
            .into_iter()
            .chain(causes)
            .map(|cause| ErrorKind::Transient(Transient { cause, retry_after: None, retry_now: true }));
        let reconnect = [
            ReconnectReason::TokenRejected,
            ReconnectReason::AccessRevoked,
            ReconnectReason::RefreshRejected,
        ];
        let refused = [
            RefusedReason::FrozenShop,
            RefusedReason::MissingScope,
            RefusedReason::PermissionLacking,
            RefusedReason::TestMode,
            RefusedReason::Unknown,
            RefusedReason::BadRequest,
            RefusedReason::SearchIgnored,
            RefusedReason::TooExpensive,
            RefusedReason::EndlessPages,
            RefusedReason::InvalidAnswer("amount"),
        ];
        reconnect
            .map(ErrorKind::Reconnect)
            .into_iter()
            .chain(refused.map(ErrorKind::Refused))
            .chain(transient)
            .chain([
                ErrorKind::OwnCredentials,
                ErrorKind::OwnPermission { everybody: true },
                ErrorKind::NotApproved,
                ErrorKind::PermanentToken,
                ErrorKind::OutOfTime,
            ])
            .map(|kind| ProviderError::new(Provider::Shopify, kind))
            .collect()
    }

    #[test]
    fn what_people_and_logs_read() {
        let lines: Vec<_> =
            all().iter().map(|error| format!("{error}\n  {}", error.user_message())).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn only_what_passes_by_itself_is_repeated() {
        for error in all() {
            let repeated = error.retry() != RetryDecision::No;
            assert_eq!(repeated, matches!(error.kind, ErrorKind::Transient(_)), "{error}");
        }
    }

    #[test]
    fn a_timeout_cut_short_by_the_budget_is_no_fault() {
        let cut = ProviderError::network(Provider::Stripe, NetworkError::Timeout, true);
        assert_eq!(cut.kind, ErrorKind::OutOfTime);
        assert!(!cut.counts_as_attempt());
        let whole = ProviderError::network(Provider::Stripe, NetworkError::Timeout, false);
        assert_eq!(whole.code(), "network");
        assert!(whole.counts_as_attempt());
    }
}
