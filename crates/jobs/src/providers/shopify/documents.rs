//! The GraphQL documents, as files of their own so that they can be validated against Shopify's schema.

/// Asks for the shop's currency, and what our application may read of it.
pub const SHOP: &str = include_str!("documents/shop.graphql");
/// Asks for one page of money movements.
pub const TENDER_TRANSACTIONS: &str = include_str!("documents/tender_transactions.graphql");
/// Asks for the transactions of some orders, with both currencies.
pub const ORDER_TRANSACTIONS: &str = include_str!("documents/order_transactions.graphql");
/// Asks for one page of orders, with the first of their transactions in the shop's currency.
pub const ORDERS: &str = include_str!("documents/orders.graphql");
/// Asks for one page of Shopify Payments disputes.
pub const DISPUTES: &str = include_str!("documents/disputes.graphql");

/// Lists every document that is ever sent, with its file name.
pub const ALL: [(&str, &str); 5] = [
    ("shop.graphql", SHOP),
    ("tender_transactions.graphql", TENDER_TRANSACTIONS),
    ("order_transactions.graphql", ORDER_TRANSACTIONS),
    ("orders.graphql", ORDERS),
    ("disputes.graphql", DISPUTES),
];
