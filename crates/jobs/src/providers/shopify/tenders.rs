//! From a page of tender transactions to movements. Pure.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::orders::{self, Orders};
use super::wire::{Money, Order, PageInfo, Priced, Shop, instant, row_id, shape};
use crate::providers::movement::{NO_ID, is_payment_reference, word};
use crate::providers::{Movement, MovementKind, Page, RefusedReason};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    shop: Shop,
    tender_transactions: Connection,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    nodes: Vec<Value>,
    page_info: PageInfo,
}

/// Represents a row as it was read: what is missing or odd in it is missing here.
struct Tender<'a> {
    node: &'a Value,
    id: String,
    has_id: bool,
    processed_at: Option<DateTime<Utc>>,
    order: Option<Order>,
}

impl<'a> Tender<'a> {
    /// Reads a row; `None` for a test of the shop's; an error for what is no row.
    fn read(node: &'a Value) -> Option<Result<Self, RefusedReason>> {
        if node["test"] == true {
            return None;
        }
        let (processed_at, order) = (instant(&node["processedAt"]), Order::read(&node["order"]));
        Some(row_id(node).map(|(id, has_id)| Self { node, id, has_id, processed_at, order }))
    }

    fn priced(&self) -> Option<Priced<'_>> {
        let amount = Money(&self.node["amount"]).parse()?;
        Some(Priced { amount, order: self.order.as_ref(), at: self.processed_at })
    }

    fn movement(&self, orders: &Orders, shop: &Shop) -> Movement {
        let as_read = Money(&self.node["amount"]).as_read();
        let settled = self.priced().map(|priced| orders.settle(&priced, shop));
        let is_back = as_read.amount.as_deref().is_some_and(|amount| amount.trim_start().starts_with('-'));
        let kind = match self.node["test"].as_bool() {
            // Whether it is money at all is not told, or which movement it is.
            None => MovementKind::Unknown,
            Some(_) if !self.has_id => MovementKind::Unknown,
            Some(_) if is_back => MovementKind::Refund,
            Some(_) => MovementKind::Payment,
        };
        let source_kind = match kind {
            MovementKind::Unknown if !self.has_id => NO_ID,
            MovementKind::Unknown => "tender_without_test",
            _ => "tender",
        };
        let references = self.node["remoteReference"].as_str().map(str::trim);
        let references = references.filter(|text| is_payment_reference(text));
        Movement {
            external_id: self.id.clone(),
            kind,
            source_kind: source_kind.to_owned(),
            state: None,
            method: self.node["paymentMethod"].as_str().map(word),
            occurred_at: self.processed_at,
            listed_at: self.processed_at,
            amount_minor: settled.as_ref().map(|settled| settled.amount.minor()),
            currency: match &settled {
                Some(settled) => Some(settled.amount.currency().to_string()),
                None => as_read.currency.clone(),
            },
            converted: settled.as_ref().is_none_or(|settled| settled.converted),
            original: settled.as_ref().map_or(Some(as_read.clone()), |settled| settled.original(as_read)),
            references: references
                .map(str::to_owned)
                .into_iter()
                .chain(self.order.as_ref().map(|order| order.id.clone()))
                .collect(),
        }
    }
}

/// Represents a page that was read and whose foreign currencies are still open.
pub(super) struct Tenders(Data);

impl Tenders {
    pub(super) fn read(data: Value) -> Result<Self, RefusedReason> {
        shape(data, "tender transactions").map(Self)
    }

    fn rows(&self) -> Result<Vec<Tender<'_>>, RefusedReason> {
        self.0.tender_transactions.nodes.iter().filter_map(Tender::read).collect()
    }

    /// Returns the orders needed to settle foreign currencies.
    pub(super) fn orders_to_ask(&self) -> Result<Vec<String>, RefusedReason> {
        let rows = self.rows()?;
        Ok(orders::to_ask(rows.iter().filter_map(Tender::priced), &self.0.shop))
    }

    /// Returns the page, asked for behind `after`. A row that cannot be understood is kept as it
    /// was read.
    pub(super) fn settle(self, after: Option<&str>, orders: &Orders) -> Result<Page, RefusedReason> {
        let (mut page, mut seen) = (Page::default(), HashMap::new());
        for tender in self.rows()? {
            let movement = tender.movement(orders, &self.0.shop);
            if movement.kind == MovementKind::Unknown {
                page.note_unknown(&movement.source_kind);
            }
            page.add(&mut seen, movement);
        }
        page.next = self.0.tender_transactions.page_info.next(after)?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;
    use crate::providers::shopify::wire::gid;

    fn tender(number: u32, amount: &str, currency: &str) -> Value {
        json!({
            "id": format!("gid://shopify/TenderTransaction/{number}"),
            "processedAt": "2026-11-05T09:30:00Z", "test": false,
            "paymentMethod": "credit_card", "remoteReference": "ch_1",
            "amount": {"amount": amount, "currencyCode": currency},
            "order": {"id": "gid://shopify/Order/1", "currencyCode": "EUR"},
        })
    }

    fn data(nodes: &[Value]) -> Value {
        json!({
            "shop": {"currencyCode": "EUR"},
            "tenderTransactions": {"nodes": nodes, "pageInfo": {"hasNextPage": false, "endCursor": null}},
        })
    }

    fn read(nodes: &[Value]) -> Result<Page, RefusedReason> {
        Tenders::read(data(nodes))?.settle(None, &Orders::default())
    }

    fn with(field: &str, value: Value) -> Value {
        let mut tender = tender(1, "12.00", "EUR");
        tender[field] = value;
        tender
    }

    #[test]
    fn a_payment_and_its_refund() {
        let page = read(&[tender(1, "12.00", "EUR"), tender(2, "-2.50", "EUR")]).unwrap();
        let [payment, refund] = &page.movements[..] else { panic!("two movements") };
        assert_eq!(payment.external_id, "gid://shopify/TenderTransaction/1");
        assert_eq!((payment.kind, payment.amount_minor), (MovementKind::Payment, Some(1200)));
        assert_eq!((refund.kind, refund.amount_minor), (MovementKind::Refund, Some(-250)));
        assert_eq!(payment.references, ["ch_1", "gid://shopify/Order/1"]);
        assert_eq!((payment.converted, &payment.original), (true, &None));
    }

    #[test]
    fn the_payment_method_is_kept() {
        let kept = read(&[with("paymentMethod", "gift_card".into())]).unwrap().movements.remove(0);
        assert_eq!(kept.method.as_deref(), Some("gift_card"));
    }

    #[test]
    fn tests_are_no_money() {
        assert_eq!(read(&[with("test", true.into())]).unwrap(), Page::default());
    }

    #[test]
    fn another_currency_asks_for_the_order_and_is_excluded_without_it() {
        let tenders =
            Tenders::read(data(&[tender(1, "1", "USD"), tender(2, "2", "USD"), tender(3, "3", "EUR")]));
        assert_eq!(tenders.unwrap().orders_to_ask().unwrap(), ["gid://shopify/Order/1"]);
        let page = read(&[tender(1, "12.00", "USD")]).unwrap();
        let kept = &page.movements[0];
        assert_eq!(
            (kept.amount_minor, kept.currency.as_deref(), kept.converted),
            (Some(1200), Some("USD"), false)
        );
    }

    #[test]
    fn a_deleted_order_falls_back_on_the_shops_currency() {
        let euros = with("order", Value::Null);
        assert!(read(&[euros]).unwrap().movements[0].converted);
        let mut dollars = tender(1, "12.00", "USD");
        dollars["order"] = Value::Null;
        let page = read(&[dollars]).unwrap();
        assert!(!page.movements[0].converted);
    }

    #[rstest]
    #[case("paymentMethod", Value::Null)]
    #[case("remoteReference", Value::Null)]
    #[case("remoteReference", json!("PAYID-1"))]
    fn harmless_gaps(#[case] field: &str, #[case] value: Value) {
        assert_eq!(read(&[with(field, value)]).unwrap().movements.len(), 1);
    }

    #[rstest]
    #[case(Value::Null)]
    #[case(json!("1"))]
    #[case(json!("gid://shopify/TenderTransaction/1\u{0}"))]
    fn a_row_without_an_id_costs_nobody_else_anything(#[case] id: Value) {
        let page = read(&[tender(7, "1", "EUR"), with("id", id)]).unwrap();
        let [sound, odd] = &page.movements[..] else { panic!("{page:?}") };
        assert_eq!((sound.kind, sound.amount_minor), (MovementKind::Payment, Some(100)));
        assert_eq!((odd.kind, odd.source_kind.as_str()), (MovementKind::Unknown, NO_ID));
        assert_eq!(read(&[Value::Null]), Err(RefusedReason::InvalidAnswer("id")));
    }

    #[test]
    fn a_reference_in_spaces_is_a_reference() {
        let kept = read(&[with("remoteReference", " ch_1\n".into())]).unwrap().movements.remove(0);
        assert_eq!(kept.references, ["ch_1", "gid://shopify/Order/1"]);
    }

    #[rstest]
    #[case("processedAt", Value::Null)]
    #[case("processedAt", json!("yesterday"))]
    #[case("test", Value::Null)]
    #[case("amount", Value::Null)]
    #[case("amount", json!({"amount": "1e9", "currencyCode": "EUR"}))]
    #[case("amount", json!({"amount": "99999999999999999999", "currencyCode": "EUR"}))]
    #[case("amount", json!({"amount": "100000000.01", "currencyCode": "EUR"}))]
    #[case("amount", json!({"amount": "45.455", "currencyCode": "EUR"}))]
    #[case("amount", json!({"amount": "1.00", "currencyCode": "USDC"}))]
    #[case("amount", json!({"amount": "1.00"}))]
    fn a_row_that_cannot_be_understood_is_kept_as_read(#[case] field: &str, #[case] value: Value) {
        let page = read(&[tender(7, "1", "EUR"), with(field, value)]).unwrap();
        let kept = &page.movements[1];
        let understood =
            kept.amount_minor.is_some() && kept.occurred_at.is_some() && kept.kind != MovementKind::Unknown;
        assert!(!understood, "{kept:?}");
        assert_eq!(kept.external_id, "gid://shopify/TenderTransaction/1");
    }

    #[test]
    fn what_was_read_stays_beside_what_it_is_worth() {
        let page = read(&[with("amount", json!({"amount": "-45.455", "currencyCode": "EUR"}))]).unwrap();
        let kept = &page.movements[0];
        assert_eq!((kept.kind, kept.currency.as_deref()), (MovementKind::Refund, Some("EUR")));
        assert_eq!(kept.original.as_ref().unwrap().amount.as_deref(), Some("-45.455"));
    }

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"shop": {"currencyCode": "EUR"}, "tenderTransactions": null}))]
    #[case(json!({"shop": null, "tenderTransactions": {"nodes": [], "pageInfo": {"hasNextPage": false}}}))]
    #[case(json!({"shop": {"currencyCode": "EUR"}, "tenderTransactions": {"nodes": []}}))]
    fn no_list_is_not_an_empty_list(#[case] data: Value) {
        assert!(matches!(Tenders::read(data), Err(RefusedReason::InvalidAnswer(_))));
    }

    proptest! {
        /// Whatever is wrong with a page: it is refused as a whole, or every tender of it is there once, with its
        /// amount where that can be read.
        #[test]
        fn a_damaged_page_is_refused_or_whole(
            data in damaged({
                let mut data = data(&[tender(1, "12.00", "EUR"), tender(2, "-2.50", "USD"), with("order", Value::Null)]);
                data["tenderTransactions"]["nodes"][2]["id"] = json!("gid://shopify/TenderTransaction/3");
                data["tenderTransactions"]["pageInfo"] = json!({"hasNextPage": true, "endCursor": "b"});
                data
            }),
            after in prop::option::of("[ab]"),
        ) {
            let Ok(tenders) = Tenders::read(data.clone()) else { return Ok(()) };
            let (asked, page) = (tenders.orders_to_ask(), tenders.settle(after.as_deref(), &Orders::default()));
            let Ok(page) = page else { return Ok(()) };
            prop_assert!(asked.is_ok());
            // serde reads a list as an object's fields, in order; what stands there instead of the page holds no tender.
            let Some(nodes) = data["tenderTransactions"]["nodes"].as_array() else {
                prop_assert!(page.movements.is_empty());
                return Ok(());
            };
            let real = nodes.iter().filter(|node| node["test"] != true);
            let key = |node: &Value| gid(&node["id"]).unwrap_or_else(|| node.to_string());
            let ids: std::collections::BTreeSet<_> = real.map(key).collect();
            prop_assert_eq!(page.movements.len(), ids.len());
            for movement in &page.movements {
                let node = nodes.iter().find(|node| node["id"] == movement.external_id.as_str());
                let Some(node) = node else {
                    prop_assert_eq!(movement.source_kind.as_str(), NO_ID);
                    continue;
                };
                let Some(minor) = movement.amount_minor else { continue };
                let currency: crate::money::Currency = movement.currency.as_deref().unwrap().parse().unwrap();
                let amount = rust_decimal::Decimal::new(minor, currency.exponent());
                prop_assert_eq!(amount, node["amount"]["amount"].as_str().unwrap().parse().unwrap());
            }
            prop_assert_eq!(page.next.is_some(), data["tenderTransactions"]["pageInfo"]["hasNextPage"] == true);
            prop_assert!(page.next.is_none() || page.next != after);
        }

        #[test]
        fn no_cent_is_lost(cents in prop::collection::vec(-1_000_000_i64..1_000_000, 0..60)) {
            let nodes: Vec<_> = (0..).zip(&cents).map(|(number, cents)| {
                let amount = rust_decimal::Decimal::new(*cents, 2).to_string();
                tender(number, &amount, "EUR")
            }).collect();
            let page = read(&nodes).unwrap();
            prop_assert_eq!(page.movements.iter().filter_map(|m| m.amount_minor).collect::<Vec<_>>(), cents);
        }
    }
}
