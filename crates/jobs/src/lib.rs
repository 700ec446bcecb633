//! This crate is everything that the Comptalyze functions share.
//!
//! One binary per route below `api/` calls [`serve`]. Modules point one way, downwards; `layers` reads that off the
//! sources, and `docs/ARCHITECTURE.md` draws the whole picture.

#[macro_use]
mod listed;

pub mod chain;
pub mod config;
pub mod config_faults;
#[cfg(test)]
mod contrast;
pub mod crypto;
#[cfg(test)]
mod damage;
pub mod deadline;
pub mod deployment_file;
pub mod email;
pub mod entry;
pub mod failure;
pub mod http;
pub mod integrations;
pub mod lane;
#[cfg(test)]
mod layers;
pub mod mail_kind;
pub mod money;
mod operations;
pub mod orchestrator;
pub mod pace;
pub mod ping;
pub mod providers;
pub mod queue;
pub mod retention;
pub mod retry;
pub mod routes;
pub mod schedule;
pub mod supabase;
pub mod tasks;
#[cfg(test)]
mod test_server;
pub mod urssaf;
pub mod words;

pub use entry::serve;
pub use routes::Route;
