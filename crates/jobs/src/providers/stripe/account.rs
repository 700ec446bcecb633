//! The id of a connected account, which users may write.

use std::fmt;
use std::str::FromStr;

/// Represents `acct_` and up to 64 letters or digits: safe in a header.
///
/// Well-formed does not mean the user's own: with our platform key, any connected account would open. See
/// [`StripeClient::prove_account`](super::StripeClient::prove_account).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct StripeAccountId(String);

/// The text is not an account id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a Stripe account id")]
pub struct NotAnAccount;

impl StripeAccountId {
    /// Returns the id, e.g. `acct_1Nv0FGQ9RKHgCVdK`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StripeAccountId {
    type Err = NotAnAccount;

    fn from_str(text: &str) -> Result<Self, NotAnAccount> {
        let rest = text.strip_prefix("acct_").ok_or(NotAnAccount)?;
        let well_formed = (1..=64).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_alphanumeric());
        if well_formed { Ok(Self(text.to_owned())) } else { Err(NotAnAccount) }
    }
}

impl fmt::Display for StripeAccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("acct_1Nv0FGQ9RKHgCVdK", true)]
    #[case("acct_1", true)]
    #[case("acct_", false)]
    #[case("", false)]
    #[case("ACCT_1", false)]
    #[case("acct_1\r\nX-Evil: 1", false)]
    #[case("acct_1 ", false)]
    #[case("acct_é", false)]
    #[case("cus_1", false)]
    fn table(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(text.parse::<StripeAccountId>().is_ok(), expected);
    }
}
