//! Signs and reads the links that stop a kind of mail: signed, so that nobody can stop another's; without an end, since
//! mails are kept.
//!
//! `https://jobs.example/api/unsubscribe?t=1.<user>.<kind>.<signature>`. The signature is HMAC-SHA256 over version,
//! purpose, user and kind, under a key derived for this purpose alone.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use sha2::Sha256;
use uuid::Uuid;

use crate::{crypto::keys::PurposeKey, mail_kind::MailKind, routes::Route};

/// Names the parameter that holds the token.
pub const PARAMETER: &str = "t";

const VERSION: &str = "1";

/// Returns the link of one user and kind. `None` for alerts and the like: these are turned off in the application.
pub fn unsubscribe(jobs_url: &str, key: &PurposeKey, user: Uuid, kind: MailKind) -> Option<String> {
    kind.has_unsubscribe_link()
        .then(|| format!("{jobs_url}{}?{PARAMETER}={}", Route::Unsubscribe.path(), token(key, user, kind)))
}

fn token(key: &PurposeKey, user: Uuid, kind: MailKind) -> String {
    let signature = URL_SAFE_NO_PAD.encode(mac(key, user, kind).finalize().into_bytes());
    format!("{VERSION}.{user}.{}.{signature}", kind.as_str())
}

fn mac(key: &PurposeKey, user: Uuid, kind: MailKind) -> Hmac<Sha256> {
    // No part can hold a line break, so no two messages are alike.
    Hmac::<Sha256>::new_from_slice(key.expose_secret())
        .expect("HMAC takes keys of every length")
        .chain_update(format!("{VERSION}\nunsubscribe\n{user}\n{}", kind.as_str()))
}

/// Returns whom and what a token of ours names; `None` for anything that we have not signed.
pub fn read(key: &PurposeKey, token: &str) -> Option<(Uuid, MailKind)> {
    let mut parts = token.split('.');
    let (version, user, kind, signature) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version != VERSION || parts.next().is_some() {
        return None;
    }
    let user: Uuid = user.parse().ok()?;
    let kind = MailKind::from_stored(kind).filter(|kind| kind.has_unsubscribe_link())?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    // In constant time.
    mac(key, user, kind).verify_slice(&signature).ok()?;
    Some((user, kind))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::SecretString;

    use super::*;
    use crate::crypto::keys::derive;

    fn key() -> PurposeKey {
        derive(&SecretString::from("0123456789abcdef0123456789abcdef"), "unsubscribe-link/v1")
    }

    const USER: Uuid = Uuid::from_u128(0x5f0c_0e52_8a4e_4c4b_9b0c_2f6d_1a7e_0001);

    /// Says what Node says:
    /// `node -e 'const c=require("crypto"),k=c.createHmac("sha256","0123456789abcdef0123456789abcdef").update("unsubscribe-link/v1").digest();console.log(c.createHmac("sha256",k).update("1\nunsubscribe\n5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001\nmonthly_recap").digest("base64url"))'`
    #[test]
    fn a_link_is_what_node_would_sign() {
        let link = unsubscribe("https://jobs.example", &key(), USER, MailKind::MonthlyRecap).unwrap();
        assert_eq!(
            link,
            "https://jobs.example/api/unsubscribe?t=1.5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001.monthly_recap.HgkIpyMc_2BwPm8-zYrDFB47beb212W81eigJR1xF7k"
        );
    }

    #[test]
    fn alerts_have_none() {
        assert_eq!(unsubscribe("https://jobs.example", &key(), USER, MailKind::ThresholdAlert), None);
    }

    #[test]
    fn a_token_is_good_for_its_user_and_kind_only() {
        let good = token(&key(), USER, MailKind::MonthlyReminder);
        assert_eq!(read(&key(), &good), Some((USER, MailKind::MonthlyReminder)));
        let other = derive(&SecretString::from("another"), "unsubscribe-link/v1");
        assert_eq!(read(&other, &good), None);
        for forged in [
            good.replace("monthly_reminder", "marketing_day3"),
            good.replace("0001", "0002"),
            good.replacen("1.", "2.", 1),
            format!("{good}.x"),
            format!("{good}="),
            good[..good.len() - 1].to_owned(),
            good.rsplit_once('.').unwrap().0.to_owned(),
            format!("{}.", good.rsplit_once('.').unwrap().0),
        ] {
            assert_eq!(read(&key(), &forged), None, "{forged}");
        }
    }

    proptest! {
        /// A token with one character changed, left out or added opens nothing, or the same person
        /// and kind.
        #[test]
        fn a_changed_token_opens_nothing_else(place: prop::sample::Index, by in prop::option::of("\\PC"), add: bool) {
            let good = token(&key(), USER, MailKind::MonthlyRecap);
            let at = place.index(good.len());
            let rest = if add { &good[at..] } else { &good[at + 1..] };
            let changed = format!("{}{}{rest}", &good[..at], by.unwrap_or_default());
            let read = read(&key(), &changed);
            prop_assert!(read.is_none() || read == Some((USER, MailKind::MonthlyRecap)), "{}", changed);
        }

        #[test]
        fn nothing_else_is_read(token in "\\PC{0,120}|1\\.[0-9a-f-]{36}\\.monthly_recap\\.[A-Za-z0-9_-]{0,60}") {
            prop_assert_eq!(read(&key(), &token), None);
        }
    }
}
