//! Keeps a pace that all instances share: a provider's rate limit is the account's, not a process's.
//!
//! Turns are leased from the database, a second's worth at a time, so that a hundred requests cost a few calls. A turn
//! whose time has passed is gone: another instance's may have come since. Where the database does not answer, this
//! process keeps the pace by itself: an instance that cannot lease cannot settle either, and soon stops asking.

use std::time::Duration;

use serde_json::json;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    deadline::{Deadline, OutOfTime},
    supabase::Supabase,
};

/// Paces the requests to one provider. Create one per process and provider.
pub struct SharedPace {
    /// `None`: this process alone (unit tests).
    supabase: Option<Supabase>,
    name: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: Option<Instant>,
    left: u32,
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
        Self { supabase: Some(supabase), name, state: Mutex::default() }
    }

    /// Creates a pace of this process alone.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Self { supabase: None, name: "alone", state: Mutex::default() }
    }

    /// Waits for the next turn, `interval` after the one before; refuses at once where it would come too late.
    pub async fn turn(&self, interval: Duration, deadline: &Deadline) -> Result<Turn, OutOfTime> {
        let at = {
            let mut state = self.state.lock().await;
            state.forget_passed(interval);
            if state.left == 0 {
                self.lease(&mut state, interval, deadline).await;
            }
            let at = state.next.unwrap_or_else(Instant::now);
            if !deadline.allows(at.saturating_duration_since(Instant::now())) {
                return Err(OutOfTime);
            }
            state.next = Some(at + interval);
            state.left -= 1;
            at
        };
        deadline.sleep(at.saturating_duration_since(Instant::now())).await.map(|()| Turn { at, interval })
    }

    /// Gives back a turn that was not used, unless the next one has been taken already.
    pub async fn give_back(&self, turn: Turn) {
        let mut state = self.state.lock().await;
        if state.next == Some(turn.at + turn.interval) {
            state.next = Some(turn.at);
            state.left += 1;
        }
    }

    /// Delays all further turns by `wait`, as the provider has asked.
    pub async fn hold_back(&self, wait: Duration, deadline: &Deadline) {
        let mut state = self.state.lock().await;
        let earliest = Instant::now() + wait;
        state.next = Some(state.next.map_or(earliest, |next| next.max(earliest)));
        if let Some(supabase) = &self.supabase {
            let arguments = json!({"p_name": self.name, "p_wait_ms": millis(wait)});
            // What fails here is logged where it fails; this process waits all the same.
            let _held: Result<(), _> = supabase.rpc("jobs_hold_turns", &arguments, deadline).await;
        }
    }

    /// Leases a second's worth of turns, at least one.
    async fn lease(&self, state: &mut State, interval: Duration, deadline: &Deadline) {
        let count = (Duration::from_secs(1).as_millis() / interval.as_millis().max(1)).clamp(1, 1_000);
        let count = u32::try_from(count).unwrap_or(1);
        let wait = match &self.supabase {
            None => None,
            Some(supabase) => {
                let arguments =
                    json!({"p_name": self.name, "p_count": count, "p_interval_ms": millis(interval)});
                supabase.rpc::<u64>("jobs_lease_turns", &arguments, deadline).await.ok()
            }
        };
        let leased = Instant::now() + Duration::from_millis(wait.unwrap_or_default());
        // What was leased before, or held back, is not asked for earlier.
        state.next = Some(state.next.map_or(leased, |next| next.max(leased)));
        state.left = count;
    }
}

impl State {
    fn forget_passed(&mut self, interval: Duration) {
        let now = Instant::now();
        while let Some(next) = self.next.filter(|next| self.left > 0 && *next + interval < now) {
            self.next = Some(next + interval);
            self.left -= 1;
        }
    }
}

fn millis(span: Duration) -> i32 {
    i32::try_from(span.as_millis()).unwrap_or(i32::MAX)
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
