//! One address in front of functions that come and go: the deployment's own, as it is called by itself.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{Router, body::Body, extract::State, http::Request, http::StatusCode, response::Response};

use crate::faults::{InjectedFaults, Server, serve};
use processes::proxy::Upstream;

/// Represents a running relay; it stops when this is dropped.
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

    /// Passes requests, from now on, to those who listen on these ports, by turns.
    pub fn pass_to(&self, ports: impl IntoIterator<Item = u16>) {
        lock(&self.behind).servers = ports.into_iter().map(Upstream::new).collect();
    }

    /// Returns `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Returns the injected faults and the recorded requests.
    pub fn faults(&self) -> &InjectedFaults {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::faults::{Fault, Rule};

    fn port(url: &str) -> u16 {
        url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    async fn ask(relay: &Relay) -> u16 {
        let answer = Upstream::new(port(&relay.url())).send(Request::new(Body::empty())).await;
        answer.expect("an answer").status().as_u16()
    }

    #[tokio::test]
    async fn those_behind_are_asked_by_turns() {
        let relay = Relay::start().await.unwrap();
        assert_eq!(ask(&relay).await, 502, "nobody is there");
        let router = || Router::new().fallback(|| async { "here" });
        let servers = [serve(router(), None).await.unwrap(), serve(router(), None).await.unwrap()];
        relay.pass_to(servers.iter().map(|server| port(&server.url())));
        for _ in 0..4 {
            assert_eq!(ask(&relay).await, 200);
        }
        assert_eq!(servers.each_ref().map(|server| server.faults().count("")), [2, 2]);
    }

    #[tokio::test]
    async fn what_is_held_is_done_when_it_is_let_go_and_what_is_late_before_it_is_told() {
        let relay = Relay::start().await.unwrap();
        let server = serve(Router::new().fallback(|| async { "here" }), None).await.unwrap();
        relay.pass_to([port(&server.url())]);
        relay.faults().add(Rule::on("", Fault::Held).times(1));
        let begun = async {
            while relay.faults().count("") == 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(server.faults().count(""), 0);
            relay.faults().clear();
        };
        assert_eq!(tokio::join!(ask(&relay), begun).0, 200);
        relay.faults().add(Rule::on("", Fault::Late(Duration::from_mins(5))).times(1));
        let done = async {
            while relay.faults().late() == 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(server.faults().count(""), 2, "done, and not told");
        };
        tokio::select! {
            _ = ask(&relay) => panic!("it was late"),
            () = done => {}
        }
    }
}
