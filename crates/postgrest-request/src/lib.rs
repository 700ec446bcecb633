//! This crate is what the crate `postgrest` uses of reqwest 0.11, without a client that sends.
//!
//! `postgrest` builds our requests and never sends one: they leave over the shared client of reqwest 0.13. Its
//! dependency on reqwest 0.11 would bring a second TLS library of 2023, with known vulnerabilities, into every
//! function. This crate takes that dependency's place. It assembles method, address and headers; sending is an
//! error that says so, and no answer can exist.

use std::{convert::Infallible, fmt};

pub use http::Method;
use url::Url;

/// This module has the names under which reqwest 0.11 passes on the crate `http`.
pub mod header {
    pub use http::header::{HeaderMap, HeaderValue, IntoHeaderName};
}

/// Begins requests. It holds nothing: there is no connection to share.
#[derive(Clone, Debug, Default)]
pub struct Client(());

impl Client {
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a request; an address that is none comes up when it is built.
    pub fn request(&self, method: Method, url: impl AsRef<str>) -> RequestBuilder {
        let request = Url::parse(url.as_ref())
            .map(|url| Request { method, url, headers: header::HeaderMap::new(), body: Vec::new() })
            .map_err(Error::Address);
        RequestBuilder(request)
    }
}

/// Represents a request that is being put together, or why it cannot be.
#[derive(Debug)]
pub struct RequestBuilder(Result<Request, Error>);

impl RequestBuilder {
    fn map(self, change: impl FnOnce(&mut Request)) -> Self {
        Self(self.0.map(|mut request| {
            change(&mut request);
            request
        }))
    }

    /// Sets these headers in the place of others of the same names.
    #[must_use]
    pub fn headers(self, headers: header::HeaderMap) -> Self {
        self.map(|request| request.headers = headers)
    }

    /// Appends parameters to the address.
    #[must_use]
    pub fn query(self, parameters: &[(String, String)]) -> Self {
        self.map(|request| {
            // An empty list would leave a question mark behind.
            if !parameters.is_empty() {
                request.url.query_pairs_mut().extend_pairs(parameters);
            }
        })
    }

    #[must_use]
    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        self.map(|request| request.body = body.into())
    }

    /// Returns the finished request.
    pub fn build(self) -> Result<Request, Error> {
        self.0
    }

    /// Sends nothing.
    #[expect(clippy::unused_async, reason = "postgrest awaits it")]
    pub async fn send(self) -> Result<Response, Error> {
        self.0.and(Err(Error::NoClient))
    }
}

/// Represents a request that somebody else may send.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    url: Url,
    headers: header::HeaderMap,
    body: Vec<u8>,
}

impl Request {
    pub fn method(&self) -> &Method {
        &self.method
    }

    pub fn url(&self) -> &Url {
        &self.url
    }

    pub fn headers(&self) -> &header::HeaderMap {
        &self.headers
    }

    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

/// There is none: nothing was sent.
#[derive(Clone, Copy, Debug)]
pub struct Response(Infallible);

/// Says why there is no request, or no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Error {
    /// The address is no URL.
    Address(url::ParseError),
    /// `send` was called.
    NoClient,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(error) => write!(f, "the address cannot be used: {error}"),
            Self::NoClient => f.write_str("this build of postgrest assembles requests and sends none"),
        }
    }
}

impl std::error::Error for Error {}
