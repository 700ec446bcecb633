//! Keeps a pace whose interval the caller knows, in common with all other instances.

use std::time::Duration;

use tokio::{sync::Mutex, time::Instant};

use super::{
    store::{Request, Store},
    turns::Turns,
};
use crate::{
    deadline::{Deadline, OutOfTime},
    supabase::Supabase,
};

/// A second's worth of turns is leased at once.
const LEASED: Duration = Duration::from_secs(1);

/// Paces the requests to one provider. Create one per process and provider.
pub struct SharedPace {
    /// Is `None` where this process is alone (unit tests).
    store: Option<Store>,
    name: &'static str,
    turns: Mutex<Turns>,
}

/// Represents the permission to make one request.
#[derive(Debug, Eq, PartialEq)]
pub struct Turn {
    at: Instant,
    interval: Duration,
}

impl SharedPace {
    /// Creates a pace that has leased nothing yet.
    pub fn new(supabase: Supabase, name: &'static str) -> Self {
        Self { store: Some(Store::Database(supabase)), name, turns: Mutex::default() }
    }

    /// Creates a pace of this process alone.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Self { store: None, name: "alone", turns: Mutex::default() }
    }

    /// Waits for the next turn, `interval` after the one before; refuses at once where it would come too late.
    pub async fn turn(&self, interval: Duration, deadline: &Deadline) -> Result<Turn, OutOfTime> {
        let at = {
            let mut turns = self.turns.lock().await;
            turns.forget_passed(interval, Instant::now());
            if turns.is_empty() {
                self.lease(&mut turns, interval, deadline).await;
            }
            let now = Instant::now();
            let at = turns.next(now);
            if !deadline.allows(at.saturating_duration_since(now)) {
                return Err(OutOfTime);
            }
            turns.take(at, interval);
            at
        };
        deadline.sleep(at.saturating_duration_since(Instant::now())).await.map(|()| Turn { at, interval })
    }

    /// Gives back a turn that was not used, unless the next one has been taken already.
    pub async fn give_back(&self, turn: Turn) {
        self.turns.lock().await.give_back(turn.at, turn.interval);
    }

    /// Delays all further turns by `wait`, as the provider has asked.
    pub async fn hold_back(&self, wait: Duration, deadline: &Deadline) {
        let mut turns = self.turns.lock().await;
        turns.hold_back(Instant::now() + wait);
        if let Some(store) = &self.store {
            store.hold(self.name, wait, deadline).await;
        }
    }

    /// Leases a second's worth of turns, at least one.
    async fn lease(&self, turns: &mut Turns, interval: Duration, deadline: &Deadline) {
        let count = turns_in(LEASED, interval);
        let wait = match &self.store {
            None => None,
            Some(store) => {
                let asked = Request { count, interval, version: 0, answered: 0 };
                store.lease(self.name, asked, deadline).await.ok().and_then(|leased| leased.wait())
            }
        };
        turns.lease(Instant::now() + wait.unwrap_or_default(), count);
    }
}

/// Returns how many turns fit into `span`, at least one.
pub(super) fn turns_in(span: Duration, interval: Duration) -> u32 {
    let count = span.as_micros() / interval.as_micros().max(1);
    u32::try_from(count).map_or(1_000, |count| count.clamp(1, 1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(200);

    fn deadline(seconds: u64) -> Deadline {
        let end = Instant::now() + Duration::from_secs(seconds);
        Deadline::new(end, end)
    }

    #[tokio::test(start_paused = true)]
    async fn turns_keep_their_interval() {
        let (pace, deadline, begun) = (SharedPace::alone(), deadline(60), Instant::now());
        for _ in 0..11 {
            pace.turn(INTERVAL, &deadline).await.unwrap();
        }
        assert_eq!(begun.elapsed().as_millis() / 10, 200, "ten intervals");
        pace.hold_back(Duration::from_secs(7), &deadline).await;
        pace.turn(INTERVAL, &deadline).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(9));
    }

    #[tokio::test(start_paused = true)]
    async fn turns_that_have_passed_are_not_made_up_for() {
        let (pace, deadline) = (SharedPace::alone(), deadline(600));
        pace.turn(INTERVAL, &deadline).await.unwrap();
        tokio::time::advance(Duration::from_mins(5)).await;
        let begun = Instant::now();
        for _ in 0..6 {
            pace.turn(INTERVAL, &deadline).await.unwrap();
        }
        assert!(begun.elapsed() >= 5 * INTERVAL, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_comes_too_late_is_refused_at_once() {
        let (pace, begun) = (SharedPace::alone(), Instant::now());
        pace.hold_back(Duration::from_secs(30), &deadline(60)).await;
        assert_eq!(pace.turn(INTERVAL, &deadline(10)).await, Err(OutOfTime));
        assert_eq!(begun, Instant::now());
        assert!(pace.turn(INTERVAL, &deadline(60)).await.is_ok(), "a refused turn is nobody's");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_left_is_the_next_ones() {
        let (pace, deadline, begun) = (SharedPace::alone(), deadline(60), Instant::now());
        let first = pace.turn(INTERVAL, &deadline).await.unwrap();
        pace.give_back(first).await;
        let second = pace.turn(INTERVAL, &deadline).await.unwrap();
        assert_eq!(begun, Instant::now(), "nobody waits for a turn that was left");
        let third = pace.turn(INTERVAL, &deadline).await.unwrap();
        pace.give_back(second).await;
        let fourth = pace.turn(INTERVAL, &deadline).await.unwrap();
        assert_eq!(fourth.at, third.at + INTERVAL, "somebody has taken the next one");
    }
}
