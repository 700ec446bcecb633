//! What orders say was paid, beside the list of tenders. Pure.
//!
//! The list of tenders is not always whole: an order was paid in two transactions, and the list had one
//! (<https://community.shopify.com/t/tender-transaction-api-is-not-returning-the-second-transaction/124287>). The database
//! compares both (`jobs.note_unlisted_payments`).

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::orders::Orders;
use super::wire::{PageInfo, gid, shape};
use crate::providers::{Page, RefusedReason};
use crate::schedule::Window;

/// The document asks for so many transactions of each order; most have one or two.
pub(super) const TRANSACTIONS: usize = 4;
/// A tender may show a while after the transaction that it tells of. What is younger is compared by the next reading.
const TENDER_MAY_LAG: TimeDelta = TimeDelta::hours(1);
/// A sale that was made offline can show so long after its date, at most, and be found by its order alone: it lies before
/// every window then, and its order is new.
const SHOWS_LATER: TimeDelta = TimeDelta::days(90);

#[derive(Deserialize)]
struct Data {
    orders: Connection,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    nodes: Vec<Value>,
    page_info: PageInfo,
}

/// Represents a page of orders that was read.
pub(super) struct OrderPage {
    page_info: PageInfo,
    orders: Orders,
    cut: Vec<String>,
}

impl OrderPage {
    pub(super) fn read(data: Value) -> Result<Self, RefusedReason> {
        let Data { orders: Connection { nodes, page_info } } = shape(data, "orders")?;
        // One that cannot be read is compared with nothing; where none can, they are no orders.
        let is_order = |node: &&Value| gid(&node["id"]).is_some() && node["transactions"].is_array();
        if !nodes.is_empty() && !nodes.iter().any(|node| is_order(&node)) {
            return Err(RefusedReason::InvalidAnswer("orders"));
        }
        let mut orders = Orders::default();
        let cut = orders.add_nodes(&nodes, TRANSACTIONS);
        Ok(Self { page_info, orders, cut })
    }

    /// Returns the orders that may have more transactions than were asked for.
    pub(super) fn orders_to_ask(&self) -> Vec<String> {
        self.cut.clone()
    }

    /// Returns what was paid of each order that was paid within `window` or shortly before, also earlier and later: a
    /// payment is told from another one of the same amount by its place among all of them. The page was asked for behind
    /// `after`; `more` are the orders that were asked again.
    pub(super) fn settle(
        self,
        after: Option<&str>,
        window: Window,
        more: Orders,
        now: DateTime<Utc>,
    ) -> Result<Page, RefusedReason> {
        let payments = self.orders.into_payments().chain(more.into_payments());
        let mut order_payments: Vec<_> =
            payments.filter(|payment| payment.at < now - TENDER_MAY_LAG).collect();
        let within: HashSet<String> = order_payments
            .iter()
            .filter(|payment| window.reaching(window.from - SHOWS_LATER).contains(payment.at))
            .map(|payment| payment.order.clone())
            .collect();
        order_payments.retain(|payment| within.contains(&payment.order));
        order_payments.sort_unstable_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
        Ok(Page { order_payments, next: self.page_info.next(after)?, ..Page::default() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;

    const ORDER: &str = "gid://shopify/Order/1";

    fn transaction(number: u32, kind: &str, amount: &str) -> Value {
        json!({
            "id": format!("gid://shopify/OrderTransaction/{number}"), "kind": kind, "status": "SUCCESS", "test": false,
            "gateway": "shopify_payments", "processedAt": "2026-11-10T09:00:00Z",
            "amountSet": {"shopMoney": {"amount": amount, "currencyCode": "EUR"}},
        })
    }

    fn data(transactions: &[Value]) -> Value {
        let nodes = [json!({"id": ORDER, "transactions": transactions})];
        json!({"orders": {"nodes": nodes, "pageInfo": {"hasNextPage": false, "endCursor": null}}})
    }

    fn november() -> Window {
        Window { from: at("2026-11-01T00:00:00Z"), to: at("2026-12-01T00:00:00Z") }
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn amounts(transactions: &[Value], now: &str) -> Vec<i64> {
        let page = OrderPage::read(data(transactions)).unwrap();
        let page = page.settle(None, november(), Orders::default(), at(now)).unwrap();
        page.order_payments.iter().map(|payment| payment.amount_minor).collect()
    }

    #[test]
    fn what_moved_money_has_its_sign() {
        let all = [
            transaction(1, "AUTHORIZATION", "20.0"),
            transaction(2, "CAPTURE", "20.0"),
            transaction(3, "REFUND", "5.5"),
        ];
        assert_eq!(amounts(&all, "2026-11-20T00:00:00Z"), [2_000, -550]);
        assert_eq!(amounts(&[transaction(1, "CHANGE", "-3.0")], "2026-11-20T00:00:00Z"), [-300]);
    }

    #[rstest]
    #[case("status", json!("PENDING"))]
    #[case("test", json!(true))]
    #[case("kind", json!("VOID"))]
    #[case("processedAt", Value::Null)]
    #[case("amountSet", Value::Null)]
    #[case("id", Value::Null)]
    fn what_no_tender_has_to_tell(#[case] field: &str, #[case] value: Value) {
        let mut one = transaction(1, "SALE", "20.0");
        one[field] = value;
        assert!(amounts(&[one], "2026-11-20T00:00:00Z").is_empty());
    }

    #[test]
    fn what_is_very_young_waits() {
        let one = [transaction(1, "SALE", "20.0")];
        assert!(amounts(&one, "2026-11-10T09:59:59Z").is_empty());
        assert_eq!(amounts(&one, "2026-11-10T10:00:01Z"), [2_000]);
    }

    /// A month's last hour is compared, too, once it is no longer young.
    #[test]
    fn an_order_that_was_paid_within_the_window_comes_whole() {
        let mut all = [1, 2, 3].map(|number| transaction(number, "SALE", "1.0"));
        all[0]["processedAt"] = json!("2026-10-31T09:00:00Z");
        all[2]["processedAt"] = json!("2026-11-30T23:30:00Z");
        assert_eq!(amounts(&all, "2026-12-10T00:00:00Z"), [100; 3]);
        assert_eq!(amounts(&all[..1], "2026-12-10T00:00:00Z"), [100], "it may show late");
        all[0]["processedAt"] = json!("2026-08-02T09:00:00Z");
        assert!(amounts(&all[..1], "2026-12-10T00:00:00Z").is_empty());
    }

    #[test]
    fn a_list_that_may_be_cut_is_asked_again() {
        let all = [1, 2, 3, 4].map(|number| transaction(number, "SALE", "1.0"));
        let page = OrderPage::read(data(&all)).unwrap();
        assert_eq!(page.orders_to_ask(), [ORDER]);
        let mut more = Orders::default();
        more.add(json!({"nodes": [{"id": ORDER, "transactions": all}]}), 25).unwrap();
        let page = page.settle(None, november(), more, at("2026-11-20T00:00:00Z")).unwrap();
        assert_eq!(page.order_payments.len(), 4);
    }

    #[test]
    fn an_order_that_cannot_be_read_costs_the_others_nothing() {
        let mut orders = data(&[transaction(1, "SALE", "20.0")]);
        let nodes = orders["orders"]["nodes"].as_array_mut().unwrap();
        nodes.extend([Value::Null, json!({"id": ORDER}), json!({"id": "1", "transactions": []})]);
        let page = OrderPage::read(orders).unwrap();
        let page = page.settle(None, november(), Orders::default(), at("2026-11-20T00:00:00Z")).unwrap();
        assert_eq!(page.order_payments.len(), 1);
    }

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"orders": null}))]
    #[case(json!({"orders": {"nodes": [{"id": "1", "transactions": []}], "pageInfo": {"hasNextPage": false}}}))]
    #[case(json!({"orders": {"nodes": [{"id": ORDER}], "pageInfo": {"hasNextPage": false}}}))]
    fn no_list_is_not_an_empty_list(#[case] data: Value) {
        assert!(matches!(OrderPage::read(data), Err(RefusedReason::InvalidAnswer(_))));
    }

    proptest! {
        /// Whatever is wrong with a page: it is refused, or says of each transaction what stands there, or nothing.
        #[test]
        fn a_damaged_page_tells_what_stands_there(
            data in damaged(data(&[transaction(1, "SALE", "20.0"), transaction(2, "REFUND", "5.5")])),
        ) {
            let Ok(page) = OrderPage::read(data) else { return Ok(()) };
            let now = at("2026-11-20T00:00:00Z");
            let Ok(page) = page.settle(None, november(), Orders::default(), now) else { return Ok(()) };
            for payment in &page.order_payments {
                prop_assert!(payment.amount_minor != 0 && payment.id.starts_with("gid://shopify/"));
            }
        }
    }
}
