//! The functions live in `api/`; see `crates/jobs` for the library they share.

mod deployment;
mod trigger;
