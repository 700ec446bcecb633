//! One pace for everything we ask of Stripe.
//!
//! Whether requests count against the platform or the connected account is not documented ("Rate limits"), so
//! all of them share one bucket: 20 requests a second unless `STRIPE_REQUESTS_PER_SECOND` says otherwise, well
//! below the 25 of an endpoint and of a sandbox.

use std::num::NonZeroU32;
use std::sync::Arc;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::deadline::{Deadline, OutOfTime};

/// With 20 a second, at most 25 requests in any one second.
const BURST: NonZeroU32 = NonZeroU32::new(5).expect("not zero");

/// Clones share the bucket: one value a process.
#[derive(Clone, Debug)]
pub struct Pacer {
    limiter: Arc<DefaultDirectRateLimiter>,
    clock: DefaultClock,
}

impl Pacer {
    /// So many requests a second.
    pub fn new(per_second: NonZeroU32) -> Self {
        let quota = Quota::per_second(per_second).allow_burst(BURST);
        let clock = DefaultClock::default();
        Self { limiter: Arc::new(RateLimiter::direct_with_clock(quota, clock.clone())), clock }
    }

    /// Waits for a turn; refuses at once when it would come too late.
    pub async fn turn(&self, deadline: &Deadline) -> Result<(), OutOfTime> {
        while let Err(not_until) = self.limiter.check() {
            deadline.sleep(not_until.wait_time_from(self.clock.now())).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn clones_share_one_bucket_and_respect_the_deadline() {
        let (pacer, now) = (Pacer::new(NonZeroU32::new(20).unwrap()), Instant::now());
        let far = Deadline::new(now + Duration::from_mins(1), now + Duration::from_mins(1));
        for _ in 0..BURST.get() {
            pacer.turn(&far).await.unwrap();
        }
        let over = Deadline::new(now, now);
        assert_eq!(pacer.clone().turn(&over).await, Err(OutOfTime));
        pacer.turn(&far).await.unwrap();
    }
}
