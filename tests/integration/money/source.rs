//! A source of money whose history is random, and the books that follow from it: the test's own model, written down
//! beside what is put into the stand-ins and knowing nothing of how the product reads.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use jobs::schedule::paris;
use serde_json::json;
use stand_ins::{
    shopify::{Dispute, Sold, Tender},
    stripe::{Entry, Payment},
};

use crate::world::World;

pub(super) const ACCOUNT: &str = "acct_history";
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
    charge: Option<String>,
}

/// Holds what moved at the source, and what may still become of it.
#[derive(Default)]
pub(super) struct Source {
    /// Holds what counts in the end, in euro cents.
    truth: BTreeMap<String, (Place, i64)>,
    steps: u64,
    paid: Vec<(Payment, i64)>,
    refunded: Vec<(Payment, i64)>,
    disputed: Vec<(Payment, i64)>,
    debits: Vec<(Payment, i64, DateTime<Utc>)>,
    debited: Vec<(Payment, i64)>,
    late_rows: Vec<(String, DateTime<Utc>, i64)>,
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
    /// Returns the books that are right, without months of nothing.
    pub(super) fn books(&self) -> BTreeMap<Place, i64> {
        let mut books = BTreeMap::new();
        for (place, cents) in self.truth.values() {
            *books.entry(place.clone()).or_default() += cents;
        }
        books.retain(|_, cents| *cents != 0);
        books
    }

    fn counts(&mut self, id: &str, at: DateTime<Utc>, cents: i64) {
        let activity =
            if id.starts_with("gid:") { "Vente de marchandises" } else { "Prestation de services" };
        self.truth.insert(id.to_owned(), ((paris::month(at).to_string(), activity), cents));
    }

    /// Draws an amount that no other movement has.
    fn new_cents(&mut self, dice: &mut Dice) -> i64 {
        self.steps += 1;
        i64::try_from(1_000 + self.steps * 60 + dice.below(30) * 2).expect("small")
    }

    /// Notes that everything that is listed was read: orders may go.
    pub(super) fn was_read(&mut self) {
        self.known.append(&mut self.fresh);
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
        let stripe = &world.stripe;
        let days_ago =
            |dice: &mut Dice, most| now - TimeDelta::days(i64::try_from(dice.below(most)).expect("few"));
        match dice.below(18) {
            0..=2 => {
                let paid = stripe.payment(ACCOUNT, now, cents, "eur");
                self.counts(&paid.transaction, now, cents);
                self.paid.push((paid, cents));
            }
            3 => {
                let paid = stripe.converted_payment(ACCOUNT, now, (cents + 1, "usd"), (cents, "eur"));
                self.counts(&paid.transaction, now, cents);
            }
            4 => drop(stripe.payment(ACCOUNT, now, cents, "usd")),
            5 | 6 => {
                let expected = now + TimeDelta::days(i64::try_from(2 + dice.below(9)).expect("few"));
                let debit = stripe.debit(ACCOUNT, now, cents, expected);
                if dice.below(2) == 0 {
                    // Sold in the shop, which takes the sale for paid at once.
                    let told = Tender::new(now, &decimal(cents), "EUR").reference(&debit.charge);
                    world.shopify.tender(SHOP, told);
                }
                self.debits.push((debit, cents, expected));
            }
            7 | 8 => {
                let Some((debit, cents, expected)) = dice.take(&mut self.debits) else { return };
                if dice.below(3) == 0 {
                    stripe.fail_debit(ACCOUNT, &debit, now);
                } else {
                    stripe.settle_debit(ACCOUNT, &debit);
                    self.counts(&debit.transaction, expected, cents);
                    self.debited.push((debit, cents));
                }
            }
            9 => {
                // It had succeeded, and the bank takes it back: it was never received.
                let Some((debit, cents)) = dice.take(&mut self.debited) else { return };
                stripe.charge_failure(ACCOUNT, &debit.charge, now, cents);
                self.truth.remove(&debit.transaction);
            }
            10 => {
                let Some((paid, cents)) = dice.take(&mut self.paid) else { return };
                let back = stripe.refund(ACCOUNT, &paid.charge, now, cents / 2);
                self.counts(&back.transaction, now, -(cents / 2));
                self.refunded.push((paid, cents / 2));
            }
            11 => {
                let Some((paid, cents)) = dice.take(&mut self.refunded) else { return };
                let back = stripe.refund_failure(ACCOUNT, &paid.charge, now, cents);
                self.counts(&back.transaction, now, cents);
            }
            12 => {
                let Some((paid, cents)) = dice.take(&mut self.paid) else { return };
                let taken = stripe.dispute(ACCOUNT, &paid.charge, now, cents);
                self.counts(&taken.transaction, now, -cents);
                self.disputed.push((paid, cents));
            }
            13 => {
                let Some((paid, cents)) = dice.take(&mut self.disputed) else { return };
                let won = stripe.dispute_reversal(ACCOUNT, &paid.charge, now, cents);
                self.counts(&won.transaction, now, cents);
            }
            14 => {
                let Some((paid, cents)) = dice.take(&mut self.paid) else { return };
                let part = if dice.below(2) == 0 { cents } else { cents / 10 };
                stripe.transfer_reversal(ACCOUNT, &paid.charge, now, part);
            }
            15 => {
                let entry = Entry::new(now, cents, "eur");
                let odd = match dice.below(4) {
                    0 => entry.kind("platform_earning", "platform_earning"),
                    1 => entry.oddities(json!({"currency": null})),
                    2 => entry.oddities(json!({"amount": 10.5})),
                    _ => entry.kind("payout", "payout"),
                };
                stripe.add(ACCOUNT, odd);
            }
            16 => {
                let at = days_ago(dice, 4);
                let late = stripe.payment(ACCOUNT, at, cents, "eur");
                stripe.hide(ACCOUNT, &late.transaction);
                self.late_rows.push((late.transaction, at, cents));
            }
            _ => {
                let Some((late, at, cents)) = dice.take(&mut self.late_rows) else { return };
                stripe.reveal(ACCOUNT, &late);
                self.counts(&late, at, cents);
            }
        }
    }

    fn in_the_shop(&mut self, world: &World, dice: &mut Dice, now: DateTime<Utc>, cents: i64) {
        let shop = &world.shopify;
        let tender = |cents, currency| Tender::new(now, &decimal(cents), currency);
        match dice.below(18) {
            0..=2 => {
                let sold = shop.tender(SHOP, tender(cents, "EUR"));
                self.counts(&sold.id, now, cents);
                self.sales.push(Sale { sold, cents, currency: "EUR", charge: None });
            }
            3 | 4 => {
                let sold = shop.tender(SHOP, tender(cents + 31, "USD").shop_money(&decimal(cents)));
                self.counts(&sold.id, now, cents);
                self.fresh.push(sold);
            }
            5 => {
                // Deleted before anybody has read it: nobody knows what it was worth.
                let sold = shop.tender(SHOP, tender(cents + 31, "USD").shop_money(&decimal(cents)));
                shop.delete_order(SHOP, &sold);
            }
            6 | 7 => {
                let Some(sold) = dice.take(&mut self.known) else { return };
                shop.delete_order(SHOP, &sold);
            }
            8 => {
                let odd = match dice.below(4) {
                    0 => tender(cents, "EUR").gift_card(),
                    1 => tender(cents, "EUR").test(),
                    2 => tender(cents, "USDC"),
                    _ => Tender::new(now, "45.455", "EUR"),
                };
                shop.tender(SHOP, odd);
            }
            9 => {
                let paid = world.stripe.payment(ACCOUNT, now, cents, "eur");
                let sold = shop.tender(SHOP, tender(cents, "EUR").reference(&paid.charge));
                self.counts(&paid.transaction, now, cents);
                self.sales.push(Sale { sold, cents, currency: "EUR", charge: Some(paid.charge) });
            }
            10 => {
                let paid = world.stripe.converted_payment(ACCOUNT, now, (cents + 31, "usd"), (cents, "eur"));
                let told = tender(cents + 31, "USD").shop_money(&decimal(cents - 7)).reference(&paid.charge);
                let sold = shop.tender(SHOP, told);
                self.counts(&paid.transaction, now, cents);
                self.sales.push(Sale { sold, cents: cents + 31, currency: "USD", charge: Some(paid.charge) });
            }
            11..=13 => {
                let Some(sale) = dice.take(&mut self.sales) else { return };
                let (third, half) = (sale.cents / 3, sale.cents / 2);
                match sale.charge {
                    // One refund, seen by both; and in half of the cases one more by bank transfer.
                    Some(charge) if sale.currency == "EUR" => {
                        let back = world.stripe.refund(ACCOUNT, &charge, now, third);
                        self.counts(&back.transaction, now, -third);
                        shop.refund(SHOP, &sale.sold, now, &decimal(third));
                        if dice.below(2) == 0 {
                            let by_bank = tender(-half, "EUR").method("bank_deposit").same_order(&sale.sold);
                            let back = shop.tender(SHOP, by_bank);
                            self.counts(&back.id, now, -half);
                        }
                    }
                    Some(_) => {}
                    None => {
                        let back = shop.refund(SHOP, &sale.sold, now, &decimal(half));
                        self.counts(&back.id, now, -half);
                    }
                }
            }
            14 => {
                let Some(place) = self.sales.iter().position(|sale| sale.charge.is_none()) else { return };
                let sale = self.sales.swap_remove(place);
                let about = Dispute::new(now, &decimal(sale.cents), "EUR").about(&sale.sold);
                self.disputes.push((shop.dispute(SHOP, about), String::new(), sale.cents));
            }
            15 | 16 => {
                let Some((id, before, cents)) = dice.take(&mut self.disputes) else { return };
                let states = ["LOST", "WON", "ACCEPTED", "PREVENTED"];
                let state = states[usize::try_from(dice.below(4)).expect("few")];
                shop.finalize_dispute(SHOP, &id, state, now);
                self.truth.remove(&id);
                if ["LOST", "ACCEPTED"].contains(&state) {
                    self.counts(&id, now, -cents);
                }
                if before.is_empty() {
                    self.disputes.push((id, state.to_owned(), cents));
                }
            }
            _ => {
                if let Some((late, at, cents)) = dice.take(&mut self.late_sales) {
                    shop.reveal(SHOP, &late);
                    self.counts(&late.id, at, cents);
                } else {
                    let late = shop.tender(SHOP, tender(cents, "EUR").late());
                    self.late_sales.push((late, now, cents));
                }
            }
        }
    }
}
