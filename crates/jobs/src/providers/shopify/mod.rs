//! Shopify: every movement of money between a shop and its customers.
//!
//! Turnover on a cash basis is the list of tender transactions: "each represents actual money movement", refunds
//! are negative, a row never changes once it is there (GraphQL Admin API, `TenderTransaction`). Orders would give
//! the day of the sale and need every order re-read for late refunds. Chargebacks are not among them and come
//! from the disputes of Shopify Payments.
//!
//! One public report tells of a tender that never was in the list (docs/field-reports.md, T1). So the transactions of
//! the orders are a second source, once a day and with each month: what they know beyond the list is kept and named.
//!
//! Amounts are in the shop's currency. Where a tender transaction is in the buyer's, the order's own transactions
//! know both; what cannot be told is kept, excluded and visible, never converted by a guess.

mod answer;
mod base;
mod bucket;
mod client;
mod disputes;
pub mod documents;
mod domain;
mod order_payments;
mod orders;
mod refresh;
mod search;
mod tenders;
mod transaction;
mod wire;

pub use base::{ApiBase, InvalidApiBase};
pub use client::ShopifyClient;
pub use disputes::Disputes;
pub use domain::{InvalidShopDomain, ShopDomain};
pub use refresh::TokenPair;

/// The documents were validated against this API version; each version lives at least twelve
/// months.
pub const API_VERSION: &str = "2026-10";
