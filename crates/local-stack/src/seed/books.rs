//! Puts movements of money into the stand-ins, and knows what they must add up to.
//!
//! The sums are this module's own, in cents: the product's are held against them.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use uuid::Uuid;

use super::calendar::month_of;
use stand_ins::{
    shopify::{self, Dispute, Sold, Tender},
    stripe::{self, Payment},
};

/// Says where a movement was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Shopify,
    Stripe,
}

impl Source {
    /// Returns the name that the answers and the database use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shopify => "shopify",
            Self::Stripe => "stripe",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Movement {
    user: Uuid,
    source: Source,
    month: NaiveDate,
    /// Is `None` for what the product keeps, and what is no turnover in euros.
    cents: Option<i64>,
}

/// Says what all users' movements add up to.
#[derive(Clone, Debug, Default)]
pub struct Books {
    movements: Vec<Movement>,
    activities: BTreeMap<(Uuid, Source), &'static str>,
}

/// Holds cents by user, month and activity.
pub type Turnover = BTreeMap<(Uuid, NaiveDate, &'static str), i64>;

impl Books {
    /// Sets which activity a user's money from `source` belongs to.
    pub fn activity(&mut self, user: Uuid, source: Source, activity: &'static str) {
        self.activities.insert((user, source), activity);
    }

    /// Notes a movement.
    pub fn note(&mut self, user: Uuid, source: Source, at: DateTime<Utc>, cents: Option<i64>) {
        self.movements.push(Movement { user, source, month: month_of(at), cents });
    }

    /// Returns how many rows the ledger has when everything was read.
    pub fn len(&self) -> usize {
        self.movements.len()
    }

    pub fn is_empty(&self) -> bool {
        self.movements.is_empty()
    }

    /// Returns a user's month by source; a source without turnover is not there.
    pub fn month(&self, user: Uuid, month: NaiveDate) -> BTreeMap<&'static str, i64> {
        let mut sums = BTreeMap::new();
        for movement in self.movements.iter().filter(|m| m.user == user && m.month == month) {
            if let Some(cents) = movement.cents {
                *sums.entry(movement.source.as_str()).or_default() += cents;
            }
        }
        sums
    }

    /// Returns whether anything of a user's moved in a month, turnover or not.
    pub fn moved(&self, user: Uuid, month: NaiveDate) -> bool {
        self.movements.iter().any(|m| m.user == user && m.month == month)
    }

    /// Returns what the users' records hold from `first` on.
    pub fn turnover(&self, first: NaiveDate) -> Turnover {
        let mut sums = Turnover::new();
        for movement in self.movements.iter().filter(|m| m.month >= first) {
            let activity = self.activities.get(&(movement.user, movement.source)).copied();
            if let (Some(cents), Some(activity)) = (movement.cents, activity) {
                *sums.entry((movement.user, movement.month, activity)).or_default() += cents;
            }
        }
        sums
    }
}

/// Represents one user's Stripe account in the stand-in.
pub struct StripeBooks<'a> {
    pub stripe: &'a stripe::StandIn,
    pub books: &'a mut Books,
    pub user: Uuid,
    pub account: &'a str,
}

impl StripeBooks<'_> {
    fn note(&mut self, at: DateTime<Utc>, cents: Option<i64>) {
        self.books.note(self.user, Source::Stripe, at, cents);
    }

    pub fn payment(&mut self, at: DateTime<Utc>, cents: i64) -> Payment {
        self.note(at, Some(cents));
        self.stripe.payment(self.account, at, cents, "eur")
    }

    /// Makes many payments, enough for several pages.
    pub fn payments(&mut self, from: DateTime<Utc>, every: TimeDelta, count: usize) {
        let sum = self.stripe.payments(self.account, from, every, count, "eur");
        // One row of the books carries the sum: only the sum and the number of rows are ever asked for.
        self.note(from, Some(sum));
        (1..count).for_each(|_| self.note(from, Some(0)));
    }

    pub fn refund(&mut self, payment: &Payment, at: DateTime<Utc>, cents: i64) -> stripe::Movement {
        self.note(at, Some(-cents));
        self.stripe.refund(self.account, &payment.charge, at, cents)
    }

    pub fn dispute(&mut self, payment: &Payment, at: DateTime<Utc>, cents: i64) {
        self.note(at, Some(-cents));
        self.stripe.dispute(self.account, &payment.charge, at, cents);
    }

    /// Makes a payment that is settled in dollars: kept, not counted.
    pub fn dollars(&mut self, at: DateTime<Utc>, cents: i64) {
        self.note(at, None);
        self.stripe.payment(self.account, at, cents, "usd");
    }

    /// Makes a payment in dollars that is settled in euros: counted as what arrived.
    pub fn converted(&mut self, at: DateTime<Utc>, dollars: i64, euros: i64) {
        self.note(at, Some(euros));
        self.stripe.converted_payment(self.account, at, (dollars, "usd"), (euros, "eur"));
    }

    /// Pays out to the bank account: not even kept.
    pub fn payout(&mut self, at: DateTime<Utc>, cents: i64) {
        self.stripe.payout(self.account, at, cents, "eur");
    }
}

/// Represents one user's shop in the stand-in.
pub struct ShopBooks<'a> {
    pub shopify: &'a shopify::StandIn,
    pub books: &'a mut Books,
    pub user: Uuid,
    pub domain: &'a str,
}

/// Writes an amount as Shopify takes it.
fn euros(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

impl ShopBooks<'_> {
    fn note(&mut self, at: DateTime<Utc>, cents: Option<i64>) {
        self.books.note(self.user, Source::Shopify, at, cents);
    }

    pub fn sale(&mut self, at: DateTime<Utc>, cents: i64) -> Sold {
        self.note(at, Some(cents));
        self.shopify.tender(self.domain, Tender::new(at, &euros(cents), "EUR"))
    }

    pub fn refund(&mut self, sale: &Sold, at: DateTime<Utc>, cents: i64) {
        self.note(at, Some(-cents));
        self.shopify.refund(self.domain, sale, at, &euros(cents));
    }

    /// Makes a sale that is paid through Stripe as `reference`: counted there.
    pub fn paid_by_stripe(&mut self, at: DateTime<Utc>, cents: i64, reference: &str) -> Sold {
        self.note(at, None);
        self.shopify.tender(self.domain, Tender::new(at, &euros(cents), "EUR").reference(reference))
    }

    /// Pays a sale of [`paid_by_stripe`](Self::paid_by_stripe) back, through Stripe too.
    pub fn refunded_by_stripe(&mut self, sale: &Sold, at: DateTime<Utc>, cents: i64, reference: &str) {
        self.note(at, None);
        let tender = Tender::new(at, &format!("-{}", euros(cents)), "EUR");
        self.shopify.tender(self.domain, tender.same_order(sale).reference(reference));
    }

    /// Makes a sale paid with a gift card: the money came in when the card was sold.
    pub fn gift_card(&mut self, at: DateTime<Utc>, cents: i64) {
        self.note(at, None);
        self.shopify.tender(self.domain, Tender::new(at, &euros(cents), "EUR").gift_card());
    }

    /// Makes a chargeback that was lost at `decided`.
    pub fn lost_dispute(&mut self, sale: &Sold, begun: DateTime<Utc>, decided: DateTime<Utc>, cents: i64) {
        self.note(decided, Some(-cents));
        let dispute = Dispute::new(begun, &euros(cents), "EUR").about(sale).finalized("LOST", decided);
        self.shopify.dispute(self.domain, dispute);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_by_user_month_and_activity() {
        let (anne, paul) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut books = Books::default();
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("an instant");
        books.activity(anne, Source::Stripe, "services");
        books.activity(anne, Source::Shopify, "goods");
        books.note(anne, Source::Stripe, at("2026-10-31T23:30:00Z"), Some(1_000));
        books.note(anne, Source::Stripe, at("2026-11-02T10:00:00Z"), Some(-300));
        books.note(anne, Source::Shopify, at("2026-11-02T10:00:00Z"), Some(50));
        books.note(anne, Source::Shopify, at("2026-11-02T10:00:00Z"), None);
        books.note(anne, Source::Stripe, at("2026-10-02T10:00:00Z"), Some(7));
        books.note(paul, Source::Stripe, at("2026-11-02T10:00:00Z"), Some(9));
        let november = NaiveDate::from_ymd_opt(2026, 11, 1).expect("a day");
        assert_eq!(books.month(anne, november), BTreeMap::from([("shopify", 50), ("stripe", 700)]));
        let expected = Turnover::from([((anne, november, "goods"), 50), ((anne, november, "services"), 700)]);
        assert_eq!(books.turnover(november), expected);
        assert_eq!(books.len(), 6);
    }

    #[test]
    fn amounts_are_written_with_two_decimals() {
        assert_eq!([1_000, 1_005, 99].map(euros), ["10.00", "10.05", "0.99"]);
    }
}
