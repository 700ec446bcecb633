//! What stands in for the cloud on a developer's machine and in the tests. Never deployed.
//!
//! A Supabase project made of a real `PostgreSQL` and `PostgREST` behind a gateway that behaves as Supabase's, a
//! Resend that is as strict as the real one, stand-ins for Stripe and Shopify.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! let stack = stand_ins::Stack::shared().await?;
//! let environment = stack.environment().await?;
//! sqlx::query("select 1").execute(environment.db.pool()).await?;
//! println!("{:?}", environment.env_vars());
//! # Ok(())
//! # }
//! ```

mod bucket;
pub mod clock;
pub mod faults;
pub mod gateway;
mod node_script;
pub mod relay;
pub mod resend;
pub mod shopify;
mod stack;
pub mod stripe;
pub mod urssaf_rules;
pub mod vendor_schemas;

pub use stack::{Environment, Stack};
