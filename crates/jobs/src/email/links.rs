//! Signs and reads the links in mails: signed, so that nobody can follow another's; without an end, since mails are kept.
//!
//! - `https://jobs.example/api/unsubscribe?t=1.<user>.<kind>.<signature>` stops a kind of mail.
//! - `https://jobs.example/api/confirm?t=1.<user>.<year>.<signature>` confirms what the books of a year hold twice.
//!
//! The signature is HMAC-SHA256 over version, purpose, user and what the link is about, under a key derived for this
//! purpose alone.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use uuid::Uuid;

use crate::{
    crypto::keys::{PurposeKey, derive},
    mail_kind::MailKind,
    routes::Route,
};

/// Names the parameter that holds the token.
pub const PARAMETER: &str = "t";

const VERSION: &str = "1";

/// Holds one key for each purpose of a link.
pub struct LinkKeys {
    /// Signs what stops a kind of mail.
    unsubscribe: PurposeKey,
    /// Signs what confirms a year's books.
    confirm: PurposeKey,
    /// Makes of an address what is kept of an objection.
    pub(super) objections: PurposeKey,
}

impl LinkKeys {
    /// Derives the keys from the master secret, `ENCRYPTION_KEY`.
    pub fn derive(master: &SecretString) -> Self {
        Self {
            unsubscribe: derive(master, "unsubscribe-link/v1"),
            confirm: derive(master, "confirm-link/v1"),
            objections: derive(master, "objections/v1"),
        }
    }
}

/// Returns the link that stops one kind for a user. `None` for alerts and the like: these are turned off in the
/// application.
pub fn unsubscribe(jobs_url: &str, keys: &LinkKeys, user: Uuid, kind: MailKind) -> Option<String> {
    kind.has_unsubscribe_link().then(|| {
        let token = token(&keys.unsubscribe, "unsubscribe", user, kind.as_str());
        format!("{jobs_url}{}?{PARAMETER}={token}", Route::Unsubscribe.path())
    })
}

/// Returns the link to the page that shows which months of a year have both typed and imported rows, and takes the
/// user's word on them.
pub fn confirm(jobs_url: &str, keys: &LinkKeys, user: Uuid, year: i32) -> String {
    let token = token(&keys.confirm, "confirm", user, &year.to_string());
    format!("{jobs_url}{}?{PARAMETER}={token}", Route::Confirm.path())
}

/// Returns whom and what a token of ours stops; `None` for anything that we have not signed for this.
pub fn read_unsubscribe(keys: &LinkKeys, token: &str) -> Option<(Uuid, MailKind)> {
    let (user, kind) = read(&keys.unsubscribe, "unsubscribe", token)?;
    Some((user, MailKind::from_stored(kind).filter(|kind| kind.has_unsubscribe_link())?))
}

/// Returns whose books of which year a token of ours opens; `None` for anything that we have not signed for this.
pub fn read_confirm(keys: &LinkKeys, token: &str) -> Option<(Uuid, i32)> {
    let (user, year) = read(&keys.confirm, "confirm", token)?;
    Some((user, year.parse().ok()?))
}

fn token(key: &PurposeKey, purpose: &str, user: Uuid, about: &str) -> String {
    let signature = mac(key, purpose, user, about).finalize().into_bytes();
    format!("{VERSION}.{user}.{about}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn mac(key: &PurposeKey, purpose: &str, user: Uuid, about: &str) -> Hmac<Sha256> {
    // No part can hold a line break, so no two messages are alike.
    Hmac::<Sha256>::new_from_slice(key.expose_secret())
        .expect("HMAC takes keys of every length")
        .chain_update(format!("{VERSION}\n{purpose}\n{user}\n{about}"))
}

/// Returns the user and the subject of a token that was signed with this key for this purpose.
fn read<'a>(key: &PurposeKey, purpose: &str, token: &'a str) -> Option<(Uuid, &'a str)> {
    let mut parts = token.split('.');
    let (version, user, about, signature) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version != VERSION || parts.next().is_some() || about.contains('\n') {
        return None;
    }
    let user: Uuid = user.parse().ok()?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    // In constant time.
    mac(key, purpose, user, about).verify_slice(&signature).ok()?;
    Some((user, about))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn keys() -> LinkKeys {
        LinkKeys::derive(&SecretString::from("0123456789abcdef0123456789abcdef"))
    }

    fn of_kind(kind: MailKind) -> String {
        token(&keys().unsubscribe, "unsubscribe", USER, kind.as_str())
    }

    fn of_year(year: i32) -> String {
        token(&keys().confirm, "confirm", USER, &year.to_string())
    }

    const USER: Uuid = Uuid::from_u128(0x5f0c_0e52_8a4e_4c4b_9b0c_2f6d_1a7e_0001);

    /// Says what Node says:
    /// `node -e 'const c=require("crypto"),k=c.createHmac("sha256","0123456789abcdef0123456789abcdef").update("unsubscribe-link/v1").digest();console.log(c.createHmac("sha256",k).update("1\nunsubscribe\n5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001\nmonthly_recap").digest("base64url"))'`
    #[test]
    fn a_link_is_what_node_would_sign() {
        let link = unsubscribe("https://jobs.example", &keys(), USER, MailKind::MonthlyRecap).unwrap();
        assert_eq!(
            link,
            "https://jobs.example/api/unsubscribe?t=1.5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001.monthly_recap.HgkIpyMc_2BwPm8-zYrDFB47beb212W81eigJR1xF7k"
        );
    }

    #[test]
    fn alerts_have_none() {
        assert_eq!(unsubscribe("https://jobs.example", &keys(), USER, MailKind::ThresholdAlert), None);
    }

    #[test]
    fn a_token_is_good_for_its_user_and_kind_only() {
        let good = of_kind(MailKind::MonthlyReminder);
        assert_eq!(read_unsubscribe(&keys(), &good), Some((USER, MailKind::MonthlyReminder)));
        let other = LinkKeys::derive(&SecretString::from("another"));
        assert_eq!(read_unsubscribe(&other, &good), None);
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
            assert_eq!(read_unsubscribe(&keys(), &forged), None, "{forged}");
        }
    }

    /// A year's link opens that year, and stops no mail; what stops a mail opens no books.
    #[test]
    fn each_purpose_has_its_own_links() {
        let link = confirm("https://jobs.example", &keys(), USER, 2026);
        assert_eq!(link, format!("https://jobs.example/api/confirm?t={}", of_year(2026)));
        assert_eq!(read_confirm(&keys(), &of_year(2026)), Some((USER, 2026)));
        assert_eq!(read_unsubscribe(&keys(), &of_year(2026)), None);
        assert_eq!(read_confirm(&keys(), &of_kind(MailKind::MonthlyRecap)), None);
        let same_words = token(&keys().unsubscribe, "unsubscribe", USER, "2026");
        assert_eq!(read_confirm(&keys(), &same_words), None, "signed for another purpose");
    }

    #[rstest]
    #[case("2026", "2027")]
    #[case("0001", "0002")]
    #[case("2026", "02026")]
    #[case("2026", "+2026")]
    #[case("2026", "2026\n")]
    fn another_year_or_user_is_not_signed(#[case] part: &str, #[case] forged: &str) {
        assert_eq!(read_confirm(&keys(), &of_year(2026).replacen(part, forged, 1)), None);
    }

    proptest! {
        /// A token with one character changed, left out or added opens nothing, or the same person
        /// and kind.
        #[test]
        fn a_changed_token_opens_nothing_else(place: prop::sample::Index, by in prop::option::of("\\PC"), add: bool) {
            let good = of_kind(MailKind::MonthlyRecap);
            let at = place.index(good.len());
            let rest = if add { &good[at..] } else { &good[at + 1..] };
            let changed = format!("{}{}{rest}", &good[..at], by.unwrap_or_default());
            let read = read_unsubscribe(&keys(), &changed);
            prop_assert!(read.is_none() || read == Some((USER, MailKind::MonthlyRecap)), "{}", changed);
        }

        #[test]
        fn nothing_else_is_read(token in "\\PC{0,120}|1\\.[0-9a-f-]{36}\\.(monthly_recap|2026)\\.[A-Za-z0-9_-]{0,60}") {
            prop_assert_eq!(read_unsubscribe(&keys(), &token), None);
            prop_assert_eq!(read_confirm(&keys(), &token), None);
        }
    }
}
