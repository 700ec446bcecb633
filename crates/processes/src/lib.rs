//! This crate is the processes that a developer's machine runs for the stack and the tests.
//!
//! A child process that never outlives us is the ground. On it stand `PostgreSQL` with its databases and `PostgREST`
//! as Supabase configures them, `vercel dev`, single functions, and a browser. Nothing here knows what the vendors
//! answer or what the tools show: those are the crates above.

pub mod child;
pub mod chrome;
pub mod database;
pub mod functions;
pub mod keys;
pub mod npm;
pub mod ports;
pub mod postgres;
pub mod postgrest;
pub mod proxy;
mod unprivileged;
pub mod vercel;
