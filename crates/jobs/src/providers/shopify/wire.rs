//! Pieces that several answers share, as Shopify writes them.
//!
//! What holds an answer together (its lists, their pages, the shop) must be there, or the answer is a
//! [`RefusedReason::InvalidAnswer`]. What belongs to one row is read loosely: what is wrong there costs that row.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::money::{Currency, MinorAmount};
use crate::providers::movement::{is_credible, kept_id, unnamed};
use crate::providers::{Original, RefusedReason};

/// Represents `MoneyV2`: the amount is a decimal string; a JSON number would have been a float.
#[derive(Clone, Copy, Debug)]
pub(super) struct Money<'a>(pub(super) &'a Value);

impl Money<'_> {
    /// Returns the amount, where it can be read to the last digit: [`CurrencyCode`] has codes that
    /// are no currency, and amounts come with more decimals than their currency has.
    ///
    /// [`CurrencyCode`]: https://shopify.dev/docs/api/admin-graphql/latest/enums/CurrencyCode
    pub(super) fn parse(self) -> Option<MinorAmount> {
        let currency: Currency = self.0["currencyCode"].as_str()?.parse().ok()?;
        let amount = MinorAmount::from_decimal_str(self.0["amount"].as_str()?, currency).ok()?;
        is_credible(amount).then_some(amount)
    }

    /// Returns what stands there.
    pub(super) fn as_read(self) -> Original {
        let text = |value: &Value| match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let (amount, currency) = (text(&self.0["amount"]), text(&self.0["currencyCode"]));
        Original::of(amount.as_deref(), currency.as_deref())
    }
}

/// Represents `Shop`, as far as it is asked for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shop {
    pub(super) currency_code: Currency,
}

/// Returns whether orders of any age are within reach: without the scope `read_all_orders` nothing older than 60 days
/// is. `None` where the answer does not tell.
pub(super) fn reads_all_orders(installation: &Value) -> Option<bool> {
    let scopes = installation["accessScopes"].as_array()?;
    let handles: Vec<&str> = scopes.iter().filter_map(|scope| scope["handle"].as_str()).collect();
    (!handles.is_empty()).then(|| handles.contains(&"read_all_orders"))
}

/// Represents `Order`, as far as a movement needs it; it is null once the order is deleted or out
/// of reach.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) id: String,
    /// Is the shop's currency when the order was placed, where it can be read.
    pub(super) currency_code: Option<Currency>,
}

impl Order {
    pub(super) fn read(order: &Value) -> Option<Self> {
        let id = gid(&order["id"])?;
        Some(Self { id, currency_code: order["currencyCode"].as_str().and_then(|code| code.parse().ok()) })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageInfo {
    has_next_page: bool,
    end_cursor: Option<String>,
}

impl PageInfo {
    /// Returns where the page behind the one asked for with `after` begins.
    pub(super) fn next(self, after: Option<&str>) -> Result<Option<String>, RefusedReason> {
        if !self.has_next_page {
            return Ok(None);
        }
        match self.end_cursor {
            Some(cursor) if !cursor.is_empty() && Some(cursor.as_str()) != after => Ok(Some(cursor)),
            _ => Err(RefusedReason::EndlessPages),
        }
    }
}

/// Reads `data` as `T`.
pub(super) fn shape<T: DeserializeOwned>(data: Value, part: &'static str) -> Result<T, RefusedReason> {
    serde_json::from_value(data).map_err(|_| RefusedReason::InvalidAnswer(part))
}

/// Returns a global id such as `gid://shopify/TenderTransaction/1`: it is stable, and of one type
/// for ever.
pub(super) fn gid(id: &Value) -> Option<String> {
    kept_id(id).filter(|id| id.starts_with("gid://shopify/")).map(str::to_owned)
}

/// Returns what a row is kept under, and whether that is its own id; an error for what is no row.
pub(super) fn row_id(node: &Value) -> Result<(String, bool), RefusedReason> {
    match gid(&node["id"]) {
        Some(id) => Ok((id, true)),
        None if node["amount"].is_object() => Ok((unnamed(node), false)),
        None => Err(RefusedReason::InvalidAnswer("id")),
    }
}

/// Reads an instant as Shopify writes it.
pub(super) fn instant(text: &Value) -> Option<DateTime<Utc>> {
    text.as_str()?.parse().ok().filter(|at: &DateTime<Utc>| {
        // What the database can store.
        at.timestamp() > -62_000_000_000 && at.timestamp() < 250_000_000_000
    })
}

/// Represents something to be settled in the shop's currency.
#[derive(Clone, Debug)]
pub(super) struct Priced<'a> {
    pub(super) amount: MinorAmount,
    pub(super) order: Option<&'a Order>,
    pub(super) at: Option<DateTime<Utc>>,
}

impl Priced<'_> {
    /// Returns the order that must be looked into because the amount is in another currency than
    /// the shop's.
    pub(super) fn order_to_ask(&self, shop: &Shop) -> Option<&str> {
        let order = self.order?;
        (self.amount.currency() != self.shop_currency(shop)).then_some(order.id.as_str())
    }

    /// Returns the shop's currency on the order's day, which the order remembers.
    pub(super) fn shop_currency(&self, shop: &Shop) -> Currency {
        self.order.and_then(|order| order.currency_code).unwrap_or(shop.currency_code)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(json!({"hasNextPage": false, "endCursor": null}), Ok(None))]
    #[case(json!({"hasNextPage": false, "endCursor": "b"}), Ok(None))]
    #[case(json!({"hasNextPage": true, "endCursor": "b"}), Ok(Some("b".to_owned())))]
    #[case(json!({"hasNextPage": true, "endCursor": "a"}), Err(RefusedReason::EndlessPages))]
    #[case(json!({"hasNextPage": true, "endCursor": ""}), Err(RefusedReason::EndlessPages))]
    #[case(json!({"hasNextPage": true, "endCursor": null}), Err(RefusedReason::EndlessPages))]
    #[case(json!({"hasNextPage": true}), Err(RefusedReason::EndlessPages))]
    fn next_pages(#[case] info: Value, #[case] expected: Result<Option<String>, RefusedReason>) {
        assert_eq!(shape::<PageInfo>(info, "pageInfo").unwrap().next(Some("a")), expected);
    }

    #[rstest]
    #[case(json!({"accessScopes": [{"handle": "read_orders"}, {"handle": "read_all_orders"}]}), Some(true))]
    #[case(json!({"accessScopes": [{"handle": "read_orders"}]}), Some(false))]
    #[case(json!({"accessScopes": []}), None)]
    #[case(json!({"accessScopes": [null, {"handle": 7}]}), None)]
    #[case(json!({"accessScopes": "read_orders"}), None)]
    #[case(Value::Null, None)]
    fn scopes(#[case] installation: Value, #[case] expected: Option<bool>) {
        assert_eq!(reads_all_orders(&installation), expected);
    }

    #[rstest]
    #[case(json!({"amount": "12.34", "currencyCode": "EUR"}), Some(1234))]
    #[case(json!({"amount": "-1000.0", "currencyCode": "JPY"}), Some(-1000))]
    #[case(json!({"amount": 12.34, "currencyCode": "EUR"}), None)]
    #[case(json!({"amount": null, "currencyCode": "EUR"}), None)]
    #[case(json!({"amount": "1", "currencyCode": null}), None)]
    #[case(json!({"amount": "1", "currencyCode": "USDC"}), None)]
    #[case(json!({"amount": "0.001", "currencyCode": "EUR"}), None)]
    #[case(json!({"amount": "99999999999999999999", "currencyCode": "EUR"}), None)]
    fn amounts(#[case] money: Value, #[case] minor: Option<i64>) {
        assert_eq!(Money(&money).parse().map(MinorAmount::minor), minor);
    }
}
