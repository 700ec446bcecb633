//! The time of day of the stand-ins: the machine's, until a test sets another.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};

/// Represents a clock that stand-ins share: clones show the same time. It stands still where it was
/// set.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Mutex<Option<DateTime<Utc>>>>);

impl Clock {
    pub fn now(&self) -> DateTime<Utc> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Utc::now)
    }

    /// Sets the time for everybody who has this clock.
    pub fn set(&self, at: DateTime<Utc>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }
}
