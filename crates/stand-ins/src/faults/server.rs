//! The server that records each request and does to it what the faults say.

use std::{io, net::SocketAddr, time::Instant};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode, header},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Fault, InjectedFaults, Remembered, Seen};

/// Represents a running server; it stops, with its connections, when this is dropped.
pub struct Server {
    addr: SocketAddr,
    faults: InjectedFaults,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Returns `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns the faults of this server.
    pub fn faults(&self) -> &InjectedFaults {
        &self.faults
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Serves `router` on a free port of the loopback interface (or on `port`).
///
/// # Errors
/// When the port cannot be bound.
pub async fn serve(router: Router, port: Option<u16>) -> io::Result<Server> {
    let listener = TcpListener::bind(("127.0.0.1", port.unwrap_or(0))).await?;
    let addr = listener.local_addr()?;
    let faults = InjectedFaults::default();
    let shared = faults.clone();
    let accepting = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            while connections.try_join_next().is_some() {}
            let service = tower::service_fn({
                let (router, faults) = (router.clone(), shared.clone());
                move |request| answer(router.clone(), faults.clone(), request)
            });
            connections.spawn(async move {
                // A cut connection ends here with the error that `answer` returned.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                    .await;
            });
        }
    });
    Ok(Server { addr, faults, accepting })
}

async fn answer(
    router: Router,
    faults: InjectedFaults,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Body>, io::Error> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(Body::new(body), usize::MAX).await.map_err(io::Error::other)?;
    let target = parts.uri.path_and_query().map_or_else(|| "/".into(), ToString::to_string);
    let (fault, round_trip, mut cleared) = faults.meet(Seen {
        method: parts.method.clone(),
        target: target.clone(),
        headers: parts.headers.clone(),
        body: String::from_utf8_lossy(&body).into_owned(),
        at: Instant::now(),
    });
    if !round_trip.is_zero() {
        tokio::time::sleep(round_trip).await;
    }
    let cut = || io::Error::new(io::ErrorKind::ConnectionAborted, "cut on purpose");
    match fault {
        Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
        Some(Fault::Held) => cleared.changed().await.map_err(io::Error::other)?,
        Some(Fault::CutBefore) => return Err(cut()),
        Some(Fault::Answer { status, headers, body }) => {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = StatusCode::from_u16(status).map_err(io::Error::other)?;
            for (name, value) in headers {
                response.headers_mut().insert(
                    header::HeaderName::from_bytes(name.as_bytes()).map_err(io::Error::other)?,
                    value.parse().map_err(io::Error::other)?,
                );
            }
            return Ok(response);
        }
        Some(Fault::CutAfter | Fault::Late(_)) | None => {}
    }
    let key = faults.memory_key(&parts, &target, &body);
    if let Some(Remembered { status, headers, body }) = key.as_deref().and_then(|key| faults.remembered(key))
    {
        let mut response = Response::new(Body::from(body));
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        return Ok(response);
    }
    let response = tower::ServiceExt::oneshot(router, Request::from_parts(parts, Body::from(body)))
        .await
        .map_err(io::Error::other)?;
    if matches!(fault, Some(Fault::CutAfter)) {
        // The work must have been done: read the answer to its end before dropping it.
        let _ = axum::body::to_bytes(response.into_body(), usize::MAX).await;
        return Err(cut());
    }
    if let Some(Fault::Late(delay)) = fault {
        faults.state().late += 1;
        tokio::time::sleep(delay).await;
    }
    let Some(key) = key else { return Ok(response) };
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.map_err(io::Error::other)?;
    if parts.status.is_success() {
        let answer = Remembered { status: parts.status, headers: parts.headers.clone(), body: body.clone() };
        faults.remember(key, answer);
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}
