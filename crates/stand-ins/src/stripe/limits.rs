//! Stripe's rate limits: of everything that the platform asks, and of what is asked for each account.
//!
//! Which of the two Stripe counts with `Stripe-Account` is not documented (<https://docs.stripe.com/rate-limits>: "per
//! Stripe account"), so both can be set, at any time. The reason is the header's: `global-rate` or `endpoint-rate`.

use std::{collections::HashMap, time::Instant};

use crate::bucket::Bucket;

/// Holds what may be asked in a second.
#[derive(Default)]
pub(super) struct Limits {
    all: Option<Bucket>,
    of_each: Option<f64>,
    accounts: HashMap<String, Bucket>,
    refusals: Vec<Instant>,
}

impl Limits {
    pub(super) fn set_all(&mut self, per_second: Option<f64>) {
        self.all = per_second.map(full);
    }

    pub(super) fn set_of_each(&mut self, per_second: Option<f64>) {
        self.of_each = per_second;
        self.accounts.clear();
    }

    /// Tells whether it matters which account a request is for.
    pub(super) fn tell_accounts_apart(&self) -> bool {
        self.of_each.is_some()
    }

    /// Counts a request for `account`; the reason where it is one too many.
    pub(super) fn refuse(&mut self, account: &str) -> Option<&'static str> {
        let of_account = self.of_each.is_some_and(|rate| {
            !self.accounts.entry(account.to_owned()).or_insert_with(|| full(rate)).take(1.0)
        });
        let reason = if of_account {
            "endpoint-rate"
        } else if self.all.as_mut().is_some_and(|all| !all.take(1.0)) {
            "global-rate"
        } else {
            return None;
        };
        self.refusals.push(Instant::now());
        Some(reason)
    }

    pub(super) fn refusals(&self) -> &[Instant] {
        &self.refusals
    }
}

/// Makes a bucket that a second's requests fit into.
fn full(per_second: f64) -> Bucket {
    Bucket::new(per_second.max(1.0), per_second)
}
