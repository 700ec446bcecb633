//! Claims, seals and settles the mails of the outbox in the database (`supabase/schemas/30_mails.sql`). Every call may
//! be repeated; what another claim holds by now is not written.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    deadline::Deadline,
    failure::Failure,
    mail_kind::MailKind,
    providers::OUTAGE,
    queue::MOST_ATTEMPTS,
    schedule::{NoRecap, recap_due},
    supabase::{Supabase, SupabaseError},
};

/// Says how long a claimed mail stays invisible to others; extended before each further request.
const VISIBILITY_SECONDS: u32 = 60;

/// Represents a mail that this claim holds.
#[derive(Debug, Deserialize)]
pub(super) struct Claimed {
    pub(super) delivery_id: i64,
    pub(super) kind: MailKind,
    /// Identifies the recipient, even if the account is deleted since: the links of a sealed mail
    /// do not change. Is `None` for the operator.
    pub(super) user_id: Option<Uuid>,
    /// Is set if an earlier claim, which is lost, has sealed the mail; its request may have been
    /// accepted.
    pub(super) batch_id: Option<Uuid>,
    /// Holds the digest of the mail as it was rendered when it was sealed.
    pub(super) digest: Option<String>,
    pub(super) address: Option<String>,
    pub(super) facts: Value,
    pub(super) attempts: u32,
    /// Says why the mail is not wanted any more.
    pub(super) reason: Option<String>,
    pub(super) expired: bool,
    /// Says how long ago it was sealed.
    pub(super) age_seconds: Option<u64>,
    /// Says that it comes without facts: what it is about takes longer than a claim may.
    #[serde(default)]
    pub(super) too_slow: bool,
}

/// Represents the result of a claim.
pub(super) enum Claim {
    /// Nothing is waiting.
    Empty,
    /// The messages that were seen belong to mails that no longer exist: claim again.
    Again,
    /// It holds fresh mails of one kind, or one sealed batch as a whole.
    Mails { id: Uuid, mails: Vec<Claimed> },
}

/// Represents the outcome that is stored for a mail.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) delivery_id: i64,
    pub(super) status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) provider_id: Option<String>,
}

/// Represents a value of `email_deliveries.status`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Sent,
    /// It is not wanted any more.
    Skipped,
    Expired,
    /// The service refuses it.
    Refused,
    /// It cannot be rendered.
    Failed,
    /// It is unknown whether it was sent.
    Unknown,
    /// It has not left for a reason that is no mail's own: it waits again, for another batch.
    Planned,
}

impl Outcome {
    pub(super) fn new(delivery_id: i64, status: Status) -> Self {
        Self { delivery_id, status, code: None, reason: None, provider_id: None }
    }

    pub(super) fn sent(delivery_id: i64, provider_id: Option<String>) -> Self {
        Self { provider_id, ..Self::new(delivery_id, Status::Sent) }
    }

    pub(super) fn because(delivery_id: i64, status: Status, failure: &Failure) -> Self {
        let (code, reason) = (Some(failure.code.clone()), Some(failure.message.clone()));
        Self { code, reason, ..Self::new(delivery_id, status) }
    }
}

/// Represents a mail as it is sealed.
#[derive(Debug, Serialize)]
pub(super) struct Sealed<'a> {
    pub(super) delivery_id: i64,
    pub(super) address: &'a str,
    pub(super) facts: &'a Value,
    pub(super) digest: &'a str,
}

/// Represents the outbox of this deployment.
#[derive(Clone)]
pub(super) struct Outbox {
    supabase: Supabase,
    /// Is `null` if the prices are not configured: then a user's plan is not checked again.
    prices: Value,
    /// Holds the instant of the invocation.
    now: DateTime<Utc>,
}

impl Outbox {
    pub(super) fn new(supabase: Supabase, prices: Value, now: DateTime<Utc>) -> Self {
        Self { supabase, prices, now }
    }

    /// Claims mails of the most urgent kind of which any wait.
    pub(super) async fn claim(&self, limit: usize, deadline: &Deadline) -> Result<Claim, SupabaseError> {
        #[derive(Deserialize)]
        struct Answer {
            mails: Vec<Claimed>,
        }
        let id = Uuid::new_v4();
        let arguments = json!({
            "p_claim": id, "p_limit": limit, "p_seconds": VISIBILITY_SECONDS, "p_prices": self.prices,
            "p_outage": OUTAGE, "p_now": self.now,
        });
        let answer: Option<Answer> = self.supabase.rpc("mail_claim", &arguments, deadline).await?;
        Ok(match answer {
            None => Claim::Again,
            Some(Answer { mails }) if mails.is_empty() => Claim::Empty,
            Some(Answer { mut mails }) => {
                for mail in &mut mails {
                    mail.expired |= self.is_past(mail);
                }
                Claim::Mails { id, mails }
            }
        })
    }

    /// Returns whether the time of a recap is over that nobody has begun to send: its month was read late, or it waited.
    fn is_past(&self, mail: &Claimed) -> bool {
        let month = || mail.facts["month"].as_str()?.parse().ok();
        mail.kind == MailKind::MonthlyRecap
            && mail.batch_id.is_none()
            && month().is_some_and(|month| recap_due(month, self.now) == Err(NoRecap::TooOld))
    }

    /// Seals a batch and returns the mails that are in it.
    pub(super) async fn seal(
        &self,
        claim: Uuid,
        batch: Uuid,
        kind: MailKind,
        mails: &[Sealed<'_>],
        deadline: &Deadline,
    ) -> Result<Vec<i64>, SupabaseError> {
        let arguments = json!({
            "p_claim": claim, "p_batch_id": batch, "p_kind": kind.as_str(), "p_mails": mails, "p_prices": self.prices,
            "p_now": self.now,
        });
        self.supabase.rpc("mail_seal", &arguments, deadline).await
    }

    /// Extends the visibility timeout of mails and returns whether this claim still holds all of them.
    pub(super) async fn extend(
        &self,
        claim: Uuid,
        mails: &[i64],
        deadline: &Deadline,
    ) -> Result<bool, SupabaseError> {
        let arguments = json!({"p_claim": claim, "p_deliveries": mails, "p_seconds": VISIBILITY_SECONDS});
        self.supabase.rpc("mail_extend", &arguments, deadline).await
    }

    pub(super) async fn settle(
        &self,
        claim: Uuid,
        outcomes: &[Outcome],
        deadline: &Deadline,
    ) -> Result<u64, SupabaseError> {
        let arguments = json!({"p_claim": claim, "p_outcomes": outcomes, "p_now": self.now});
        self.supabase.rpc("mail_settle", &arguments, deadline).await
    }

    /// Gives mails back, which counts an attempt if there is a failure. `release` names their batch if it was not
    /// accepted.
    pub(super) async fn give_back(
        &self,
        claim: Uuid,
        mails: &[i64],
        delay: std::time::Duration,
        failure: Option<&Failure>,
        release: Option<Uuid>,
        deadline: &Deadline,
    ) -> Result<(), SupabaseError> {
        let arguments = json!({
            "p_claim": claim, "p_deliveries": mails, "p_delay_seconds": delay.as_secs(),
            "p_error": failure, "p_release_batch": release, "p_max_attempts": MOST_ATTEMPTS, "p_now": self.now,
        });
        self.supabase.rpc("mail_give_back", &arguments, deadline).await
    }

    /// Splits a refused batch and returns whether this claim still holds it.
    pub(super) async fn split(
        &self,
        claim: Uuid,
        batch: Uuid,
        children: &[(Uuid, Vec<i64>)],
        deadline: &Deadline,
    ) -> Result<bool, SupabaseError> {
        let children: Vec<Value> =
            children.iter().map(|(batch, mails)| json!({"batch_id": batch, "mails": mails})).collect();
        let arguments =
            json!({"p_claim": claim, "p_batch_id": batch, "p_children": children, "p_now": self.now});
        self.supabase.rpc("mail_split", &arguments, deadline).await
    }
}
