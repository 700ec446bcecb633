//! What stands behind each field of the schema.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use super::{
    errors::Error,
    page::Request,
    search::{Cell, Kind, Search},
    state::{DisputeRow, Money, OrderRow, OrderTransactionRow, PaymentsAccess, Shop, TenderRow},
};

const TENDER_FILTERS: &[(&str, Kind)] = &[
    ("id", Kind::Id),
    ("point_of_sale_device_id", Kind::Id),
    ("processed_at", Kind::Time),
    ("test", Kind::Bool),
];
/// These are some of the fields by which orders are found
/// (<https://shopify.dev/docs/api/admin-graphql/latest/queries/orders#argument-query>).
const ORDER_FILTERS: &[(&str, Kind)] = &[
    ("created_at", Kind::Time),
    ("id", Kind::Id),
    ("processed_at", Kind::Time),
    ("test", Kind::Bool),
    ("updated_at", Kind::Time),
];
const DISPUTE_FILTERS: &[(&str, Kind)] =
    &[("id", Kind::Id), ("initiated_at", Kind::Time), ("status", Kind::Text)];

/// Resolves one field of `object`, and notes in `searches` what its search has to say.
pub(super) fn field(
    shop: &Shop,
    object: &Value,
    name: &str,
    arguments: &Map<String, Value>,
    path: &[Value],
    searches: &mut Vec<Value>,
) -> Result<Value, Error> {
    let id = || arguments.get("id").and_then(Value::as_str).unwrap_or_default();
    let hidden = |key: &str| object[key].as_u64();
    Ok(match (object["__typename"].as_str().unwrap_or_default(), name) {
        ("QueryRoot", "shop") => json!({
            "__typename": "Shop",
            "id": format!("gid://shopify/Shop/{}", shop.id),
            "name": shop.domain.split('.').next(),
            "myshopifyDomain": shop.domain,
            "currencyCode": shop.currency,
        }),
        ("QueryRoot", "currentAppInstallation") => json!({
            "__typename": "AppInstallation",
            "id": format!("gid://shopify/AppInstallation/{}", shop.id),
            "accessScopes": shop.scopes.iter().map(|handle| json!({
                "__typename": "AccessScope", "handle": handle, "description": handle,
            })).collect::<Vec<_>>(),
        }),
        ("QueryRoot", "tenderTransactions") => {
            let search = searched(arguments, TENDER_FILTERS, path, searches)?;
            let listed = |row: &TenderRow| shop.tenders_from.is_none_or(|from| row.at >= from);
            let found = |id, row: &_| listed(row) && finds_tender(&search, id, row);
            let request = Request::read(arguments)?;
            request.page("TenderTransactionConnection", &shop.tenders, found, shop.misbehaviour, tender)
        }
        ("QueryRoot", "shopifyPaymentsAccount") => account(shop)?,
        ("ShopifyPaymentsAccount", "disputes") => {
            if shop.payments_access == PaymentsAccess::NoDisputes {
                return Err(denied("disputes", "`read_shopify_payments_disputes` access scope"));
            }
            let search = searched(arguments, DISPUTE_FILTERS, path, searches)?;
            let found = |id, row: &_| finds_dispute(&search, id, row);
            let request = Request::read(arguments)?;
            request.page(
                "ShopifyPaymentsDisputeConnection",
                &shop.disputes,
                found,
                shop.misbehaviour,
                dispute,
            )
        }
        ("QueryRoot", "orders") => {
            let search = searched(arguments, ORDER_FILTERS, path, searches)?;
            let found = |id, row: &OrderRow| {
                // An order of which nothing has come in yet is not there yet.
                let shows = row.transactions.iter().any(|row| row.hidden_with.is_none());
                shows && !order(shop, id).is_null() && finds_order(&search, id, row)
            };
            let request = Request::read(arguments)?;
            request.page("OrderConnection", &shop.orders, found, shop.misbehaviour, |id, _| order(shop, id))
        }
        ("QueryRoot", "order") => gid(id(), "Order").map_or(Value::Null, |id| order(shop, id)),
        ("QueryRoot", "node") => node(shop, id()),
        ("QueryRoot", "nodes") => {
            let ids = arguments.get("ids").and_then(Value::as_array).cloned().unwrap_or_default();
            if ids.len() > 250 {
                let message = format!(
                    "The input array size of {} is greater than the maximum allowed of 250.",
                    ids.len()
                );
                return Err(Error::new(message, "MAX_INPUT_SIZE_EXCEEDED"));
            }
            ids.iter().map(|id| node(shop, id.as_str().unwrap_or_default())).collect()
        }
        (_, "order") => hidden("$order").map_or(Value::Null, |id| order(shop, id)),
        ("Order", "transactions") => {
            let row = hidden("$id").and_then(|id| shop.orders.get(&id));
            let first = arguments.get("first").and_then(Value::as_u64).unwrap_or(u64::MAX);
            let rows = row.into_iter().flat_map(|row| &row.transactions);
            let rows = rows.filter(|row| row.hidden_with.is_none());
            rows.take(usize::try_from(first).unwrap_or(usize::MAX))
                .map(|row| order_transaction(row, hidden("$id")))
                .collect()
        }
        ("OrderTransaction", "parentTransaction") => {
            let order = hidden("$order").and_then(|id| shop.orders.get(&id));
            let parent = hidden("$parent");
            let row = order.and_then(|order| order.transactions.iter().find(|row| Some(row.id) == parent));
            row.map_or(Value::Null, |row| order_transaction(row, hidden("$order")))
        }
        _ => object[name].clone(),
    })
}

fn searched(
    arguments: &Map<String, Value>,
    filters: &[(&str, Kind)],
    path: &[Value],
    searches: &mut Vec<Value>,
) -> Result<Search, Error> {
    let query = arguments.get("query").and_then(Value::as_str).unwrap_or_default();
    let search = Search::parse(query, filters)?;
    searches.extend(search.extension(path, query));
    Ok(search)
}

fn finds_tender(search: &Search, id: u64, row: &TenderRow) -> bool {
    !row.hidden
        && search.finds(|field| match field {
            "id" => Some(Cell::Id(id)),
            "processed_at" => Some(Cell::Time(row.at)),
            "test" => Some(Cell::Bool(row.test)),
            // No tender of the stand-in was made on a point-of-sale device.
            _ => Some(Cell::Id(0)),
        })
}

fn finds_order(search: &Search, id: u64, row: &OrderRow) -> bool {
    search.finds(|field| match field {
        "id" => Some(Cell::Id(id)),
        "test" => Some(Cell::Bool(row.test)),
        "updated_at" => Some(Cell::Time(row.updated)),
        _ => Some(Cell::Time(row.at)),
    })
}

fn finds_dispute(search: &Search, id: u64, row: &DisputeRow) -> bool {
    search.finds(|field| match field {
        "id" => Some(Cell::Id(id)),
        "initiated_at" => Some(Cell::Time(row.at)),
        _ => Some(Cell::Text(row.status.clone())),
    })
}

fn denied(field: &str, required: &str) -> Error {
    let message = format!("Access denied for {field} field. Required access: {required}.");
    Error::new(message, "ACCESS_DENIED")
        .extension("documentation", "https://shopify.dev/api/usage/access-scopes")
        .extension("requiredAccess", required)
}

fn account(shop: &Shop) -> Result<Value, Error> {
    match shop.payments_access {
        PaymentsAccess::NotUsed => Ok(Value::Null),
        PaymentsAccess::NoAccount => {
            let required = "the `read_shopify_payments` or the `read_shopify_payments_accounts` access scope";
            Err(denied("shopifyPaymentsAccount", required))
        }
        PaymentsAccess::Granted | PaymentsAccess::NoDisputes => Ok(json!({
            "__typename": "ShopifyPaymentsAccount",
            "id": format!("gid://shopify/ShopifyPaymentsAccount/{}", shop.id),
            "activated": true,
            "country": "FR",
            "defaultCurrency": shop.currency,
        })),
    }
}

/// Returns the number of a `gid://shopify/{kind}/123`.
fn gid(id: &str, kind: &str) -> Option<u64> {
    id.strip_prefix("gid://shopify/")?.strip_prefix(kind)?.strip_prefix('/')?.parse().ok()
}

fn node(shop: &Shop, id: &str) -> Value {
    let tender_of = |id| shop.tenders.get(&id).map(|row| tender(id, row));
    let dispute_of = |id| shop.disputes.get(&id).map(|row| dispute(id, row));
    gid(id, "Order")
        .map(|id| order(shop, id))
        .or_else(|| gid(id, "TenderTransaction").and_then(tender_of))
        .or_else(|| gid(id, "ShopifyPaymentsDispute").and_then(dispute_of))
        .unwrap_or_default()
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn money(money: &Money) -> Value {
    json!({"__typename": "MoneyV2", "amount": money.amount, "currencyCode": money.currency})
}

fn tender(id: u64, row: &TenderRow) -> Value {
    json!({
        "__typename": "TenderTransaction",
        "id": format!("gid://shopify/TenderTransaction/{id}"),
        "amount": money(&row.amount),
        "processedAt": time(row.at),
        "test": row.test,
        "paymentMethod": row.method,
        "remoteReference": row.reference,
        "$order": row.order,
    })
}

fn order(shop: &Shop, id: u64) -> Value {
    let Some(row) = shop.orders.get(&id) else { return Value::Null };
    if shop.orders_from.is_some_and(|from| row.at < from) {
        return Value::Null;
    }
    json!({
        "__typename": "Order",
        "$id": id,
        "id": format!("gid://shopify/Order/{id}"),
        "legacyResourceId": id.to_string(),
        "name": row.name,
        "createdAt": time(row.at),
        "processedAt": time(row.at),
        "cancelledAt": null,
        "test": row.test,
        "currencyCode": shop.currency,
        "presentmentCurrencyCode": row.presentment_currency,
        "updatedAt": time(row.updated),
    })
}

fn order_transaction(row: &OrderTransactionRow, order: Option<u64>) -> Value {
    json!({
        "__typename": "OrderTransaction",
        "$order": order,
        "$parent": row.parent,
        "id": format!("gid://shopify/OrderTransaction/{}", row.id),
        "kind": row.kind,
        "status": row.status,
        "test": row.test,
        "createdAt": time(row.at),
        "processedAt": time(row.at),
        "gateway": row.gateway,
        "formattedGateway": row.gateway,
        "paymentId": format!("#{}.1", row.id),
        "settlementCurrency": null,
        "amountSet": {
            "__typename": "MoneyBag",
            "shopMoney": money(&row.shop_money),
            "presentmentMoney": money(&row.presentment_money),
        },
    })
}

fn dispute(id: u64, row: &DisputeRow) -> Value {
    json!({
        "__typename": "ShopifyPaymentsDispute",
        "$order": row.order,
        "id": format!("gid://shopify/ShopifyPaymentsDispute/{id}"),
        "legacyResourceId": id.to_string(),
        "amount": money(&row.amount),
        "initiatedAt": time(row.at),
        "finalizedOn": row.finalized.map(time),
        "evidenceDueBy": null,
        "evidenceSentOn": null,
        "status": row.status,
        "type": row.kind,
        "reasonDetails": {
            "__typename": "ShopifyPaymentsDisputeReasonDetails",
            "networkReasonCode": null,
            "reason": "FRAUDULENT",
        },
    })
}
