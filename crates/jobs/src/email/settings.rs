//! Holds what sending mails needs.

use std::collections::BTreeMap;

use secrecy::SecretString;
use url::Url;

use super::{links::LinkKeys, render::Promo};

/// Holds the mail service, the sender and the addresses in mails.
pub struct MailConfig {
    pub api_key: SecretString,
    /// Has no slash at its end.
    pub api_base: Url,
    /// Is `Comptalyze <bonjour@comptalyze.com>`, or the address alone.
    pub from: String,
    /// Is the web application's address, without a slash at the end.
    pub app_url: String,
    /// Is this deployment's address, where links to unsubscribe and to confirm lead; it has no slash at its end.
    pub jobs_url: String,
    /// Names the sender, as the law asks, at the foot of each mail.
    pub sender_identity: String,
    pub promo: Option<Promo>,
    /// Signs the links in mails.
    pub link_keys: LinkKeys,
}

/// Says which plan a price of Stripe's stands for: `pro` or `premium`.
pub type Prices = BTreeMap<String, &'static str>;
