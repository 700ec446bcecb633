//! Asks whether the mail service will send for our domain, as far as the key may ask.

use std::time::Duration;

use reqwest::Method;
use resend_rs::Error;
use serde::Deserialize;

use super::sender::Sender;

/// Holds what the mail service says of the domain that mails come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Domain {
    Verified,
    /// The service knows the domain, in this state.
    NotVerified(String),
    /// The account does not have this domain.
    Missing,
    /// The key may only send, so the state cannot be asked; that is no fault.
    NotTold,
    KeyRefused,
    /// No answer came, or another service answered, so nothing is known of the domain.
    Unreachable,
}

#[derive(Deserialize)]
struct Domains {
    #[serde(default)]
    has_more: bool,
    data: Vec<Known>,
}

#[derive(Deserialize)]
struct Known {
    name: String,
    status: String,
}

impl Sender {
    /// Asks once, for at most `timeout`.
    pub(super) async fn domain(&self, timeout: Duration) -> Domain {
        let resend = self.resend();
        // Not as the crate's own type, which knows the regions and states of today only.
        let request = resend.send_raw(Method::GET, "/domains", Some(&[("limit", "100")]), None::<()>, None);
        match tokio::time::timeout(timeout, request).await {
            Ok(Ok(answer)) => serde_json::from_value(answer)
                .map_or(Domain::Unreachable, |domains| judge(domains, domain_of(self.from()))),
            Ok(Err(Error::Resend(error))) => match (error.status_code, error.name.as_str()) {
                (_, "restricted_api_key") => Domain::NotTold,
                (401 | 403, _) => Domain::KeyRefused,
                _ => Domain::Unreachable,
            },
            Ok(Err(_)) | Err(_) => Domain::Unreachable,
        }
    }
}

fn judge(domains: Domains, ours: &str) -> Domain {
    match domains.data.into_iter().find(|domain| domain.name.eq_ignore_ascii_case(ours)) {
        Some(domain) if domain.status == "verified" => Domain::Verified,
        Some(domain) => Domain::NotVerified(domain.status),
        None if domains.has_more => Domain::NotTold,
        None => Domain::Missing,
    }
}

/// Returns the domain of `Comptalyze <bonjour@comptalyze.com>`, or of the address alone.
fn domain_of(from: &str) -> &str {
    from.rsplit_once('@').map_or("", |(_, domain)| domain.trim_end_matches('>').trim())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_domain_of_a_sender() {
        assert_eq!(domain_of("Comptalyze <bonjour@mail.comptalyze.com>"), "mail.comptalyze.com");
        assert_eq!(domain_of("bonjour@comptalyze.com"), "comptalyze.com");
    }

    #[rstest]
    #[case("Comptalyze.com", "verified", false, Domain::Verified)]
    #[case("comptalyze.com", "pending", false, Domain::NotVerified("pending".into()))]
    // A state that this version does not know, and a field or two more.
    #[case("comptalyze.com", "on_holiday", false, Domain::NotVerified("on_holiday".into()))]
    #[case("other.com", "verified", false, Domain::Missing)]
    // Of a domain above ours nothing follows.
    #[case("com", "verified", false, Domain::Missing)]
    #[case("other.com", "verified", true, Domain::NotTold)]
    fn a_list_of_domains(
        #[case] name: &str,
        #[case] status: &str,
        #[case] has_more: bool,
        #[case] expected: Domain,
    ) {
        let answer = json!({"object": "list", "has_more": has_more, "data": [{"name": name, "status": status, "region": "mars-1"}]});
        assert_eq!(judge(serde_json::from_value(answer).unwrap(), "comptalyze.com"), expected);
    }
}
