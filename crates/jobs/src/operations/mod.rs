//! Gathers what an operator looks at: what the database knows, how each dependency is, what was missed and what stands
//! still.
//!
//! The status page shows [`view::Status`], the daily digest mails the points of [`digest`]; both are made here, of the
//! same facts. Nothing here knows HTTP.

pub(crate) mod claims;
pub(crate) mod digest;
pub(crate) mod facts;
pub(crate) mod health;
pub(crate) mod own_address;
pub(crate) mod user;
pub(crate) mod view;
pub(crate) mod waiting;
