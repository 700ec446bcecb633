//! Webhooks signed as Svix signs them: HMAC-SHA256 of `id.timestamp.body`, base64, several signatures allowed while
//! a secret is being changed (<https://docs.svix.com/receiving/verifying-payloads/how-manual>; Resend signs in the same
//! way).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// A webhook older or newer than this is refused, so that a recorded request cannot be replayed later.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// Says why a webhook is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("a header is missing or cannot be read")]
    Malformed,
    #[error("the timestamp is not of these minutes")]
    OutOfTime,
    #[error("no signature fits")]
    Forged,
    #[error("the secret cannot be read")]
    Secret,
}

/// Holds the headers of a webhook.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    /// Holds `svix-id`, which stays the same when a webhook is delivered again.
    pub id: &'a str,
    /// Holds `svix-timestamp`, in Unix seconds.
    pub timestamp: &'a str,
    /// Holds `svix-signature`: `v1,…` once or several times, separated by spaces.
    pub signatures: &'a str,
}

/// Verifies that the holder of the secret has sent this body within the last minutes.
pub fn verify(
    secret: &SecretString,
    headers: Headers,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<(), Refusal> {
    let key = secret.expose_secret().strip_prefix("whsec_").and_then(|key| STANDARD.decode(key).ok());
    let key = key.filter(|key| !key.is_empty()).ok_or(Refusal::Secret)?;
    let sent = headers.timestamp.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let sent = sent.filter(|_| !headers.id.is_empty()).ok_or(Refusal::Malformed)?;
    if (now - sent).abs() > TOLERANCE {
        return Err(Refusal::OutOfTime);
    }
    let mac = Hmac::<Sha256>::new_from_slice(&key)
        .map_err(|_| Refusal::Secret)?
        .chain_update(format!("{}.{}.", headers.id, headers.timestamp))
        .chain_update(body);
    let fits = |signature: &str| {
        let signature = signature.strip_prefix("v1,").and_then(|signature| STANDARD.decode(signature).ok());
        // In constant time.
        signature.is_some_and(|signature| mac.clone().verify_slice(&signature).is_ok())
    };
    if headers.signatures.split(' ').any(fits) { Ok(()) } else { Err(Refusal::Forged) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    // The example that Svix publishes.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: &str = "1614265330";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn check(
        secret: &str,
        id: &str,
        timestamp: &str,
        signatures: &str,
        body: &[u8],
        late: i64,
    ) -> Result<(), Refusal> {
        let now = DateTime::from_timestamp(1_614_265_330 + late, 0).unwrap();
        verify(&SecretString::from(secret), Headers { id, timestamp, signatures }, body, now)
    }

    #[rstest]
    #[case(SIGNATURE, 0)]
    #[case(SIGNATURE, 300)]
    #[case(SIGNATURE, -300)]
    #[case("v1,AAAA v1a,BBBB v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", 0)]
    fn what_svix_signs_is_verified(#[case] signatures: &str, #[case] late: i64) {
        assert_eq!(check(SECRET, ID, TIMESTAMP, signatures, BODY, late), Ok(()));
    }

    #[rstest]
    #[case::old(SECRET, ID, TIMESTAMP, SIGNATURE, BODY, 301, Refusal::OutOfTime)]
    #[case::early(SECRET, ID, TIMESTAMP, SIGNATURE, BODY, -301, Refusal::OutOfTime)]
    #[case::body(SECRET, ID, TIMESTAMP, SIGNATURE, b"{}", 0, Refusal::Forged)]
    #[case::id(SECRET, "msg_other", TIMESTAMP, SIGNATURE, BODY, 0, Refusal::Forged)]
    #[case::timestamp(SECRET, ID, "1614265331", SIGNATURE, BODY, 0, Refusal::Forged)]
    #[case::other_secret("whsec_AAAA", ID, TIMESTAMP, SIGNATURE, BODY, 0, Refusal::Forged)]
    #[case::version(
        SECRET,
        ID,
        TIMESTAMP,
        "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        BODY,
        0,
        Refusal::Forged
    )]
    #[case::none(SECRET, ID, TIMESTAMP, "", BODY, 0, Refusal::Forged)]
    #[case::short(SECRET, ID, TIMESTAMP, "v1,", BODY, 0, Refusal::Forged)]
    #[case::no_id(SECRET, "", TIMESTAMP, SIGNATURE, BODY, 0, Refusal::Malformed)]
    #[case::no_number(SECRET, ID, "now", SIGNATURE, BODY, 0, Refusal::Malformed)]
    #[case::far(SECRET, ID, "9223372036854775807", SIGNATURE, BODY, 0, Refusal::Malformed)]
    #[case::secret("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", ID, TIMESTAMP, SIGNATURE, BODY, 0, Refusal::Secret)]
    #[case::empty_secret("whsec_", ID, TIMESTAMP, SIGNATURE, BODY, 0, Refusal::Secret)]
    fn anything_else_is_not(
        #[case] secret: &str,
        #[case] id: &str,
        #[case] timestamp: &str,
        #[case] signatures: &str,
        #[case] body: &[u8],
        #[case] late: i64,
        #[case] refusal: Refusal,
    ) {
        assert_eq!(check(secret, id, timestamp, signatures, body, late), Err(refusal));
    }

    proptest! {
        #[test]
        fn nothing_panics(id in "\\PC{0,40}", timestamp in "\\PC{0,30}|-?[0-9]{1,20}", signatures in "\\PC{0,80}", body: Vec<u8>) {
            prop_assert!(check(SECRET, &id, &timestamp, &signatures, &body, 0).is_err());
        }
    }
}
