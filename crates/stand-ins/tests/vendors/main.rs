//! The stand-ins for Stripe and Shopify, asked over HTTP as the product asks the vendors.

mod http;
mod shopify;
mod stripe;
mod vendor_schemas;

use chrono::{DateTime, Utc};

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("an instant")
}
