//! From a page of tender transactions to movements. Pure.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::orders::{self, Orders};
use super::wire::{Money, Order, PageInfo, Priced, Shop, gid, shape};
use crate::providers::movement::is_payment_reference;
use crate::providers::{Exclusion, Movement, MovementKind, Page, RefusedReason};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    shop: Shop,
    tender_transactions: Connection,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    nodes: Vec<Tender>,
    page_info: PageInfo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tender {
    id: String,
    processed_at: Option<DateTime<Utc>>,
    test: bool,
    payment_method: Option<String>,
    remote_reference: Option<String>,
    amount: Money,
    order: Option<Order>,
}

impl Tender {
    fn priced(&self) -> Result<Priced<'_>, RefusedReason> {
        Ok(Priced { amount: self.amount.parse()?, order: self.order.as_ref(), at: self.processed_at })
    }
}

/// A page that was read and whose foreign currencies are still open.
pub(super) struct Tenders(Data);

impl Tenders {
    pub(super) fn read(data: Value) -> Result<Self, RefusedReason> {
        shape(data, "tender transactions").map(Self)
    }

    /// The orders needed to settle foreign currencies.
    pub(super) fn orders_to_ask(&self) -> Result<Vec<String>, RefusedReason> {
        let tenders = self.0.tender_transactions.nodes.iter().filter(|tender| !tender.test);
        let priced = tenders.map(Tender::priced).collect::<Result<Vec<_>, _>>()?;
        Ok(orders::to_ask(priced.into_iter(), &self.0.shop))
    }

    /// The page, asked for behind `after`. A row that cannot be read makes it invalid; a row without an instant,
    /// which the schema allows, is noted as ignored.
    pub(super) fn settle(self, after: Option<&str>, orders: &Orders) -> Result<Page, RefusedReason> {
        let Data { shop, tender_transactions: Connection { nodes, page_info } } = self.0;
        let (mut page, mut seen) = (Page::default(), HashMap::new());
        for tender in nodes.into_iter().filter(|tender| !tender.test) {
            let Some(occurred_at) = tender.processed_at else {
                page.ignore("tender_without_date");
                continue;
            };
            let (amount, unresolved) = orders.settle(&tender.priced()?, &shop);
            let method = tender.payment_method.as_deref().and_then(no_cash);
            let kind = if amount.minor() < 0 { MovementKind::Refund } else { MovementKind::Payment };
            let movement = Movement {
                external_id: gid(tender.id)?,
                kind,
                occurred_at,
                amount_minor: amount.minor(),
                currency: amount.currency(),
                references: tender
                    .remote_reference
                    .filter(|text| is_payment_reference(text))
                    .into_iter()
                    .chain(tender.order.map(|order| order.id))
                    .collect(),
                excluded: method.or(unresolved),
            };
            page.add(&mut seen, movement)?;
        }
        page.next = page_info.next(after)?;
        Ok(page)
    }
}

/// Payment methods that move no money. How they are spelt is not documented, hence the tolerance; the card was
/// turnover when it was sold, the credit when it was first paid.
fn no_cash(method: &str) -> Option<Exclusion> {
    let plain: String = method.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    if plain.contains("giftcard") {
        Some(Exclusion::GiftCard)
    } else if plain.contains("storecredit") {
        Some(Exclusion::StoreCredit)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;

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
        assert_eq!((payment.kind, payment.amount_minor), (MovementKind::Payment, 1200));
        assert_eq!((refund.kind, refund.amount_minor), (MovementKind::Refund, -250));
        assert_eq!(payment.references, ["ch_1", "gid://shopify/Order/1"]);
        assert_eq!(payment.excluded, None);
    }

    #[rstest]
    #[case("gift_card", Some(Exclusion::GiftCard))]
    #[case("Gift Card", Some(Exclusion::GiftCard))]
    #[case("shopify_gift-card", Some(Exclusion::GiftCard))]
    #[case("store_credit", Some(Exclusion::StoreCredit))]
    #[case("STORE CREDIT", Some(Exclusion::StoreCredit))]
    #[case("credit_card", None)]
    #[case("cash", None)]
    #[case("brand_new", None)]
    fn payment_methods(#[case] method: &str, #[case] expected: Option<Exclusion>) {
        assert_eq!(read(&[with("paymentMethod", method.into())]).unwrap().movements[0].excluded, expected);
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
        assert_eq!(page.movements[0].excluded, Some(Exclusion::UnresolvedCurrency));
        assert_eq!((page.movements[0].amount_minor, page.movements[0].currency.as_str()), (1200, "USD"));
    }

    #[test]
    fn a_deleted_order_falls_back_on_the_shops_currency() {
        let euros = with("order", Value::Null);
        assert_eq!(read(&[euros]).unwrap().movements[0].excluded, None);
        let mut dollars = tender(1, "12.00", "USD");
        dollars["order"] = Value::Null;
        let page = read(&[dollars]).unwrap();
        assert_eq!(page.movements[0].excluded, Some(Exclusion::UnresolvedCurrency));
    }

    #[rstest]
    #[case("paymentMethod", Value::Null)]
    #[case("remoteReference", Value::Null)]
    #[case("remoteReference", json!("PAYID-1"))]
    fn harmless_gaps(#[case] field: &str, #[case] value: Value) {
        assert_eq!(read(&[with(field, value)]).unwrap().movements.len(), 1);
    }

    #[test]
    fn a_row_without_an_instant_is_noted() {
        let page = read(&[with("processedAt", Value::Null), tender(2, "1", "EUR")]).unwrap();
        assert_eq!((page.movements.len(), page.ignored["tender_without_date"]), (1, 1));
    }

    #[rstest]
    #[case("id", Value::Null)]
    #[case("id", json!("1"))]
    #[case("processedAt", json!("yesterday"))]
    #[case("test", Value::Null)]
    #[case("amount", Value::Null)]
    #[case("amount", json!({"amount": "1e9", "currencyCode": "EUR"}))]
    #[case("amount", json!({"amount": "99999999999999999999", "currencyCode": "EUR"}))]
    #[case("amount", json!({"amount": "1.00", "currencyCode": "?"}))]
    #[case("order", json!({"id": "gid://shopify/Order/1"}))]
    fn a_row_that_cannot_be_read_stops_the_page(#[case] field: &str, #[case] value: Value) {
        let result = read(&[tender(7, "1", "EUR"), with(field, value)]);
        assert!(matches!(result, Err(RefusedReason::InvalidAnswer(_))), "{result:?}");
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
        /// amount, or noted as without a date.
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
            let real = nodes.iter().filter(|node| node["test"] == false);
            let (dated, undated): (Vec<_>, Vec<_>) = real.partition(|node| node["processedAt"].is_string());
            let ids: std::collections::BTreeSet<_> = dated.iter().map(|node| node["id"].as_str().unwrap()).collect();
            prop_assert_eq!(page.movements.len(), ids.len());
            prop_assert_eq!(page.ignored.values().sum::<u32>() as usize, undated.len());
            for movement in &page.movements {
                let node = dated.iter().find(|node| node["id"] == movement.external_id.as_str()).unwrap();
                let amount = rust_decimal::Decimal::new(movement.amount_minor, movement.currency.exponent());
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
            prop_assert_eq!(page.movements.iter().map(|m| m.amount_minor).collect::<Vec<_>>(), cents);
        }
    }
}
