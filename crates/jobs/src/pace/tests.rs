//! Stands for the database's row of a pace where a unit test simulates several instances on tokio's own clock.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    law::{Pace, Window},
    store::{Leased, Request},
};

/// Does what `supabase/schemas/16_pace.sql` does.
pub(crate) struct Row {
    next_at: Instant,
    version: u64,
    learned: Option<Pace>,
    since: Instant,
    answered: u32,
}

impl Row {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { next_at: now, version: 0, learned: None, since: now, answered: 0 }
    }

    pub(super) fn lease(&mut self, asked: Request) -> Leased {
        let now = Instant::now();
        let wait = (asked.version == self.version).then(|| {
            self.answered += asked.answered;
            let first = self.next_at.clamp(now, now + Duration::from_mins(2));
            self.next_at = first + asked.interval * asked.count;
            first - now
        });
        let window = Window { lasted: now - self.since, answered: self.answered };
        Leased::of_memory(wait, self.version, self.learned.as_ref(), window)
    }

    pub(super) fn learn(&mut self, version: u64, learned: &Pace) -> (u64, Pace) {
        let known = match self.learned {
            Some(known) if version != self.version => known,
            known => {
                self.version += u64::from(known != Some(*learned));
                (self.since, self.answered) = (Instant::now(), 0);
                *self.learned.insert(*learned)
            }
        };
        (self.version, known)
    }
}
