//! Renews tokens and proves that a token opens the account that its row names.

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Clients, Integration, error::ItemError};
use crate::{
    deadline::Deadline,
    providers::{
        ErrorKind, Provider, ProviderError, ReconnectReason,
        shopify::{ShopDomain, TokenPair},
        stripe::StripeAccountId,
    },
};

/// A token is renewed when it lives shorter than this: longer than one item's reading takes.
const FRESH: TimeDelta = TimeDelta::minutes(10);
/// The lease lasts longer than a renewal with its retries.
const REFRESH_LEASE_SECONDS: u32 = 60;

/// Represents a proven account, and what it is read with.
pub(super) enum Access {
    /// The account is read with our platform key on its behalf.
    Stripe { account: StripeAccountId },
    /// The shop is read with its own token.
    Shopify { shop: ShopDomain, token: SecretString },
}

impl Access {
    pub(super) fn account(&self) -> &str {
        match self {
            Self::Stripe { account } => account.as_str(),
            Self::Shopify { shop, .. } => shop.as_str(),
        }
    }
}

/// Represents the provider's proof that a token opens an account. It is stored before any movement
/// of the account.
pub(super) struct Proof(Value);

/// Proves the integration's account, unless exactly this token was proven before. `integration` takes over a
/// token that is renewed on the way.
pub(super) async fn open(
    clients: &Clients,
    integration: &mut Integration,
    now: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<(Access, Option<Proof>), ItemError> {
    match integration.provider {
        Provider::Stripe => open_stripe(clients, integration, deadline).await,
        Provider::Shopify => open_shopify(clients, integration, now, deadline).await,
    }
}

async fn open_stripe(
    clients: &Clients,
    integration: &Integration,
    deadline: &Deadline,
) -> Result<(Access, Option<Proof>), ItemError> {
    let account = integration.stripe_account_id.as_deref().and_then(|id| id.parse::<StripeAccountId>().ok());
    let Some(account) = account else {
        return Err(ItemError::permanent(
            "not_connected",
            "Aucun compte Stripe valable n’est indiqué : la connexion doit être refaite.",
        ));
    };
    let mut proof = None;
    if integration.proven_account.as_deref() != Some(account.as_str()) {
        let token = clients.token_key.decrypt(&integration.access_token)?;
        let proven = clients.stripe.prove_account(&token, deadline).await?;
        if proven != account {
            return Err(ItemError::permanent(
                "account_mismatch",
                "Le compte Stripe indiqué n’est pas celui de la connexion : rien n’a été lu, la connexion doit être refaite.",
            ));
        }
        proof = Some(Proof::of(integration, account.as_str(), None));
    }
    Ok((Access::Stripe { account }, proof))
}

async fn open_shopify(
    clients: &Clients,
    integration: &mut Integration,
    now: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<(Access, Option<Proof>), ItemError> {
    let shop = integration.shop_domain.as_deref().and_then(|domain| domain.parse::<ShopDomain>().ok());
    let Some(shop) = shop else {
        return Err(ItemError::permanent(
            "bad_shop_domain",
            "L’adresse de la boutique n’est pas une adresse myshopify.com : la connexion doit être refaite.",
        ));
    };
    if integration.token_expires_at.is_some_and(|expiry| expiry - now < FRESH) {
        refresh(clients, integration, &shop, now, deadline).await?;
    }
    let proven = integration.proven_account.as_deref() == Some(shop.as_str());
    let permanent = integration.refresh_token.is_none() && integration.token_expires_at.is_none();
    if clients.exchanges_permanent && proven && permanent {
        // A token of another application cannot be exchanged by ours, and works as before.
        match under_lease(clients, integration, &shop, Renewal::Exchange, now, deadline).await {
            Err(ItemError::Permanent(failure) | ItemError::Blocked { failure, .. }) => {
                tracing::warn!(code = failure.code, "a permanent token was not exchanged");
            }
            exchanged => exchanged?,
        }
    }
    let mut token = clients.token_key.decrypt(&integration.access_token)?;
    let mut proof = None;
    if !proven {
        // A shop's token works at that shop only: being let in there is the proof.
        let (_, all_orders) = match clients.shopify.shop(&shop, &token, deadline).await {
            // The token's expiry was unknown, and it has expired.
            Err(error) if is_rejected_token(&error) && integration.refresh_token.is_some() => {
                refresh(clients, integration, &shop, now, deadline).await?;
                token = clients.token_key.decrypt(&integration.access_token)?;
                clients.shopify.shop(&shop, &token, deadline).await
            }
            // Connected with a permanent token that was never good for anything here.
            Err(error)
                if error.kind == ErrorKind::PermanentToken && clients.exchanges_permanent && permanent =>
            {
                under_lease(clients, integration, &shop, Renewal::Exchange, now, deadline).await?;
                token = clients.token_key.decrypt(&integration.access_token)?;
                clients.shopify.shop(&shop, &token, deadline).await
            }
            answer => answer,
        }?;
        proof = Some(Proof::of(integration, shop.as_str(), all_orders));
    }
    Ok((Access::Shopify { shop, token }, proof))
}

/// Tells whether a renewed token may help.
pub(super) fn is_rejected_token(error: &ProviderError) -> bool {
    error.kind == ErrorKind::Reconnect(ReconnectReason::TokenRejected)
}

impl Proof {
    fn of(integration: &Integration, account: &str, all_orders: Option<bool>) -> Self {
        Self(json!({
            "p_integration_id": integration.id,
            "p_access_token": integration.access_token,
            "p_account": account,
            "p_all_orders": all_orders,
        }))
    }

    /// Writes it down, unless the row has changed since.
    pub(super) async fn note(self, clients: &Clients, deadline: &Deadline) -> Result<(), ItemError> {
        #[derive(Deserialize)]
        struct Noted {
            proven: bool,
        }
        let noted: Noted = clients.supabase.rpc("integration_prove", &self.0, deadline).await?;
        // Otherwise the user connected anew in this very moment.
        if noted.proven { Ok(()) } else { Err(ItemError::busy()) }
    }
}

/// Says what a new pair is had for.
#[derive(Clone, Copy, PartialEq)]
enum Renewal {
    /// It is the refresh token.
    Refresh,
    /// It is a permanent access token, which is worth nothing afterwards.
    Exchange,
}

/// Renews the shop's token under its lease. The new pair is stored, encrypted, before anybody uses it.
pub(super) async fn refresh(
    clients: &Clients,
    integration: &mut Integration,
    shop: &ShopDomain,
    now: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<(), ItemError> {
    under_lease(clients, integration, shop, Renewal::Refresh, now, deadline).await
}

async fn under_lease(
    clients: &Clients,
    integration: &mut Integration,
    shop: &ShopDomain,
    renewal: Renewal,
    now: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<(), ItemError> {
    #[derive(Deserialize)]
    struct Begun {
        acquired: bool,
        access_token: Option<String>,
        refresh_token: Option<String>,
        /// Another user has connected the same shop since: its tokens replaced this row's.
        #[serde(default)]
        elsewhere: bool,
    }
    // Its own, not the item's: one claim may hold two items of the same integration.
    let holder = Uuid::new_v4();
    let begin = json!({
        "p_integration_id": integration.id, "p_holder": holder, "p_seconds": REFRESH_LEASE_SECONDS,
    });
    let lease_state: Begun = clients.supabase.rpc("integration_refresh_begin", &begin, deadline).await?;
    let (true, Some(stored)) = (lease_state.acquired, lease_state.access_token) else {
        return Err(ItemError::busy());
    };
    let renewed = if stored == integration.access_token {
        integration.refresh_token = lease_state.refresh_token;
        match renew(clients, integration, shop, (renewal, holder), now, deadline).await {
            Err(ItemError::Permanent(failure))
                if lease_state.elsewhere && failure.code == "refresh_rejected" =>
            {
                Err(ItemError::permanent(
                    "connected_elsewhere",
                    "Cette boutique a été connectée depuis un autre compte Comptalyze : elle n’est plus lue pour celui-ci.",
                ))
            }
            renewed => renewed,
        }
    } else {
        // The last holder of the lease renewed it while we waited.
        integration.access_token = stored;
        integration.refresh_token = lease_state.refresh_token;
        Ok(())
    };
    let end = json!({"p_integration_id": integration.id, "p_holder": holder});
    let _: Value = clients.supabase.rpc("integration_refresh_end", &end, deadline).await?;
    renewed
}

async fn renew(
    clients: &Clients,
    integration: &mut Integration,
    shop: &ShopDomain,
    (renewal, holder): (Renewal, Uuid),
    now: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<(), ItemError> {
    #[derive(Deserialize)]
    struct Stored {
        stored: bool,
    }
    let key = &clients.token_key;
    let pair = match (renewal, integration.refresh_token.as_deref()) {
        (_, Some(refresh_token)) => {
            clients.shopify.refresh(shop, &key.decrypt(refresh_token)?, deadline).await?
        }
        (Renewal::Exchange, None) => {
            let permanent = key.decrypt(&integration.access_token)?;
            clients.shopify.exchange(shop, &permanent, deadline).await?
        }
        (Renewal::Refresh, None) => {
            return Err(ItemError::permanent(
                "token_expired",
                "La connexion à Shopify a expiré et ne peut pas être renouvelée : elle doit être refaite.",
            ));
        }
    };
    let TokenPair { access_token, expires_in, refresh_token, refresh_token_expires_in, .. } = pair;
    let (access, refresh) = (key.encrypt(&access_token)?, key.encrypt(&refresh_token)?);
    let arguments = json!({
        "p_integration_id": integration.id, "p_holder": holder,
        "p_old_access_token": integration.access_token,
        "p_access_token": access, "p_refresh_token": refresh,
        "p_expires_at": after(now, expires_in), "p_refresh_expires_at": refresh_token_expires_in.map(|span| after(now, span)),
    });
    let stored: Stored = clients.supabase.rpc("integration_refresh_store", &arguments, deadline).await?;
    if !stored.stored {
        return Err(ItemError::busy());
    }
    integration.access_token = access;
    integration.refresh_token = Some(refresh);
    integration.token_expires_at = Some(after(now, expires_in));
    Ok(())
}

fn after(now: DateTime<Utc>, span: std::time::Duration) -> DateTime<Utc> {
    TimeDelta::from_std(span)
        .ok()
        .and_then(|span| now.checked_add_signed(span))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}
