//! One transaction of an order, as Shopify writes it. Pure.

use serde_json::Value;

use super::wire::{Money, gid, instant};
use crate::providers::{OrderPayment, movement::word};

/// Returns which way a transaction moved money; `None` where it moved none.
pub(super) fn is_incoming(transaction: &Value) -> Option<bool> {
    if transaction["test"] != false || transaction["status"] != "SUCCESS" {
        return None;
    }
    match transaction["kind"].as_str()? {
        "SALE" | "CAPTURE" => Some(true),
        "REFUND" | "CHANGE" => Some(false),
        _ => None,
    }
}

/// Reads a transaction of an order; `None` for what moved no money, and for what cannot be read.
pub(super) fn payment(order: &str, transaction: &Value) -> Option<OrderPayment> {
    let sign = if is_incoming(transaction)? { 1 } else { -1 };
    let amount = Money(&transaction["amountSet"]["shopMoney"]).parse()?;
    let size = amount.minor().checked_abs().filter(|minor| *minor > 0)?;
    Some(OrderPayment {
        order: gid(&Value::from(order))?,
        id: gid(&transaction["id"])?,
        at: instant(&transaction["processedAt"])?,
        amount_minor: sign * size,
        currency: amount.currency().to_string(),
        method: transaction["gateway"].as_str().map(word),
    })
}
