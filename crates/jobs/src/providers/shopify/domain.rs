//! A shop's domain, which users may write and our tokens go to.

use std::fmt;
use std::str::FromStr;

/// `^[a-z0-9][a-z0-9-]{0,62}\.myshopify\.com$`, and nothing else: a token sent to any other host is a token
/// given away.
///
/// ```
/// # use jobs::providers::shopify::ShopDomain;
/// assert!("ma-boutique.myshopify.com".parse::<ShopDomain>().is_ok());
/// assert!("evil.example/x.myshopify.com".parse::<ShopDomain>().is_err());
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ShopDomain(String);

/// The text is not the domain of a Shopify shop.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a shop's myshopify.com domain")]
pub struct InvalidShopDomain;

impl ShopDomain {
    /// Returns the whole domain.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ShopDomain {
    type Err = InvalidShopDomain;

    /// Reads a domain strictly: no trimming, no lower-casing, no scheme. What the web application
    /// stored is used as it is or not at all.
    fn from_str(text: &str) -> Result<Self, InvalidShopDomain> {
        let name = text.strip_suffix(".myshopify.com").ok_or(InvalidShopDomain)?;
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let well_formed = (1..=63).contains(&name.len())
            && name.bytes().all(|byte| letter(byte) || byte == b'-')
            && !name.starts_with('-');
        if well_formed { Ok(Self(text.to_owned())) } else { Err(InvalidShopDomain) }
    }
}

impl fmt::Display for ShopDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a.myshopify.com")]
    #[case("ma-boutique.myshopify.com")]
    #[case("0-1-2.myshopify.com")]
    #[case("a-.myshopify.com")]
    fn shops(#[case] text: &str) {
        assert_eq!(text.parse::<ShopDomain>().unwrap().as_str(), text);
    }

    #[rstest]
    #[case("")]
    #[case(".myshopify.com")]
    #[case("myshopify.com")]
    #[case("-a.myshopify.com")]
    #[case("A.myshopify.com")]
    #[case("a.MyShopify.com")]
    #[case("a.b.myshopify.com")]
    #[case("a_b.myshopify.com")]
    #[case("é.myshopify.com")]
    #[case("https://a.myshopify.com")]
    #[case("//a.myshopify.com")]
    #[case("a.myshopify.com/")]
    #[case("a.myshopify.com:8080")]
    #[case("a.myshopify.com.")]
    #[case("a.myshopify.com.evil.example")]
    #[case("a.myshopify.com@evil.example")]
    #[case("evil.example/x.myshopify.com")]
    #[case("evil.example#.myshopify.com")]
    #[case("evil.example?.myshopify.com")]
    #[case("evil.example\\.myshopify.com")]
    #[case("user:pass@evil.myshopify.com")]
    #[case("169.254.169.254")]
    #[case("127.0.0.1.myshopify.com")]
    #[case("localhost")]
    #[case("[::1].myshopify.com")]
    #[case("%61.myshopify.com")]
    #[case("a\n.myshopify.com")]
    #[case("a.myshopify.com\n")]
    #[case(" a.myshopify.com")]
    #[case("a..myshopify.com")]
    #[case("a.myshopifyXcom")]
    #[case("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.myshopify.com")]
    fn everything_else_is_refused(#[case] text: &str) {
        assert_eq!(text.parse::<ShopDomain>(), Err(InvalidShopDomain));
    }

    #[test]
    fn the_longest_name_has_63_characters() {
        assert!(format!("{}.myshopify.com", "a".repeat(63)).parse::<ShopDomain>().is_ok());
    }

    proptest! {
        #[test]
        fn what_passes_is_a_host_of_shopify(text in "\\PC{0,30}(\\.myshopify\\.com)?") {
            if let Ok(shop) = text.parse::<ShopDomain>() {
                let url = url::Url::parse(&format!("https://{shop}/admin")).unwrap();
                prop_assert_eq!(url.host_str(), Some(shop.as_str()));
                prop_assert!(url.host_str().unwrap().ends_with(".myshopify.com"));
            }
        }
    }
}
