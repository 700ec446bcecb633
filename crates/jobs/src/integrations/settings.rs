//! What the sync of integrations and the monthly sync need.

use std::sync::Arc;

use secrecy::SecretString;

use crate::{crypto::tokens::TokenKey, pace::Bounds, providers::shopify::ApiBase};

/// Holds our credentials at the providers, and where and how fast they are asked.
#[derive(Clone)]
pub struct IntegrationsConfig {
    pub stripe_secret_key: SecretString,
    pub shopify_client_id: String,
    pub shopify_client_secret: SecretString,
    pub token_key: Arc<TokenKey>,
    /// Has no slash at its end.
    pub stripe_api_base: String,
    /// Says between which rates the pace moves that all instances share, and where it begins.
    pub stripe_pace: Bounds,
    pub shopify_base: ApiBase,
    /// Permanent Shopify tokens are exchanged for pairs that expire; the web application must be able to renew them.
    pub shopify_exchanges_permanent: bool,
}
