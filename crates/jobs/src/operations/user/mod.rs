//! Gathers what an operator sees of one user: one value, from which both the page and its JSON are made.
//!
//! [`facts`] is what the database answers in one call, [`law`] holds the books against the ceilings, [`receipts`] writes
//! them as a ledger. Addresses come cut, tokens never come.

pub(crate) mod actions;
pub(crate) mod coded;
pub(crate) mod facts;
pub(crate) mod law;
pub(crate) mod money;
pub(crate) mod receipts;
mod state;
pub(crate) mod view;
