//! Who tries to sign in: the client's address as the platform gives it, and the hash of it that the database keeps.

use std::net::{IpAddr, Ipv6Addr};

use reqwest::header::HeaderMap;

/// Vercel [writes it itself](https://vercel.com/docs/headers/request-headers), whatever the client has sent under this
/// name. `x-forwarded-for` may come from another proxy in front of it.
const HEADER: &str = "x-vercel-forwarded-for";

/// Returns the address of the client, or of its network: whoever has one IPv6 address has the whole
/// /64. It is `None` where no platform says it: all of these are counted as one.
pub(super) fn address(headers: &HeaderMap) -> Option<IpAddr> {
    // Where there are several, the last one was written last.
    let written = headers.get_all(HEADER).iter().next_back()?.to_str().ok()?;
    let address: IpAddr = written.rsplit(',').next()?.trim().parse().ok()?;
    Some(match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        IpAddr::V4(address) => IpAddr::V4(address),
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[], None)]
    #[case(&["203.0.113.7"], Some("203.0.113.7"))]
    #[case(&["::ffff:203.0.113.7"], Some("203.0.113.7"))]
    #[case(&["2001:db8:1:2:3:4:5:6"], Some("2001:db8:1:2::"))]
    #[case(&["2001:db8:1:2:ffff::1"], Some("2001:db8:1:2::"))]
    // What a client might put before the platform's word.
    #[case(&["10.0.0.1, 203.0.113.7"], Some("203.0.113.7"))]
    #[case(&["10.0.0.1", "203.0.113.7"], Some("203.0.113.7"))]
    #[case(&[""], None)]
    #[case(&["moi"], None)]
    #[case(&["203.0.113.7:443"], None)]
    fn an_address_is_the_platforms(#[case] values: &[&str], #[case] expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, value.parse().unwrap());
        }
        // Others are nobody's word.
        for other in ["x-forwarded-for", "x-real-ip", "forwarded"] {
            headers.insert(other, "192.0.2.1".parse().unwrap());
        }
        assert_eq!(address(&headers), expected.map(|text| text.parse().unwrap()));
    }
}
