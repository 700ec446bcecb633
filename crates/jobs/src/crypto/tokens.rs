//! Reads and writes the tokens of `integration_tokens` as the web application's Node code writes them:
//! `hex(iv, 16 bytes) ':' hex(AES-256-CBC with PKCS#7 padding)`, under the 32 bytes of `ENCRYPTION_KEY`.
//!
//! The format has no authentication: whoever can write the column can swap tokens about. That is why a Stripe
//! account is proven before its first use (`providers::stripe`), not trusted because a token decrypts.

use aes::Aes256;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, block_padding::Pkcs7};
use secrecy::{ExposeSecret, ExposeSecretMut, SecretBox, SecretString};

const BLOCK: usize = 16;
/// Tokens have some hundred bytes; more than this is not one of them.
const LONGEST: usize = 16 * 1024;

/// The key is not usable.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// AES-256 takes exactly 32 bytes; the text's UTF-8 bytes are the key.
    #[error("the encryption key must be exactly 32 bytes long")]
    Length,
}

/// A token cannot be read or written. Never says anything of the content.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    /// The stored text is not `hex(16 bytes):hex(whole blocks)`.
    #[error("not an encrypted token")]
    Malformed,
    /// The key is another one, the token is damaged, or what comes out is no text: these cannot be
    /// told apart.
    #[error("the token does not decrypt with this key")]
    Undecryptable,
    /// The token has a line break, a space or an accent in it: no header can hold it, so it never
    /// leaves.
    #[error("the token cannot be sent")]
    Unsendable,
    /// The operating system gave no random bytes for an initialisation vector.
    #[error("no random bytes for a new token")]
    NoRandomness,
}

/// Represents the key of all stored tokens.
#[derive(Debug)]
pub struct TokenKey(SecretBox<[u8; 32]>);

impl TokenKey {
    /// The key is the text's bytes, as in the web application; it is not hex or base64.
    pub fn new(key: &SecretString) -> Result<Self, KeyError> {
        let bytes = <&[u8; 32]>::try_from(key.expose_secret().as_bytes()).map_err(|_| KeyError::Length)?;
        Ok(Self(SecretBox::init_with_mut(|own: &mut [u8; 32]| own.copy_from_slice(bytes))))
    }

    /// Reads a stored token that is to be sent in a header.
    pub fn decrypt(&self, token: &str) -> Result<SecretString, TokenError> {
        let text = self.decrypt_text(token)?;
        let is_sendable = text.expose_secret().bytes().all(|byte| byte.is_ascii_graphic());
        if is_sendable { Ok(text) } else { Err(TokenError::Unsendable) }
    }

    fn decrypt_text(&self, token: &str) -> Result<SecretString, TokenError> {
        if token.len() > LONGEST {
            return Err(TokenError::Malformed);
        }
        let (iv, ciphertext) = token.split_once(':').ok_or(TokenError::Malformed)?;
        let mut iv_bytes = [0; BLOCK];
        hex::decode_to_slice(iv, &mut iv_bytes).map_err(|_| TokenError::Malformed)?;
        let mut buffer =
            SecretBox::new(Box::new(hex::decode(ciphertext).map_err(|_| TokenError::Malformed)?));
        let bytes = buffer.expose_secret_mut();
        if bytes.is_empty() || !bytes.len().is_multiple_of(BLOCK) {
            return Err(TokenError::Malformed);
        }
        let plain = cbc::Decryptor::<Aes256>::new(self.0.expose_secret().into(), (&iv_bytes).into())
            .decrypt_padded::<Pkcs7>(bytes)
            .map_err(|_| TokenError::Undecryptable)?;
        let text = std::str::from_utf8(plain).map_err(|_| TokenError::Undecryptable)?;
        Ok(SecretString::from(text))
    }

    /// Writes a token to store, under a fresh random IV.
    pub fn encrypt(&self, plain: &SecretString) -> Result<String, TokenError> {
        let mut iv = [0; BLOCK];
        getrandom::fill(&mut iv).map_err(|_| TokenError::NoRandomness)?;
        self.encrypt_with(plain, iv)
    }

    fn encrypt_with(&self, plain: &SecretString, iv: [u8; BLOCK]) -> Result<String, TokenError> {
        let plain = plain.expose_secret().as_bytes();
        // PKCS#7 always adds at least one byte.
        let mut buffer = SecretBox::new(Box::new(vec![0; (plain.len() / BLOCK + 1) * BLOCK]));
        let bytes = buffer.expose_secret_mut();
        bytes[..plain.len()].copy_from_slice(plain);
        let ciphertext = cbc::Encryptor::<Aes256>::new(self.0.expose_secret().into(), (&iv).into())
            .encrypt_padded::<Pkcs7>(bytes, plain.len())
            .map_err(|_| TokenError::Malformed)?;
        Ok(format!("{}:{}", hex::encode(iv), hex::encode(ciphertext)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const IV: &str = "000102030405060708090a0b0c0d0e0f";

    fn key(text: &str) -> TokenKey {
        TokenKey::new(&SecretString::from(text)).unwrap()
    }

    fn decrypt(token: &str) -> Result<String, TokenError> {
        key(KEY).decrypt_text(token).map(|plain| plain.expose_secret().to_owned())
    }

    /// From Node's crypto, the text as `process.argv[1]`:
    /// `node -e 'const iv=Buffer.from("000102030405060708090a0b0c0d0e0f","hex"),c=crypto.createCipheriv("aes-256-cbc","0123456789abcdef0123456789abcdef",iv);console.log(iv.toString("hex")+":"+c.update(process.argv[1],"utf8","hex")+c.final("hex"))' TEXT`
    #[rstest]
    #[case("shpat_0123456789abcdef", "65b830e638b1a1633d73e3b5ceeb82da4eca788a5cb63688dee57c598872a0f3")]
    #[case("sixteen-bytes-16", "9134edf2a910834d2b0155752d5d8a59a267deb2735d622fda72a3e851f060bf")]
    #[case("jeton accentué ✓", "e347bf99a991e782efedce652a10607ba37b4d12bdd47791bdb025482bc981ac")]
    #[case("", "6fb19f49daea9d1d5c326cb87b67dce8")]
    fn node_vectors(#[case] plain: &str, #[case] ciphertext: &str) {
        let token = format!("{IV}:{ciphertext}");
        assert_eq!(decrypt(&token).as_deref(), Ok(plain));
        assert_eq!(decrypt(&token.to_uppercase()).as_deref(), Ok(plain));
        let iv = hex::decode(IV).unwrap().try_into().unwrap();
        assert_eq!(key(KEY).encrypt_with(&SecretString::from(plain), iv), Ok(token));
    }

    #[rstest]
    #[case("")]
    #[case(":")]
    #[case("shpat_0123456789abcdef")]
    #[case("000102030405060708090a0b0c0d0e0f")]
    #[case("000102030405060708090a0b0c0d0e0f:")]
    #[case("000102030405060708090a0b0c0d0e:6fb19f49daea9d1d5c326cb87b67dce8")]
    #[case("000102030405060708090a0b0c0d0e0f0f:6fb19f49daea9d1d5c326cb87b67dce8")]
    #[case("zz0102030405060708090a0b0c0d0e0f:6fb19f49daea9d1d5c326cb87b67dce8")]
    #[case("000102030405060708090a0b0c0d0e0f:6fb19f49daea9d1d5c326cb87b67dc")]
    #[case("000102030405060708090a0b0c0d0e0f:6fb19f49daea9d1d5c326cb87b67dce")]
    #[case("000102030405060708090a0b0c0d0e0f:6fb19f49daea9d1d5c326cb87b67dcg8")]
    #[case("000102030405060708090a0b0c0d0e0f:6fb19f49daea9d1d5c326cb87b67dce8:00")]
    #[case(" 000102030405060708090a0b0c0d0e0f:6fb19f49daea9d1d5c326cb87b67dce8")]
    #[case("000102030405060708090a0b0c0d0e0f:6fb19f49daea9d1d5c326cb87b67dce8\n")]
    fn malformed(#[case] token: &str) {
        assert_eq!(decrypt(token), Err(TokenError::Malformed));
    }

    #[test]
    fn absurdly_long_is_malformed() {
        assert_eq!(decrypt(&format!("{IV}:{}", "00".repeat(LONGEST))), Err(TokenError::Malformed));
    }

    /// One answer stands for both: valid padding around bytes that are no text (made with Node:
    /// `Buffer.from([0xff,0xfe,0x41])`), and broken padding.
    #[rstest]
    #[case("000102030405060708090a0b0c0d0e0f:55571aa43a97313ec10c0850a5595339")]
    #[case("000102030405060708090a0b0c0d0e0f:00000000000000000000000000000000")]
    fn undecryptable(#[case] token: &str) {
        assert_eq!(decrypt(token), Err(TokenError::Undecryptable));
    }

    #[test]
    fn another_key_does_not_decrypt() {
        let token = format!("{IV}:65b830e638b1a1633d73e3b5ceeb82da4eca788a5cb63688dee57c598872a0f3");
        let other = key("ffffffffffffffffffffffffffffffff").decrypt(&token);
        assert_eq!(other.map(|_| ()), Err(TokenError::Undecryptable));
    }

    #[rstest]
    #[case("shpat_0123\n", false)]
    #[case("shpat_\u{0}0123", false)]
    #[case("shpat 0123", false)]
    #[case("jeton accentué ✓", false)]
    #[case("shpat_0123", true)]
    fn only_what_a_header_can_hold_is_given_away(#[case] plain: &str, #[case] sendable: bool) {
        let stored = key(KEY).encrypt(&SecretString::from(plain)).unwrap();
        let read = key(KEY).decrypt(&stored).map(|_| ());
        assert_eq!(read, if sendable { Ok(()) } else { Err(TokenError::Unsendable) });
    }

    #[rstest]
    #[case("")]
    #[case("0123456789abcdef0123456789abcde")]
    #[case("0123456789abcdef0123456789abcdef\n")]
    #[case("é123456789abcdef0123456789abcdef")]
    fn keys_of_another_length(#[case] text: &str) {
        assert_eq!(TokenKey::new(&SecretString::from(text)).map(|_| ()), Err(KeyError::Length));
    }

    #[test]
    fn debug_shows_no_key() {
        assert!(!format!("{:?}", key(KEY)).contains("48"), "0x30 would show as 48");
    }

    proptest! {
        #[test]
        fn what_is_encrypted_decrypts(plain in "\\PC{0,200}") {
            let first = key(KEY).encrypt(&SecretString::from(plain.clone())).unwrap();
            let second = key(KEY).encrypt(&SecretString::from(plain.clone())).unwrap();
            prop_assert_ne!(&first, &second, "a fresh IV each time");
            prop_assert_eq!(decrypt(&first), Ok(plain));
        }

        /// A stored token whose character was changed decrypts to something else or not at all, and
        /// its error says nothing of it.
        #[test]
        fn a_changed_token_tells_nothing(place: prop::sample::Index, by in "[0-9a-fA-F:]|\\PC") {
            let good = key(KEY).encrypt(&SecretString::from("shpat_0123456789abcdef")).unwrap();
            let at = place.index(good.len());
            let changed = format!("{}{by}{}", &good[..at], &good[at + 1..]);
            match decrypt(&changed) {
                Ok(plain) => prop_assert_eq!(plain == "shpat_0123456789abcdef", changed.to_lowercase() == good),
                Err(error) => {
                    let said = format!("{error} {error:?}");
                    prop_assert!(!said.contains("shpat"));
                }
            }
        }

        #[test]
        fn no_token_panics(token in "[0-9a-f]{32}:[0-9a-f]{0,130}|\\PC*") {
            let _ = decrypt(&token);
        }
    }
}
