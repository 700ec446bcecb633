//! What the stand-in knows: accounts, their ledgers, and the objects the ledgers point to.

use std::collections::HashMap;

use axum::body::Bytes;

use super::{ledger::BalanceTransaction, limits::Limits, objects::Source};

/// Is the account of the platform itself.
pub(super) const PLATFORM: &str = "acct_1PlatformStandIn";

pub(super) struct State {
    pub(super) secret_key: String,
    pub(super) accounts: HashMap<String, Account>,
    pub(super) limits: Limits,
    pub(super) any_version: bool,
    pub(super) requests: u64,
    /// Holds the pages of lists so far, by account and query, where they are remembered.
    pub(super) pages: Option<HashMap<(String, String), Bytes>>,
    next_id: u64,
}

impl Default for State {
    fn default() -> Self {
        let secret_key = format!("sk_test_51{}", uuid::Uuid::new_v4().simple());
        let mut state = Self {
            accounts: HashMap::new(),
            limits: Limits::default(),
            any_version: false,
            requests: 0,
            pages: None,
            next_id: 0,
            secret_key,
        };
        // Nobody holds an OAuth token of the platform's own account.
        state.add_account(PLATFORM, &uuid::Uuid::new_v4().to_string());
        state
    }
}

impl State {
    pub(super) fn add_account(&mut self, id: &str, token: &str) {
        self.accounts.insert(id.into(), Account::new(id, token));
    }

    pub(super) fn account(&self, id: &str) -> &Account {
        self.accounts.get(id).unwrap_or_else(|| panic!("the stand-in has no Stripe account {id}"))
    }

    pub(super) fn account_mut(&mut self, id: &str) -> &mut Account {
        self.accounts.get_mut(id).unwrap_or_else(|| panic!("the stand-in has no Stripe account {id}"))
    }

    /// Makes a new id that looks like Stripe's and sorts in the order of creation.
    pub(super) fn new_id(&mut self, prefix: &str) -> String {
        self.next_id += 1;
        format!("{prefix}_3StandIn{:016}", self.next_id)
    }
}

/// Represents one account: its token and its ledger.
pub(super) struct Account {
    pub(super) id: String,
    pub(super) token: String,
    pub(super) revoked: bool,
    /// Is ordered oldest first; rows of the same second stay in the order in which they were put
    /// in.
    ledger: Vec<BalanceTransaction>,
    /// Says when each row was created: where to look for it.
    created: HashMap<String, i64>,
    pub(super) sources: HashMap<String, Source>,
}

impl Account {
    fn new(id: &str, token: &str) -> Self {
        Self {
            id: id.into(),
            token: token.into(),
            revoked: false,
            ledger: Vec::new(),
            created: HashMap::new(),
            sources: HashMap::new(),
        }
    }

    pub(super) fn insert(&mut self, row: BalanceTransaction) {
        self.created.insert(row.id.clone(), row.created);
        self.ledger.insert(self.ledger.partition_point(|other| other.created <= row.created), row);
    }

    pub(super) fn row_mut(&mut self, id: &str) -> &mut BalanceTransaction {
        let at = self.position(id).unwrap_or_else(|| panic!("{} has no balance transaction {id}", self.id));
        &mut self.ledger[at]
    }

    fn position(&self, id: &str) -> Option<usize> {
        let created = *self.created.get(id)?;
        let first = self.ledger.partition_point(|row| row.created < created);
        Some(first + self.ledger[first..].iter().position(|row| row.id == id)?)
    }

    /// Returns the latest refund (or, for a dispute's category, dispute) of a charge.
    pub(super) fn against(&self, charge: &str, category: &str) -> Option<String> {
        let of_charge = |source: &Source| match source {
            Source::Refund { charge: of, .. } => of == charge && category.starts_with("refund"),
            Source::Dispute { charge: of, .. } => of == charge && category.starts_with("dispute"),
            _ => false,
        };
        let found = self.sources.iter().filter(|(_, source)| of_charge(source));
        // Ids sort in the order of creation.
        found.map(|(id, _)| id).max().cloned()
    }

    /// Returns all rows, hidden ones too, oldest first.
    pub(super) fn rows(&self) -> impl Iterator<Item = &BalanceTransaction> {
        self.ledger.iter()
    }

    /// Returns what a list shows, newest first.
    pub(super) fn listed(&self) -> impl Iterator<Item = &BalanceTransaction> {
        self.ledger.iter().rev().filter(|row| !row.hidden)
    }

    /// Returns the same, from behind `after` on, created in `from..to`; `None` when `after` is not
    /// listed.
    pub(super) fn listed_between(
        &self,
        from: Option<i64>,
        to: Option<i64>,
        after: Option<&str>,
    ) -> Option<impl Iterator<Item = &BalanceTransaction>> {
        let first_at = |bound: i64| self.ledger.partition_point(|row| row.created < bound);
        let mut end = to.map_or(self.ledger.len(), first_at);
        if let Some(after) = after {
            let position = self.position(after).filter(|at| !self.ledger[*at].hidden)?;
            end = end.min(position);
        }
        let start = from.map_or(0, first_at).min(end);
        Some(self.ledger[start..end].iter().rev().filter(|row| !row.hidden))
    }
}
