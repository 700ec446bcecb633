//! A source of money whose history is random, and the books that follow from it: the test's own model, written down
//! beside what is put into the stand-ins and knowing nothing of how the product reads.

mod shop;

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use jobs::schedule::paris;
use serde_json::json;
use stand_ins::{
    shopify::{Sold, Tender},
    stripe::{Entry, Movement, Payment},
};

use super::switches::{Books, Rule};
use crate::world::World;

pub(super) const SHOP: &str = "history.myshopify.com";

/// Generates numbers that look random and are the same for the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// Draws one of `0..n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// Takes one out of a list.
    fn take<T>(&mut self, from: &mut Vec<T>) -> Option<T> {
        let n = u64::try_from(from.len()).ok().filter(|n| *n > 0)?;
        Some(from.swap_remove(usize::try_from(self.below(n)).ok()?))
    }
}

/// Holds a month of Paris and an activity.
pub(super) type Place = (String, &'static str);

/// Represents a sale in the shop.
struct Sale {
    sold: Sold,
    cents: i64,
    currency: &'static str,
    /// Names its charge, where it was paid through Stripe.
    charge: Option<Charge>,
}

/// Names a charge and its account.
#[derive(Clone)]
struct Charge {
    id: String,
    account: usize,
}

/// Represents what a movement counts for.
struct Counted {
    place: Place,
    cents: i64,
    rule: Rule,
}

/// Holds what may still become of what moved at one account.
#[derive(Default)]
struct AtStripe {
    paid: Vec<(Payment, i64)>,
    refunded: Vec<(Payment, i64)>,
    /// Holds refunds that wait for money and are not read yet.
    asked: Vec<(Movement, String, DateTime<Utc>, i64)>,
    /// Holds those that were read while they waited.
    waiting: Vec<(Movement, String, DateTime<Utc>, i64)>,
    disputed: Vec<(Payment, i64)>,
    debits: Vec<(Payment, i64, DateTime<Utc>)>,
    debited: Vec<(Payment, i64)>,
    late_rows: Vec<(String, DateTime<Utc>, i64)>,
}

/// Holds what moved at the source, and what may still become of it.
pub(super) struct Source {
    pub(super) accounts: Books,
    /// Holds what counts in the end, in euro cents.
    truth: BTreeMap<String, Counted>,
    steps: u64,
    at_stripe: [AtStripe; 2],
    sales: Vec<Sale>,
    /// Holds sales in dollars that are not read yet: their orders stay until a read has seen them.
    fresh: Vec<Sold>,
    /// Holds sales in dollars that were read: whatever becomes of the order, the conversion is
    /// known.
    known: Vec<Sold>,
    late_sales: Vec<(Sold, DateTime<Utc>, i64)>,
    disputes: Vec<(String, String, i64)>,
}

fn decimal(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100)
}

impl Source {
    pub(super) fn new(month: String) -> Self {
        Self {
            accounts: Books::new(month),
            truth: BTreeMap::new(),
            steps: 0,
            at_stripe: Default::default(),
            sales: Vec::new(),
            fresh: Vec::new(),
            known: Vec::new(),
            late_sales: Vec::new(),
            disputes: Vec::new(),
        }
    }

    /// Returns the books that are right, without months of nothing.
    pub(super) fn books(&self) -> BTreeMap<Place, i64> {
        let mut books = BTreeMap::new();
        for Counted { place, cents, rule } in self.truth.values() {
            if self.accounts.count(rule, &place.0) {
                *books.entry(place.clone()).or_default() += cents;
            }
        }
        books.retain(|_, cents| *cents != 0);
        books
    }

    fn counts(&mut self, id: &str, at: DateTime<Utc>, cents: i64) {
        let (activity, rule) = if id.starts_with("gid:") {
            ("Vente de marchandises", Rule::Always)
        } else {
            ("Prestation de services", Rule::Of(self.accounts.present))
        };
        self.truth
            .insert(id.to_owned(), Counted { place: (paris::month(at).to_string(), activity), cents, rule });
    }

    /// Counts what the shop tells of a payment at the present account, which is there in the month of `at_stripe`.
    fn counts_twice(&mut self, sold: &Sold, at: DateTime<Utc>, cents: i64, at_stripe: DateTime<Utc>) {
        self.counts(&sold.id, at, cents);
        let rule = Rule::Unless(self.accounts.present, paris::month(at_stripe).to_string());
        self.truth.entry(sold.id.clone()).and_modify(|counted| counted.rule = rule);
    }

    fn here(&mut self) -> &mut AtStripe {
        &mut self.at_stripe[self.accounts.present]
    }

    /// Draws an amount that no other movement has.
    fn new_cents(&mut self, dice: &mut Dice) -> i64 {
        self.steps += 1;
        i64::try_from(1_000 + self.steps * 60 + dice.below(30) * 2).expect("small")
    }

    /// Notes that everything that is listed was read: orders may go.
    pub(super) fn was_read(&mut self) {
        self.known.append(&mut self.fresh);
        let here = self.here();
        here.waiting.append(&mut here.asked);
    }

    /// Something happens at `now`.
    pub(super) fn moves(&mut self, world: &World, dice: &mut Dice, now: DateTime<Utc>) {
        let cents = self.new_cents(dice);
        if dice.below(2) == 0 {
            self.at_stripe(world, dice, now, cents);
        } else {
            self.in_the_shop(world, dice, now, cents);
        }
    }

    fn at_stripe(&mut self, world: &World, dice: &mut Dice, now: DateTime<Utc>, cents: i64) {
        let (stripe, account) = (&world.stripe, self.accounts.account());
        let days_ago =
            |dice: &mut Dice, most| now - TimeDelta::days(i64::try_from(dice.below(most)).expect("few"));
        match dice.below(20) {
            0..=2 => {
                let paid = stripe.payment(account, now, cents, "eur");
                self.counts(&paid.transaction, now, cents);
                self.here().paid.push((paid, cents));
            }
            3 => {
                let paid = stripe.converted_payment(account, now, (cents + 1, "usd"), (cents, "eur"));
                self.counts(&paid.transaction, now, cents);
            }
            4 => drop(stripe.payment(account, now, cents, "usd")),
            5 | 6 => {
                let expected = now + TimeDelta::days(i64::try_from(2 + dice.below(9)).expect("few"));
                let debit = stripe.debit(account, now, cents, expected);
                if dice.below(2) == 0 {
                    // Sold in the shop, which takes the sale for paid at once.
                    let told = Tender::new(now, &decimal(cents), "EUR").reference(&debit.charge);
                    let sold = world.shopify.tender(SHOP, told);
                    self.counts_twice(&sold, now, cents, expected);
                }
                self.here().debits.push((debit, cents, expected));
            }
            7 | 8 => {
                let Some((debit, cents, expected)) = dice.take(&mut self.here().debits) else { return };
                if dice.below(3) == 0 {
                    stripe.fail_debit(account, &debit, now);
                } else {
                    stripe.settle_debit(account, &debit);
                    self.counts(&debit.transaction, expected, cents);
                    self.here().debited.push((debit, cents));
                }
            }
            9 => {
                // It had succeeded, and the bank takes it back: it was never received.
                let Some((debit, cents)) = dice.take(&mut self.here().debited) else { return };
                stripe.charge_failure(account, &debit.charge, now, cents);
                self.truth.remove(&debit.transaction);
            }
            10 | 11 | 17 | 18 => self.refunds(world, dice, now),
            12 => {
                let Some((paid, cents)) = dice.take(&mut self.here().paid) else { return };
                let taken = stripe.dispute(account, &paid.charge, now, cents);
                self.counts(&taken.transaction, now, -cents);
                self.here().disputed.push((paid, cents));
            }
            13 => {
                let Some((paid, cents)) = dice.take(&mut self.here().disputed) else { return };
                let won = stripe.dispute_reversal(account, &paid.charge, now, cents);
                self.counts(&won.transaction, now, cents);
            }
            14 => {
                let Some((paid, cents)) = dice.take(&mut self.here().paid) else { return };
                let part = if dice.below(2) == 0 { cents } else { cents / 10 };
                stripe.transfer_reversal(account, &paid.charge, now, part);
            }
            15 => {
                let entry = Entry::new(now, cents, "eur");
                let odd = match dice.below(4) {
                    0 => entry.kind("platform_earning", "platform_earning"),
                    1 => entry.oddities(json!({"currency": null})),
                    2 => entry.oddities(json!({"amount": 10.5})),
                    _ => entry.kind("payout", "payout"),
                };
                stripe.add(account, odd);
            }
            16 => {
                let at = days_ago(dice, 4);
                let late = stripe.payment(account, at, cents, "eur");
                stripe.hide(account, &late.transaction);
                self.here().late_rows.push((late.transaction, at, cents));
            }
            _ => {
                let Some((late, at, cents)) = dice.take(&mut self.here().late_rows) else { return };
                stripe.reveal(account, &late);
                self.counts(&late, at, cents);
            }
        }
    }

    /// Something happens to a refund.
    fn refunds(&mut self, world: &World, dice: &mut Dice, now: DateTime<Utc>) {
        let (stripe, account) = (&world.stripe, self.accounts.account());
        match dice.below(4) {
            0 => {
                let Some((paid, cents)) = dice.take(&mut self.here().paid) else { return };
                let back = stripe.refund(account, &paid.charge, now, cents / 2);
                self.counts(&back.transaction, now, -(cents / 2));
                self.here().refunded.push((paid, cents / 2));
            }
            1 => {
                let Some((paid, cents)) = dice.take(&mut self.here().refunded) else { return };
                let back = stripe.refund_failure(account, &paid.charge, now, cents);
                self.counts(&back.transaction, now, cents);
            }
            2 => {
                let Some((paid, cents)) = dice.take(&mut self.here().paid) else { return };
                let back = stripe.waiting_refund(account, &paid.charge, now, cents, "insufficient_funds");
                self.here().asked.push((back, paid.charge, now, cents));
            }
            _ => {
                let Some((back, charge, at, cents)) = dice.take(&mut self.here().waiting) else { return };
                if dice.below(3) == 0 {
                    // It was never paid: neither row counts.
                    stripe.refund_failure(account, &charge, now, cents);
                } else {
                    self.counts(&back.transaction, at, -cents);
                    stripe.pay_refund(account, &back);
                }
            }
        }
    }
}
