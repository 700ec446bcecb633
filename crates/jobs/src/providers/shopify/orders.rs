//! The transactions of orders, asked only where a movement is in the buyer's currency: they know the amount in
//! both (`OrderTransaction.amountSet`). Pure.
//!
//! A tender transaction carries no id of its order transaction. They are matched by direction, amount and
//! currency; where that leaves several with different amounts in the shop's currency, by the instant; where that
//! does not decide either, not at all.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::transaction::{self, is_incoming};
use super::wire::{Money, Priced, Shop, instant, shape};
use crate::money::MinorAmount;
use crate::providers::{OrderPayment, Original, RefusedReason};

#[derive(Deserialize)]
struct Data {
    nodes: Vec<Value>,
}

/// Represents one movement of an order in both currencies; its amounts are unsigned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Exchange {
    incoming: bool,
    at: Option<DateTime<Utc>>,
    buyer: MinorAmount,
    shop: MinorAmount,
}

/// Represents an amount as far as the shop's currency is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Settled {
    pub(super) amount: MinorAmount,
    /// Says whether `amount` is in the shop's currency; else it is the buyer's.
    pub(super) converted: bool,
    /// Names the order that told the rate.
    pub(super) rate_from: Option<String>,
}

impl Settled {
    /// Returns what is kept of the amount as it was read: nothing where it is the amount.
    pub(super) fn original(&self, as_read: Original) -> Option<Original> {
        let foreign = !self.converted || self.rate_from.is_some();
        foreign.then(|| Original { rate_from: self.rate_from.clone(), ..as_read })
    }
}

/// Holds what is known of some orders.
#[derive(Debug, Default)]
pub(super) struct Orders(HashMap<String, Known>);

/// Holds what the transactions of one order tell.
#[derive(Debug, Default)]
struct Known {
    exchanges: Vec<Exchange>,
    payments: Vec<OrderPayment>,
}

impl Orders {
    /// Takes in one answer that was asked for `first` transactions an order. Orders whose list is as long as that
    /// may have more and come back: the list has no cursor.
    pub(super) fn add(&mut self, data: Value, first: usize) -> Result<Vec<String>, RefusedReason> {
        let data: Data = shape(data, "order transactions")?;
        Ok(self.add_nodes(&data.nodes, first))
    }

    /// Takes in orders of which `first` transactions were asked for, like [`add`](Self::add).
    pub(super) fn add_nodes(&mut self, nodes: &[Value], first: usize) -> Vec<String> {
        let mut cut = Vec::new();
        for node in nodes {
            // An id that is not an order comes as an empty object, one that is out of reach as null.
            let (Some(id), Some(transactions)) = (node["id"].as_str(), node["transactions"].as_array())
            else {
                continue;
            };
            if transactions.len() >= first {
                cut.push(id.to_owned());
                continue;
            }
            let exchanges = transactions.iter().filter_map(exchange).collect();
            let payments = transactions.iter().filter_map(|one| transaction::payment(id, one)).collect();
            self.0.insert(id.to_owned(), Known { exchanges, payments });
        }
        cut
    }

    /// Returns what the orders say was paid and paid back.
    pub(super) fn into_payments(self) -> impl Iterator<Item = OrderPayment> {
        self.0.into_values().flat_map(|known| known.payments)
    }

    /// Returns the amount in the shop's currency; it is unchanged and not converted when that
    /// cannot be told.
    pub(super) fn settle(&self, priced: &Priced<'_>, shop: &Shop) -> Settled {
        let amount = priced.amount;
        if amount.currency() == priced.shop_currency(shop) {
            return Settled { amount, converted: true, rate_from: None };
        }
        match self.convert(priced) {
            Some(converted) => {
                let rate_from = priced.order.map(|order| order.id.clone());
                Settled { amount: converted, converted: true, rate_from }
            }
            None => Settled { amount, converted: false, rate_from: None },
        }
    }

    fn convert(&self, priced: &Priced<'_>) -> Option<MinorAmount> {
        let exchanges = &self.0.get(&priced.order?.id)?.exchanges;
        let outgoing = priced.amount.minor() < 0;
        let size = if outgoing { priced.amount.checked_neg().ok()? } else { priced.amount };
        let alike = |exchange: &&Exchange| exchange.incoming != outgoing && exchange.buyer == size;
        let same_instant = |exchange: &&Exchange| exchange.at.is_some() && exchange.at == priced.at;
        let shop = single(exchanges.iter().filter(alike))
            .or_else(|| single(exchanges.iter().filter(alike).filter(same_instant)))?;
        if outgoing { shop.checked_neg().ok() } else { Some(shop) }
    }
}

/// Returns the shop's amount on which all of them agree.
fn single<'a>(exchanges: impl Iterator<Item = &'a Exchange>) -> Option<MinorAmount> {
    let mut amounts = exchanges.map(|exchange| exchange.shop);
    let first = amounts.next()?;
    amounts.all(|amount| amount == first).then_some(first)
}

/// Reads a transaction; `None` for what moved no money (authorisations, voids, failures, tests,
/// kinds to come), and for what cannot be read.
fn exchange(transaction: &Value) -> Option<Exchange> {
    let incoming = is_incoming(transaction)?;
    let unsigned = |money: &Value| {
        let amount = Money(money).parse()?;
        if amount.minor() < 0 { amount.checked_neg().ok() } else { Some(amount) }
    };
    let amounts = &transaction["amountSet"];
    let (buyer, shop) = (unsigned(&amounts["presentmentMoney"])?, unsigned(&amounts["shopMoney"])?);
    Some(Exchange { incoming, at: instant(&transaction["processedAt"]), buyer, shop })
}

/// Returns the distinct orders that must be asked, in a stable order.
pub(super) fn to_ask<'a>(priced: impl Iterator<Item = Priced<'a>>, shop: &Shop) -> Vec<String> {
    let ids: BTreeSet<_> = priced.filter_map(|one| one.order_to_ask(shop).map(str::to_owned)).collect();
    ids.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;
    use crate::money::Currency;

    const T1: &str = "2026-11-01T10:00:00Z";
    const T2: &str = "2026-11-02T10:00:00Z";

    fn transaction(kind: &str, buyer: &str, shop: &str, at: &str) -> Value {
        json!({
            "kind": kind, "status": "SUCCESS", "test": false, "processedAt": at,
            "amountSet": {
                "presentmentMoney": {"amount": buyer, "currencyCode": "USD"},
                "shopMoney": {"amount": shop, "currencyCode": "EUR"},
            },
        })
    }

    fn orders(transactions: &[Value]) -> Orders {
        let mut orders = Orders::default();
        let data =
            json!({"nodes": [{"id": "gid://shopify/Order/1", "transactions": transactions}, null, {}]});
        assert!(orders.add(data, 25).unwrap().is_empty());
        orders
    }

    /// Settles a tender in dollars: euro cents, or `None` when excluded.
    fn settle(orders: &Orders, minor: i64, at: &str) -> Option<i64> {
        let order = Order { id: "gid://shopify/Order/1".into(), currency_code: Some(Currency::EUR) };
        let priced = Priced {
            amount: MinorAmount::new(minor, "USD".parse().unwrap()),
            order: Some(&order),
            at: at.parse().ok(),
        };
        let settled = orders.settle(&priced, &Shop { currency_code: Currency::EUR });
        if settled.converted {
            assert_eq!(settled.amount.currency(), Currency::EUR);
            Some(settled.amount.minor())
        } else {
            assert_eq!(settled.amount, priced.amount);
            None
        }
    }

    use super::super::wire::Order;

    #[test]
    fn payments_and_refunds_take_their_own_rate() {
        let orders = orders(&[
            transaction("SALE", "108.00", "100.00", T1),
            transaction("REFUND", "108.00", "98.50", T2),
            transaction("CHANGE", "5.00", "4.60", T2),
        ]);
        assert_eq!(settle(&orders, 10_800, T1), Some(10_000));
        assert_eq!(settle(&orders, -10_800, T2), Some(-9_850));
        assert_eq!(settle(&orders, -500, T2), Some(-460));
        assert_eq!(settle(&orders, 10_801, T1), None);
    }

    #[rstest]
    #[case("AUTHORIZATION", "SUCCESS", false)]
    #[case("VOID", "SUCCESS", false)]
    #[case("BRAND_NEW", "SUCCESS", false)]
    #[case("SALE", "FAILURE", false)]
    #[case("SALE", "PENDING", false)]
    #[case("SALE", "SUCCESS", true)]
    fn what_moved_no_money_does_not_match(#[case] kind: &str, #[case] status: &str, #[case] test: bool) {
        let mut one = transaction(kind, "108.00", "100.00", T1);
        one["status"] = status.into();
        one["test"] = test.into();
        assert_eq!(settle(&orders(&[one]), 10_800, T1), None);
    }

    #[test]
    fn two_alike_are_told_apart_by_the_instant_or_not_at_all() {
        let orders = orders(&[
            transaction("CAPTURE", "50.00", "46.00", T1),
            transaction("CAPTURE", "50.00", "47.00", T2),
        ]);
        assert_eq!(settle(&orders, 5_000, T1), Some(4_600));
        assert_eq!(settle(&orders, 5_000, T2), Some(4_700));
        assert_eq!(settle(&orders, 5_000, "2026-11-03T10:00:00Z"), None);
    }

    #[test]
    fn two_alike_at_one_rate_need_no_instant() {
        let orders = orders(&[
            transaction("CAPTURE", "50.00", "46.00", T1),
            transaction("CAPTURE", "50.00", "46.00", T2),
        ]);
        assert_eq!(settle(&orders, 5_000, "2026-11-03T10:00:00Z"), Some(4_600));
    }

    #[test]
    fn a_list_that_may_be_cut_is_not_used() {
        let mut orders = Orders::default();
        let sale = transaction("SALE", "108.00", "100.00", T1);
        let data = json!({"nodes": [{"id": "gid://shopify/Order/1", "transactions": [sale]}]});
        assert_eq!(orders.add(data, 1).unwrap(), ["gid://shopify/Order/1"]);
        assert_eq!(settle(&orders, 10_800, T1), None);
    }

    #[test]
    fn an_order_that_is_gone_stays_unresolved() {
        assert_eq!(settle(&Orders::default(), 10_800, T1), None);
    }

    proptest! {
        /// Whatever is wrong with what orders tell: a payment becomes what one of their transactions names, with its
        /// own sign, or stays what it was.
        #[test]
        fn damaged_orders_convert_as_told_or_not_at_all(data in damaged(json!({"nodes": [
            {"id": "gid://shopify/Order/1", "transactions": [
                transaction("SALE", "108.00", "100.00", T1), transaction("REFUND", "108.00", "98.50", T2),
            ]},
            null,
        ]}))) {
            let mut orders = Orders::default();
            if orders.add(data.clone(), 25).is_ok() {
                for minor in [10_800, -10_800] {
                    let settled = orders.settle(&priced_at(minor, &order()), &Shop { currency_code: Currency::EUR });
                    let amount = settled.amount;
                    if !settled.converted {
                        prop_assert_eq!(amount.minor(), minor);
                        continue;
                    }
                    let told = amount.to_decimal().abs();
                    let names = |entry: &Value| {
                        let text = entry["amountSet"]["shopMoney"]["amount"].as_str();
                        text.and_then(|text| text.parse::<rust_decimal::Decimal>().ok()).is_some_and(|d| d.abs() == told)
                    };
                    let mut nodes = data["nodes"].as_array().into_iter().flatten();
                    prop_assert!(nodes.any(|node| node["transactions"].as_array().is_some_and(|all| all.iter().any(names))));
                    prop_assert!(amount.minor() == 0 || (amount.minor() < 0) == (minor < 0));
                }
            }
        }
    }

    fn order() -> Order {
        Order { id: "gid://shopify/Order/1".into(), currency_code: Some(Currency::EUR) }
    }

    fn priced_at(minor: i64, order: &Order) -> Priced<'_> {
        Priced {
            amount: MinorAmount::new(minor, "USD".parse().unwrap()),
            order: Some(order),
            at: T1.parse().ok(),
        }
    }

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"nodes": null}))]
    fn another_shape_is_an_error(#[case] data: Value) {
        assert!(matches!(Orders::default().add(data, 25), Err(RefusedReason::InvalidAnswer(_))));
    }
}
