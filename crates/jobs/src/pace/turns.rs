//! Counts the turns that a process has leased and not taken yet. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Holds turns that come one after the other.
#[derive(Debug, Default)]
pub(super) struct Turns {
    next: Option<Instant>,
    left: u32,
}

impl Turns {
    pub(super) fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Adds `count` turns, the first at `first`: what was leased before, or held back, is not asked for earlier.
    pub(super) fn lease(&mut self, first: Instant, count: u32) {
        self.hold_back(first);
        self.left = count;
    }

    /// Drops what is left.
    pub(super) fn clear(&mut self) {
        self.left = 0;
    }

    /// Lets no turn come before `earliest`.
    pub(super) fn hold_back(&mut self, earliest: Instant) {
        self.next = Some(self.next.map_or(earliest, |next| next.max(earliest)));
    }

    /// Drops the turns whose time has passed.
    pub(super) fn forget_passed(&mut self, interval: Duration, now: Instant) {
        while let Some(next) = self.next.filter(|next| self.left > 0 && *next + interval < now) {
            self.next = Some(next + interval);
            self.left -= 1;
        }
    }

    /// Returns when the next turn comes.
    pub(super) fn next(&self, now: Instant) -> Instant {
        self.next.unwrap_or(now)
    }

    /// Takes the turn that comes `at`.
    pub(super) fn take(&mut self, at: Instant, interval: Duration) {
        self.next = Some(at + interval);
        self.left = self.left.saturating_sub(1);
    }

    /// Gives back the turn that came `at`, unless the next one has been taken already.
    pub(super) fn give_back(&mut self, at: Instant, interval: Duration) {
        if self.next == Some(at + interval) {
            self.next = Some(at);
            self.left += 1;
        }
    }
}
