//! Where turnover comes from: Stripe and Shopify, read as movements of money on the day they happened.
//!
//! Both clients answer in the types of this module: a [`Page`] of [`Movement`]s, or a [`ProviderError`] that is
//! classified once, where it is seen. Nothing here knows of users, queues or the database.

mod error;
mod message;
mod movement;
mod outage;
mod page;
mod picked;
pub mod shopify;
pub mod stripe;

#[cfg(test)]
pub(crate) use error::tests;
pub use error::{
    ErrorKind, Provider, ProviderError, ReconnectReason, RefusedReason, Transient, TransientCause,
};
pub use movement::{Movement, MovementKind, OrderPayment, Original};
pub use outage::{OUTAGE, Outage, OutageRule};
pub use page::{CursorGuard, Page};
