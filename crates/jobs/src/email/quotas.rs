//! Keeps account of what the mail service still accepts, for everything that this process sends.

use std::time::Duration;

use tokio::{sync::Mutex, time::Instant};

use super::allowance::{Allowance, UNSAID_INTERVAL};

/// An answer about the quotas is valid this long, since others send on the same account.
const VALID_FOR: Duration = Duration::from_mins(1);

/// Is shared by all drains of a process.
#[derive(Default)]
pub(super) struct Quotas(Mutex<State>);

#[derive(Default)]
struct State {
    allowance: Option<(Instant, Allowance)>,
    asked: Option<Instant>,
}

impl Quotas {
    /// Returns the interval between two requests.
    pub(super) async fn interval(&self) -> Duration {
        self.0.lock().await.allowance.as_ref().map_or(UNSAID_INTERVAL, |(_, allowance)| allowance.interval)
    }

    /// Returns what the service has answered lately.
    pub(super) async fn allowance(&self) -> Option<Allowance> {
        self.0.lock().await.valid().cloned()
    }

    /// Returns whether to ask the service, which is done at most once in a while because not every key may ask.
    pub(super) async fn asks(&self) -> bool {
        let mut state = self.0.lock().await;
        let lately = state.asked.is_some_and(|asked| asked.elapsed() < VALID_FOR);
        if !lately {
            state.asked = Some(Instant::now());
        }
        !lately
    }

    /// Forgets that it was asked: the answer was not the service's.
    pub(super) async fn ask_again(&self) {
        self.0.lock().await.asked = None;
    }

    pub(super) async fn learn(&self, allowance: Allowance) {
        self.0.lock().await.allowance = Some((Instant::now(), allowance));
    }

    /// Takes up to `wanted` mails off the quota and returns how many it allowed.
    pub(super) async fn take(&self, wanted: usize) -> usize {
        let mut state = self.0.lock().await;
        let Some(Allowance { left: Some(left), .. }) = state.valid() else { return wanted };
        let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(wanted);
        *left -= taken as u64;
        taken
    }

    /// Returns to the quota what was taken and not used.
    pub(super) async fn put_back(&self, unused: usize) {
        if let Some(Allowance { left: Some(left), .. }) = self.0.lock().await.valid() {
            *left += unused as u64;
        }
    }
}

impl State {
    fn valid(&mut self) -> Option<&mut Allowance> {
        let (_, allowance) = self.allowance.as_mut().filter(|(said, _)| said.elapsed() < VALID_FOR)?;
        Some(allowance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowance(left: Option<u64>) -> Allowance {
        Allowance { left, quota: None, interval: Duration::from_millis(200) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quota_is_never_overdrawn() {
        let quotas = Quotas::default();
        assert_eq!(quotas.take(100).await, 100, "nobody has said anything");
        quotas.learn(allowance(Some(130))).await;
        assert_eq!((quotas.take(100).await, quotas.take(100).await, quotas.take(100).await), (100, 30, 0));
        quotas.put_back(10).await;
        assert_eq!(quotas.take(100).await, 10);
        tokio::time::advance(VALID_FOR).await;
        assert_eq!(quotas.allowance().await, None, "not valid for ever");
        assert_eq!(quotas.take(100).await, 100, "what was left then keeps nothing back");
        assert_eq!((quotas.asks().await, quotas.asks().await), (true, false));
        tokio::time::advance(VALID_FOR).await;
        assert!(quotas.asks().await);
    }
}
