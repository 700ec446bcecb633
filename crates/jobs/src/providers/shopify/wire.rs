//! Pieces that several answers share, as Shopify writes them. Shape mistakes become
//! [`RefusedReason::InvalidAnswer`]; nothing is defaulted.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::money::{Currency, MinorAmount};
use crate::providers::RefusedReason;

/// `MoneyV2`: the amount is a decimal string; a JSON number would have been a float.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Money {
    amount: String,
    currency_code: Currency,
}

impl Money {
    pub(super) fn parse(&self) -> Result<MinorAmount, RefusedReason> {
        MinorAmount::from_decimal_str(&self.amount, self.currency_code)
            .map_err(|_| RefusedReason::InvalidAnswer("amount"))
    }
}

/// `Shop`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shop {
    pub(super) currency_code: Currency,
}

/// `Order`, as far as a movement needs it; null once the order is deleted.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Order {
    pub(super) id: String,
    /// The shop's currency when the order was placed.
    pub(super) currency_code: Currency,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageInfo {
    has_next_page: bool,
    end_cursor: Option<String>,
}

impl PageInfo {
    /// Where the page behind the one asked for with `after` begins.
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

/// A global id such as `gid://shopify/TenderTransaction/1`: stable, and of one type for ever.
pub(super) fn gid(id: String) -> Result<String, RefusedReason> {
    let known = id.starts_with("gid://shopify/") && id.len() <= 255;
    if known { Ok(id) } else { Err(RefusedReason::InvalidAnswer("id")) }
}

/// Something to be settled in the shop's currency.
#[derive(Clone, Debug)]
pub(super) struct Priced<'a> {
    pub(super) amount: MinorAmount,
    pub(super) order: Option<&'a Order>,
    pub(super) at: Option<DateTime<Utc>>,
}

impl Priced<'_> {
    /// The order that must be looked into because the amount is in another currency than the shop's.
    pub(super) fn order_to_ask(&self, shop: &Shop) -> Option<&str> {
        let order = self.order?;
        (self.amount.currency() != self.shop_currency(shop)).then_some(order.id.as_str())
    }

    /// The order remembers what the shop's currency was on its day.
    pub(super) fn shop_currency(&self, shop: &Shop) -> Currency {
        self.order.map_or(shop.currency_code, |order| order.currency_code)
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
    #[case(json!({"amount": "12.34", "currencyCode": "EUR"}), Some(1234))]
    #[case(json!({"amount": "-1000.0", "currencyCode": "JPY"}), Some(-1000))]
    #[case(json!({"amount": 12.34, "currencyCode": "EUR"}), None)]
    #[case(json!({"amount": null, "currencyCode": "EUR"}), None)]
    #[case(json!({"amount": "1", "currencyCode": null}), None)]
    #[case(json!({"amount": "1", "currencyCode": "USDC"}), None)]
    #[case(json!({"amount": "0.001", "currencyCode": "EUR"}), None)]
    #[case(json!({"amount": "99999999999999999999", "currencyCode": "EUR"}), None)]
    fn amounts(#[case] money: Value, #[case] minor: Option<i64>) {
        let read = shape::<Money>(money, "amount").and_then(|money| money.parse());
        assert_eq!(read.ok().map(MinorAmount::minor), minor);
    }
}
