//! One address in front of functions that come and go: the deployment's own, as it is called by itself.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{Router, body::Body, extract::State, http::Request, http::StatusCode, response::Response};

use crate::{
    faults::{Faults, Server, serve},
    proxy::Upstream,
};

/// A running relay; it stops when this is dropped.
pub struct Relay {
    server: Server,
    behind: Shared,
}

type Shared = Arc<Mutex<Behind>>;

#[derive(Default)]
struct Behind {
    servers: Vec<Upstream>,
    turn: usize,
}

fn lock(behind: &Shared) -> MutexGuard<'_, Behind> {
    behind.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    /// Starts one on a free port, with nobody behind it.
    pub async fn start() -> io::Result<Self> {
        let behind = Shared::default();
        let router = Router::new().fallback(pass_on).with_state(behind.clone());
        Ok(Self { server: serve(router, None).await?, behind })
    }

    /// From now on requests go to those who listen on these ports, by turns.
    pub fn pass_to(&self, ports: impl IntoIterator<Item = u16>) {
        lock(&self.behind).servers = ports.into_iter().map(Upstream::new).collect();
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Faults and recorded requests.
    pub fn faults(&self) -> &Faults {
        self.server.faults()
    }
}

async fn pass_on(State(behind): State<Shared>, request: Request<Body>) -> Result<Response, StatusCode> {
    let server = {
        let mut behind = lock(&behind);
        behind.turn += 1;
        let turn = behind.turn.checked_rem(behind.servers.len());
        turn.map(|turn| behind.servers[turn].clone())
    };
    let answer = server.ok_or(StatusCode::BAD_GATEWAY)?.send(request).await;
    answer.map_err(|_| StatusCode::BAD_GATEWAY)
}
