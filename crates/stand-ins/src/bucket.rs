//! The leaky bucket behind the vendors' rate limits.

use std::time::Instant;

/// Holds at most `capacity` points and gets `per_second` of them back each second.
#[derive(Debug)]
pub(crate) struct Bucket {
    capacity: f64,
    per_second: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(capacity: f64, per_second: f64) -> Self {
        Self { capacity, per_second, level: capacity, at: Instant::now() }
    }

    pub(crate) fn capacity(&self) -> f64 {
        self.capacity
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.per_second
    }

    /// Returns what is in it now.
    pub(crate) fn level(&mut self) -> f64 {
        let now = Instant::now();
        let back = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.level = (self.level + back).min(self.capacity);
        self.at = now;
        self.level
    }

    /// Takes `points` out; `false`, and nothing taken, when there are not as many.
    pub(crate) fn take(&mut self, points: f64) -> bool {
        let enough = self.level() >= points;
        if enough {
            self.level -= points;
        }
        enough
    }

    /// Puts `points` back.
    pub(crate) fn give_back(&mut self, points: f64) {
        self.level = (self.level + points).min(self.capacity);
    }
}
