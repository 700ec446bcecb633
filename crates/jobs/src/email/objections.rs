//! Keeps objections to advertising: they belong to a person and outlive the account, as a keyed hash of the address.

use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use serde_json::json;
use uuid::Uuid;

use super::links::LinkKeys;
use crate::{
    deadline::Deadline,
    supabase::{Supabase, SupabaseError},
};

/// HMAC's block of SHA-256, in bytes.
const BLOCK: usize = 64;
/// Accounts are looked at for so many days after sign-up: an offer is due on the third to sixth.
const DAYS: u32 = 30;

/// Notes who refuses offers now (or whether this user does), and which new accounts are of people who did so before.
pub async fn keep(
    keys: &LinkKeys,
    user: Option<Uuid>,
    now: DateTime<Utc>,
    supabase: &Supabase,
    deadline: &Deadline,
) -> Result<u64, SupabaseError> {
    let (inner, outer) = blocks(keys.objections.expose_secret());
    let arguments = json!({
        "p_user_id": user, "p_inner": hex::encode(inner), "p_outer": hex::encode(outer), "p_days": DAYS, "p_now": now,
    });
    supabase.rpc("mail_keep_objections", &arguments, deadline).await
}

/// Returns the key as the two blocks that RFC 2104 makes of it: PostgreSQL has SHA-256 and no HMAC.
fn blocks(key: &[u8; 32]) -> ([u8; BLOCK], [u8; BLOCK]) {
    let pad = |with: u8| {
        let mut block = [with; BLOCK];
        for (byte, of_key) in block.iter_mut().zip(key) {
            *byte ^= of_key;
        }
        block
    };
    (pad(0x36), pad(0x5c))
}

#[cfg(test)]
mod tests {
    use hmac::{Hmac, KeyInit, Mac};
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_blocks_make_hmac_sha256() {
        let key = [7_u8; 32];
        let (inner, outer) = blocks(&key);
        let hash = Sha256::digest([inner.as_slice(), b"camille@example.test"].concat());
        let hash = Sha256::digest([outer.as_slice(), hash.as_slice()].concat());
        let mac = Hmac::<Sha256>::new_from_slice(&key).unwrap().chain_update(b"camille@example.test");
        assert_eq!(hash.as_slice(), mac.finalize().into_bytes().as_slice());
    }
}
