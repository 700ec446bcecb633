//! Who is signed in: a cookie that carries its own end, and the tokens of its forms.
//!
//! The cookie is `2.<end, in seconds>.<epoch>.<nonce>.<signature>`, HMAC-SHA256 under a key derived from `CRON_SECRET`:
//! whoever changes the secret signs everybody out. The epoch is the database's count of sign-outs ([`super::ended`]). A
//! form's token is an HMAC of the whole cookie, under another key.

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::crypto::keys::{PurposeKey, derive};

/// The name begins with `__Host-`, so that the browser takes it over HTTPS only, for this host and
/// the whole of it.
pub(super) const COOKIE: &str = "__Host-jobs-status";
pub(super) const MINUTES: i64 = 30;
const VERSION: &str = "2";

/// Holds the keys of cookies, of forms and of the addresses that try to sign in.
pub(super) struct Keys {
    session: PurposeKey,
    form: PurposeKey,
    address: PurposeKey,
}

/// Represents a cookie whose signature and end were checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Session {
    value: String,
    /// Says how often somebody had signed out when it began.
    pub(super) epoch: u64,
}

impl Keys {
    pub(super) fn new(cron_secret: &SecretString) -> Self {
        Self {
            session: derive(cron_secret, "status-session/v1"),
            form: derive(cron_secret, "status-form/v1"),
            address: derive(cron_secret, "status-address/v1"),
        }
    }

    /// Opens a new session; `None` where the machine has no randomness.
    pub(super) fn open(&self, epoch: u64, now: DateTime<Utc>) -> Option<Session> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).ok()?;
        let end = (now + TimeDelta::minutes(MINUTES)).timestamp();
        let claim = format!("{VERSION}.{end}.{epoch}.{}", hex::encode(nonce));
        let signature = sign(&self.session, &claim);
        Some(Session { value: format!("{claim}.{signature}"), epoch })
    }

    /// Returns the session in a `Cookie` header, if it is ours and not over.
    pub(super) fn read(&self, cookies: &str, now: DateTime<Utc>) -> Option<Session> {
        cookies
            .split(';')
            .filter_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
            .find_map(|value| self.verified(value, now))
    }

    fn verified(&self, value: &str, now: DateTime<Utc>) -> Option<Session> {
        let (claim, signature) = value.rsplit_once('.')?;
        let parts: Vec<&str> = claim.split('.').collect();
        let [VERSION, end, epoch, _nonce] = parts[..] else { return None };
        let (end, epoch): (i64, u64) = (end.parse().ok()?, epoch.parse().ok()?);
        let is_good = is_signed(&self.session, claim, signature) && now.timestamp() < end;
        is_good.then(|| Session { value: value.to_owned(), epoch })
    }

    /// Returns the token that this session's forms carry.
    pub(super) fn form_token(&self, session: &Session) -> String {
        sign(&self.form, &session.value)
    }

    /// Tells whether a form is this session's own.
    pub(super) fn is_own_form(&self, session: &Session, token: &str) -> bool {
        is_signed(&self.form, &session.value, token)
    }

    /// Returns what the database keeps of a client's address: nobody reads one back from it.
    /// Clients of whom no address is known are one.
    pub(super) fn address_hash(&self, address: Option<IpAddr>) -> String {
        sign(&self.address, &address.map(|address| address.to_string()).unwrap_or_default())
    }
}

impl Session {
    /// Returns the `Set-Cookie` header that begins it.
    pub(super) fn cookie(&self) -> String {
        format!("{COOKIE}={}; {}; Max-Age={}", self.value, ATTRIBUTES, MINUTES * 60)
    }
}

const ATTRIBUTES: &str = "Path=/; Secure; HttpOnly; SameSite=Strict";

/// Returns the `Set-Cookie` header that ends any session.
pub(super) fn no_cookie() -> String {
    format!("{COOKIE}=; {ATTRIBUTES}; Max-Age=0")
}

fn mac(key: &PurposeKey, text: &str) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key.expose_secret())
        .expect("HMAC takes keys of every length")
        .chain_update(text)
}

fn sign(key: &PurposeKey, text: &str) -> String {
    URL_SAFE_NO_PAD.encode(mac(key, text).finalize().into_bytes())
}

/// Compares in constant time.
fn is_signed(key: &PurposeKey, text: &str, signature: &str) -> bool {
    URL_SAFE_NO_PAD.decode(signature).is_ok_and(|signature| mac(key, text).verify_slice(&signature).is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(secret: &str) -> Keys {
        Keys::new(&SecretString::from(secret))
    }

    fn now() -> DateTime<Utc> {
        "2026-11-25T08:00:00Z".parse().unwrap()
    }

    fn header(session: &Session) -> String {
        format!("other=1; {COOKIE}={}; last=2", session.value)
    }

    #[test]
    fn a_session_lasts_thirty_minutes() {
        let keys = keys("secret");
        let session = keys.open(7, now()).unwrap();
        for (minutes, good) in [(0, true), (29, true), (30, false), (60, false)] {
            let at = now() + TimeDelta::minutes(minutes);
            assert_eq!(keys.read(&header(&session), at).is_some(), good, "{minutes}");
        }
    }

    #[test]
    fn the_cookie_has_every_attribute() {
        let cookie = keys("secret").open(7, now()).unwrap().cookie();
        assert!(cookie.starts_with("__Host-jobs-status=2."), "{cookie}");
        assert!(cookie.ends_with("; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=1800"), "{cookie}");
        assert_eq!(no_cookie(), "__Host-jobs-status=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0");
    }

    #[test]
    fn nothing_forged_is_let_in() {
        let ours = keys("secret");
        let session = ours.open(7, now()).unwrap();
        let later = (now() + TimeDelta::days(1)).timestamp().to_string();
        let end = session.value.split('.').nth(1).unwrap().to_owned();
        for forged in [
            session.value.replace(&end, &later),
            session.value.replacen("2.", "1.", 1),
            session.value.replacen(".7.", ".8.", 1),
            session.value[..session.value.len() - 1].to_owned(),
            session.value.rsplit_once('.').unwrap().0.to_owned(),
            format!("{}=", session.value),
            ours.form_token(&session),
            String::new(),
        ] {
            assert_eq!(
                ours.read(&header(&Session { value: forged.clone(), epoch: 7 }), now()),
                None,
                "{forged}"
            );
        }
        assert_eq!(keys("another").read(&header(&session), now()), None);
        assert_eq!(ours.read(&session.value, now()), None, "without its name");
        assert_eq!(ours.read(&format!("x{COOKIE}={}", session.value), now()), None);
    }

    #[test]
    fn a_session_knows_its_beginning() {
        let keys = keys("secret");
        let session = keys.open(41, now()).unwrap();
        assert_eq!(keys.read(&header(&session), now()), Some(session.clone()));
        assert_eq!(session.epoch, 41);
    }

    #[test]
    fn an_address_is_kept_as_a_keyed_hash() {
        let address: Option<IpAddr> = Some("203.0.113.7".parse().unwrap());
        let (ours, others) = (keys("secret"), keys("another"));
        assert_eq!(ours.address_hash(address), ours.address_hash(address));
        assert_ne!(ours.address_hash(address), ours.address_hash(None));
        assert_ne!(ours.address_hash(address), others.address_hash(address));
        assert!(!ours.address_hash(address).contains("203"));
    }

    #[test]
    fn a_form_belongs_to_its_session() {
        let ours = keys("secret");
        let (one, other) = (ours.open(7, now()).unwrap(), ours.open(7, now()).unwrap());
        assert_ne!(one, other);
        let token = ours.form_token(&one);
        assert!(ours.is_own_form(&one, &token));
        assert!(!ours.is_own_form(&other, &token));
        assert!(!ours.is_own_form(&one, ""));
        // The cookie's own signature is under another key.
        assert!(!ours.is_own_form(&one, one.value.rsplit_once('.').unwrap().1));
    }

    proptest! {
        /// Changes one character of a good cookie, and of a form's token.
        #[test]
        fn a_changed_one_is_not_let_in(place: prop::sample::Index, by in "\\PC") {
            let keys = keys("secret");
            let session = keys.open(7, now()).unwrap();
            let change = |good: &str| {
                let at = place.index(good.len());
                format!("{}{by}{}", &good[..at], &good[at + 1..])
            };
            let (cookie, form) = (change(&session.value), change(&keys.form_token(&session)));
            let header = format!("{COOKIE}={cookie}");
            prop_assert!(cookie == session.value || keys.read(&header, now()).is_none());
            prop_assert!(form == keys.form_token(&session) || !keys.is_own_form(&session, &form));
        }

        #[test]
        fn no_other_cookie_is_read(value in "\\PC{0,120}|2\\.[0-9]{10}\\.[0-9]\\.[0-9a-f]{32}\\.[A-Za-z0-9_-]{43}") {
            prop_assert_eq!(keys("secret").read(&format!("{COOKIE}={value}"), now()), None);
        }
    }
}
