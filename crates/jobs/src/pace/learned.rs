//! Finds out how fast a provider may be asked, together with all other instances.
//!
//! What is learned is kept in the database with a version. Turns are leased for a version; whoever has an older one is
//! told the newer, and asks again. A decision is stored only if nobody has decided since. A process that is refused slows
//! down at once, before it tells the database: turns that it took at the faster pace are void. Turns that come late,
//! because several instances have leased theirs, are confirmed before they are taken: meanwhile one of the others may have
//! been refused.
//!
//! Only the database's clock counts, and only spans of time are exchanged with it. Turns that a process has leased and does
//! not live to take are lost, and nobody waits for more than them.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    law::{Bounds, Pace},
    shared::turns_in,
    store::{Request, Store},
    turns::Turns,
};
use crate::{
    deadline::{Deadline, OutOfTime},
    supabase::Supabase,
};

/// So much is leased at once: what others have leased keeps the pace that it had.
const LEASED: Duration = Duration::from_millis(250);
/// A turn is leased so long before it is needed.
const AHEAD: Duration = Duration::from_millis(100);
/// Others may learn something between our question and our answer, but not each time.
const TRIES: u32 = 3;

/// Paces the requests to one provider. Create one per process and provider.
pub struct LearnedPace {
    store: Store,
    name: &'static str,
    bounds: Bounds,
    /// Is locked while turns are leased: whoever needs one waits for the same lease.
    block: tokio::sync::Mutex<Block>,
    known: Mutex<Known>,
}

/// Represents the permission to make one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LearnedTurn {
    version: u64,
    cuts: u64,
}

/// Holds turns that were leased together.
struct Block {
    turns: Turns,
    interval: Duration,
    turn: LearnedTurn,
}

/// Holds what this process knows of the pace.
struct Known {
    version: u64,
    pace: Pace,
    /// Counts how often the pace became slower, as seen from here: turns from before are void.
    cuts: u64,
    /// Counts the requests of this version that were answered since the last lease.
    answered: u32,
}

impl LearnedPace {
    /// Creates a pace that knows nothing yet.
    pub fn new(supabase: Supabase, name: &'static str, bounds: Bounds) -> Self {
        Self::over(Store::Database(supabase), name, bounds)
    }

    fn over(store: Store, name: &'static str, bounds: Bounds) -> Self {
        let known = Known { version: 0, pace: Pace::first(&bounds), cuts: 0, answered: 0 };
        let block = Block { turns: Turns::default(), interval: known.pace.interval(), turn: known.turn() };
        Self { store, name, bounds, block: tokio::sync::Mutex::new(block), known: Mutex::new(known) }
    }

    /// Creates a pace over the row of a simulated database.
    #[cfg(test)]
    pub(crate) fn simulated(row: &std::sync::Arc<Mutex<super::tests::Row>>, bounds: Bounds) -> Self {
        Self::over(Store::Memory(row.clone()), "simulated", bounds)
    }

    /// Waits for the next turn; refuses at once where it would come too late.
    pub async fn turn(&self, deadline: &Deadline) -> Result<LearnedTurn, OutOfTime> {
        loop {
            let (at, turn) = {
                let mut block = self.block.lock().await;
                let interval = block.interval;
                block.turns.forget_passed(interval, Instant::now());
                if self.is_void(block.turn) {
                    block.turns.clear();
                }
                if block.turns.is_empty() {
                    // Not earlier: turns that are taken long before their time keep a pace that is no more.
                    let next = block.turns.next(Instant::now());
                    let ahead = next.saturating_duration_since(Instant::now());
                    deadline.sleep(ahead.saturating_sub(AHEAD)).await?;
                    self.lease(&mut block, deadline).await;
                }
                let now = Instant::now();
                let (at, interval) = (block.turns.next(now), block.interval);
                if !deadline.allows(at.saturating_duration_since(now)) {
                    return Err(OutOfTime);
                }
                block.turns.take(at, interval);
                (at, block.turn)
            };
            deadline.sleep(at.saturating_duration_since(Instant::now())).await?;
            if !self.is_void(turn) {
                return Ok(turn);
            }
        }
    }

    /// Notes that the request of this turn was answered, and not refused for its pace.
    pub fn answered(&self, turn: LearnedTurn) {
        let mut known = self.known();
        if turn.version == known.version {
            known.answered = known.answered.saturating_add(1);
        }
    }

    /// Slows down: the provider has refused the request of this turn for its pace.
    pub async fn refused(&self, turn: LearnedTurn, deadline: &Deadline) {
        self.slow_down(turn, |pace, bounds| Some(pace.refused(bounds)), deadline).await;
    }

    /// Doubts the pace: the provider has refused the request of this turn, and it is not clear yet for whose pace.
    pub async fn doubted(&self, turn: LearnedTurn, deadline: &Deadline) {
        self.slow_down(turn, Pace::doubted, deadline).await;
    }

    async fn slow_down(
        &self,
        turn: LearnedTurn,
        slower_than: fn(Pace, &Bounds) -> Option<Pace>,
        deadline: &Deadline,
    ) {
        let (mut version, mut before, mut slower) = {
            let mut known = self.known();
            if turn.cuts < known.cuts {
                return;
            }
            let before = known.pace;
            let Some(slower) = slower_than(before, &self.bounds) else { return };
            known.pace = slower;
            known.cuts += u64::from(slower.is_slower_than(&before));
            (known.version, before, slower)
        };
        if slower.is_slower_than(&before) {
            tracing::info!(
                pace = self.name,
                per_second = slower.per_second(),
                "refused: the pace is slower now"
            );
        }
        for _ in 0..TRIES {
            let learned = self.store.learn(self.name, version, &slower, &self.bounds, deadline).await;
            // What fails here is logged where it fails; this process is slower all the same.
            let Ok((now, pace)) = learned else { return };
            if pace == slower || pace.is_slower_than(&before) {
                self.known().adopt(now, pace);
                return;
            }
            // Somebody has sped up meanwhile.
            let Some(next) = slower_than(pace, &self.bounds) else {
                self.known().adopt(now, pace);
                return;
            };
            (version, before, slower) = (now, pace, next);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_void(&self, turn: LearnedTurn) -> bool {
        turn.cuts < self.known().cuts
    }

    /// Leases a part of a second's worth of turns, at least one, and speeds up where it is time to.
    async fn lease(&self, block: &mut Block, deadline: &Deadline) {
        for _ in 0..TRIES {
            let (pace, turn, answered) = {
                let mut known = self.known();
                (known.pace, known.turn(), std::mem::take(&mut known.answered))
            };
            let interval = pace.interval();
            let count = turns_in(LEASED, interval);
            let asked = Request { count, interval, version: turn.version, answered };
            let Ok(leased) = self.store.lease(self.name, asked, deadline).await else { break };
            let Some(wait) = leased.wait() else {
                self.known().adopt(leased.version, leased.pace(&self.bounds));
                continue;
            };
            block.fill(wait, count, interval, turn);
            if let Some(next) = pace.after(&leased.window(), &self.bounds)
                && let Ok((version, pace)) =
                    self.store.learn(self.name, turn.version, &next, &self.bounds, deadline).await
            {
                self.known().adopt(version, pace);
            }
            if wait > LEASED {
                self.confirm(wait, deadline).await;
            }
            return;
        }
        // Nothing was leased: this process keeps the pace by itself.
        let (interval, turn) = {
            let known = self.known();
            (known.pace.interval(), known.turn())
        };
        block.fill(Duration::ZERO, turns_in(LEASED, interval), interval, turn);
    }

    /// Asks, shortly before a turn that comes after `wait`, whether the pace is still the same; leases nothing.
    async fn confirm(&self, wait: Duration, deadline: &Deadline) {
        if deadline.sleep(wait.saturating_sub(AHEAD)).await.is_err() {
            return;
        }
        let asked = {
            let known = self.known();
            Request { count: 0, interval: known.pace.interval(), version: known.version, answered: 0 }
        };
        if let Ok(leased) = self.store.lease(self.name, asked, deadline).await
            && leased.wait().is_none()
        {
            self.known().adopt(leased.version, leased.pace(&self.bounds));
        }
    }
}

impl Block {
    fn fill(&mut self, wait: Duration, count: u32, interval: Duration, turn: LearnedTurn) {
        self.turns.lease(Instant::now() + wait, count);
        self.interval = interval;
        self.turn = turn;
    }
}

impl Known {
    fn turn(&self) -> LearnedTurn {
        LearnedTurn { version: self.version, cuts: self.cuts }
    }

    /// Believes what the database knows. Where answers overtook each other, the next lease sets it right.
    fn adopt(&mut self, version: u64, pace: Pace) {
        if pace.is_slower_than(&self.pace) {
            self.cuts += 1;
        }
        if version != self.version {
            self.answered = 0;
        }
        (self.version, self.pace) = (version, pace);
    }
}
