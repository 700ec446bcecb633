//! Asks Stripe as fast as it lets us.
//!
//! All requests of all instances share one pace, which is learned: it begins with `STRIPE_REQUESTS_PER_SECOND`, speeds up
//! as long as nothing is refused, and slows down at once at a 429. A refusal that is one account's own slows nobody else
//! down. See `docs/adr/0017-as-fast-as-stripe-lets-us.md`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::refusals::{Asked, Reason, Refusals, Scope};
use crate::{
    deadline::{Deadline, OutOfTime},
    pace::{Bounds, LearnedPace, LearnedTurn},
    providers::{ErrorKind, ProviderError, Transient, TransientCause},
    supabase::Supabase,
};

/// Paces requests to Stripe. Clones share the pace; create one per process.
#[derive(Clone)]
pub struct Pacer(Arc<Shared>);

struct Shared {
    pace: LearnedPace,
    refusals: Mutex<Refusals>,
}

/// Represents the permission to make one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    asked: Asked,
    turn: LearnedTurn,
}

impl Pacer {
    /// Creates a pacer that knows nothing yet.
    pub fn new(bounds: Bounds, supabase: Supabase) -> Self {
        Self::over(LearnedPace::new(supabase, "stripe", bounds))
    }

    /// Creates a pacer of this process alone.
    #[cfg(test)]
    pub(crate) fn alone(per_second: std::num::NonZeroU32) -> Self {
        let row = Arc::new(Mutex::new(crate::pace::tests::Row::new()));
        Self::over(LearnedPace::simulated(&row, Bounds::new(per_second, per_second, per_second)))
    }

    fn over(pace: LearnedPace) -> Self {
        Self(Arc::new(Shared { pace, refusals: Mutex::default() }))
    }

    /// Waits for a turn to ask for this account; refuses at once where it would come too late.
    pub(super) async fn turn(&self, asked: Asked, deadline: &Deadline) -> Result<Turn, OutOfTime> {
        let wait = self.refusals().wait(asked, Instant::now());
        deadline.sleep(wait).await?;
        Ok(Turn { asked, turn: self.0.pace.turn(deadline).await? })
    }

    /// Learns from what Stripe said to the request of this turn.
    pub(super) async fn heard<T>(
        &self,
        turn: Turn,
        reason: Reason,
        checked: &Result<T, ProviderError>,
        deadline: &Deadline,
    ) {
        match checked.as_ref().map_err(|error| error.kind) {
            Err(ErrorKind::Transient(Transient { cause: TransientCause::RateLimited, .. })) => {
                self.refused(turn, reason, deadline).await;
            }
            // A lock is somebody's object, and no sign of a pace.
            Err(ErrorKind::Transient(Transient { cause: TransientCause::Locked, .. })) => {}
            _ => self.answered(turn),
        }
    }

    fn answered(&self, turn: Turn) {
        self.refusals().answered(turn.asked);
        self.0.pace.answered(turn.turn);
    }

    /// Slows down, for everybody or for the turn's account: Stripe refused the request for its rate.
    async fn refused(&self, turn: Turn, reason: Reason, deadline: &Deadline) {
        let scope = self.refusals().refused(turn.asked, reason, Instant::now());
        match scope {
            Scope::Everybody => self.0.pace.refused(turn.turn, deadline).await,
            Scope::Unclear => self.0.pace.doubted(turn.turn, deadline).await,
            // Its request proves nothing of everybody's pace.
            Scope::Account => {}
        }
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
