//! Reads the providers' keys and addresses, and the key of the stored tokens.

use std::{num::NonZeroU32, sync::Arc};

use secrecy::SecretString;

use super::environment::{Environment, checked};
use crate::{
    config_faults::ConfigFaults, crypto::tokens::TokenKey, integrations::IntegrationsConfig, pace::Bounds,
    providers::shopify::ApiBase,
};

pub(super) fn integrations(env: &Environment) -> Result<IntegrationsConfig, ConfigFaults> {
    let mut faults = ConfigFaults::default();
    let stripe = env.required_to_send("STRIPE_SECRET_KEY", None, &mut faults);
    if stripe.as_ref().is_some_and(|key| !(key.starts_with("sk_") || key.starts_with("rk_"))) {
        faults.add("STRIPE_SECRET_KEY doit commencer par sk_ ou rk_");
    }
    let client_id = env.required_to_send("SHOPIFY_CLIENT_ID", None, &mut faults);
    let client_secret = env.required_to_send("SHOPIFY_CLIENT_SECRET", None, &mut faults);
    let key = env.required("ENCRYPTION_KEY", None, &mut faults).and_then(|key| {
        let key = TokenKey::new(&key.into());
        if key.is_err() {
            faults.add("ENCRYPTION_KEY doit faire exactement 32 octets");
        }
        key.ok()
    });
    let stripe_pace = stripe_pace(env, &mut faults);
    let stripe_base = env.get("STRIPE_API_BASE").unwrap_or_else(|| "https://api.stripe.com".to_owned());
    let stripe_base = Environment::base("STRIPE_API_BASE", &stripe_base, &mut faults);
    let shopify_base = match env.whole("SHOPIFY_API_BASE", &mut faults) {
        None => Some(ApiBase::default()),
        Some(template) => {
            let base = template.parse::<ApiBase>();
            if base.is_err() {
                faults.add("SHOPIFY_API_BASE doit être une adresse https://… complète contenant {shop}");
            }
            base.ok()
        }
    };
    let exchange = match env.get("SHOPIFY_EXCHANGE_PERMANENT_TOKENS").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => {
            faults.add("SHOPIFY_EXCHANGE_PERMANENT_TOKENS doit être true ou false");
            false
        }
    };
    let parts = (|| {
        Some(IntegrationsConfig {
            stripe_secret_key: SecretString::from(stripe?),
            shopify_client_id: client_id?,
            shopify_client_secret: SecretString::from(client_secret?),
            token_key: Arc::new(key?),
            stripe_api_base: stripe_base?.as_str().trim_end_matches('/').to_owned(),
            stripe_pace: stripe_pace?,
            shopify_base: shopify_base?,
            shopify_exchanges_permanent: exchange,
        })
    })();
    checked(parts, faults)
}

/// Reads with how many requests a second the pace begins, and between which it moves.
fn stripe_pace(env: &Environment, faults: &mut ConfigFaults) -> Option<Bounds> {
    let mut rate = |name, default| {
        let rate = env.number(name, 1..=1000, default, faults);
        u32::try_from(rate).ok().and_then(NonZeroU32::new)
    };
    let start = rate("STRIPE_REQUESTS_PER_SECOND", 20)?;
    let least = rate("STRIPE_MIN_REQUESTS_PER_SECOND", 5)?;
    let most = rate("STRIPE_MAX_REQUESTS_PER_SECOND", 500)?;
    if least > most {
        faults.add("STRIPE_MIN_REQUESTS_PER_SECOND ne doit pas dépasser STRIPE_MAX_REQUESTS_PER_SECOND");
    }
    Some(Bounds::new(start, least, most))
}
