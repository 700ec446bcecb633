//! Holds what a connection to Supabase needs.

use std::fmt;

use secrecy::SecretString;

/// Says where the database is and how to be let in.
#[derive(Clone)]
pub struct SupabaseConfig {
    /// Has no slash at its end.
    pub url: String,
    pub key: SupabaseKey,
}

/// Distinguishes the two kinds of service key: <https://supabase.com/docs/guides/api/api-keys>.
#[derive(Clone)]
pub enum SupabaseKey {
    /// A key `sb_secret_…` goes into `apikey` only; as Bearer it is refused.
    Secret(SecretString),
    /// A `service_role` JWT goes into `apikey` and is the Bearer.
    LegacyJwt(SecretString),
}

impl SupabaseKey {
    /// Returns the key itself.
    pub fn secret(&self) -> &SecretString {
        let (Self::Secret(key) | Self::LegacyJwt(key)) = self;
        key
    }
}

impl fmt::Debug for SupabaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Secret(_) => "sb_secret",
            Self::LegacyJwt(_) => "service_role",
        };
        f.write_str(kind)
    }
}
