//! Writes stored tokens as the web application writes them: `hex(iv):hex(AES-256-CBC)`.
//!
//! A second, independent implementation: that the product reads what this writes says something about both.

use aes::Aes256;
use anyhow::{Context, Result, ensure};
use cbc::cipher::{BlockModeEncrypt, KeyIvInit, block_padding::Pkcs7};
use uuid::Uuid;

const BLOCK: usize = 16;

/// Represents the value of `ENCRYPTION_KEY`: text of 32 bytes, which are the key.
#[derive(Clone, Debug)]
pub struct TokenKey(String);

impl TokenKey {
    /// Generates a fresh key.
    pub fn generate() -> Result<Self> {
        Self::new(&Uuid::new_v4().simple().to_string())
    }

    pub fn new(text: &str) -> Result<Self> {
        ensure!(text.len() == 32, "an encryption key has 32 bytes");
        Ok(Self(text.into()))
    }

    /// Returns the value of the variable.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Encrypts a token to store.
    pub fn encrypt(&self, token: &str) -> Result<String> {
        let mut iv = [0; BLOCK];
        getrandom::fill(&mut iv).context("no random bytes")?;
        self.encrypt_with(iv, token)
    }

    fn encrypt_with(&self, iv: [u8; BLOCK], token: &str) -> Result<String> {
        let mut bytes = token.as_bytes().to_vec();
        bytes.resize(token.len() + BLOCK, 0);
        let key: &[u8; 32] = self.0.as_bytes().try_into().context("the key has 32 bytes")?;
        let encrypted = cbc::Encryptor::<Aes256>::new(key.into(), (&iv).into())
            .encrypt_padded::<Pkcs7>(&mut bytes, token.len())
            .ok()
            .context("no room for the padding")?;
        Ok(format!("{}:{}", hex::encode(iv), hex::encode(encrypted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Node's `createCipheriv("aes-256-cbc", …)` writes them.
    #[test]
    fn writes_what_node_writes() {
        let key = TokenKey::new("0123456789abcdef0123456789abcdef").expect("32 bytes");
        let iv: [u8; BLOCK] = std::array::from_fn(|i| u8::try_from(i).expect("16 is small"));
        for (token, expected) in [
            ("shpat_0123456789abcdef", "65b830e638b1a1633d73e3b5ceeb82da4eca788a5cb63688dee57c598872a0f3"),
            ("sixteen-bytes-16", "9134edf2a910834d2b0155752d5d8a59a267deb2735d622fda72a3e851f060bf"),
        ] {
            let stored = key.encrypt_with(iv, token).expect("encrypts");
            assert_eq!(stored, format!("000102030405060708090a0b0c0d0e0f:{expected}"));
        }
        assert!(TokenKey::new("too short").is_err());
    }
}
