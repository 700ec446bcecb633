//! What happens in the shop.

use chrono::{DateTime, Utc};
use stand_ins::shopify::{Dispute, Tender};

use super::{Charge, Dice, SHOP, Sale, Source, decimal};
use crate::world::World;

impl Source {
    pub(super) fn in_the_shop(&mut self, world: &World, dice: &mut Dice, now: DateTime<Utc>, cents: i64) {
        let (shop, present, account) = (&world.shopify, self.accounts.present, self.accounts.account());
        let tender = |cents, currency| Tender::new(now, &decimal(cents), currency);
        match dice.below(19) {
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
            // Deleted before anybody has read it: nobody knows what it was worth.
            5 => drop(shop.tender(SHOP, tender(cents + 31, "USD").deleted_order())),
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
                let paid = world.stripe.payment(account, now, cents, "eur");
                let sold = shop.tender(SHOP, tender(cents, "EUR").reference(&paid.charge));
                self.counts(&paid.transaction, now, cents);
                self.counts_twice(&sold, now, cents, now);
                let charge = Some(Charge { id: paid.charge, account: present });
                self.sales.push(Sale { sold, cents, currency: "EUR", charge });
            }
            10 => {
                let paid = world.stripe.converted_payment(account, now, (cents + 31, "usd"), (cents, "eur"));
                let told = tender(cents + 31, "USD").shop_money(&decimal(cents - 7)).reference(&paid.charge);
                let sold = shop.tender(SHOP, told);
                self.counts(&paid.transaction, now, cents);
                self.counts_twice(&sold, now, cents - 7, now);
                let charge = Some(Charge { id: paid.charge, account: present });
                self.sales.push(Sale { sold, cents: cents + 31, currency: "USD", charge });
            }
            11..=13 => {
                let Some(sale) = dice.take(&mut self.sales) else { return };
                let (third, half) = (sale.cents / 3, sale.cents / 2);
                match sale.charge {
                    // One refund, seen by both; and in half of the cases one more by bank transfer.
                    // Of an account that is not connected any more nobody hears of it.
                    Some(charge) if sale.currency == "EUR" && charge.account == present => {
                        let back = world.stripe.refund(account, &charge.id, now, third);
                        self.counts(&back.transaction, now, -third);
                        let told = shop.refund(SHOP, &sale.sold, now, &decimal(third));
                        self.counts_twice(&told, now, -third, now);
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
                    // Made offline, or known to its order alone.
                    let late = tender(cents, "EUR");
                    let late =
                        shop.tender(SHOP, if dice.below(2) == 0 { late.late() } else { late.unlisted() });
                    self.late_sales.push((late, now, cents));
                }
            }
        }
    }
}
