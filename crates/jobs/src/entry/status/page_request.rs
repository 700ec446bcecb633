//! A request of the page: what a browser and a program ask differently.

use std::net::IpAddr;

use reqwest::header::{self, HeaderMap, HeaderName};
use tokio::time::Instant;

use super::{client, page};
use crate::{deadline::Deadline, entry::answer::Answer, operations::health};

/// Represents a request, as far as it matters to the page.
pub(crate) struct PageRequest<'a> {
    pub(super) method: &'a str,
    pub(super) query: &'a str,
    pub(super) authorization: Option<String>,
    pub(super) cookies: String,
    pub(super) accept: String,
    /// The client's address, as the platform says it.
    pub(super) address: Option<IpAddr>,
}

impl<'a> PageRequest<'a> {
    pub(crate) fn new(method: &'a str, query: &'a str, headers: &HeaderMap) -> Self {
        let header = |name: HeaderName| {
            let values = headers.get_all(name).iter();
            values.filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join("; ")
        };
        Self {
            method,
            query,
            authorization: headers.contains_key(header::AUTHORIZATION).then(|| header(header::AUTHORIZATION)),
            cookies: header(header::COOKIE),
            accept: header(header::ACCEPT),
            address: client::address(headers),
        }
    }
}

impl PageRequest<'_> {
    /// Browsers name HTML among others; whoever wants JSON names it alone.
    pub(super) fn wants_json(&self) -> bool {
        self.accept.contains("application/json") && !self.accept.contains("text/html")
    }

    /// An error in the form that the caller reads.
    pub(super) fn refuse(&self, status: u16, message: &str) -> Answer {
        if self.wants_json() { Answer::error(status, message) } else { page::message(status, message) }
    }
}

/// Returns how long the page asks the database: longer than a live check does.
pub(super) fn page_deadline() -> Deadline {
    let end = Instant::now() + 4 * health::TIMEOUT;
    Deadline::new(end, end)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn request<'a>(query: &'a str, accept: &str) -> PageRequest<'a> {
        PageRequest {
            method: "GET",
            query,
            authorization: None,
            cookies: String::new(),
            accept: accept.to_owned(),
            address: None,
        }
    }

    #[rstest]
    #[case("application/json", true)]
    #[case("application/json, */*;q=0.5", true)]
    #[case("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false)]
    #[case("text/html, application/json", false)]
    #[case("*/*", false)]
    #[case("", false)]
    fn who_wants_json(#[case] accept: &str, #[case] json: bool) {
        assert_eq!(request("", accept).wants_json(), json);
    }
}
