//! Sends a sealed batch and records the outcome of each mail.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::{Batch, MailReport, Mailer, unknown};
use crate::{
    deadline::Deadline,
    email::{
        allowance::Allowance,
        outbox::{Outcome, Status},
        outcome::{OfMail, Sent},
    },
    failure::Failure,
    queue::pause_after,
    supabase::SupabaseError,
};

/// This much of the budget is reserved at its end for recording outcomes, for the report and for
/// the log.
const RESERVE: Duration = Duration::from_secs(10);
/// After a longer rate limit the batch waits in the queue, not here.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// After so many rate limits a batch is given back, so that others are sent.
const MOST_WAITS: usize = 5;
/// So many requests are made for a batch within one claim if their outcome is unknown.
const TRIES: usize = 2;
/// Says how long another request with the same key may still run.
const UNDER_WAY: Duration = Duration::from_secs(30);

impl Mailer {
    /// Sends a sealed batch, its first turn being taken, and settles it or gives it back.
    pub(super) async fn deliver(
        &self,
        mut batch: Batch,
        deadline: &Deadline,
    ) -> Result<MailReport, SupabaseError> {
        let (mut tries, mut waits) = (0, 0);
        let asking = deadline.reserving(RESERVE);
        loop {
            let payload: Vec<&Value> = batch.mails.iter().map(|mail| &mail.payload).collect();
            let (wait, failure) = match self.sender.send(batch.id, &payload, &asking).await {
                Sent::Accepted(outcomes) => {
                    let blocked = outcomes.iter().find_map(OfMail::blocked).filter(|_| batch.maybe_accepted);
                    return match blocked.cloned() {
                        // An earlier request may have been accepted: no mail of it leaves under another key.
                        Some(failure) => self.give_back_blocked(&batch, failure, deadline).await,
                        None => self.settle_each(&batch, outcomes, deadline).await,
                    };
                }
                Sent::AcceptedBefore => {
                    let outcomes = batch.all(|delivery| Outcome::sent(delivery, None));
                    return self.settle(&batch, outcomes, deadline).await;
                }
                // The refused payload is not the sealed one, which may have been accepted.
                Sent::Refused(_) if batch.maybe_accepted && !batch.matches_seal => {
                    return self.settle(&batch, batch.all(unknown), deadline).await;
                }
                Sent::Refused(failure) if batch.mails.len() == 1 => {
                    let outcomes =
                        batch.all(|delivery| Outcome::because(delivery, Status::Refused, &failure));
                    return self.settle(&batch, outcomes, deadline).await;
                }
                Sent::Refused(_) => return self.split(batch, deadline).await,
                Sent::Blocked(failure) => return self.give_back_blocked(&batch, failure, deadline).await,
                Sent::Foreign(failure) => {
                    // It may have passed the request on: only the same key may ask again, and that is no attempt.
                    batch.maybe_accepted = true;
                    return self.give_back_blocked(&batch, failure, deadline).await;
                }
                Sent::RateLimited { wait, quota } => {
                    if let Some(report) = self.out_of_quota(&batch, quota, deadline).await? {
                        return Ok(report);
                    }
                    waits += 1;
                    self.limits.pace.hold_back(wait, deadline).await;
                    if wait > LONGEST_WAIT || waits >= MOST_WAITS {
                        let mut report = self.give_back(&batch, wait, None, deadline).await?;
                        report.setback = Some(Failure::new(
                            "mail_rate_limited",
                            "Le service de courriel limite le débit : les courriels restants partiront plus tard.",
                        ));
                        return Ok(report);
                    }
                    (Duration::ZERO, None)
                }
                Sent::UnderWay => {
                    // Another request with this key is running and may be accepted; only retry with the same key.
                    batch.maybe_accepted = true;
                    return self.give_back(&batch, UNDER_WAY, None, deadline).await;
                }
                Sent::OutOfTime => return self.out_of_time(&batch, deadline).await,
                Sent::NotMade(failure) => {
                    tries += 1;
                    (Duration::from_secs(1), Some((failure, false)))
                }
                Sent::Unknown(failure) => {
                    (batch.maybe_accepted, tries) = (true, tries + 1);
                    (Duration::from_secs(1), Some((failure, true)))
                }
            };
            if let Some((failure, made)) = failure {
                tracing::warn!(batch = %batch.id, code = failure.code, tries, "a batch's outcome is not known");
                if tries >= TRIES && !made {
                    // The service is unreachable for every mail: count no attempt, or a day without it would
                    // fail every mail for good.
                    return self.give_back_blocked(&batch, failure, deadline).await;
                }
                if tries >= TRIES {
                    let delay = pause_after(batch.attempts);
                    return self.give_back(&batch, delay, Some(&failure), deadline).await;
                }
                if asking.sleep(wait).await.is_err() {
                    return self.out_of_time(&batch, deadline).await;
                }
            }
            if self.turn(&asking).await.is_err() {
                return self.out_of_time(&batch, deadline).await;
            }
            if !self.outbox.extend(batch.claim, &batch.deliveries(), deadline).await? {
                return Ok(MailReport::default()); // another claim has it
            }
        }
    }

    /// A 429 may be a quota: what is left is asked for, and a batch larger than that is given back. Where the service
    /// does not tell and its answer looked like a quota (`likely`), half the batch is tried next, until it fits.
    async fn out_of_quota(
        &self,
        batch: &Batch,
        likely: bool,
        deadline: &Deadline,
    ) -> Result<Option<MailReport>, SupabaseError> {
        let size = batch.mails.len() as u64;
        let said = self.sender.allowance(&deadline.reserving(RESERVE)).await.ok().flatten();
        let Some(allowance) = said.or_else(|| likely.then(|| Allowance::guessed(size / 2))) else {
            return Ok(None);
        };
        let Some(left) = allowance.left.filter(|left| *left < size) else {
            self.limits.quotas.learn(allowance).await;
            return Ok(None);
        };
        let mut report = self.give_back(batch, Duration::ZERO, None, deadline).await?;
        // Where some mails are left, a smaller batch takes them; a sealed one cannot become smaller.
        if left == 0 || batch.maybe_accepted {
            report.blocked = Some(allowance.exhausted());
        }
        // After giving back: what the service says counts nothing of this batch.
        self.limits.quotas.learn(allowance).await;
        Ok(Some(report))
    }

    /// Halves a batch that was refused as a whole, although each mail could have been refused alone, until the culprit
    /// is found.
    async fn split(&self, mut batch: Batch, deadline: &Deadline) -> Result<MailReport, SupabaseError> {
        let second = batch.mails.split_off(batch.mails.len() / 2);
        let halves = [std::mem::take(&mut batch.mails), second];
        let children = halves.map(|mails| Batch {
            id: Uuid::new_v4(),
            claim: batch.claim,
            mails,
            attempts: batch.attempts,
            maybe_accepted: false,
            matches_seal: true,
        });
        let members: Vec<_> = children.iter().map(|child| (child.id, child.deliveries())).collect();
        if !self.outbox.split(batch.claim, batch.id, &members, deadline).await? {
            return Ok(MailReport::default());
        }
        let mut report = MailReport::default();
        for child in children {
            let in_time = self.turn(&deadline.reserving(RESERVE)).await.is_ok();
            if !in_time || !self.outbox.extend(child.claim, &child.deliveries(), deadline).await? {
                report.add(self.give_back(&child, Duration::ZERO, None, deadline).await?);
                report.out_of_time |= !in_time;
                continue;
            }
            report.add(Box::pin(self.deliver(child, deadline)).await?);
        }
        Ok(report)
    }

    pub(super) async fn settle(
        &self,
        batch: &Batch,
        outcomes: Vec<Outcome>,
        deadline: &Deadline,
    ) -> Result<MailReport, SupabaseError> {
        let mut report = MailReport::default();
        let written = self.outbox.settle(batch.claim, &outcomes, deadline).await?;
        if written < outcomes.len() as u64 {
            tracing::warn!(batch = %batch.id, "a batch was taken over; its next holder notes its outcome");
        } else {
            report.count(&outcomes);
        }
        Ok(report)
    }

    /// Settles each mail by what was said of it alone. What is refused for a common cause waits again, and blocks the rest.
    async fn settle_each(
        &self,
        batch: &Batch,
        outcomes: Vec<OfMail>,
        deadline: &Deadline,
    ) -> Result<MailReport, SupabaseError> {
        let mut blocked = None;
        let mails = batch.mails.iter().zip(outcomes);
        let outcomes: Vec<Outcome> = mails
            .map(|(mail, outcome)| match outcome {
                OfMail::Accepted(id) => Outcome::sent(mail.delivery_id, Some(id)),
                OfMail::Refused(failure) => Outcome::because(mail.delivery_id, Status::Refused, &failure),
                OfMail::Blocked(failure) => {
                    blocked.get_or_insert(failure);
                    Outcome::new(mail.delivery_id, Status::Planned)
                }
            })
            .collect();
        let back = outcomes.iter().filter(|outcome| outcome.status == Status::Planned).count();
        self.limits.quotas.put_back(back).await;
        let mut report = self.settle(batch, outcomes, deadline).await?;
        report.blocked = blocked;
        Ok(report)
    }

    /// Gives the batch back because the budget is over, which counts no attempt.
    async fn out_of_time(&self, batch: &Batch, deadline: &Deadline) -> Result<MailReport, SupabaseError> {
        let mut report = self.give_back(batch, Duration::ZERO, None, deadline).await?;
        report.out_of_time = true;
        Ok(report)
    }

    /// Gives the batch back because nothing of anybody's would be accepted now, which counts no attempt.
    async fn give_back_blocked(
        &self,
        batch: &Batch,
        failure: Failure,
        deadline: &Deadline,
    ) -> Result<MailReport, SupabaseError> {
        let mut report = self.give_back(batch, Duration::ZERO, None, deadline).await?;
        report.blocked = Some(failure);
        Ok(report)
    }

    async fn give_back(
        &self,
        batch: &Batch,
        delay: Duration,
        failure: Option<&Failure>,
        deadline: &Deadline,
    ) -> Result<MailReport, SupabaseError> {
        let deliveries = batch.deliveries();
        self.limits.quotas.put_back(if batch.maybe_accepted { 0 } else { deliveries.len() }).await;
        self.outbox.give_back(batch.claim, &deliveries, delay, failure, batch.release(), deadline).await?;
        let given_back = deliveries.len() as u64;
        Ok(MailReport {
            given_back,
            attempts_failed: if failure.is_some() { given_back } else { 0 },
            attempt_failure: failure.cloned(),
            ..MailReport::default()
        })
    }
}
