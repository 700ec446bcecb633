//! From a page of Shopify Payments disputes to movements. Pure.
//!
//! A dispute is a state that changes: every one that is listed is kept with its state, whatever the window of the sync.
//! A chargeback that is lost or accepted is money that went back to the buyer: a negative movement on the day it was
//! decided; won later, it counts no more. Inquiries take no money: one that was kept because it was prevented, and ends
//! otherwise, is no turnover. What was prevented may have been paid back, or not.
//!
//! `finalizedOn` used to be a date and may still come as one. A bare date counts as the first instant of that day
//! in Paris, where the books are kept: any other instant of the day would fall in the same month.

use std::collections::HashMap;

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use chrono_tz::Europe::Paris;
use serde::Deserialize;
use serde_json::Value;

use super::orders::{self, Orders};
use super::wire::{self, Money, Order, PageInfo, Priced, Shop, row_id, shape};
use crate::money::MinorAmount;
use crate::providers::movement::{DISPUTE_WITHOUT_ID, word};
use crate::providers::{Movement, MovementKind, Page, RefusedReason};
use crate::schedule::Window;

/// Disputes can only be searched by when they began; networks decide within months, this leaves a margin.
const LONGEST_DISPUTE: TimeDelta = TimeDelta::days(540);

/// Says what a shop says of its disputes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Disputes {
    /// A page was read, which is empty for a shop without Shopify Payments.
    Page(Page),
    /// The connection may not read disputes. No failure: say it once and go on.
    NotAvailable,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    shop: Shop,
    /// Is null for a shop without Shopify Payments; the field itself is always there.
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
    nodes: Vec<Value>,
    page_info: PageInfo,
}

/// Represents a dispute as it was read.
struct Dispute<'a> {
    node: &'a Value,
    id: String,
    kind: MovementKind,
    source_kind: String,
    /// Is `None` where the answer does not say it: what is known stays known.
    state: Option<String>,
    order: Option<Order>,
}

/// Returns when disputes that may be of interest within `window` can have begun.
pub(super) fn begun(window: Window) -> Window {
    Window { from: window.from - LONGEST_DISPUTE, ..window }
}

impl<'a> Dispute<'a> {
    /// Reads a dispute; an error for what has no id, and so is no row.
    fn read(node: &'a Value) -> Result<Self, RefusedReason> {
        let (kind, status) =
            (node["type"].as_str().unwrap_or_default(), node["status"].as_str().unwrap_or_default());
        let (kind, source_kind) = match (kind, status) {
            (
                "INQUIRY",
                "WON" | "NEEDS_RESPONSE" | "UNDER_REVIEW" | "LOST" | "ACCEPTED" | "CHARGE_REFUNDED",
            ) => (MovementKind::NoTurnover, "inquiry".to_owned()),
            ("CHARGEBACK", "WON" | "NEEDS_RESPONSE" | "UNDER_REVIEW" | "LOST" | "ACCEPTED")
            | ("CHARGEBACK" | "INQUIRY", "PREVENTED")
            // Given back as a refund, which is a tender transaction of its own.
            | (_, "CHARGE_REFUNDED") => (MovementKind::Dispute, "dispute".to_owned()),
            _ => (MovementKind::Unknown, word(&format!("dispute:{kind}:{status}"))),
        };
        let state = (!status.is_empty()).then(|| word(status).to_lowercase());
        let order = Order::read(&node["order"]);
        row_id(node).map(|(id, has_id)| {
            let (kind, source_kind) = if has_id || kind == MovementKind::NoTurnover {
                (kind, source_kind)
            } else {
                (MovementKind::Unknown, DISPUTE_WITHOUT_ID.to_owned())
            };
            Self { node, id, kind, source_kind, state, order }
        })
    }

    /// Is priced as the payment that it takes back: that is what the order knows in both
    /// currencies.
    fn priced(&self) -> Option<Priced<'_>> {
        if self.kind == MovementKind::NoTurnover {
            return None;
        }
        let amount = unsigned(Money(&self.node["amount"]))?;
        Some(Priced { amount, order: self.order.as_ref(), at: None })
    }

    fn movement(&self, orders: &Orders, shop: &Shop) -> Movement {
        let settled = self.priced().map(|priced| orders.settle(&priced, shop));
        let negative = settled.as_ref().and_then(|settled| settled.amount.checked_neg().ok());
        let as_read = Money(&self.node["amount"]).as_read();
        let (begun, decided) = (wire::instant(&self.node["initiatedAt"]), decided(&self.node["finalizedOn"]));
        let is_lost = matches!(self.state.as_deref(), Some("lost" | "accepted"));
        Movement {
            external_id: self.id.clone(),
            kind: self.kind,
            source_kind: self.source_kind.clone(),
            state: self.state.clone(),
            method: None,
            // A loss counts when it was decided; what has not counted yet stands where it began.
            occurred_at: if is_lost { decided } else { decided.or(begun) },
            listed_at: begun,
            amount_minor: negative.map(MinorAmount::minor),
            currency: match negative {
                Some(amount) => Some(amount.currency().to_string()),
                None => as_read.currency.clone(),
            },
            converted: settled.as_ref().is_none_or(|settled| settled.converted),
            original: settled.as_ref().map_or(Some(as_read.clone()), |settled| settled.original(as_read)),
            references: self.order.iter().map(|order| order.id.clone()).collect(),
        }
    }
}

/// Represents a page that was read and whose foreign currencies are still open.
pub(super) struct DisputePage {
    shop: Shop,
    connection: Option<Connection>,
}

impl DisputePage {
    pub(super) fn read(data: Value) -> Result<Self, RefusedReason> {
        let data: Data = shape(data, "disputes")?;
        Ok(Self {
            shop: data.shop,
            connection: data.shopify_payments_account.map(|account| account.disputes),
        })
    }

    fn rows(&self) -> Result<Vec<Dispute<'_>>, RefusedReason> {
        self.connection.iter().flat_map(|connection| &connection.nodes).map(Dispute::read).collect()
    }

    /// Returns the orders needed to settle foreign currencies.
    pub(super) fn orders_to_ask(&self) -> Result<Vec<String>, RefusedReason> {
        let rows = self.rows()?;
        Ok(orders::to_ask(rows.iter().filter_map(Dispute::priced), &self.shop))
    }

    /// Returns the disputes of the page that was asked for behind `after`, each with its state.
    pub(super) fn settle(self, after: Option<&str>, orders: &Orders) -> Result<Page, RefusedReason> {
        let (mut page, mut seen) = (Page::default(), HashMap::new());
        for dispute in self.rows()? {
            if dispute.kind == MovementKind::Unknown {
                page.note_unknown(&dispute.source_kind);
            }
            page.add(&mut seen, dispute.movement(orders, &self.shop));
        }
        if let Some(connection) = self.connection {
            page.next = connection.page_info.next(after)?;
        }
        Ok(page)
    }
}

fn unsigned(money: Money<'_>) -> Option<MinorAmount> {
    let amount = money.parse()?;
    if amount.minor() >= 0 { Some(amount) } else { amount.checked_neg().ok() }
}

/// Reads an instant, or the first of a Paris day. Midnight exists once every day there: clocks
/// change at night, later.
fn decided(text: &Value) -> Option<DateTime<Utc>> {
    if let Some(instant) = wire::instant(text) {
        return Some(instant);
    }
    let day: NaiveDate = text.as_str()?.parse().ok()?;
    Some(day.and_time(NaiveTime::MIN).and_local_timezone(Paris).earliest()?.to_utc())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;

    fn dispute(kind: &str, status: &str, finalized_on: Option<&str>) -> Value {
        json!({
            "id": "gid://shopify/ShopifyPaymentsDispute/1", "type": kind, "status": status,
            "finalizedOn": finalized_on, "initiatedAt": "2026-10-01T08:00:00Z",
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
        DisputePage::read(data)?.settle(None, &Orders::default())
    }

    #[rstest]
    #[case("CHARGEBACK", "LOST", Some((MovementKind::Dispute, "lost")))]
    #[case("CHARGEBACK", "ACCEPTED", Some((MovementKind::Dispute, "accepted")))]
    #[case("CHARGEBACK", "WON", Some((MovementKind::Dispute, "won")))]
    #[case("CHARGEBACK", "NEEDS_RESPONSE", Some((MovementKind::Dispute, "needs_response")))]
    #[case("CHARGEBACK", "UNDER_REVIEW", Some((MovementKind::Dispute, "under_review")))]
    #[case("CHARGEBACK", "PREVENTED", Some((MovementKind::Dispute, "prevented")))]
    #[case("CHARGEBACK", "CHARGE_REFUNDED", Some((MovementKind::Dispute, "charge_refunded")))]
    #[case("CHARGEBACK", "BRAND_NEW", Some((MovementKind::Unknown, "brand_new")))]
    #[case("INQUIRY", "PREVENTED", Some((MovementKind::Dispute, "prevented")))]
    #[case("INQUIRY", "LOST", Some((MovementKind::NoTurnover, "lost")))]
    #[case("INQUIRY", "WON", Some((MovementKind::NoTurnover, "won")))]
    #[case("BRAND_NEW", "LOST", Some((MovementKind::Unknown, "lost")))]
    fn states(#[case] kind: &str, #[case] status: &str, #[case] expected: Option<(MovementKind, &str)>) {
        let page = read(&dispute(kind, status, Some("2026-11-05"))).unwrap();
        let kept = page.movements.first().map(|kept| (kept.kind, kept.state.as_deref().unwrap()));
        assert_eq!(kept, expected);
        let is_unknown = expected.is_some_and(|(kind, _)| kind == MovementKind::Unknown);
        assert_eq!(page.unknown.len(), usize::from(is_unknown));
    }

    #[test]
    fn a_loss_is_negative_and_dated_when_decided() {
        let page = read(&dispute("CHARGEBACK", "LOST", Some("2026-11-05T14:00:00-05:00"))).unwrap();
        let loss = &page.movements[0];
        assert_eq!((loss.kind, loss.amount_minor), (MovementKind::Dispute, Some(-4200)));
        assert_eq!(loss.occurred_at, "2026-11-05T19:00:00Z".parse().ok());
        assert_eq!(loss.references, ["gid://shopify/Order/1"]);
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
        assert_eq!(decided(&text.into()), expected.map(|text| text.parse().unwrap()));
    }

    #[rstest]
    #[case(None)]
    #[case(Some("soon"))]
    fn a_loss_without_a_date_has_none(#[case] finalized_on: Option<&str>) {
        let page = read(&dispute("CHARGEBACK", "LOST", finalized_on)).unwrap();
        assert_eq!(page.movements[0].occurred_at, None);
        let open = read(&dispute("CHARGEBACK", "UNDER_REVIEW", finalized_on)).unwrap();
        assert_eq!(open.movements[0].occurred_at, "2026-10-01T08:00:00Z".parse().ok());
    }

    #[test]
    fn an_unknown_rate_is_not_converted() {
        let mut dollars = dispute("CHARGEBACK", "LOST", Some("2026-11-05"));
        dollars["amount"]["currencyCode"] = "USD".into();
        let loss = read(&dollars).unwrap().movements.remove(0);
        assert_eq!(
            (loss.amount_minor, loss.currency.as_deref(), loss.converted),
            (Some(-4200), Some("USD"), false)
        );
    }

    #[test]
    fn an_amount_that_cannot_be_read_is_kept_as_read() {
        let mut coins = dispute("CHARGEBACK", "NEEDS_RESPONSE", None);
        coins["amount"]["currencyCode"] = "USDC".into();
        let kept = read(&coins).unwrap().movements.remove(0);
        assert_eq!((kept.amount_minor, kept.currency.as_deref()), (None, Some("USDC")));
        assert_eq!(kept.original.unwrap().amount.as_deref(), Some("42.00"));
    }

    #[test]
    fn a_dispute_without_an_id_is_kept() {
        let mut lost = dispute("CHARGEBACK", "LOST", Some("2026-11-05"));
        lost["id"] = Value::Null;
        let kept = read(&lost).unwrap().movements.remove(0);
        assert_eq!((kept.kind, kept.source_kind.as_str()), (MovementKind::Unknown, DISPUTE_WITHOUT_ID));
    }

    #[test]
    fn a_shop_without_shopify_payments_has_no_disputes() {
        let data = json!({"shop": {"currencyCode": "EUR"}, "shopifyPaymentsAccount": null});
        let page = DisputePage::read(data).unwrap().settle(None, &Orders::default()).unwrap();
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
        /// Whatever is wrong with a page: refused as a whole, or money that is lost and nothing else.
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
            let _ = disputes.orders_to_ask();
            if let Ok(page) = disputes.settle(after.as_deref(), &Orders::default()) {
                for loss in page.movements {
                    prop_assert!(loss.amount_minor.is_none_or(|amount| amount <= 0));
                    let is_named = loss.external_id.starts_with("gid://shopify/");
                    prop_assert!(is_named || (loss.kind, loss.source_kind.as_str()) == (MovementKind::Unknown, DISPUTE_WITHOUT_ID));
                }
                prop_assert!(page.next.is_none() || page.next != after);
            }
        }

        #[test]
        fn no_date_panics(text in "\\PC{0,30}|[+-]?[0-9]{1,7}-[0-9]{2}-[0-9]{2}(T[0-9:.]{8,12}Z)?") {
            let _ = decided(&text.into());
        }
    }
}
