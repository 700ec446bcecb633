//! The cost bucket of each shop ("API limits"): a query costs points, the bucket refills by the second.
//!
//! Shopify tells the state of the bucket with every answer; asking no more than it holds avoids being throttled
//! instead of recovering from it. Points are estimates and times, never money: floats are fine here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::ShopDomain;
use crate::deadline::{Deadline, OutOfTime};
use crate::http::LONGEST_RETRY_AFTER;

/// Represents `extensions.cost` of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    requested: f64,
    maximum: f64,
    available: f64,
    restore_rate: f64,
}

impl Cost {
    /// Reads the cost; `None` when a part is missing or senseless.
    pub(super) fn read(cost: &Value) -> Option<Self> {
        let status = &cost["throttleStatus"];
        let cost = Self {
            requested: cost["requestedQueryCost"].as_f64().unwrap_or(0.0),
            maximum: status["maximumAvailable"].as_f64()?,
            available: status["currentlyAvailable"].as_f64()?,
            restore_rate: status["restoreRate"].as_f64()?,
        };
        (cost.restore_rate > 0.0 && cost.maximum > 0.0).then_some(cost)
    }

    /// Returns how long it is until the refused query fits.
    pub(super) fn wait(&self) -> Duration {
        refill(self.requested - self.available, self.restore_rate)
    }

    /// Tells whether the query is larger than the full bucket: waiting would not help.
    pub(super) fn never_fits(&self) -> bool {
        self.requested > self.maximum
    }
}

fn refill(points: f64, restore_rate: f64) -> Duration {
    let wait = Duration::try_from_secs_f64((points / restore_rate).max(0.0)).unwrap_or(LONGEST_RETRY_AFTER);
    wait.min(LONGEST_RETRY_AFTER)
}

#[derive(Debug)]
struct Bucket {
    maximum: f64,
    available: f64,
    restore_rate: f64,
    at: Instant,
}

impl Bucket {
    /// Takes `points`, or says how long until they are there.
    fn take(&mut self, points: f64, now: Instant) -> Result<(), Duration> {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.available = (self.available + elapsed * self.restore_rate).min(self.maximum);
        self.at = now;
        // A bucket smaller than the estimate is asked when it is full: Shopify decides.
        let points = points.min(self.maximum);
        if self.available < points {
            // Rounding down to a wait of nothing would spin.
            return Err(refill(points - self.available, self.restore_rate).max(Duration::from_millis(1)));
        }
        self.available -= points;
        Ok(())
    }
}

/// Holds what one process knows of the shops it asks. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Buckets(Arc<Mutex<HashMap<ShopDomain, Bucket>>>);

impl Buckets {
    /// Waits until the shop's bucket holds `points`; a shop that was never asked has a full one.
    pub(super) async fn turn(
        &self,
        shop: &ShopDomain,
        points: u32,
        deadline: &Deadline,
    ) -> Result<(), OutOfTime> {
        while let Err(wait) = self.take(shop, points) {
            deadline.sleep(wait).await?;
        }
        Ok(())
    }

    fn take(&self, shop: &ShopDomain, points: u32) -> Result<(), Duration> {
        match self.lock().get_mut(shop) {
            Some(bucket) => bucket.take(f64::from(points), Instant::now()),
            None => Ok(()),
        }
    }

    /// Takes over what Shopify just said.
    pub(super) fn observe(&self, shop: &ShopDomain, cost: Cost) {
        let Cost { maximum, available, restore_rate, .. } = cost;
        let bucket = Bucket { maximum, available, restore_rate, at: Instant::now() };
        self.lock().insert(shop.clone(), bucket);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ShopDomain, Bucket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;

    fn cost(requested: f64, available: f64) -> Cost {
        Cost { requested, maximum: 2000.0, available, restore_rate: 100.0 }
    }

    fn minute() -> Deadline {
        let end = Instant::now() + Duration::from_mins(1);
        Deadline::new(end, end)
    }

    #[rstest]
    #[case(600.0, 100.0, 5_000)]
    #[case(600.0, 600.0, 0)]
    #[case(600.0, 2000.0, 0)]
    #[case(1e18, 0.0, 3_600_000)]
    fn waits(#[case] requested: f64, #[case] available: f64, #[case] millis: u64) {
        assert_eq!(cost(requested, available).wait(), Duration::from_millis(millis));
    }

    #[rstest]
    #[case(json!({"requestedQueryCost": 12, "throttleStatus":
        {"maximumAvailable": 2000.0, "currentlyAvailable": 1988, "restoreRate": 100}}), true)]
    #[case(json!({"throttleStatus": {"maximumAvailable": 1, "currentlyAvailable": 1, "restoreRate": 0}}), false)]
    #[case(json!({"throttleStatus": {"maximumAvailable": "2000"}}), false)]
    #[case(json!({}), false)]
    #[case(json!(null), false)]
    fn reading(#[case] body: Value, #[case] readable: bool) {
        assert_eq!(Cost::read(&body).is_some(), readable);
    }

    proptest! {
        /// Whatever a shop says of its bucket: a wait is a moment at least and an hour at most.
        #[test]
        fn no_cost_waits_for_nothing_or_for_ever(
            cost in damaged(json!({"requestedQueryCost": 602, "throttleStatus":
                {"maximumAvailable": 2000.0, "currentlyAvailable": 1988, "restoreRate": 100}})),
            points in any::<u32>(),
        ) {
            let Some(cost) = Cost::read(&cost) else { return Ok(()) };
            prop_assert!(cost.wait() <= LONGEST_RETRY_AFTER);
            let Cost { maximum, available, restore_rate, .. } = cost;
            let at = Instant::now();
            let mut bucket = Bucket { maximum, available, restore_rate, at };
            for seconds in [0, 1, 3_600] {
                if let Err(wait) = bucket.take(f64::from(points), at + Duration::from_secs(seconds)) {
                    prop_assert!(wait >= Duration::from_millis(1) && wait <= LONGEST_RETRY_AFTER);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_shop_has_its_own_pace() {
        let (buckets, start) = (Buckets::default(), Instant::now());
        let (busy, calm) = ("a.myshopify.com".parse().unwrap(), "b.myshopify.com".parse().unwrap());
        buckets.observe(&busy, cost(0.0, 100.0));
        buckets.turn(&calm, 600, &minute()).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        buckets.turn(&busy, 600, &minute()).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        // What was taken is gone, before any answer.
        buckets.turn(&busy, 300, &minute()).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(8));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_comes_too_late_is_refused() {
        let (buckets, shop) = (Buckets::default(), "a.myshopify.com".parse().unwrap());
        buckets.observe(&shop, Cost { restore_rate: 1.0, ..cost(0.0, 0.0) });
        assert_eq!(buckets.turn(&shop, 600, &minute()).await, Err(OutOfTime));
    }

    #[tokio::test(start_paused = true)]
    async fn an_estimate_above_the_whole_bucket_does_not_wait_for_ever() {
        let (buckets, shop) = (Buckets::default(), "a.myshopify.com".parse().unwrap());
        buckets.observe(&shop, Cost { maximum: 500.0, ..cost(0.0, 500.0) });
        assert_eq!(buckets.turn(&shop, 600, &minute()).await, Ok(()));
    }
}
