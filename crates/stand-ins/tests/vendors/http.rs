//! A client, and answers in a form that is easy to compare.

use reqwest::{Client, RequestBuilder, header::HeaderMap};
use serde_json::Value;

pub(crate) fn client() -> Client {
    // Plain HTTP only; the client still wants to know its TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new()
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.json().await.expect("JSON");
    Answer { status, headers, body }
}
