//! Why an item could not be read or settled, and what follows from it.

use std::time::Duration;

use super::actor::TOKEN_UNREADABLE;
use crate::{
    crypto::tokens::TokenError,
    failure::Failure,
    http::NetworkError,
    providers::{ErrorKind, Provider, ProviderError},
    queue::{Claimed, Outcome, WorkItem, pause_after},
    supabase::SupabaseError,
};

/// Says why reading or settling stopped.
#[derive(Debug)]
pub(super) enum ItemError {
    /// Trying again changes nothing until somebody acts: the item is settled as this failure.
    Permanent(Failure),
    /// It passes by itself. `failure` says why, unless nothing failed; it is an `attempt` where the item itself is to
    /// blame.
    Later { failure: Option<Failure>, attempt: bool, after: Option<Duration> },
    /// We are refused, and not the item; with `lane`, no other item of the lane can succeed either.
    Blocked { failure: Failure, lane: bool },
}

impl ItemError {
    pub(super) fn permanent(code: &str, message: impl Into<String>) -> Self {
        Self::Permanent(Failure { code: code.into(), message: message.into() })
    }

    /// Another worker is busy with it: the item comes back soon, and nothing failed.
    pub(super) fn busy() -> Self {
        Self::Later { failure: None, attempt: false, after: Some(Duration::from_secs(5)) }
    }

    /// The budget is over; the item resumes where it is.
    pub(super) fn out_of_time() -> Self {
        Self::Later { failure: None, attempt: false, after: None }
    }

    /// Turns the error into the failure that the item is settled with, or into the outcome that gives it back.
    pub(super) fn into_outcome(self, item: &Claimed) -> Result<Failure, Outcome> {
        match self {
            Self::Permanent(failure) => Ok(failure),
            Self::Later { failure: Some(failure), attempt: true, .. } if item.is_last_attempt() => {
                Ok(failure)
            }
            Self::Later { failure, attempt, after } => {
                let scheduled = if attempt { pause_after(item.attempts) } else { Duration::ZERO };
                Err(Outcome::GiveBack { delay: after.unwrap_or_default().max(scheduled), failure, attempt })
            }
            Self::Blocked { failure, lane } => {
                // A month holds several providers: the other users' items may well succeed.
                let lane = lane && matches!(item.work, WorkItem::SyncIntegration { .. });
                Err(Outcome::Blocked { failure, lane })
            }
        }
    }
}

impl From<ProviderError> for ItemError {
    fn from(error: ProviderError) -> Self {
        tracing::warn!(%error, "provider trouble");
        let failure = Failure { code: error.code().into(), message: error.user_message() };
        match error.kind {
            ErrorKind::Reconnect(_) | ErrorKind::Refused(_) => Self::Permanent(failure),
            // Stripe is read with our key alone; of the shops only those whose token has to be renewed need ours.
            ErrorKind::OwnCredentials => Self::Blocked { failure, lane: error.provider == Provider::Stripe },
            ErrorKind::OwnPermission { everybody } => Self::Blocked { failure, lane: everybody },
            ErrorKind::NotApproved | ErrorKind::PermanentToken => Self::Blocked { failure, lane: false },
            ErrorKind::OutOfTime => Self::out_of_time(),
            ErrorKind::Transient(_) => {
                let counts = error.counts_as_attempt();
                // A limit that is not the item's fault is no attempt, but it is no reason to come back at once.
                let after = error.retry_after().or((!counts).then_some(pause_after(0)));
                Self::Later { failure: Some(failure), attempt: counts, after }
            }
        }
    }
}

impl From<SupabaseError> for ItemError {
    fn from(error: SupabaseError) -> Self {
        if error == SupabaseError::OutOfTime {
            return Self::out_of_time();
        }
        // The statement itself was refused: an attempt, so that it does not come back for ever. What passes, or
        // is everybody's configuration, is none; but reading everything again at once would not help it.
        let refused = match error {
            // An answer that is too large is the row's own: it does not become smaller by itself.
            SupabaseError::Api { .. }
            | SupabaseError::Shape { .. }
            | SupabaseError::Network(NetworkError::TooLarge) => true,
            // A gateway that does not take what is in it. All else that it refuses, it refuses everybody.
            SupabaseError::NotPostgrest { status } => matches!(status, 400 | 403 | 413 | 414 | 431),
            _ => false,
        };
        let failure = Failure { code: "database".into(), message: error.user_message() };
        let attempt = refused && !error.is_passing();
        Self::Later { failure: Some(failure), attempt, after: Some(pause_after(0)) }
    }
}

impl From<TokenError> for ItemError {
    fn from(_: TokenError) -> Self {
        Self::permanent(
            TOKEN_UNREADABLE,
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
            is_replay: false,
        }
    }

    fn later(attempt: bool, after: Option<u64>) -> ItemError {
        let failure = Some(Failure { code: "network".into(), message: "m".into() });
        ItemError::Later { failure, attempt, after: after.map(Duration::from_secs) }
    }

    #[test]
    fn pauses_grow_and_the_fifth_attempt_is_the_last() {
        let seconds: Vec<Option<u64>> = (0..5)
            .map(|attempts| match later(true, None).into_outcome(&item(attempts)) {
                Err(Outcome::GiveBack { delay, .. }) => Some(delay.as_secs()),
                _ => None,
            })
            .collect();
        assert_eq!(seconds, [Some(30), Some(120), Some(600), Some(1800), None]);
    }

    #[test]
    fn what_is_no_attempt_never_uses_one_up() {
        let outcome = later(false, Some(7)).into_outcome(&item(4));
        assert!(matches!(
            outcome,
            Err(Outcome::GiveBack { delay, failure: Some(_), attempt: false }) if delay.as_secs() == 7
        ));
    }

    #[test]
    fn an_answer_that_is_too_large_is_an_attempt_and_a_lost_one_is_none() {
        for (fault, expected) in [(NetworkError::TooLarge, true), (NetworkError::Lost, false)] {
            let error = ItemError::from(SupabaseError::Network(fault));
            assert!(matches!(error, ItemError::Later { attempt, .. } if attempt == expected), "{error:?}");
        }
    }
}
