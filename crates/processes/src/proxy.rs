//! Passes requests on to a server of the stack.

use std::time::Duration;

use anyhow::{Context, Result};
use axum::{
    body::Body,
    http::{Request, Response, Uri, header, uri::PathAndQuery},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

/// These headers concern one connection only.
const HOP_BY_HOP: &[header::HeaderName] =
    &[header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE, header::TRAILER];

/// Represents a server on a port of ours, with connections kept open. Clones share them.
#[derive(Clone, Debug)]
pub struct Upstream {
    authority: String,
    client: Client<HttpConnector, Body>,
}

impl Upstream {
    pub fn new(port: u16) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            // Shorter than what the servers behind us keep an idle connection for.
            .pool_idle_timeout(Duration::from_secs(10))
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector);
        Self { authority: format!("127.0.0.1:{port}"), client }
    }

    /// Sends the request to this server; the answer's body streams.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>> {
        let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::builder()
            .scheme("http")
            .authority(self.authority.as_str())
            .path_and_query(path)
            .build()
            .context("cannot pass on this path")?;
        let headers = request.headers_mut();
        headers.remove(header::HOST);
        for name in HOP_BY_HOP {
            headers.remove(name);
        }
        let mut response = self.client.request(request).await.context("the server behind does not answer")?;
        for name in HOP_BY_HOP {
            response.headers_mut().remove(name);
        }
        Ok(response.map(Body::new))
    }
}
