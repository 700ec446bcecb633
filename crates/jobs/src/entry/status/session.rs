//! Who is signed in: a cookie that carries its own end, and the tokens of its forms. Nothing is kept anywhere.
//!
//! The cookie is `1.<end, in seconds>.<nonce>.<signature>`, HMAC-SHA256 under a key derived from `CRON_SECRET`:
//! whoever changes the secret signs everybody out. A form's token is an HMAC of the whole cookie, under another key.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::crypto::keys::{PurposeKey, derive};

/// `__Host-`: the browser takes it over HTTPS only, for this host and the whole of it.
pub(super) const COOKIE: &str = "__Host-jobs-status";
pub(super) const MINUTES: i64 = 30;
const VERSION: &str = "1";

/// The keys of cookies and of forms.
pub(super) struct Keys {
    session: PurposeKey,
    form: PurposeKey,
}

/// A cookie whose signature and end were checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Session(String);

impl Keys {
    pub(super) fn new(cron_secret: &SecretString) -> Self {
        Self {
            session: derive(cron_secret, "status-session/v1"),
            form: derive(cron_secret, "status-form/v1"),
        }
    }

    /// A new session; `None` where the machine has no randomness.
    pub(super) fn open(&self, now: DateTime<Utc>) -> Option<Session> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).ok()?;
        let end = (now + TimeDelta::minutes(MINUTES)).timestamp();
        let claim = format!("{VERSION}.{end}.{}", hex::encode(nonce));
        let signature = sign(&self.session, &claim);
        Some(Session(format!("{claim}.{signature}")))
    }

    /// The session in a `Cookie` header, if it is ours and not over.
    pub(super) fn read(&self, cookies: &str, now: DateTime<Utc>) -> Option<Session> {
        cookies
            .split(';')
            .filter_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
            .find(|value| self.verifies(value, now))
            .map(|value| Session(value.to_owned()))
    }

    fn verifies(&self, value: &str, now: DateTime<Utc>) -> bool {
        let Some((claim, signature)) = value.rsplit_once('.') else { return false };
        let mut parts = claim.split('.');
        let (version, end, nonce, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
        let end: Option<i64> = end.and_then(|end| end.parse().ok());
        is_signed(&self.session, claim, signature)
            && version == Some(VERSION)
            && nonce.is_some()
            && rest.is_none()
            && end.is_some_and(|end| now.timestamp() < end)
    }

    /// The token that this session's forms carry.
    pub(super) fn form_token(&self, session: &Session) -> String {
        sign(&self.form, &session.0)
    }

    /// Whether a form is this session's own.
    pub(super) fn is_own_form(&self, session: &Session, token: &str) -> bool {
        is_signed(&self.form, &session.0, token)
    }
}

impl Session {
    /// The `Set-Cookie` header that begins it.
    pub(super) fn cookie(&self) -> String {
        format!("{COOKIE}={}; {}; Max-Age={}", self.0, ATTRIBUTES, MINUTES * 60)
    }
}

const ATTRIBUTES: &str = "Path=/; Secure; HttpOnly; SameSite=Strict";

/// The `Set-Cookie` header that ends any session.
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
        format!("other=1; {COOKIE}={}; last=2", session.0)
    }

    #[test]
    fn a_session_lasts_thirty_minutes() {
        let keys = keys("secret");
        let session = keys.open(now()).unwrap();
        for (minutes, good) in [(0, true), (29, true), (30, false), (60, false)] {
            let at = now() + TimeDelta::minutes(minutes);
            assert_eq!(keys.read(&header(&session), at).is_some(), good, "{minutes}");
        }
    }

    #[test]
    fn the_cookie_has_every_attribute() {
        let cookie = keys("secret").open(now()).unwrap().cookie();
        assert!(cookie.starts_with("__Host-jobs-status=1."), "{cookie}");
        assert!(cookie.ends_with("; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=1800"), "{cookie}");
        assert_eq!(no_cookie(), "__Host-jobs-status=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0");
    }

    #[test]
    fn nothing_forged_is_let_in() {
        let ours = keys("secret");
        let session = ours.open(now()).unwrap();
        let later = (now() + TimeDelta::days(1)).timestamp().to_string();
        let end = session.0.split('.').nth(1).unwrap().to_owned();
        for forged in [
            session.0.replace(&end, &later),
            session.0.replacen("1.", "2.", 1),
            session.0[..session.0.len() - 1].to_owned(),
            session.0.rsplit_once('.').unwrap().0.to_owned(),
            format!("{}=", session.0),
            ours.form_token(&session),
            String::new(),
        ] {
            assert_eq!(ours.read(&header(&Session(forged.clone())), now()), None, "{forged}");
        }
        assert_eq!(keys("another").read(&header(&session), now()), None);
        assert_eq!(ours.read(&session.0, now()), None, "without its name");
        assert_eq!(ours.read(&format!("x{COOKIE}={}", session.0), now()), None);
    }

    #[test]
    fn a_form_belongs_to_its_session() {
        let ours = keys("secret");
        let (one, other) = (ours.open(now()).unwrap(), ours.open(now()).unwrap());
        assert_ne!(one, other);
        let token = ours.form_token(&one);
        assert!(ours.is_own_form(&one, &token));
        assert!(!ours.is_own_form(&other, &token));
        assert!(!ours.is_own_form(&one, ""));
        // The cookie's own signature is under another key.
        assert!(!ours.is_own_form(&one, one.0.rsplit_once('.').unwrap().1));
    }

    proptest! {
        /// One character of a good cookie changed, and of a form's token.
        #[test]
        fn a_changed_one_is_not_let_in(place: prop::sample::Index, by in "\\PC") {
            let keys = keys("secret");
            let session = keys.open(now()).unwrap();
            let change = |good: &str| {
                let at = place.index(good.len());
                format!("{}{by}{}", &good[..at], &good[at + 1..])
            };
            let (cookie, form) = (change(&session.0), change(&keys.form_token(&session)));
            let header = format!("{COOKIE}={cookie}");
            prop_assert!(cookie == session.0 || keys.read(&header, now()).is_none());
            prop_assert!(form == keys.form_token(&session) || !keys.is_own_form(&session, &form));
        }

        #[test]
        fn no_other_cookie_is_read(value in "\\PC{0,120}|1\\.[0-9]{10}\\.[0-9a-f]{32}\\.[A-Za-z0-9_-]{43}") {
            prop_assert_eq!(keys("secret").read(&format!("{COOKIE}={value}"), now()), None);
        }
    }
}
