//! Asks the database for turns and for what all instances have learned of a pace.

use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

use super::law::{Bounds, Pace, Window};
use crate::{
    deadline::Deadline,
    supabase::{Supabase, SupabaseError},
};

/// Represents the place where turns are leased.
pub(super) enum Store {
    Database(Supabase),
    /// The row stands for one database, shared by the instances of a unit test.
    #[cfg(test)]
    Memory(std::sync::Arc<std::sync::Mutex<super::tests::Row>>),
}

/// Says what is asked for.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) count: u32,
    pub(super) interval: Duration,
    /// The interval follows from this version of what is learned.
    pub(super) version: u64,
    /// Counts the requests of this version that were answered since the last lease.
    pub(super) answered: u32,
}

/// Holds what the database answered.
#[derive(Debug, Deserialize)]
pub(super) struct Leased {
    /// Says how long it is until the first turn; `None` where another version is known by now, so
    /// that nothing was leased.
    wait_us: Option<u64>,
    pub(super) version: u64,
    learned: Option<Value>,
    window_us: u64,
    answered: u32,
}

impl Leased {
    pub(super) fn wait(&self) -> Option<Duration> {
        self.wait_us.map(Duration::from_micros)
    }

    /// Returns the pace that instances have learned; the first one where nobody has, or where it cannot be read.
    pub(super) fn pace(&self, bounds: &Bounds) -> Pace {
        pace(self.learned.clone(), bounds)
    }

    pub(super) fn window(&self) -> Window {
        Window { lasted: Duration::from_micros(self.window_us), answered: self.answered }
    }
}

fn pace(learned: Option<Value>, bounds: &Bounds) -> Pace {
    let learned = learned.and_then(|learned| serde_json::from_value::<Pace>(learned).ok());
    learned.unwrap_or_else(|| Pace::first(bounds)).within(bounds)
}

impl Store {
    pub(super) async fn lease(
        &self,
        name: &str,
        asked: Request,
        deadline: &Deadline,
    ) -> Result<Leased, SupabaseError> {
        match self {
            Self::Database(supabase) => {
                let arguments = json!({
                    "p_name": name,
                    "p_count": asked.count,
                    "p_interval_us": micros(asked.interval),
                    "p_version": asked.version,
                    "p_answered": asked.answered,
                });
                supabase.rpc("jobs_lease_turns", &arguments, deadline).await
            }
            #[cfg(test)]
            Self::Memory(row) => Ok(row.lock().unwrap().lease(asked)),
        }
    }

    /// Stores a pace that was decided from `version`, unless another one is known by now. Returns what is known then.
    pub(super) async fn learn(
        &self,
        name: &str,
        version: u64,
        learned: &Pace,
        bounds: &Bounds,
        deadline: &Deadline,
    ) -> Result<(u64, Pace), SupabaseError> {
        #[derive(Deserialize)]
        struct Known {
            version: u64,
            learned: Option<Value>,
        }
        match self {
            Self::Database(supabase) => {
                let arguments = json!({"p_name": name, "p_version": version, "p_learned": learned});
                let known: Known = supabase.rpc("jobs_learn_pace", &arguments, deadline).await?;
                Ok((known.version, pace(known.learned, bounds)))
            }
            #[cfg(test)]
            Self::Memory(row) => Ok(row.lock().unwrap().learn(version, learned)),
        }
    }

    /// Lets no turn come before `wait` is over.
    pub(super) async fn hold(&self, name: &str, wait: Duration, deadline: &Deadline) {
        match self {
            Self::Database(supabase) => {
                let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
                let arguments = json!({"p_name": name, "p_wait_ms": wait});
                // What fails here is logged where it fails; the process waits all the same.
                let _held: Result<(), _> = supabase.rpc("jobs_hold_turns", &arguments, deadline).await;
            }
            #[cfg(test)]
            Self::Memory(_) => {}
        }
    }
}

fn micros(span: Duration) -> i32 {
    i32::try_from(span.as_micros()).unwrap_or(i32::MAX)
}

#[cfg(test)]
impl Leased {
    pub(super) fn of_memory(
        wait: Option<Duration>,
        version: u64,
        pace: Option<&Pace>,
        window: Window,
    ) -> Self {
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap();
        Self {
            wait_us: wait.map(micros),
            version,
            learned: pace.map(|pace| serde_json::to_value(pace).unwrap()),
            window_us: micros(window.lasted),
            answered: window.answered,
        }
    }
}
