//! One user's integrations: proving whose they are, reading them, settling what was read.
//!
//! Two kinds of item end here: one integration since its last success ([`WorkItem::SyncIntegration`]) and
//! a whole month of all of a user's integrations ([`WorkItem::SyncMonth`]). Both are read in the same way
//! and settled by the same database function, `integration_settle`.

mod account;
mod actor;
mod columns;
mod error;
mod read;
mod settings;
mod settle;
mod worker;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use uuid::Uuid;

pub use self::{
    actor::{TOKEN_UNREADABLE, is_a_providers_own, is_the_users_to_mend, remedy, users_codes},
    settings::IntegrationsConfig,
    worker::SyncWorker,
};
use crate::{
    crypto::tokens::TokenKey,
    deadline::Deadline,
    providers::{
        Provider, ProviderError,
        shopify::ShopifyClient,
        stripe::{Pacer, StripeClient},
    },
    supabase::Supabase,
};

/// Represents an integration as stored, with what we know of it. Its tokens are still encrypted.
#[derive(Clone, Debug, Deserialize)]
struct Integration {
    item_id: i64,
    #[serde(rename = "integration_id")]
    id: Uuid,
    provider: Provider,
    access_token: String,
    refresh_token: Option<String>,
    /// Is written by the user: a claim, not a fact.
    stripe_account_id: Option<String>,
    /// Is written by the user: a claim, not a fact.
    shop_domain: Option<String>,
    /// Names the account that exactly this token was proven to open.
    proven_account: Option<String>,
    token_expires_at: Option<DateTime<Utc>>,
    /// Is the end of the last window that was read to its end.
    last_success_to: Option<DateTime<Utc>>,
    /// Is the end of the last window that reached far back for rows that show late.
    deep_read_to: Option<DateTime<Utc>>,
    /// Is the first instant of the account's first month; nothing before it goes into the books by
    /// itself.
    books_from: Option<DateTime<Utc>>,
    /// Is the first instant of what was read without a hole up to the month that is asked for.
    #[serde(default)]
    covered_from: Option<DateTime<Utc>>,
    /// Lists payments that were on their way when they were last seen, and those that only an order told of.
    #[serde(default)]
    open: Vec<OpenPayment>,
}

/// Represents a payment that was on its way when it was last seen, or that the list of movements did not have.
#[derive(Clone, Debug, Deserialize)]
struct OpenPayment {
    id: String,
    /// Is the date under which the provider lists it.
    listed_at: Option<DateTime<Utc>>,
}

/// Holds what reading needs, built once for a process.
pub struct Clients {
    supabase: Supabase,
    stripe: StripeClient,
    shopify: ShopifyClient,
    token_key: Arc<TokenKey>,
    exchanges_permanent: bool,
}

impl Clients {
    /// Creates the clients; nothing is sent yet.
    pub fn new(http: &reqwest::Client, supabase: Supabase, config: &IntegrationsConfig) -> Self {
        let pacer = Pacer::new(config.stripe_pace, supabase.clone());
        Self {
            supabase,
            stripe: StripeClient::new(
                http.clone(),
                &config.stripe_api_base,
                config.stripe_secret_key.clone(),
                pacer,
            ),
            shopify: ShopifyClient::new(
                http.clone(),
                config.shopify_base.clone(),
                &config.shopify_client_id,
                config.shopify_client_secret.clone(),
            ),
            token_key: config.token_key.clone(),
            exchanges_permanent: config.shopify_exchanges_permanent,
        }
    }

    /// Asks Stripe what every sync asks, once, so that our own key's lack shows; of `account` where one is known.
    pub async fn check_stripe(
        &self,
        account: Option<&str>,
        deadline: &Deadline,
    ) -> Result<(), ProviderError> {
        let account = account.and_then(|account| account.parse().ok());
        self.stripe.check_key(account.as_ref(), deadline).await
    }
}
