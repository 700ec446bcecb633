//! Builds the one HTTP client of a process: Supabase, Stripe, Shopify and the mail service all go through it.
//!
//! TLS is rustls with ring and the root certificates compiled in: loading the host's store costs some 40 ms
//! at every cold start, this takes one or two. No redirect is ever followed, since our tokens would follow
//! it too, and no proxy is taken from the environment. Timeouts are set on each request, from the
//! [`Deadline`](crate::deadline::Deadline).

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode, header::HeaderMap, redirect};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use url::Url;

/// Every request says this of itself. Supabase refuses secret keys from browser-like agents.
pub const USER_AGENT: &str = concat!("comptalyze-jobs/", env!("CARGO_PKG_VERSION"));

/// A provider's `Retry-After` is believed up to so long.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections outlive a pause between two items, not a frozen function.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// No page that we ask for comes near it; a body beyond it is a fault, not data.
const LARGEST_BODY: usize = 16 * 1024 * 1024;

/// The client could not be built: a fault of the build, not of the configuration.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The TLS settings do not fit the TLS library.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The HTTP settings do not fit together.
    #[error("the HTTP client cannot be built: {0}")]
    Client(#[from] reqwest::Error),
}

/// Builds the shared client. Clones share the connection pool.
pub fn client() -> Result<Client, BuildError> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .user_agent(USER_AGENT)
        .build()?)
}

/// Returns whether a secret may go to this address: https anywhere, http to this machine only, and no credentials
/// inside.
pub fn is_safe(url: &Url) -> bool {
    let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    let scheme = url.scheme() == "https" || (url.scheme() == "http" && local);
    scheme && url.has_host() && url.username().is_empty() && url.password().is_none()
}

/// Says why no complete answer came. Carries no URL: query strings and hosts stay out of logs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NetworkError {
    /// No connection came about: it was refused, the host is unknown, or TLS failed.
    #[error("no connection")]
    Connect,
    /// The answer took too long.
    #[error("timeout")]
    Timeout,
    /// The connection broke before the answer was complete.
    #[error("connection lost")]
    Lost,
    /// The body is larger than anything we ask for.
    #[error("answer too large")]
    TooLarge,
}

impl From<reqwest::Error> for NetworkError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            Self::Timeout
        } else if error.is_connect() {
            Self::Connect
        } else {
            Self::Lost
        }
    }
}

/// Represents an answer that was read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Holds the whole body, decompressed.
    pub body: Vec<u8>,
}

impl Answer {
    /// Returns a header's text, `None` when missing or not ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns `Retry-After` in seconds (Shopify sends `2.0`), at most [`LONGEST_RETRY_AFTER`]. The date form needs a
    /// wall clock and neither provider uses it: it counts as missing.
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds: f64 = self.header("retry-after")?.trim().parse().ok()?;
        let wait = Duration::try_from_secs_f64(seconds).ok()?;
        Some(wait.min(LONGEST_RETRY_AFTER))
    }
}

/// Sends one request and reads the answer to its end, within `timeout` for both.
pub async fn fetch(request: reqwest::RequestBuilder, timeout: Duration) -> Result<Answer, NetworkError> {
    let response = request.timeout(timeout).send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = read_body(response, LARGEST_BODY).await?;
    Ok(Answer { status, headers, body })
}

async fn read_body(mut response: Response, largest: usize) -> Result<Vec<u8>, NetworkError> {
    // As much as is announced, if it is: a body that grows is copied each time.
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok());
    let mut body = Vec::with_capacity(announced.unwrap_or_default().min(largest));
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > largest {
            return Err(NetworkError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::test_server::{Reply, TestServer};

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_redirect_is_an_answer_like_another() {
        let server = TestServer::start([Reply::new(302).header("location", "https://evil.example/")]).await;
        let answer = fetch(client().unwrap().get(server.url("/a")), TIMEOUT).await.unwrap();
        assert_eq!(answer.status, StatusCode::FOUND);
        assert_eq!(server.requests().len(), 1);
    }

    #[tokio::test]
    async fn the_user_agent_names_us() {
        let server = TestServer::start([Reply::new(200)]).await;
        fetch(client().unwrap().get(server.url("/a")), TIMEOUT).await.unwrap();
        assert_eq!(server.requests()[0].header("user-agent"), Some(USER_AGENT));
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused() {
        let server = TestServer::start([Reply::new(200).body("0123456789")]).await;
        let response = client().unwrap().get(server.url("/a")).send().await.unwrap();
        assert_eq!(read_body(response, 9).await, Err(NetworkError::TooLarge));
    }

    #[tokio::test]
    async fn nobody_listening_is_no_connection() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let fault =
            fetch(client().unwrap().get(format!("http://{free}/?secret=x")), TIMEOUT).await.unwrap_err();
        assert_eq!(fault, NetworkError::Connect);
        assert!(!fault.to_string().contains("secret"));
    }

    #[rstest]
    #[case("2", Some(2_000))]
    #[case("2.0", Some(2_000))]
    #[case(" 0.5 ", Some(500))]
    #[case("999999999", Some(3_600_000))]
    #[case("1e300", None)]
    #[case("-1", None)]
    #[case("NaN", None)]
    #[case("Sat, 21 Nov 2026 00:00:00 GMT", None)]
    fn retry_after_is_clamped(#[case] header: &'static str, #[case] millis: Option<u64>) {
        let headers = [(reqwest::header::RETRY_AFTER, header.parse().unwrap())].into_iter().collect();
        let answer = Answer { status: StatusCode::TOO_MANY_REQUESTS, headers, body: Vec::new() };
        assert_eq!(answer.retry_after(), millis.map(Duration::from_millis));
    }
}
