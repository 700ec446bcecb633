//! One pace for everything we ask of Stripe.
//!
//! Whether requests count against the platform or the connected account is not documented ("Rate limits"), so
//! all of them, of all instances, share one pace: 20 requests a second unless `STRIPE_REQUESTS_PER_SECOND` says
//! otherwise, well below the 25 of an endpoint and of a sandbox.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use crate::{
    deadline::{Deadline, OutOfTime},
    pace::SharedPace,
    supabase::Supabase,
};

/// Paces requests to Stripe. Clones share the pace; create one per process.
#[derive(Clone)]
pub struct Pacer {
    pace: Arc<SharedPace>,
    interval: Duration,
}

impl Pacer {
    /// So many requests a second, of all instances together.
    pub fn new(per_second: NonZeroU32, supabase: Supabase) -> Self {
        Self::over(SharedPace::new(supabase, "stripe"), per_second)
    }

    /// So many requests a second, of this process alone.
    #[cfg(test)]
    pub(crate) fn alone(per_second: NonZeroU32) -> Self {
        Self::over(SharedPace::alone(), per_second)
    }

    fn over(pace: SharedPace, per_second: NonZeroU32) -> Self {
        Self { pace: Arc::new(pace), interval: Duration::from_secs(1) / per_second.get() }
    }

    /// Waits for a turn; refuses at once when it would come too late.
    pub async fn turn(&self, deadline: &Deadline) -> Result<(), OutOfTime> {
        self.pace.turn(self.interval, deadline).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clones_share_one_pace_and_respect_the_deadline() {
        let (pacer, now) = (Pacer::alone(NonZeroU32::new(20).unwrap()), Instant::now());
        let far = Deadline::new(now + Duration::from_mins(1), now + Duration::from_mins(1));
        for _ in 0..21 {
            pacer.clone().turn(&far).await.unwrap();
        }
        assert_eq!(now.elapsed().as_millis() / 10, 100, "twenty intervals of 50 ms");
        let over = Deadline::new(now, now);
        assert_eq!(pacer.clone().turn(&over).await, Err(OutOfTime));
        pacer.turn(&far).await.unwrap();
    }
}
