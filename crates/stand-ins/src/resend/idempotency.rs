//! Idempotency keys: one piece of work for a key, whoever asks and however often.
//!
//! After <https://resend.com/docs/dashboard/emails/idempotency-keys>. Where it leaves something open, this is
//! the strictest reading: a payload is the same when its bytes are, and a key belongs to the endpoint it was
//! first used on.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{DefaultHasher, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::HeaderMap;
use serde_json::Value;

use super::refusals::Refusal;

const LONGEST: usize = 256;

/// Returns the key of a request, if it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=LONGEST).contains(&key.len()) => Ok(Some(key.into())),
        _ => Err(Refusal::new(400, "invalid_idempotency_key", "The key must be between 1-256 chars.")),
    }
}

/// Stands for a payload, which may be large: its length and its hash. Not a cryptographic one: unoptimised,
/// that took most of the time of a request, and nobody here forges payloads.
#[derive(PartialEq, Eq)]
struct Fingerprint(usize, u64);

impl Fingerprint {
    fn of(payload: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(payload);
        Self(payload.len(), hasher.finish())
    }
}

struct Known {
    endpoint: String,
    payload: Fingerprint,
    /// Is `None` while the first request is under way.
    answer: Option<Value>,
}

/// Holds the keys that are known.
#[derive(Clone, Default)]
pub(super) struct Keys(Arc<Mutex<HashMap<String, Known>>>);

/// Says what a key is good for.
pub(super) enum Claim {
    /// The work is ours to do.
    Ours(Held),
    /// It was done: this was the answer.
    Done(Value),
}

impl Keys {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn claim(&self, key: String, endpoint: &str, payload: &[u8]) -> Result<Claim, Refusal> {
        let payload = Fingerprint::of(payload);
        match self.known().entry(key.clone()) {
            Entry::Occupied(known) => match known.get() {
                Known { answer: None, .. } => Err(Refusal::concurrent()),
                known if known.endpoint != endpoint || known.payload != payload => Err(Refusal::new(
                    409,
                    "invalid_idempotent_request",
                    "Same idempotency key used with a different request payload.",
                )),
                Known { answer: Some(answer), .. } => Ok(Claim::Done(answer.clone())),
            },
            Entry::Vacant(place) => {
                place.insert(Known { endpoint: endpoint.into(), payload, answer: None });
                Ok(Claim::Ours(Held { keys: self.clone(), key }))
            }
        }
    }

    /// As if a day had passed: the keys that have an answer are free again.
    pub(super) fn forget(&self) {
        self.known().retain(|_, known| known.answer.is_none());
    }
}

/// Represents a key whose work is under way. Dropped without an answer, it is free again.
pub(super) struct Held {
    keys: Keys,
    key: String,
}

impl Held {
    pub(super) fn settle(self, answer: &Value) {
        if let Some(known) = self.keys.known().get_mut(&self.key) {
            known.answer = Some(answer.clone());
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut known = self.keys.known();
        if known.get(&self.key).is_some_and(|known| known.answer.is_none()) {
            known.remove(&self.key);
        }
    }
}
