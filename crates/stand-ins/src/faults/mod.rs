//! HTTP servers that misbehave on demand.
//!
//! Every server of the stack (the Supabase gateway, the Resend proxy, the Stripe and Shopify stand-ins) is an
//! axum [`Router`](axum::Router) behind [`serve`], which records each request and applies the [`Fault`]s a test has put in:
//! slow answers, refusals, connections cut before or after the work was done.

mod server;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderValue, Method, StatusCode, request::Parts},
};
use tokio::sync::watch;

pub use self::server::{Server, serve};

/// Says what happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The answer starts this much later; the work is done.
    Delay(Duration),
    /// The request is answered with this instead; the work is not done.
    Answer { status: u16, headers: Vec<(String, String)>, body: String },
    /// The connection closes without an answer; the work is not done.
    CutBefore,
    /// The connection closes without an answer, after the work was done.
    CutAfter,
    /// Nothing happens until the rules are cleared; then the work is done.
    Held,
    /// The work is done at once; its answer starts this much later.
    Late(Duration),
}

impl Fault {
    /// Makes a JSON answer with this status.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        let headers = vec![("content-type".into(), "application/json".into())];
        Self::Answer { status, headers, body: body.to_string() }
    }
}

/// Represents which requests a fault hits, and how often.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Restricts the fault to this method; `None` restricts nothing.
    pub method: Option<Method>,
    /// Is a part of the path and query; the empty string matches all.
    pub contains: String,
    /// Is a part of the body; the empty string matches all.
    pub body_contains: String,
    /// Is a part of a header's value, for instance an account or its token; the empty string matches all.
    pub header_contains: String,
    /// Leaves this many matching requests alone first.
    pub skip: usize,
    /// Hits this many after those, or all when `None`.
    pub times: Option<usize>,
    /// Holds what happens to them.
    pub fault: Fault,
}

impl Rule {
    /// Hits every request whose path and query contain `contains`.
    pub fn on(contains: &str, fault: Fault) -> Self {
        Self {
            method: None,
            contains: contains.into(),
            body_contains: String::new(),
            header_contains: String::new(),
            skip: 0,
            times: None,
            fault,
        }
    }

    /// Hits only the first `n` of them.
    #[must_use]
    pub fn times(mut self, n: usize) -> Self {
        self.times = Some(n);
        self
    }

    /// Leaves the first `n` of them alone.
    #[must_use]
    pub fn skip(mut self, n: usize) -> Self {
        self.skip = n;
        self
    }

    /// Hits only requests whose body contains this.
    #[must_use]
    pub fn body(mut self, contains: &str) -> Self {
        self.body_contains = contains.into();
        self
    }

    /// Hits only requests one of whose headers contains this: of an account, whose token holds its name, too.
    #[must_use]
    pub fn of(mut self, contains: &str) -> Self {
        self.header_contains = contains.into();
        self
    }
}

/// Represents a request as it came in.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    /// Holds path and query.
    pub target: String,
    pub headers: HeaderMap,
    pub body: String,
    pub at: Instant,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    bodies_dropped: bool,
    round_trip: Duration,
    /// Answers that were late so far, or are still held back.
    late: usize,
    /// Says how often the rules were cleared.
    cleared: watch::Sender<usize>,
    /// Answers by their requests, where they are remembered.
    memory: Option<HashMap<String, Remembered>>,
}

#[derive(Clone)]
struct Remembered {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// The faults of one server, and the requests it has seen. Clones share both.
#[derive(Clone, Default)]
pub struct InjectedFaults(Arc<Mutex<State>>);

impl InjectedFaults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule; the first rule that matches a request wins.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Takes all rules away, and lets go what is held; the record of requests stays.
    pub fn clear(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.cleared.send_modify(|times| *times += 1);
    }

    /// Every answer comes this much later: the network between us and the real service.
    pub fn set_round_trip(&self, round_trip: Duration) {
        self.state().round_trip = round_trip;
    }

    /// Returns all requests so far, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Returns how many requests had `contains` in their path and query.
    pub fn count(&self, contains: &str) -> usize {
        self.state().seen.iter().filter(|s| s.target.contains(contains)).count()
    }

    /// Returns how many answers have come late, or will: what they answer is done.
    pub fn late(&self) -> usize {
        self.state().late
    }

    /// From now on requests are recorded without their bodies; rules still see these.
    pub fn drop_bodies(&self) {
        self.state().bodies_dropped = true;
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.state().seen.clear();
    }

    /// Remembers answers: from now on a request that was made before gets the answer that it got
    /// then, without any work: for benchmarks, in which the server must not be what is measured.
    /// Only for servers whose answers do not depend on when they are asked.
    pub fn remember_answers(&self) {
        self.state().memory.get_or_insert_default();
    }

    /// Returns how the answer to this request is remembered; `None` where answers are not.
    fn memory_key(&self, parts: &Parts, target: &str, body: &[u8]) -> Option<String> {
        self.state().memory.as_ref()?;
        let mut key = format!("{} {target}", parts.method);
        for name in ["authorization", "stripe-account", "x-shopify-access-token"] {
            let value = parts.headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
            key.push('\n');
            key.push_str(&String::from_utf8_lossy(value));
        }
        key.push('\n');
        key.push_str(&String::from_utf8_lossy(body));
        Some(key)
    }

    fn remembered(&self, key: &str) -> Option<Remembered> {
        self.state().memory.as_ref()?.get(key).cloned()
    }

    fn remember(&self, key: String, answer: Remembered) {
        if let Some(memory) = &mut self.state().memory {
            memory.insert(key, answer);
        }
    }

    /// Records the request and says what is to happen to it, after which round trip, and what tells that the rules
    /// were cleared since.
    fn meet(&self, mut seen: Seen) -> (Option<Fault>, Duration, watch::Receiver<usize>) {
        let mut state = self.state();
        let mut fault = None;
        for rule in &mut state.rules {
            let hit = rule.method.as_ref().is_none_or(|m| *m == seen.method)
                && seen.target.contains(&rule.contains)
                && seen.body.contains(&rule.body_contains)
                && (rule.header_contains.is_empty()
                    || seen.headers.values().any(|value| {
                        value.to_str().is_ok_and(|value| value.contains(&rule.header_contains))
                    }));
            if !hit || rule.times == Some(0) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if let Some(left) = &mut rule.times {
                *left -= 1;
            }
            fault = Some(rule.fault.clone());
            break;
        }
        if state.bodies_dropped {
            seen.body = String::new();
        }
        state.seen.push(seen);
        (fault, state.round_trip, state.cleared.subscribe())
    }
}
