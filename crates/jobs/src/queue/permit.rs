//! Permits: how many items of a lane ask their upstream at once, as with [`tokio::sync::Semaphore`].
//!
//! An item needs its permit only while it asks the upstream. Writing down what was read needs the database alone, so
//! that happens while the next item is being read. An item that reads for long releases its permit to those that wait.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Holds all permits of a lane.
#[derive(Debug)]
pub(super) struct Permits {
    semaphore: Arc<Semaphore>,
    wanted: Arc<AtomicBool>,
}

impl Permits {
    pub(super) fn new(count: usize) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(count)), wanted: Arc::default() }
    }

    /// Waits for a permit.
    pub(super) fn acquire(&self) -> impl Future<Output = Permit> + use<> {
        let (semaphore, wanted) = (self.semaphore.clone(), self.wanted.clone());
        async move { Permit { held: semaphore.acquire_owned().await.ok(), wanted } }
    }

    /// Tells those who hold a permit whether others wait for one.
    pub(super) fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }
}

/// Represents one permit, held until it is released or dropped.
#[derive(Debug)]
pub struct Permit {
    held: Option<OwnedSemaphorePermit>,
    wanted: Arc<AtomicBool>,
}

impl Permit {
    /// Lets another item begin: this one does not need the upstream any more.
    pub fn release(&mut self) {
        self.held = None;
    }

    /// Returns whether items wait that have not had a permit yet.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}
