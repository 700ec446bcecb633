//! Holds what sending mails needs.

use std::collections::BTreeMap;

use secrecy::SecretString;
use url::Url;

use super::render::Promo;
use crate::crypto::keys::PurposeKey;

/// Holds the mail service, the sender and the addresses in mails.
pub struct MailConfig {
    pub api_key: SecretString,
    /// Without a slash at the end.
    pub api_base: Url,
    /// `Comptalyze <bonjour@comptalyze.com>`, or the address alone.
    pub from: String,
    /// The web application, without a slash at the end.
    pub app_url: String,
    /// This deployment, where links to unsubscribe lead; without a slash at the end.
    pub jobs_url: String,
    /// The legal foot.
    pub sender_identity: String,
    pub promo: Option<Promo>,
    /// Signs links.
    pub link_key: PurposeKey,
}

/// Says which plan a price of Stripe's stands for: `pro` or `premium`.
pub type Prices = BTreeMap<String, &'static str>;
