//! From a page of Shopify Payments disputes to movements. Pure.
//!
//! A chargeback that is lost or accepted is money that went back to the buyer: a negative movement on the day it
//! was decided. Inquiries take no money, chargebacks that are open or won leave none behind.
//!
//! `finalizedOn` used to be a date and may still come as one. A bare date counts as the first instant of that day
//! in Paris, where the books are kept: any other instant of the day would fall in the same month.

use std::collections::HashMap;

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use chrono_tz::Europe::Paris;
use serde::Deserialize;
use serde_json::Value;

use super::orders::{self, Orders};
use super::wire::{Money, Order, PageInfo, Priced, Shop, gid, shape};
use crate::money::MinorAmount;
use crate::providers::{Movement, MovementKind, Page, RefusedReason};
use crate::schedule::Window;

/// Disputes can only be searched by when they began; networks decide within months, this leaves a margin.
const LONGEST_DISPUTE: TimeDelta = TimeDelta::days(540);

/// What a shop says of its disputes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Disputes {
    /// One page; empty for a shop without Shopify Payments.
    Page(Page),
    /// The connection may not read disputes. No failure: say it once and go on.
    NotAvailable,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    shop: Shop,
    /// Null for a shop without Shopify Payments; the field itself is always there.
    #[serde(deserialize_with = "Option::deserialize")]
    shopify_payments_account: Option<Account>,
}

#[derive(Deserialize)]
struct Account {
    disputes: Connection,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    nodes: Vec<Dispute>,
    page_info: PageInfo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dispute {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    status: String,
    finalized_on: Option<String>,
    amount: Money,
    order: Option<Order>,
}

/// When disputes that are decided within `window` can have begun.
pub(super) fn begun(window: Window) -> Window {
    Window { from: window.from - LONGEST_DISPUTE, ..window }
}

/// A page that was read and whose foreign currencies are still open.
pub(super) struct DisputePage {
    shop: Shop,
    connection: Option<Connection>,
}

/// A chargeback that cost money, and when.
struct Loss<'a> {
    dispute: &'a Dispute,
    on: DateTime<Utc>,
    amount: MinorAmount,
}

impl Loss<'_> {
    /// As the payment that it takes back: that is what the order knows in both currencies.
    fn priced(&self) -> Priced<'_> {
        Priced { amount: self.amount, order: self.dispute.order.as_ref(), at: None }
    }
}

impl DisputePage {
    pub(super) fn read(data: Value) -> Result<Self, RefusedReason> {
        let data: Data = shape(data, "disputes")?;
        Ok(Self {
            shop: data.shop,
            connection: data.shopify_payments_account.map(|account| account.disputes),
        })
    }

    /// The orders needed to settle foreign currencies.
    pub(super) fn orders_to_ask(&self, window: Window) -> Result<Vec<String>, RefusedReason> {
        let losses = self.losses(window, &mut Page::default())?;
        Ok(orders::to_ask(losses.iter().map(Loss::priced), &self.shop))
    }

    /// The chargebacks lost within `window`, from the page asked for behind `after`.
    pub(super) fn settle(
        self,
        window: Window,
        after: Option<&str>,
        orders: &Orders,
    ) -> Result<Page, RefusedReason> {
        let (mut page, mut seen) = (Page::default(), HashMap::new());
        for loss in self.losses(window, &mut page)? {
            let (amount, excluded) = orders.settle(&loss.priced(), &self.shop);
            let amount = amount.checked_neg().map_err(|_| RefusedReason::InvalidAnswer("amount"))?;
            let movement = Movement {
                external_id: gid(loss.dispute.id.clone())?,
                kind: MovementKind::Dispute,
                occurred_at: loss.on,
                amount_minor: amount.minor(),
                currency: amount.currency(),
                references: Vec::new(),
                excluded,
            };
            page.add(&mut seen, movement)?;
        }
        if let Some(connection) = self.connection {
            page.next = connection.page_info.next(after)?;
        }
        Ok(page)
    }

    fn losses(&self, window: Window, page: &mut Page) -> Result<Vec<Loss<'_>>, RefusedReason> {
        let mut losses = Vec::new();
        for dispute in self.connection.iter().flat_map(|connection| &connection.nodes) {
            match (dispute.kind.as_str(), dispute.status.as_str()) {
                ("CHARGEBACK", "LOST" | "ACCEPTED") => {}
                ("INQUIRY" | "CHARGEBACK", "WON" | "NEEDS_RESPONSE" | "UNDER_REVIEW" | "PREVENTED")
                | ("INQUIRY", "LOST" | "ACCEPTED")
                // Given back as a refund, which is a tender transaction of its own.
                | (_, "CHARGE_REFUNDED") => continue,
                (kind, status) => {
                    page.ignore(&format!("dispute:{kind}:{status}"));
                    continue;
                }
            }
            let Some(on) = &dispute.finalized_on else {
                page.ignore("dispute_without_date");
                continue;
            };
            let on = instant(on).ok_or(RefusedReason::InvalidAnswer("finalizedOn"))?;
            if window.contains(on) {
                losses.push(Loss { dispute, on, amount: unsigned(&dispute.amount)? });
            }
        }
        Ok(losses)
    }
}

fn unsigned(money: &Money) -> Result<MinorAmount, RefusedReason> {
    let amount = money.parse()?;
    if amount.minor() >= 0 {
        return Ok(amount);
    }
    amount.checked_neg().map_err(|_| RefusedReason::InvalidAnswer("amount"))
}

/// An instant, or the first of a Paris day. Midnight exists once every day there: clocks change at night, later.
fn instant(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(instant) = text.parse::<DateTime<Utc>>() {
        return Some(instant);
    }
    let day: NaiveDate = text.parse().ok()?;
    Some(day.and_time(NaiveTime::MIN).and_local_timezone(Paris).earliest()?.to_utc())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;
    use crate::providers::Exclusion;

    fn november() -> Window {
        Window { from: "2026-10-31T23:00:00Z".parse().unwrap(), to: "2026-11-30T23:00:00Z".parse().unwrap() }
    }

    fn dispute(kind: &str, status: &str, finalized_on: Option<&str>) -> Value {
        json!({
            "id": "gid://shopify/ShopifyPaymentsDispute/1", "type": kind, "status": status,
            "finalizedOn": finalized_on,
            "amount": {"amount": "42.00", "currencyCode": "EUR"},
            "order": {"id": "gid://shopify/Order/1", "currencyCode": "EUR"},
        })
    }

    fn read(dispute: &Value) -> Result<Page, RefusedReason> {
        let page_info = json!({"hasNextPage": false, "endCursor": null});
        let data = json!({
            "shop": {"currencyCode": "EUR"},
            "shopifyPaymentsAccount": {"disputes": {"nodes": [dispute], "pageInfo": page_info}},
        });
        DisputePage::read(data)?.settle(november(), None, &Orders::default())
    }

    #[rstest]
    #[case("CHARGEBACK", "LOST", 1, 0)]
    #[case("CHARGEBACK", "ACCEPTED", 1, 0)]
    #[case("CHARGEBACK", "WON", 0, 0)]
    #[case("CHARGEBACK", "NEEDS_RESPONSE", 0, 0)]
    #[case("CHARGEBACK", "UNDER_REVIEW", 0, 0)]
    #[case("CHARGEBACK", "PREVENTED", 0, 0)]
    #[case("CHARGEBACK", "CHARGE_REFUNDED", 0, 0)]
    #[case("CHARGEBACK", "BRAND_NEW", 0, 1)]
    #[case("INQUIRY", "LOST", 0, 0)]
    #[case("INQUIRY", "WON", 0, 0)]
    #[case("BRAND_NEW", "LOST", 0, 1)]
    fn states(#[case] kind: &str, #[case] status: &str, #[case] counted: usize, #[case] ignored: usize) {
        let page = read(&dispute(kind, status, Some("2026-11-05"))).unwrap();
        assert_eq!((page.movements.len(), page.ignored.len()), (counted, ignored));
    }

    #[test]
    fn a_loss_is_negative_and_dated_when_decided() {
        let page = read(&dispute("CHARGEBACK", "LOST", Some("2026-11-05T14:00:00-05:00"))).unwrap();
        let loss = &page.movements[0];
        assert_eq!((loss.kind, loss.amount_minor), (MovementKind::Dispute, -4200));
        assert_eq!(loss.occurred_at, "2026-11-05T19:00:00Z".parse::<DateTime<Utc>>().unwrap());
    }

    #[rstest]
    #[case("2026-11-05", Some("2026-11-04T23:00:00Z"))]
    #[case("2026-07-05", Some("2026-07-04T22:00:00Z"))]
    // The days of both clock changes.
    #[case("2026-03-29", Some("2026-03-28T23:00:00Z"))]
    #[case("2026-10-25", Some("2026-10-24T22:00:00Z"))]
    #[case("2026-11-05T00:00:00Z", Some("2026-11-05T00:00:00Z"))]
    #[case("2026-13-05", None)]
    #[case("", None)]
    fn days_are_parisian(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(instant(text), expected.map(|text| text.parse().unwrap()));
    }

    #[rstest]
    #[case("2026-10-31", 0)]
    #[case("2026-11-01", 1)]
    #[case("2026-11-30", 1)]
    #[case("2026-12-01", 0)]
    fn only_the_window_counts(#[case] day: &str, #[case] counted: usize) {
        assert_eq!(read(&dispute("CHARGEBACK", "LOST", Some(day))).unwrap().movements.len(), counted);
    }

    #[test]
    fn a_loss_without_a_date_is_noted() {
        let page = read(&dispute("CHARGEBACK", "LOST", None)).unwrap();
        assert_eq!((page.movements.len(), page.ignored["dispute_without_date"]), (0, 1));
    }

    #[test]
    fn an_unknown_rate_is_excluded() {
        let mut dollars = dispute("CHARGEBACK", "LOST", Some("2026-11-05"));
        dollars["amount"]["currencyCode"] = "USD".into();
        let loss = read(&dollars).unwrap().movements.remove(0);
        assert_eq!((loss.amount_minor, loss.excluded), (-4200, Some(Exclusion::UnresolvedCurrency)));
    }

    #[test]
    fn a_shop_without_shopify_payments_has_no_disputes() {
        let data = json!({"shop": {"currencyCode": "EUR"}, "shopifyPaymentsAccount": null});
        let page = DisputePage::read(data).unwrap().settle(november(), None, &Orders::default()).unwrap();
        assert_eq!(page, Page::default());
    }

    #[rstest]
    #[case(json!({"shop": {"currencyCode": "EUR"}}))]
    #[case(json!({"shop": {"currencyCode": "EUR"}, "shopifyPaymentsAccount": {}}))]
    #[case(json!({"shop": {"currencyCode": "EUR"}, "shopifyPaymentsAccount": {"disputes": null}}))]
    fn another_shape_is_an_error(#[case] data: Value) {
        assert!(DisputePage::read(data).is_err());
    }

    proptest! {
        /// Whatever is wrong with a page: refused as a whole, or money lost within the window and nothing else.
        #[test]
        fn a_damaged_page_is_refused_or_sound(
            data in damaged(json!({
                "shop": {"currencyCode": "EUR"},
                "shopifyPaymentsAccount": {"disputes": {
                    "nodes": [
                        dispute("CHARGEBACK", "LOST", Some("2026-11-05")),
                        dispute("CHARGEBACK", "WON", Some("2026-11-05")),
                    ],
                    "pageInfo": {"hasNextPage": true, "endCursor": "b"},
                }},
            })),
            after in prop::option::of("[ab]"),
        ) {
            let Ok(disputes) = DisputePage::read(data) else { return Ok(()) };
            let _ = disputes.orders_to_ask(november());
            if let Ok(page) = disputes.settle(november(), after.as_deref(), &Orders::default()) {
                for loss in page.movements {
                    prop_assert!(loss.amount_minor <= 0 && november().contains(loss.occurred_at));
                    prop_assert!(loss.external_id.starts_with("gid://shopify/"));
                }
                prop_assert!(page.next.is_none() || page.next != after);
            }
        }

        #[test]
        fn no_date_panics(text in "\\PC{0,30}|[+-]?[0-9]{1,7}-[0-9]{2}-[0-9]{2}(T[0-9:.]{8,12}Z)?") {
            let _ = instant(&text);
        }
    }

    #[test]
    fn a_senseless_date_is_an_error() {
        assert!(read(&dispute("CHARGEBACK", "LOST", Some("soon"))).is_err());
    }
}
