//! This is the one place that compares secrets.
//!
//! Both sides are hashed first, so that neither the length nor the position of the first difference shows in
//! the time taken; the digests are compared in constant time.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Returns whether `given` is the expected secret. Unset is the caller's `None`; empty and blank refuse everybody: a
/// deployment that forgot its secret is closed, not open.
///
/// ```
/// # use jobs::crypto::secret::matches;
/// # use secrecy::SecretString;
/// assert!(matches(Some(&SecretString::from("s3cret")), "s3cret"));
/// assert!(!matches(Some(&SecretString::from("")), ""));
/// assert!(!matches(None, ""));
/// ```
pub fn matches(expected: Option<&SecretString>, given: &str) -> bool {
    let Some(expected) = expected.map(ExposeSecret::expose_secret) else { return false };
    let same = Sha256::digest(expected.as_bytes()).ct_eq(&Sha256::digest(given.as_bytes()));
    let usable = !expected.trim().is_empty();
    usable && bool::from(same)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("s3cret", "s3cret", true)]
    #[case("s3cret", "s3cre", false)]
    #[case("s3cret", "S3cret", false)]
    #[case("s3cret", "s3cret\n", false)]
    #[case("s3cret\n", "s3cret", false)]
    #[case("s3cret", "", false)]
    #[case("", "", false)]
    #[case(" ", " ", false)]
    #[case("\n\t", "\n\t", false)]
    fn table(#[case] expected: &str, #[case] given: &str, #[case] same: bool) {
        assert_eq!(matches(Some(&SecretString::from(expected)), given), same);
    }

    proptest! {
        #[test]
        fn only_the_same_text_matches(a in "\\PC*", b in "\\PC*") {
            let expected = SecretString::from(a.clone());
            prop_assert_eq!(matches(Some(&expected), &b), a == b && !a.trim().is_empty());
            prop_assert_eq!(matches(Some(&expected), &a), !a.trim().is_empty());
        }
    }
}
