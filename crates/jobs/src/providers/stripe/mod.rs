//! Stripe: every movement on the balance of a connected account.
//!
//! Turnover on a cash basis is the list of balance transactions ("Balance transactions", "Reporting categories"
//! in Stripe's documentation), not the list of charges: a charge is filtered by its creation, so a refund or a
//! capture of last week would never show up in this week's window, and a payment seen as `PaymentIntent` and as
//! invoice would count twice. One balance transaction is one movement, dated when it happened.

mod account;
mod answer;
mod balance;
mod categories;
mod client;
mod pacer;
mod refusals;

pub use account::{NotAnAccount, StripeAccountId};
pub use categories::kinds;
pub use client::StripeClient;
pub use pacer::Pacer;

/// Stripe listens there unless `STRIPE_API_BASE` says otherwise.
pub const DEFAULT_API_BASE: &str = "https://api.stripe.com";

/// This code was written against this API version; it is pinned, so that the account's default does
/// not matter.
pub const API_VERSION: &str = "2026-10-28.endive";
