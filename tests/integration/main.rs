//! The functions live in `api/`; see `crates/jobs` for the library they share. Here they run as real processes
//! against the local stack.

mod audit;
mod calendar;
mod chaos;
mod clock;
mod deployment;
mod documents;
mod isolation;
mod leaks;
mod mails;
mod money;
mod oracle;
mod promises;
mod status;
mod sync;
mod told;
mod trigger;
mod trouble;
mod warm;
mod world;
