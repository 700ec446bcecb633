//! What a test or the seed puts into the shops.

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    StandIn,
    state::{DisputeRow, Money, OrderRow, OrderTransactionRow, State, TenderRow},
};

/// Represents a movement of money to put into a shop; negative when it goes back to the customer.
#[derive(Clone, Debug)]
pub struct Tender {
    at: DateTime<Utc>,
    amount: String,
    currency: String,
    shop_money: Option<String>,
    method: Option<String>,
    gateway: Option<String>,
    reference: Option<String>,
    test: bool,
    order: Order,
    late: bool,
    unlisted: bool,
}

#[derive(Clone, Debug)]
enum Order {
    New,
    Deleted,
    Of(u64),
}

impl Tender {
    /// Makes a card payment for an order of its own. Write `amount` as Shopify does: `"12.5"`,
    /// `"-20.0"`.
    pub fn new(at: DateTime<Utc>, amount: &str, currency: &str) -> Self {
        Self {
            at,
            amount: amount.into(),
            currency: currency.into(),
            shop_money: None,
            method: Some("credit_card".into()),
            gateway: None,
            reference: None,
            test: false,
            order: Order::New,
            late: false,
            unlisted: false,
        }
    }

    /// Sets its `paymentMethod`: `credit_card`, `cash`, `paypal`…
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.into());
        self
    }

    /// Pays it with a gift card: no cash comes in.
    #[must_use]
    pub fn gift_card(self) -> Self {
        self.method("gift_card")
    }

    /// Says in the order's transaction, and there alone, how it was paid. The vendor's list of a tender's ways to pay has
    /// neither gift card nor credit, but `other` and `unknown`
    /// (<https://shopify-dev.shopifycloud.com/docs/api/admin-rest/latest/resources/tendertransaction>).
    #[must_use]
    pub fn gateway(mut self, gateway: &str) -> Self {
        self.gateway = Some(gateway.into());
        self
    }

    /// Sets its `remoteReference`: `ch_…` or `pi_…` where the shop is paid through Stripe.
    #[must_use]
    pub fn reference(mut self, reference: &str) -> Self {
        self.reference = Some(reference.into());
        self
    }

    /// Returns what it is in the shop's currency, when the buyer paid in another: the order's
    /// transactions say so.
    #[must_use]
    pub fn shop_money(mut self, amount: &str) -> Self {
        self.shop_money = Some(amount.into());
        self
    }

    /// Makes it one of test mode.
    #[must_use]
    pub fn test(mut self) -> Self {
        self.test = true;
        self
    }

    /// Its order was deleted since.
    #[must_use]
    pub fn deleted_order(mut self) -> Self {
        self.order = Order::Deleted;
        self
    }

    /// It belongs to the same order as `other`.
    #[must_use]
    pub fn same_order(mut self, other: &Sold) -> Self {
        self.order = other.order.as_deref().map_or(Order::Deleted, |order| Order::Of(number(order)));
        self
    }

    /// Hides it from lists until [`reveal`](StandIn::reveal).
    #[must_use]
    pub fn late(mut self) -> Self {
        self.late = true;
        self
    }

    /// Leaves it out of the list of tenders until [`reveal`](StandIn::reveal), although its order's own transactions have
    /// it: <https://community.shopify.com/t/tender-transaction-api-is-not-returning-the-second-transaction/124287>.
    #[must_use]
    pub fn unlisted(mut self) -> Self {
        self.unlisted = true;
        self
    }
}

/// Holds the ids of a tender that was put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sold {
    /// Is `gid://shopify/TenderTransaction/…`.
    pub id: String,
    /// Is `gid://shopify/Order/…`.
    pub order: Option<String>,
    currency: String,
}

/// Represents a dispute to put into a shop: a chargeback that needs a response, unless told
/// otherwise.
#[derive(Clone, Debug)]
pub struct Dispute {
    at: DateTime<Utc>,
    amount: String,
    currency: String,
    kind: String,
    status: String,
    finalized: Option<DateTime<Utc>>,
    order: Option<u64>,
}

impl Dispute {
    /// Makes a dispute that was initiated at `at`, about `amount`.
    pub fn new(at: DateTime<Utc>, amount: &str, currency: &str) -> Self {
        Self {
            at,
            amount: amount.into(),
            currency: currency.into(),
            kind: "CHARGEBACK".into(),
            status: "NEEDS_RESPONSE".into(),
            finalized: None,
            order: None,
        }
    }

    /// Makes it an inquiry: no money has moved yet.
    #[must_use]
    pub fn inquiry(mut self) -> Self {
        self.kind = "INQUIRY".into();
        self
    }

    /// Ends it at `at`, as `WON`, `LOST`, `ACCEPTED` or `PREVENTED`.
    #[must_use]
    pub fn finalized(mut self, status: &str, at: DateTime<Utc>) -> Self {
        self.status = status.into();
        self.finalized = Some(at);
        self
    }

    /// Says that it is about this sale.
    #[must_use]
    pub fn about(mut self, sale: &Sold) -> Self {
        self.order = sale.order.as_deref().map(number);
        self
    }
}

/// A shop that does not exist is a mistake of the test that called, and a panic.
impl StandIn {
    /// Puts a movement of money in, with its order and its order's transaction.
    pub fn tender(&self, domain: &str, tender: Tender) -> Sold {
        put(&mut self.state(), domain, tender)
    }

    /// Pays `amount` (`"20.0"`) of a sale back.
    pub fn refund(&self, domain: &str, sale: &Sold, at: DateTime<Utc>, amount: &str) -> Sold {
        let tender = Tender::new(at, &format!("-{amount}"), &sale.currency).same_order(sale);
        self.tender(domain, tender)
    }

    /// Makes a late tender visible.
    ///
    /// # Panics
    /// When there is no such shop or tender.
    pub fn reveal(&self, domain: &str, sold: &Sold) {
        let mut state = self.state();
        let (id, now) = (number(&sold.id), state.now());
        let shop = state.shop(domain);
        let row = shop.tenders.get_mut(&id).unwrap_or_else(|| panic!("{domain} has no tender {}", sold.id));
        row.hidden = false;
        let Some(order) = row.order.and_then(|order| shop.orders.get_mut(&order)) else { return };
        order.updated = now;
        for transaction in &mut order.transactions {
            transaction.hidden_with = transaction.hidden_with.filter(|tender| *tender != id);
        }
    }

    /// Adds a transaction to a sale's order that is no tender: `CHANGE`, `AUTHORIZATION`, `VOID`…
    ///
    /// # Panics
    /// When there is no such shop or order.
    pub fn order_transaction(&self, domain: &str, sale: &Sold, kind: &str, at: DateTime<Utc>, amount: &str) {
        let mut state = self.state();
        let id = state.new_id();
        let shop = state.shop(domain);
        let money = Money { amount: amount.into(), currency: shop.currency.clone() };
        let order = sale.order.as_deref().map(number).and_then(|order| shop.orders.get_mut(&order));
        let order = order.unwrap_or_else(|| panic!("{domain} has no order {:?}", sale.order));
        order.transactions.push(OrderTransactionRow {
            id,
            kind: kind.into(),
            status: "SUCCESS".into(),
            at,
            test: order.test,
            gateway: "manual".into(),
            shop_money: money.clone(),
            presentment_money: money,
            parent: order.transactions.first().map(|first| first.id),
            hidden_with: None,
        });
        order.updated = order.updated.max(at);
    }

    /// Orders from before `at` are not shown, as without the scope `read_all_orders` (60 days back).
    pub fn hide_orders_before(&self, domain: &str, at: DateTime<Utc>) {
        self.state().shop(domain).orders_from = Some(at);
    }

    /// Empties the list of tenders without an error, as for an application that is not approved
    /// (<https://github.com/nozzlegear/ShopifySharp/issues/894>); `None` fills it again. What was sold before `at` is not
    /// listed.
    pub fn hide_tenders_before(&self, domain: &str, at: Option<DateTime<Utc>>) {
        self.state().shop(domain).tenders_from = at;
    }

    /// Takes the scope `read_all_orders` away: what is older than 60 days is listed no more and looks deleted, without
    /// an error (<https://github.com/Shopify/shopify_app/issues/767>,
    /// <https://github.com/Shopify/shopify_python_api/issues/370>).
    pub fn cut_at_sixty_days(&self, domain: &str) {
        let mut state = self.state();
        let from = state.now() - TimeDelta::days(60);
        let shop = state.shop(domain);
        (shop.orders_from, shop.tenders_from) = (Some(from), Some(from));
        shop.scopes.retain(|scope| *scope != "read_all_orders");
    }

    /// Deletes a sale's order, as the merchant may; the money's own row stays, without it
    /// (<https://shopify.dev/docs/api/admin-graphql/latest/objects/TenderTransaction>).
    pub fn delete_order(&self, domain: &str, sale: &Sold) {
        if let Some(order) = sale.order.as_deref() {
            self.state().shop(domain).orders.remove(&number(order));
        }
    }

    /// Shows other values in some fields of an object from now on, also such as the schema has not; an empty object ends it.
    pub fn show(&self, domain: &str, id: &str, fields: serde_json::Value) {
        self.state().shop(domain).oddities.insert(id.to_owned(), fields);
    }

    /// Puts a dispute in and returns its `gid://shopify/ShopifyPaymentsDispute/…`.
    pub fn dispute(&self, domain: &str, dispute: Dispute) -> String {
        let mut state = self.state();
        let id = state.new_id();
        let row = DisputeRow {
            amount: Money { amount: dispute.amount, currency: dispute.currency },
            at: dispute.at,
            finalized: dispute.finalized,
            status: dispute.status,
            kind: dispute.kind,
            order: dispute.order,
        };
        state.shop(domain).disputes.insert(id, row);
        format!("gid://shopify/ShopifyPaymentsDispute/{id}")
    }

    /// A dispute ends.
    ///
    /// # Panics
    /// When there is no such shop or dispute.
    pub fn finalize_dispute(&self, domain: &str, dispute: &str, status: &str, at: DateTime<Utc>) {
        let mut state = self.state();
        let row = state.shop(domain).disputes.get_mut(&number(dispute));
        let row = row.unwrap_or_else(|| panic!("{domain} has no dispute {dispute}"));
        row.status = status.into();
        row.finalized = Some(at);
    }

    /// A dispute is shown without the date of its decision from now on.
    ///
    /// # Panics
    /// When there is no such shop or dispute.
    pub fn forget_decision(&self, domain: &str, dispute: &str) {
        let mut state = self.state();
        let row = state.shop(domain).disputes.get_mut(&number(dispute));
        row.unwrap_or_else(|| panic!("{domain} has no dispute {dispute}")).finalized = None;
    }

    /// Adds `count` card payments in the shop's currency, `every` apart from `from` on, always the
    /// same: 10.00, 10.01, … 10.99, 10.00, … Returns the sum of their amounts in cents.
    pub fn tenders(&self, domain: &str, from: DateTime<Utc>, every: TimeDelta, count: usize) -> i64 {
        let mut state = self.state();
        let currency = state.shop(domain).currency.clone();
        let (mut at, mut sum) = (from, 0);
        for cents in (1_000_i64..1_100).cycle().take(count) {
            put(&mut state, domain, Tender::new(at, &decimal(cents), &currency));
            at += every;
            sum += cents;
        }
        sum
    }
}

fn put(state: &mut State, domain: &str, tender: Tender) -> Sold {
    let (id, new_order, transaction) = (state.new_id(), state.new_id(), state.new_id());
    let shop = state.shop(domain);
    let order = match tender.order {
        Order::New => Some(new_order),
        Order::Deleted => None,
        Order::Of(order) => Some(order),
    };
    if let Some(order) = order {
        let back = tender.amount.starts_with('-');
        let unsigned = |amount: &str| amount.trim_start_matches('-').to_owned();
        let presentment = Money { amount: unsigned(&tender.amount), currency: tender.currency.clone() };
        let shop_money = tender.shop_money.as_deref().map_or_else(
            || presentment.clone(),
            |amount| Money { amount: unsigned(amount), currency: shop.currency.clone() },
        );
        let number = shop.orders.len() + 1001;
        let row = shop.orders.entry(order).or_insert_with(|| OrderRow {
            name: format!("#{number}"),
            at: tender.at,
            test: tender.test,
            presentment_currency: tender.currency.clone(),
            transactions: Vec::new(),
            updated: tender.at,
        });
        row.updated = row.updated.max(tender.at);
        row.transactions.push(OrderTransactionRow {
            id: transaction,
            kind: if back { "REFUND" } else { "SALE" }.into(),
            status: "SUCCESS".into(),
            at: tender.at,
            test: tender.test,
            gateway: tender.gateway.clone().or_else(|| tender.method.clone()).unwrap_or_default(),
            shop_money,
            presentment_money: presentment,
            parent: if back { row.transactions.first().map(|first| first.id) } else { None },
            hidden_with: tender.late.then_some(id),
        });
    }
    let currency = tender.currency.clone();
    let row = TenderRow {
        amount: Money { amount: tender.amount, currency: tender.currency },
        at: tender.at,
        test: tender.test,
        method: tender.method,
        reference: tender.reference,
        order,
        hidden: tender.late || tender.unlisted,
    };
    shop.tenders.insert(id, row);
    Sold {
        id: format!("gid://shopify/TenderTransaction/{id}"),
        order: order.map(|order| format!("gid://shopify/Order/{order}")),
        currency,
    }
}

/// Returns the number at the end of a `gid://shopify/…/123`.
fn number(gid: &str) -> u64 {
    gid.rsplit('/').next().and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

/// As Shopify writes amounts: `10.0`, `10.5`, `10.05`.
fn decimal(cents: i64) -> String {
    let (whole, rest) = (cents / 100, cents % 100);
    if rest % 10 == 0 { format!("{whole}.{}", rest / 10) } else { format!("{whole}.{rest:02}") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn writes_amounts_as_shopify_does() {
        let written = [1_000, 1_050, 1_005, 99].map(super::decimal);
        assert_eq!(written, ["10.0", "10.5", "10.05", "0.99"]);
    }
}
