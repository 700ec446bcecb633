//! Measures how long one invocation may still work.
//!
//! A function lives 300 seconds. New work starts until second 270 and no request outlives second 290:
//! the rest is for the last settle and the answer. The instants are given by the
//! caller; this module only measures what is left of them on the monotonic clock.

use std::time::Duration;

use tokio::time::Instant;

/// Below this a request cannot do anything useful: it would only burn the end of the budget.
const SHORTEST_REQUEST: Duration = Duration::from_millis(250);

/// Requests may go on so long after the budget, within the platform's 300 seconds: the last answers, the log row, the
/// report.
const REQUESTS_AFTER_BUDGET: Duration = Duration::from_secs(20);

/// Says how long an invocation begins new work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Budget(Duration);

impl Budget {
    /// Creates a budget of so many seconds, 270 at most: the platform ends an invocation after 300.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub const fn length(self) -> Duration {
        self.0
    }

    /// Returns the deadline of an invocation that began at `begun`.
    pub fn deadline(self, begun: Instant) -> Deadline {
        let end = begun + self.0;
        Deadline::new(end, end + REQUESTS_AFTER_BUDGET)
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::from_seconds(270)
    }
}

/// Holds the two ends of an invocation's budget.
///
/// ```
/// # use std::time::Duration;
/// # use jobs::deadline::Deadline;
/// # use tokio::time::Instant;
/// let start = Instant::now();
/// let deadline = Deadline::new(start + Duration::from_secs(270), start + Duration::from_secs(290));
/// assert!(deadline.may_start_work());
/// assert_eq!(deadline.request_timeout(Duration::from_secs(20)), Some(Duration::from_secs(20)));
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Deadline {
    new_work_until: Instant,
    requests_until: Instant,
}

/// The invocation's time is over; what is left goes on in the next one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the time budget of this invocation is over")]
pub struct OutOfTime;

impl Deadline {
    /// `new_work_until` never lies behind `requests_until`: work that starts needs requests.
    pub fn new(new_work_until: Instant, requests_until: Instant) -> Self {
        Self { new_work_until: new_work_until.min(requests_until), requests_until }
    }

    /// Returns a deadline whose requests end this much earlier, for work whose outcome has to be stored afterwards.
    #[must_use]
    pub fn reserving(self, span: Duration) -> Self {
        let requests_until = self.requests_until.checked_sub(span).unwrap_or(self.requests_until);
        Self::new(self.new_work_until, requests_until)
    }

    /// Returns whether another piece of work may be begun.
    pub fn may_start_work(&self) -> bool {
        Instant::now() < self.new_work_until
    }

    /// Returns the time left for requests; zero when it is over.
    pub fn remaining(&self) -> Duration {
        self.requests_until.saturating_duration_since(Instant::now())
    }

    /// Returns the timeout of the next request: `max`, or less near the end; `None` when no request may start.
    pub fn request_timeout(&self, max: Duration) -> Option<Duration> {
        let remaining = self.remaining();
        (remaining >= SHORTEST_REQUEST).then(|| remaining.min(max))
    }

    /// Returns whether a pause of `pause` leaves time for a request afterwards.
    pub fn allows(&self, pause: Duration) -> bool {
        self.remaining().checked_sub(pause).is_some_and(|left| left >= SHORTEST_REQUEST)
    }

    /// Sleeps, or refuses at once when no request could follow the sleep.
    ///
    /// Refusing early hands the work back while there is still time to note where it stopped.
    pub async fn sleep(&self, pause: Duration) -> Result<(), OutOfTime> {
        if !self.allows(pause) {
            return Err(OutOfTime);
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline(work: u64, requests: u64) -> Deadline {
        let now = Instant::now();
        Deadline::new(now + Duration::from_secs(work), now + Duration::from_secs(requests))
    }

    #[tokio::test(start_paused = true)]
    async fn work_stops_before_requests_do() {
        let deadline = deadline(270, 290);
        tokio::time::advance(Duration::from_secs(269)).await;
        assert!(deadline.may_start_work());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!deadline.may_start_work());
        assert_eq!(deadline.request_timeout(Duration::from_secs(30)), Some(Duration::from_secs(20)));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(deadline.request_timeout(Duration::from_secs(30)), None);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(deadline.remaining(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_that_would_pass_the_end_is_refused_at_once() {
        let deadline = deadline(5, 10);
        let before = Instant::now();
        assert_eq!(deadline.sleep(Duration::from_secs(10)).await, Err(OutOfTime));
        assert_eq!(deadline.sleep(Duration::MAX).await, Err(OutOfTime));
        assert_eq!(before, Instant::now(), "a refused sleep takes no time");
        assert_eq!(deadline.sleep(Duration::from_secs(9)).await, Ok(()));
        assert_eq!(deadline.sleep(Duration::from_secs(1)).await, Err(OutOfTime));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reserve_is_left_to_the_caller() {
        let whole = deadline(270, 290);
        let work = whole.reserving(Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(280)).await;
        assert_eq!(work.request_timeout(Duration::from_secs(30)), None);
        assert_eq!(whole.request_timeout(Duration::from_secs(30)), Some(Duration::from_secs(10)));
    }

    #[tokio::test(start_paused = true)]
    async fn new_work_never_outlives_requests() {
        let deadline = deadline(100, 10);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!deadline.may_start_work());
    }
}
