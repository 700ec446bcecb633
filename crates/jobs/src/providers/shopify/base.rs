//! Where a shop's API is: at the shop itself, or behind a test server or proxy.

use std::str::FromStr;

use url::Url;

use super::ShopDomain;
use crate::http;

const PLACE: &str = "{shop}";

/// Represents the value of `SHOPIFY_API_BASE`: an https URL, or a local one, in which a literal
/// `{shop}` stands for the shop's domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiBase(String);

/// The text is not such a URL.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("must be an https URL that contains {{shop}}")]
pub struct InvalidApiBase;

impl ApiBase {
    /// Returns the address of `path` (with its leading `/`) in one shop.
    pub(super) fn url(&self, shop: &ShopDomain, path: &str) -> String {
        format!("{}{path}", self.0.replace(PLACE, shop.as_str()))
    }
}

/// Leads to the shop itself: `https://{shop}`.
impl Default for ApiBase {
    fn default() -> Self {
        Self(format!("https://{PLACE}"))
    }
}

impl FromStr for ApiBase {
    type Err = InvalidApiBase;

    fn from_str(text: &str) -> Result<Self, InvalidApiBase> {
        let text = text.trim().trim_end_matches('/');
        let example =
            Url::parse(&text.replace(PLACE, "example.myshopify.com")).map_err(|_| InvalidApiBase)?;
        // `Url` drops line breaks and tabs silently.
        let usable = text.contains(PLACE)
            && text.bytes().all(|byte| byte.is_ascii_graphic())
            && http::is_safe(&example)
            && example.query().is_none()
            && example.fragment().is_none();
        if usable { Ok(Self(text.to_owned())) } else { Err(InvalidApiBase) }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://{shop}", "https://a.myshopify.com/x")]
    #[case("https://{shop}/", "https://a.myshopify.com/x")]
    #[case("http://127.0.0.1:9100/{shop}", "http://127.0.0.1:9100/a.myshopify.com/x")]
    fn places(#[case] base: &str, #[case] expected: &str) {
        let shop = "a.myshopify.com".parse().unwrap();
        assert_eq!(base.parse::<ApiBase>().unwrap().url(&shop, "/x"), expected);
    }

    #[rstest]
    #[case("")]
    #[case("https://example.com")]
    #[case("{shop}")]
    #[case("ftp://{shop}")]
    #[case("http://{shop}")]
    #[case("http://proxy.example/{shop}")]
    #[case("https://user:password@{shop}")]
    #[case("https://{shop}/\nx")]
    #[case("https://{shop}?a=b")]
    #[case("https://{shop}#a")]
    fn refused(#[case] base: &str) {
        assert_eq!(base.parse::<ApiBase>(), Err(InvalidApiBase));
    }

    #[test]
    fn the_default_is_the_shop() {
        assert_eq!("https://{shop}".parse(), Ok(ApiBase::default()));
    }
}
