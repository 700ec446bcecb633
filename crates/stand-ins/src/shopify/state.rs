//! What the stand-in knows: shops, their tenders, orders and disputes.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use chrono::{DateTime, Utc};

use super::oauth::Oauth;
use crate::{bucket::Bucket, clock::Clock};

/// Says what happens to a refresh token that was used before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefreshReuse {
    /// It is refused at once: stricter than Shopify, so that a lost pair or a second refresh shows.
    #[default]
    Refused,
    /// It does as Shopify has done since 28 August 2026: it is good until the refresh token that
    /// replaced it is used.
    UntilReplacementUsed,
}

/// Says what the application may read of a shop's payments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PaymentsAccess {
    /// It may read account and disputes.
    #[default]
    Granted,
    /// It may read the account, not the disputes: `disputes` cannot be null, so the account is.
    NoDisputes,
    /// It may not even read the account.
    NoAccount,
    /// The shop does not use Shopify Payments: the account is null, without an error.
    NotUsed,
}

/// Says how a shop's lists go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Every page is the first, with a next page, at the same cursor.
    LoopingCursor,
    /// The page after the first is the first once more; the rest follow.
    DuplicatePage,
    /// There is a next page, and no cursor to it.
    NoCursor,
}

pub(super) struct State {
    pub(super) client_id: String,
    pub(super) client_secret: String,
    pub(super) shops: HashMap<String, Shop>,
    pub(super) refresh_reuse: RefreshReuse,
    /// No permanent token opens anything any more.
    pub(super) permanent_retired: bool,
    pub(super) clock: Clock,
    /// Says how much further than the clock the stand-in is.
    pub(super) advanced: Duration,
    pub(super) requests: u64,
    /// Is the version that answers, whichever is asked for.
    pub(super) answering_version: &'static str,
    next_id: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            client_id: uuid::Uuid::new_v4().simple().to_string(),
            client_secret: format!("shpss_{}", uuid::Uuid::new_v4().simple()),
            shops: HashMap::new(),
            refresh_reuse: RefreshReuse::default(),
            permanent_retired: false,
            clock: Clock::default(),
            advanced: Duration::ZERO,
            requests: 0,
            answering_version: super::API_VERSION,
            next_id: 6_000_000_000_000,
        }
    }
}

impl State {
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.clock.now() + self.advanced
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn add_shop(&mut self, domain: &str, currency: &str) -> &mut Shop {
        let id = self.new_id();
        let shop = self.shops.entry(domain.into()).or_insert_with(|| Shop::new(id, domain, currency));
        shop.currency = currency.into();
        shop
    }

    pub(super) fn shop(&mut self, domain: &str) -> &mut Shop {
        self.shops.get_mut(domain).unwrap_or_else(|| panic!("the stand-in has no shop {domain}"))
    }
}

pub(super) struct Shop {
    pub(super) id: u64,
    pub(super) domain: String,
    pub(super) currency: String,
    pub(super) oauth: Oauth,
    pub(super) bucket: Bucket,
    pub(super) max_cost: u64,
    pub(super) status: Option<u16>,
    pub(super) payments_access: PaymentsAccess,
    pub(super) misbehaviour: Option<Misbehaviour>,
    pub(super) orders_from: Option<DateTime<Utc>>,
    /// Hides tenders from before this instant.
    pub(super) tenders_from: Option<DateTime<Utc>>,
    pub(super) scopes: Vec<&'static str>,
    /// Is ordered by id, which is the order in which lists show them.
    pub(super) tenders: BTreeMap<u64, TenderRow>,
    pub(super) orders: BTreeMap<u64, OrderRow>,
    pub(super) disputes: BTreeMap<u64, DisputeRow>,
    /// Holds what objects show instead, by their ids and field by field, whatever the schema says.
    pub(super) oddities: HashMap<String, serde_json::Value>,
}

impl Shop {
    fn new(id: u64, domain: &str, currency: &str) -> Self {
        Self {
            id,
            domain: domain.into(),
            currency: currency.into(),
            oauth: Oauth::default(),
            bucket: Bucket::new(2000.0, 100.0),
            max_cost: 1000,
            status: None,
            payments_access: PaymentsAccess::default(),
            misbehaviour: None,
            orders_from: None,
            tenders_from: None,
            scopes: vec!["read_all_orders", "read_orders", "read_shopify_payments_disputes"],
            tenders: BTreeMap::new(),
            orders: BTreeMap::new(),
            disputes: BTreeMap::new(),
            oddities: HashMap::new(),
        }
    }

    /// Shows what stands in an answer as the shop shows it.
    pub(super) fn show(&self, answer: &mut serde_json::Value) {
        use serde_json::Value;
        match answer {
            Value::Array(rows) => {
                for row in rows {
                    self.show(row);
                }
            }
            Value::Object(row) => {
                let odd = row.get("id").and_then(Value::as_str).and_then(|id| self.oddities.get(id));
                for field in row.values_mut() {
                    self.show(field);
                }
                row.extend(odd.and_then(Value::as_object).cloned().into_iter().flatten());
            }
            _ => {}
        }
    }
}

/// Represents an amount as Shopify writes it, and its currency.
#[derive(Clone, Debug)]
pub(super) struct Money {
    pub(super) amount: String,
    pub(super) currency: String,
}

pub(super) struct TenderRow {
    pub(super) amount: Money,
    pub(super) at: DateTime<Utc>,
    pub(super) test: bool,
    pub(super) method: Option<String>,
    pub(super) reference: Option<String>,
    pub(super) order: Option<u64>,
    pub(super) hidden: bool,
}

pub(super) struct OrderRow {
    pub(super) name: String,
    pub(super) at: DateTime<Utc>,
    pub(super) test: bool,
    pub(super) presentment_currency: String,
    pub(super) transactions: Vec<OrderTransactionRow>,
    /// Is when something of it changed last.
    pub(super) updated: DateTime<Utc>,
}

#[derive(Clone)]
pub(super) struct OrderTransactionRow {
    pub(super) id: u64,
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) at: DateTime<Utc>,
    pub(super) test: bool,
    pub(super) gateway: String,
    pub(super) shop_money: Money,
    pub(super) presentment_money: Money,
    pub(super) parent: Option<u64>,
    /// Names the late tender with which it will show.
    pub(super) hidden_with: Option<u64>,
}

pub(super) struct DisputeRow {
    pub(super) amount: Money,
    pub(super) at: DateTime<Utc>,
    pub(super) finalized: Option<DateTime<Utc>>,
    pub(super) status: String,
    pub(super) kind: String,
    pub(super) order: Option<u64>,
}
