//! Reads where the database is, and by which key.

use super::environment::{Environment, checked};
use crate::{
    config_faults::ConfigFaults,
    supabase::{SupabaseConfig, SupabaseKey},
};

pub(super) fn supabase(env: &Environment) -> Result<SupabaseConfig, ConfigFaults> {
    let mut faults = ConfigFaults::default();
    let url = env.required("SUPABASE_URL", Some("NEXT_PUBLIC_SUPABASE_URL"), &mut faults);
    let url = url.and_then(|url| Environment::base("SUPABASE_URL", &url, &mut faults));
    let key = env.required_to_send("SUPABASE_SECRET_KEY", Some("SUPABASE_SERVICE_ROLE_KEY"), &mut faults);
    let key = key.and_then(|key| supabase_key(key, &mut faults));
    let parts = url.zip(key).map(|(url, key)| SupabaseConfig {
        url: url.as_str().trim_end_matches('/').trim_end_matches("/rest/v1").to_owned(),
        key,
    });
    checked(parts, faults)
}

/// Tells the kinds apart before the first request: under row-level security the wrong one would not fail,
/// it would see an empty database.
fn supabase_key(key: String, faults: &mut ConfigFaults) -> Option<SupabaseKey> {
    const NAMES: &str = "SUPABASE_SECRET_KEY (ou SUPABASE_SERVICE_ROLE_KEY)";
    if key.starts_with("sb_secret_") {
        return Some(SupabaseKey::Secret(key.into()));
    }
    if key.starts_with("sb_publishable_") {
        faults.add(format!("{NAMES} contient une clé publique (sb_publishable_…) ; il faut la clé secrète"));
        return None;
    }
    match jwt_role(&key).as_deref() {
        Some("service_role") => Some(SupabaseKey::LegacyJwt(key.into())),
        Some(_) => {
            faults.add(format!("{NAMES} contient une clé anonyme ; il faut la clé secrète ou service_role"));
            None
        }
        None => {
            faults.add(format!("{NAMES} n’est ni une clé sb_secret_… ni un jeton service_role"));
            None
        }
    }
}

/// Returns the `role` claim of a JWT. Only tells kinds of key apart: Supabase checks the signature.
fn jwt_role(token: &str) -> Option<String> {
    use base64::Engine as _;
    let claims = token.starts_with("eyJ").then(|| token.split('.').nth(1))??;
    let claims =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Some(claims.get("role")?.as_str()?.to_owned())
}
