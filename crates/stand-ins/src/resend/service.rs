//! What the service does with a request, in its order: who asks, how fast, whether it was asked before,
//! whether the mails are valid, whether the quota allows them; then they are kept.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header},
    response::IntoResponse,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    emulator::Emulator,
    idempotency::{self, Claim, Keys},
    limits::Meter,
    mail::{self, Accepted, Place, Valid},
    refusals::Refusal,
};
use crate::clock::Clock;

/// Resend documents this as the most mails in a batch.
const LARGEST_BATCH: usize = 100;

/// Represents one account at the service.
pub(super) struct Service {
    pub(super) key: String,
    /// Names where the mails go too; `None` where only the books keep them.
    pub(super) emulator: Option<Emulator>,
    pub(super) keys: Keys,
    clock: Clock,
    books: Mutex<Books>,
}

#[derive(Default)]
pub(super) struct Books {
    pub(super) meter: Meter,
    pub(super) accepted: Vec<Arc<Accepted>>,
    /// Holds addresses that are refused although they look valid, in lower case.
    pub(super) refused: HashSet<String>,
    /// Says how long a request that sends takes.
    pub(super) work: Duration,
    pub(super) contents_dropped: bool,
    /// Holds the state of domains that a test has chosen.
    pub(super) domains: BTreeMap<String, String>,
}

/// The account may send the mails of these domains: the tests' and the demonstration's.
const VERIFIED: [&str; 2] = ["comptalyze.example", "comptalyze.exemple.fr"];

pub(super) fn router(service: Arc<Service>) -> Router {
    Router::new().fallback(answer).with_state(service)
}

async fn answer(State(service): State<Arc<Service>>, request: Request<Body>) -> Response<Body> {
    if request.headers().get(header::USER_AGENT).is_none_or(HeaderValue::is_empty) {
        // Not the API's own answer but that of what stands in front of it.
        return (StatusCode::FORBIDDEN, "error code: 1010").into_response();
    }
    let mut response = handle(&service, request).await.unwrap_or_else(IntoResponse::into_response);
    service.books().meter.stamp(response.headers_mut());
    response
}

async fn handle(service: &Arc<Service>, request: Request<Body>) -> Result<Response<Body>, Refusal> {
    service.admit(request.headers())?;
    service.books().meter.request()?;
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::POST, "/emails" | "/emails/batch") => {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.map_err(|e| unexpected(e.into()))?;
            let service = service.clone();
            // A caller that hangs up does not stop the service.
            let work = tokio::spawn(async move { service.send(&path, &parts.headers, &body).await });
            work.await.map_err(|e| unexpected(e.into()))?.map(|answer| Json(answer).into_response())
        }
        (&Method::GET, "/domains") => Ok(Json(service.books().domains()).into_response()),
        (&Method::GET, "/usage") => {
            Ok(Json(service.books().meter.usage(service.clock.now())).into_response())
        }
        _ => match &service.emulator {
            Some(emulator) => emulator.pass_on(request).await.map_err(unexpected),
            None => Err(Refusal::new(404, "not_found", "The requested endpoint does not exist.")),
        },
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unexpected(error: anyhow::Error) -> Refusal {
    Refusal::application_error(&error)
}

impl Books {
    /// Answers "List domains" as the service does.
    fn domains(&self) -> Value {
        let mut states = BTreeMap::from(VERIFIED.map(|name| (name, "verified")));
        states.extend(self.domains.iter().map(|(name, state)| (name.as_str(), state.as_str())));
        let data: Vec<Value> = states
            .into_iter()
            .map(|(name, status)| {
                json!({
                    "id": Uuid::new_v4(), "name": name, "status": status, "created_at": "2026-01-01 00:00:00+00",
                    "region": "eu-west-1", "capabilities": {"sending": "enabled", "receiving": "disabled"},
                })
            })
            .collect();
        json!({"object": "list", "has_more": false, "data": data})
    }
}

impl Service {
    pub(super) fn new(emulator: Option<Emulator>, clock: Clock) -> Self {
        let key = format!("re_{}", Uuid::new_v4().simple());
        Self { key, emulator, keys: Keys::default(), clock, books: Mutex::default() }
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let key = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match key {
            None => Err(Refusal::new(401, "missing_api_key", "Missing API Key")),
            Some(key) if key != self.key => Err(Refusal::new(403, "invalid_api_key", "API key is invalid")),
            Some(_) => Ok(()),
        }
    }

    /// Answers `POST /emails` or `POST /emails/batch`.
    async fn send(&self, path: &str, headers: &HeaderMap, body: &Bytes) -> Result<Value, Refusal> {
        let key = idempotency::key(headers)?;
        let held = match &key {
            None => None,
            Some(key) => match self.keys.claim(key.clone(), path, body)? {
                Claim::Done(answer) => return Ok(answer),
                Claim::Ours(held) => Some(held),
            },
        };
        let work = self.books().work;
        if !work.is_zero() {
            tokio::time::sleep(work).await;
        }
        let answer = if path == "/emails" {
            let sent = parse(body)?;
            let valid = mail::check(&sent, Place::Alone, self.clock.now(), &self.books().refused)?;
            let ids = self.keep(vec![(&sent, valid)], key.as_deref()).await?;
            json!({"id": ids[0]})
        } else {
            self.send_batch(headers, body, key.as_deref()).await?
        };
        if let Some(held) = held {
            held.settle(&answer);
        }
        Ok(answer)
    }

    async fn send_batch(
        &self,
        headers: &HeaderMap,
        body: &Bytes,
        key: Option<&str>,
    ) -> Result<Value, Refusal> {
        let permissive = match headers.get("x-batch-validation").map(HeaderValue::as_bytes) {
            None | Some(b"strict") => false,
            Some(b"permissive") => true,
            Some(_) => {
                return Err(Refusal::invalid("`x-batch-validation` must be `strict` or `permissive`."));
            }
        };
        let Value::Array(sent) = parse(body)? else {
            return Err(Refusal::invalid("The request body must be an array of emails."));
        };
        if !(1..=LARGEST_BATCH).contains(&sent.len()) {
            return Err(Refusal::invalid("A batch must have between 1 and 100 emails."));
        }
        let (mut mails, mut errors) = (Vec::with_capacity(sent.len()), Vec::new());
        for (index, sent) in sent.iter().enumerate() {
            match mail::check(sent, Place::InBatch, self.clock.now(), &self.books().refused) {
                Ok(valid) => mails.push((sent, valid)),
                Err(refusal) if permissive => {
                    errors.push(json!({"index": index, "message": refusal.message}));
                }
                Err(refusal) => return Err(refusal),
            }
        }
        let ids = self.keep(mails, key).await?;
        let data: Vec<_> = ids.into_iter().map(|id| json!({"id": id})).collect();
        Ok(if permissive { json!({"data": data, "errors": errors}) } else { json!({"data": data}) })
    }

    /// Keeps these mails, all or none; their ids.
    async fn keep(&self, mails: Vec<(&Value, Valid)>, key: Option<&str>) -> Result<Vec<String>, Refusal> {
        if mails.is_empty() {
            return Ok(Vec::new());
        }
        let recipients = mails.iter().map(|(_, valid)| valid.recipients).sum();
        self.books().meter.reserve(recipients)?;
        let sent: Vec<_> = mails.iter().map(|(sent, _)| *sent).collect();
        let ids = match &self.emulator {
            Some(emulator) => emulator.keep(&sent).await,
            None => Ok(sent.iter().map(|_| Uuid::new_v4().to_string()).collect()),
        };
        let mut books = self.books();
        let ids = ids.map_err(|error| {
            books.meter.give_back(recipients);
            unexpected(error)
        })?;
        let at = Instant::now();
        for ((_, valid), id) in mails.into_iter().zip(&ids) {
            let mut mail = valid.with_id(id.clone());
            if books.contents_dropped {
                (mail.html, mail.text) = (None, None);
            }
            books.accepted.push(Arc::new(Accepted { mail, key: key.map(Into::into), at }));
        }
        Ok(ids)
    }
}

fn parse(body: &Bytes) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::invalid(format!("The body is not JSON: {error}.")))
}
