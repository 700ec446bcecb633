//! What stands in for the cloud on a developer's machine.
//!
//! Real `PostgreSQL` and `PostgREST` behind a gateway that behaves as Supabase's, the Resend emulator behind a
//! fault proxy, stand-ins for Stripe and Shopify. Never deployed.

mod bucket;
pub mod faults;
pub mod shopify;
pub mod stripe;
pub mod vendor_schemas;
