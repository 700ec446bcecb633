//! What keeps an integration from being read, and what follows from it.

use std::time::Duration;

use crate::{
    crypto::tokens::TokenError,
    providers::{ErrorKind, Provider, ProviderError},
    queue::{Claimed, Failure, MOST_ATTEMPTS, Outcome, WorkItem, pause_after},
    supabase::SupabaseError,
};

/// Why reading or settling stopped.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nothing changes until somebody acts: settled as this error.
    Final(Failure),
    /// Passes by itself; an attempt where there is a failure.
    Later { failure: Option<Failure>, after: Option<Duration> },
    /// Our own key is refused. With `lane`, nobody else's item of the lane need try.
    Blocked { failure: Failure, lane: bool },
}

impl Trouble {
    pub(super) fn last(code: &str, message: impl Into<String>) -> Self {
        Self::Final(Failure { code: code.into(), message: message.into() })
    }

    /// Somebody else is at it: come back soon, nothing failed.
    pub(super) fn busy() -> Self {
        Self::Later { failure: None, after: Some(Duration::from_secs(5)) }
    }

    /// The budget is over; the item goes on where it stands.
    pub(super) fn out_of_time() -> Self {
        Self::Later { failure: None, after: None }
    }

    /// The failure to settle with, where this item shall not come back.
    pub(super) fn settles(self, item: &Claimed) -> Result<Failure, Outcome> {
        match self {
            Self::Final(failure) => Ok(failure),
            Self::Later { failure: Some(failure), .. } if item.attempts + 1 >= MOST_ATTEMPTS => Ok(failure),
            Self::Later { failure, after } => {
                let scheduled = match failure {
                    Some(_) => pause_after(item.attempts),
                    None => Duration::ZERO,
                };
                Err(Outcome::GiveBack { delay: after.unwrap_or_default().max(scheduled), failure })
            }
            Self::Blocked { failure, lane } => {
                // A month holds several providers: the other users' items may well succeed.
                let lane = lane && matches!(item.work, WorkItem::SyncIntegration { .. });
                Err(Outcome::Blocked { failure, lane })
            }
        }
    }
}

impl From<ProviderError> for Trouble {
    fn from(error: ProviderError) -> Self {
        tracing::warn!(%error, "provider trouble");
        let failure = Failure { code: error.code().into(), message: error.user_message() };
        match error.kind {
            ErrorKind::Reconnect(_) | ErrorKind::Refused(_) => Self::Final(failure),
            // Stripe is read with our key alone; of the shops only those whose token has to be renewed need ours.
            ErrorKind::OwnCredentials => Self::Blocked { failure, lane: error.provider == Provider::Stripe },
            ErrorKind::OutOfTime => Self::out_of_time(),
            ErrorKind::Transient(_) => {
                let counts = error.counts_as_attempt();
                // A limit that is not the item's fault is no attempt, but it is no reason to come back at once.
                let after = error.retry_after().or((!counts).then_some(pause_after(0)));
                Self::Later { failure: counts.then_some(failure), after }
            }
        }
    }
}

impl From<SupabaseError> for Trouble {
    fn from(error: SupabaseError) -> Self {
        if error == SupabaseError::OutOfTime {
            return Self::out_of_time();
        }
        // The statement itself was refused: an attempt, so that it does not come back for ever. What passes, or
        // is everybody's configuration, is none; but reading everything again at once would not help it.
        let refused = matches!(
            error,
            SupabaseError::Api { .. } | SupabaseError::Shape { .. } | SupabaseError::NotPostgrest { .. }
        );
        let failure = (refused && !error.is_passing())
            .then(|| Failure { code: "database".into(), message: error.user_message() });
        Self::Later { failure, after: Some(pause_after(0)) }
    }
}

impl From<TokenError> for Trouble {
    fn from(_: TokenError) -> Self {
        Self::last(
            "token_unreadable",
            "Le jeton enregistré est illisible : la connexion doit être refaite (ou ENCRYPTION_KEY a changé).",
        )
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::queue::Progress;

    fn item(attempts: u32) -> Claimed {
        Claimed {
            item_id: 1,
            run_id: Uuid::nil(),
            lease: Uuid::nil(),
            user_id: Uuid::nil(),
            work: WorkItem::SyncIntegration { days: None },
            progress: Progress::default(),
            attempts,
            as_of: DateTime::UNIX_EPOCH,
        }
    }

    fn later(counts: bool, after: Option<u64>) -> Trouble {
        let failure = counts.then(|| Failure { code: "network".into(), message: "m".into() });
        Trouble::Later { failure, after: after.map(Duration::from_secs) }
    }

    #[test]
    fn pauses_grow_and_the_fifth_attempt_is_the_last() {
        let seconds: Vec<Option<u64>> = (0..5)
            .map(|attempts| match later(true, None).settles(&item(attempts)) {
                Err(Outcome::GiveBack { delay, .. }) => Some(delay.as_secs()),
                _ => None,
            })
            .collect();
        assert_eq!(seconds, [Some(30), Some(120), Some(600), Some(1800), None]);
    }

    #[test]
    fn what_is_no_attempt_never_uses_one_up() {
        let outcome = later(false, Some(7)).settles(&item(4));
        assert!(matches!(outcome, Err(Outcome::GiveBack { delay, failure: None }) if delay.as_secs() == 7));
    }
}
