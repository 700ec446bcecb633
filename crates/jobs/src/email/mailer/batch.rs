//! Describes a sealed batch: what is sent, and what may follow from its requests.

use serde_json::Value;
use uuid::Uuid;

use crate::email::outbox::Outcome;

/// Represents a mail as it is sent.
pub(super) struct RenderedMail {
    pub(super) delivery_id: i64,
    pub(super) payload: Value,
}

/// Represents a sealed batch of mails.
pub(super) struct Batch {
    pub(super) id: Uuid,
    pub(super) claim: Uuid,
    pub(super) mails: Vec<RenderedMail>,
    /// Counts the attempts of the mail that has had the most.
    pub(super) attempts: u32,
    /// An earlier request may have been accepted.
    pub(super) maybe_accepted: bool,
    /// Each payload is the sealed one, byte for byte.
    pub(super) matches_seal: bool,
}

impl Batch {
    pub(super) fn deliveries(&self) -> Vec<i64> {
        self.mails.iter().map(|mail| mail.delivery_id).collect()
    }

    /// Returns the batch's id if its mails may leave it: no request of the batch can have been accepted.
    pub(super) fn release(&self) -> Option<Uuid> {
        (!self.maybe_accepted).then_some(self.id)
    }

    pub(super) fn all(&self, outcome: impl Fn(i64) -> Outcome) -> Vec<Outcome> {
        self.mails.iter().map(|mail| outcome(mail.delivery_id)).collect()
    }
}
