//! Retries by policy: the caller says *what* may be repeated by classifying its error once
//! ([`Retryable`]); the policy says how often and how far apart. No caller writes a loop.
//!
//! A provider's `Retry-After` is obeyed or the call is given up: never answered by asking earlier. A pause
//! that would pass the [`Deadline`] gives up at once, so that the item goes back to its queue in time.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};

use crate::deadline::Deadline;

/// Holds what an error says about trying again now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RetryDecision {
    /// The same request would fail the same way, or must not be repeated.
    No,
    /// The request may be tried again, not before this long (`None`: the policy's own schedule).
    After(Option<Duration>),
}

/// Represents an error that knows whether its request may be repeated.
pub trait Retryable {
    /// Decides from the classified error; must not do I/O.
    fn retry(&self) -> RetryDecision;
}

/// Says how often a request is retried, and how far apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RetryPolicy {
    /// Counts the retries after the first try.
    pub retries: usize,
    /// Is the pause before the first retry; it doubles from one to the next, plus a random part of
    /// up to itself.
    pub first_pause: Duration,
    /// No scheduled pause is longer, its random part aside.
    pub longest_pause: Duration,
    /// A `Retry-After` beyond this is not waited for here: the error goes back to the caller.
    pub longest_wait: Duration,
}

impl RetryPolicy {
    /// Suits Stripe and Shopify: the pauses are some 20 s at most, and a `Retry-After` of up to 30
    /// s is kept.
    pub const PROVIDER: Self = Self {
        retries: 4,
        first_pause: Duration::from_millis(500),
        longest_pause: Duration::from_secs(8),
        longest_wait: Duration::from_secs(30),
    };

    /// Suits our own database: the pauses are short, since every other task waits for it too.
    pub const DATABASE: Self = Self {
        retries: 3,
        first_pause: Duration::from_millis(200),
        longest_pause: Duration::from_secs(2),
        longest_wait: Duration::from_secs(10),
    };

    /// Runs `operation` until it succeeds, its error forbids a retry, the retries are used up or the next
    /// pause would pass the deadline; then the last error comes back as it is.
    pub async fn run<T, E, F, Fut>(&self, deadline: &Deadline, operation: F) -> Result<T, E>
    where
        E: Retryable,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let schedule = ExponentialBuilder::new()
            .with_min_delay(self.first_pause)
            .with_max_delay(self.longest_pause)
            .with_max_times(self.retries)
            .with_jitter();
        operation
            .retry(schedule)
            .when(|error| error.retry() != RetryDecision::No)
            .adjust(|error, pause| self.pause(error.retry(), pause).filter(|pause| deadline.allows(*pause)))
            .await
    }

    /// `None` from the schedule means that the retries are used up.
    fn pause(&self, decision: RetryDecision, scheduled: Option<Duration>) -> Option<Duration> {
        let scheduled = scheduled?;
        match decision {
            RetryDecision::No => None,
            RetryDecision::After(None) => Some(scheduled),
            RetryDecision::After(Some(wait)) => (wait <= self.longest_wait).then(|| wait.max(scheduled)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rstest::rstest;
    use tokio::time::Instant;

    use super::*;

    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    struct Failure(RetryDecision);

    impl Retryable for Failure {
        fn retry(&self) -> RetryDecision {
            self.0
        }
    }

    const NOW: Failure = Failure(RetryDecision::After(None));

    fn in_seconds(seconds: u64) -> Deadline {
        let end = Instant::now() + Duration::from_secs(seconds);
        Deadline::new(end, end)
    }

    /// Returns the tries made and the time taken by an operation that fails `failures` times with `failure`.
    async fn run(failure: Failure, failures: usize, seconds: u64) -> (Result<(), Failure>, usize, Duration) {
        let (tries, start, deadline) = (Cell::new(0), Instant::now(), in_seconds(seconds));
        let result = RetryPolicy::PROVIDER
            .run(&deadline, || {
                tries.set(tries.get() + 1);
                std::future::ready(if tries.get() > failures { Ok(()) } else { Err(failure) })
            })
            .await;
        (result, tries.get(), start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end() {
        let (result, tries, took) = run(NOW, usize::MAX, 300).await;
        assert_eq!((result, tries), (Err(NOW), 5));
        // 0.5 + 1 + 2 + 4 s, each with up to itself on top.
        assert!((7_500..=15_100).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_passing_fault_is_survived() {
        let (result, tries, _) = run(NOW, 2, 300).await;
        assert_eq!((result, tries), (Ok(()), 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_definite_failure_is_not_repeated() {
        let never = Failure(RetryDecision::No);
        let (result, tries, took) = run(never, usize::MAX, 300).await;
        assert_eq!((result, tries, took), (Err(never), 1, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_obeyed_or_given_up() {
        let soon = Failure(RetryDecision::After(Some(Duration::from_secs(20))));
        let (result, tries, took) = run(soon, 1, 300).await;
        assert_eq!((result, tries), (Ok(()), 2));
        assert!(took >= Duration::from_secs(20));

        let late = Failure(RetryDecision::After(Some(Duration::from_secs(31))));
        assert_eq!(run(late, 1, 300).await, (Err(late), 1, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn no_pause_passes_the_deadline() {
        let wait = Failure(RetryDecision::After(Some(Duration::from_secs(20))));
        assert_eq!(run(wait, 1, 15).await, (Err(wait), 1, Duration::ZERO));
    }

    #[rstest]
    #[case(RetryDecision::After(None), Some(3), Some(3))]
    #[case(RetryDecision::After(Some(Duration::from_secs(1))), Some(3), Some(3))]
    #[case(RetryDecision::After(Some(Duration::from_secs(9))), Some(3), Some(9))]
    #[case(RetryDecision::After(Some(Duration::from_secs(9))), None, None)]
    #[case(RetryDecision::No, Some(3), None)]
    fn the_longer_of_schedule_and_request_wins(
        #[case] decision: RetryDecision,
        #[case] scheduled: Option<u64>,
        #[case] expected: Option<u64>,
    ) {
        let pause = RetryPolicy::PROVIDER.pause(decision, scheduled.map(Duration::from_secs));
        assert_eq!(pause, expected.map(Duration::from_secs));
    }
}
