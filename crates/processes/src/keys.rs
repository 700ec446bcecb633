//! Makes the API keys of a Supabase project, and the tokens behind them.

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

/// This is 2100-01-01: the keys of a project do not expire during a test.
const EXPIRES: u64 = 4_102_444_800;

/// Holds the keys of one project, of both generations.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Signs the tokens; PostgREST calls it `jwt-secret`.
    pub jwt_secret: String,
    /// Is `sb_secret_…`, which opens everything, for servers.
    pub secret: String,
    /// Is `sb_publishable_…`, which opens what `anon` may do.
    pub publishable: String,
    /// Is the legacy key of `service_role`, a token.
    pub service_role: String,
    /// Is the legacy key of `anon`, a token.
    pub anon: String,
}

impl Keys {
    /// Generates fresh keys, good for one project only.
    pub fn generate() -> Result<Self> {
        let jwt_secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        Ok(Self {
            secret: format!("sb_secret_{}", Uuid::new_v4().simple()),
            publishable: format!("sb_publishable_{}", Uuid::new_v4().simple()),
            service_role: sign(&jwt_secret, &serde_json::json!({"role": "service_role", "exp": EXPIRES}))?,
            anon: sign(&jwt_secret, &serde_json::json!({"role": "anon", "exp": EXPIRES}))?,
            jwt_secret,
        })
    }

    /// Returns the token of a signed-in user, as the web application sends it.
    pub fn user_token(&self, user: Uuid) -> Result<String> {
        sign(&self.jwt_secret, &serde_json::json!({"role": "authenticated", "sub": user, "exp": EXPIRES}))
    }
}

/// Returns a token with these claims, signed with HS256.
fn sign(secret: &str, claims: &serde_json::Value) -> Result<String> {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).context("no key for the tokens")?;
    mac.update(format!("{header}.{payload}").as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
    Ok(format!("{header}.{payload}.{signature}"))
}
