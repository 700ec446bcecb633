//! Derives one key for one purpose from a master secret.
//!
//! A key that encrypts tokens must not also sign links: what leaks through one use would open the other.
//! HMAC-SHA256 of the purpose under the master secret gives independent 32-byte keys (the extract-and-label
//! construction of NIST SP 800-108, one block).

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use sha2::Sha256;

/// Represents a derived key, hidden in `Debug` and wiped on drop.
pub type PurposeKey = SecretBox<[u8; 32]>;

/// Derives the key for `purpose`, a fixed text in our code such as `unsubscribe-link/v1`.
#[expect(
    clippy::missing_panics_doc,
    reason = "HMAC takes keys of every length; a zero key instead would be worse"
)]
pub fn derive(master: &SecretString, purpose: &'static str) -> PurposeKey {
    let mac = Hmac::<Sha256>::new_from_slice(master.expose_secret().as_bytes())
        .expect("HMAC takes keys of every length")
        .chain_update(purpose);
    SecretBox::init_with_mut(|key: &mut [u8; 32]| key.copy_from_slice(&mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(master: &str, purpose: &'static str) -> String {
        hex::encode(derive(&SecretString::from(master), purpose).expose_secret())
    }

    /// Says what Node says:
    /// `node -e 'console.log(crypto.createHmac("sha256","0123456789abcdef0123456789abcdef").update("unsubscribe-link/v1").digest("hex"))'`
    #[test]
    fn is_plain_hmac_sha256() {
        assert_eq!(
            key("0123456789abcdef0123456789abcdef", "unsubscribe-link/v1"),
            "d91326bf7d2b33ae8dbc52b35e04dc36267c9658037ea080b37c525c34ff970d"
        );
    }

    #[test]
    fn purposes_and_masters_do_not_share_keys() {
        assert_ne!(key("a", "x"), key("a", "y"));
        assert_ne!(key("a", "x"), key("b", "x"));
    }
}
