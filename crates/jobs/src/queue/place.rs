//! Places: how many items of a lane ask their upstream at once, and who has a claim to one.
//!
//! An item needs its place only while it asks the upstream. Writing down what was read needs the database alone, so
//! it happens beside the next item's reading. And who reads for long leaves the place to those who wait.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// All places of a lane.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    wanted: Arc<AtomicBool>,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), wanted: Arc::default() }
    }

    /// A place, as soon as there is one.
    pub(super) fn next(&self) -> impl Future<Output = Place> + use<> {
        let (free, wanted) = (self.free.clone(), self.wanted.clone());
        async move { Place { held: free.acquire_owned().await.ok(), wanted } }
    }

    /// From now on those who have a place know whether others want it.
    pub(super) fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }
}

/// One of them, until it is left or dropped.
#[derive(Debug)]
pub struct Place {
    held: Option<OwnedSemaphorePermit>,
    wanted: Arc<AtomicBool>,
}

impl Place {
    /// The upstream is not needed any more: another item may begin.
    pub fn leave(&mut self) {
        self.held = None;
    }

    /// Whether others wait who have not had a place yet.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}
