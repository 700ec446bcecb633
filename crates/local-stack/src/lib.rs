//! What stands in for the cloud on a developer's machine.
//!
//! Real `PostgreSQL` and `PostgREST` behind a gateway that behaves as Supabase's, a Resend that is as strict
//! as the real one, stand-ins for Stripe and Shopify. Never deployed.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! let stack = local_stack::Stack::shared().await?;
//! let environment = stack.environment().await?;
//! sqlx::query("select 1").execute(environment.db.pool()).await?;
//! println!("{:?}", environment.env_vars());
//! # Ok(())
//! # }
//! ```

pub mod bench;
mod bucket;
pub mod chrome;
pub mod clock;
pub mod database;
pub mod demo;
pub mod doctor;
pub mod faults;
pub mod functions;
pub mod gateway;
pub mod keys;
pub mod mails;
pub mod npm;
pub mod ports;
pub mod postgres;
pub mod postgrest;
pub mod process;
mod proxy;
pub mod relay;
pub mod resend;
pub mod seed;
pub mod shopify;
mod stack;
pub mod status_page;
pub mod stripe;
mod unprivileged;
pub mod vendor_schemas;
pub mod vercel;

pub use stack::{Environment, Stack};
