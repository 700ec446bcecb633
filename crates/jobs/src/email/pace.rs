//! One pace and one account of the quotas for everything that this process asks of the mail service.

use std::time::Duration;

use tokio::{sync::Mutex, time::Instant};

use super::sender::{Allowance, UNSAID_INTERVAL};
use crate::deadline::{Deadline, OutOfTime};

/// How long what the service says of its quotas is believed: others send on the same account.
const BELIEVED: Duration = Duration::from_mins(1);

/// One request may be made.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Turn {
    taken: Instant,
    following: Instant,
}

/// Shared by all drains of a process.
#[derive(Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Default)]
struct State {
    next_turn: Option<Instant>,
    allowance: Option<(Instant, Allowance)>,
    asked: Option<Instant>,
}

impl Pace {
    /// Waits for the next turn; refuses at once where it would come too late.
    pub(super) async fn turn(&self, deadline: &Deadline) -> Result<Turn, OutOfTime> {
        let (turn, wait) = {
            let mut state = self.0.lock().await;
            let now = Instant::now();
            let taken = state.next_turn.unwrap_or(now).max(now);
            if !deadline.allows(taken - now) {
                return Err(OutOfTime);
            }
            let following = taken + state.interval();
            state.next_turn = Some(following);
            (Turn { taken, following }, taken - now)
        };
        deadline.sleep(wait).await.map(|()| turn)
    }

    /// Gives back a turn that nothing was done with, unless somebody has taken the next one.
    pub(super) async fn leave(&self, turn: Turn) {
        let mut state = self.0.lock().await;
        if state.next_turn == Some(turn.following) {
            state.next_turn = Some(turn.taken);
        }
    }

    /// Nobody's turn comes before this is over: the service has said so.
    pub(super) async fn hold_back(&self, wait: Duration) {
        let mut state = self.0.lock().await;
        let earliest = Instant::now() + wait;
        state.next_turn = Some(state.next_turn.map_or(earliest, |turn| turn.max(earliest)));
    }

    /// What the service has said lately.
    pub(super) async fn allowance(&self) -> Option<Allowance> {
        self.0.lock().await.believed().cloned()
    }

    /// Whether the service is to be asked: at most once in a while, for not every key may ask.
    pub(super) async fn asks(&self) -> bool {
        let mut state = self.0.lock().await;
        let lately = state.asked.is_some_and(|asked| asked.elapsed() < BELIEVED);
        if !lately {
            state.asked = Some(Instant::now());
        }
        !lately
    }

    pub(super) async fn learn(&self, allowance: Allowance) {
        self.0.lock().await.allowance = Some((Instant::now(), allowance));
    }

    /// Takes up to `wanted` mails off the quota; answers how many there were.
    pub(super) async fn take(&self, wanted: usize) -> usize {
        let mut state = self.0.lock().await;
        let Some(Allowance { left: Some(left), .. }) = state.believed() else { return wanted };
        let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(wanted);
        *left -= taken as u64;
        taken
    }

    /// Gives back what was taken and not used.
    pub(super) async fn put_back(&self, unused: usize) {
        if let Some(Allowance { left: Some(left), .. }) = self.0.lock().await.believed() {
            *left += unused as u64;
        }
    }
}

impl State {
    fn believed(&mut self) -> Option<&mut Allowance> {
        let (_, allowance) = self.allowance.as_mut().filter(|(said, _)| said.elapsed() < BELIEVED)?;
        Some(allowance)
    }

    fn interval(&self) -> Duration {
        self.allowance.as_ref().map_or(UNSAID_INTERVAL, |(_, allowance)| allowance.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline(seconds: u64) -> Deadline {
        let end = Instant::now() + Duration::from_secs(seconds);
        Deadline::new(end, end)
    }

    fn allowance(left: Option<u64>) -> Allowance {
        Allowance { left, quota: None, interval: Duration::from_millis(200) }
    }

    #[tokio::test(start_paused = true)]
    async fn turns_keep_the_interval_that_the_service_says() {
        let (pace, deadline, begun) = (Pace::default(), deadline(60), Instant::now());
        pace.learn(allowance(None)).await;
        for _ in 0..11 {
            pace.turn(&deadline).await.unwrap();
        }
        assert_eq!(begun.elapsed().as_millis() / 10, 200, "ten intervals");
        pace.hold_back(Duration::from_secs(7)).await;
        pace.turn(&deadline).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(9));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_comes_too_late_is_refused_at_once() {
        let (pace, begun) = (Pace::default(), Instant::now());
        pace.hold_back(Duration::from_secs(30)).await;
        assert_eq!(pace.turn(&deadline(10)).await, Err(OutOfTime));
        assert_eq!(begun, Instant::now());
        assert!(pace.turn(&deadline(60)).await.is_ok(), "a refused turn is nobody's");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_left_is_the_next_ones() {
        let (pace, deadline, begun) = (Pace::default(), deadline(60), Instant::now());
        let first = pace.turn(&deadline).await.unwrap();
        pace.leave(first).await;
        let second = pace.turn(&deadline).await.unwrap();
        assert_eq!(begun, Instant::now(), "nobody waits for a turn that was left");
        let third = pace.turn(&deadline).await.unwrap();
        pace.leave(second).await;
        assert_eq!(
            pace.turn(&deadline).await.unwrap().taken,
            third.following,
            "somebody has taken the next one"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_quota_is_never_overdrawn() {
        let pace = Pace::default();
        assert_eq!(pace.take(100).await, 100, "nobody has said anything");
        pace.learn(allowance(Some(130))).await;
        assert_eq!((pace.take(100).await, pace.take(100).await, pace.take(100).await), (100, 30, 0));
        pace.put_back(10).await;
        assert_eq!(pace.take(100).await, 10);
        tokio::time::advance(BELIEVED).await;
        assert_eq!(pace.allowance().await, None, "not believed for ever");
        assert_eq!(pace.take(100).await, 100, "what was left then keeps nothing back");
        assert_eq!((pace.asks().await, pace.asks().await), (true, false));
        tokio::time::advance(BELIEVED).await;
        assert!(pace.asks().await);
    }
}
