//! The mailer works the mail lanes empty, most urgent first, a batch at a time.
//!
//! Claim, render, seal, send, settle. A batch is sealed just before its first request; from then on it is only ever
//! sent again as sealed, until an answer says definitely that it was not accepted. See `docs/ARCHITECTURE.md`, "The
//! life of a mail".

mod batch;
mod deliver;
mod prepare;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::task::JoinSet;
use uuid::Uuid;

use self::batch::{Batch, RenderedMail};
use super::{
    Branding, Domain,
    outbox::{Claim, Claimed, Outbox, Outcome, Status},
    quotas::Quotas,
    sender::{LARGEST_BATCH, Sender},
    settings::{MailConfig, Prices},
};
use crate::{
    deadline::{Deadline, OutOfTime},
    failure::Failure,
    pace::{SharedPace, Turn},
    supabase::{Supabase, SupabaseError},
};

/// So many batches are under way at once: at ten requests a second, answers may take almost a second.
const AT_ONCE: usize = 8;
/// A mail whose facts take too long waits so long: what is slow now may be quicker then.
const PUT_OFF: Duration = Duration::from_mins(30);

/// Holds what a process knows of the mail service's limits. Create one per process.
pub struct MailLimits {
    /// Turns are leased from the database, for all instances together.
    pace: SharedPace,
    quotas: Quotas,
}

impl MailLimits {
    /// Creates limits of which nothing is known yet.
    pub fn new(supabase: Supabase) -> Self {
        Self { pace: SharedPace::new(supabase, "resend"), quotas: Quotas::default() }
    }
}

/// Sends what is in the outbox. Create one per invocation.
pub struct Mailer {
    config: Arc<MailConfig>,
    branding: Branding,
    outbox: Outbox,
    sender: Sender,
    limits: Arc<MailLimits>,
}

/// Counts what a drain did.
#[derive(Clone, Debug, Default)]
pub struct MailReport {
    pub sent: u64,
    pub failed: u64,
    pub skipped: u64,
    pub given_back: u64,
    /// Says how many of those given back had an attempt fail: they are tried again, but this is no
    /// success.
    pub attempts_failed: u64,
    /// Says why the first of these attempts failed.
    pub attempt_failure: Option<Failure>,
    /// Says why the rest was left: a quota, or credentials of ours.
    pub blocked: Option<Failure>,
    /// Says why mails were given back without an attempt: it passes, and nobody is told unless it
    /// is said here.
    pub setback: Option<Failure>,
    /// The budget was over before the outbox was empty.
    pub out_of_time: bool,
}

impl MailReport {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.given_back += other.given_back;
        self.attempts_failed += other.attempts_failed;
        self.attempt_failure = self.attempt_failure.take().or(other.attempt_failure);
        self.out_of_time |= other.out_of_time;
        self.blocked = self.blocked.take().or(other.blocked);
        self.setback = self.setback.take().or(other.setback);
    }

    fn count(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            match outcome.status {
                Status::Sent => self.sent += 1,
                Status::Skipped | Status::Expired => self.skipped += 1,
                Status::Refused | Status::Failed | Status::Unknown => self.failed += 1,
                Status::Planned => self.given_back += 1,
            }
        }
    }
}

impl Mailer {
    /// Creates a mailer that has sent nothing yet. `now` is the instant of the invocation: what is expired by
    /// then is not sent.
    pub fn new(
        http: &reqwest::Client,
        supabase: Supabase,
        config: Arc<MailConfig>,
        prices: Option<&Prices>,
        limits: Arc<MailLimits>,
        now: DateTime<Utc>,
    ) -> Self {
        let branding = Branding {
            app_url: config.app_url.clone(),
            sender_identity: config.sender_identity.clone(),
            promo: config.promo.clone(),
        };
        let prices = serde_json::to_value(prices).unwrap_or(Value::Null);
        Self {
            branding,
            outbox: Outbox::new(supabase, prices, now),
            sender: Sender::new(http.clone(), config.clone()),
            limits,
            config,
        }
    }

    /// Returns what the mail service says of the domain that mails come from.
    pub async fn domain(&self, timeout: Duration) -> Domain {
        self.sender.domain(timeout).await
    }

    async fn turn(&self, deadline: &Deadline) -> Result<Turn, OutOfTime> {
        self.limits.pace.turn(self.limits.quotas.interval().await, deadline).await
    }

    /// Sends until nothing waits, the budget is over, or nothing may be sent any more.
    pub async fn drain(self: &Arc<Self>, deadline: Deadline) -> Result<MailReport, SupabaseError> {
        let mut report = MailReport::default();
        let mut working: JoinSet<Result<MailReport, SupabaseError>> = JoinSet::new();
        let mut error: Option<SupabaseError> = None;
        let mut most = LARGEST_BATCH;
        loop {
            if working.len() >= AT_ONCE
                && let Some(done) = working.join_next().await
            {
                add_batch(&mut report, &mut error, done);
            }
            let turn = match self.turn(&deadline).await {
                Ok(turn) if deadline.may_start_work() => turn,
                _ => {
                    report.out_of_time = true;
                    break;
                }
            };
            // Waiting for the turn may have been long: do not claim more once a batch was blocked.
            while let Some(done) = working.try_join_next() {
                add_batch(&mut report, &mut error, done);
            }
            if report.blocked.is_some() || error.is_some() {
                break;
            }
            let limit = match self.limits.quotas.allowance().await {
                Some(allowance) if allowance.left == Some(0) => {
                    report.blocked = Some(allowance.exhausted());
                    break;
                }
                Some(allowance) => {
                    allowance.left.map_or(most, |left| usize::try_from(left).unwrap_or(most).min(most))
                }
                None => most,
            };
            match self.outbox.claim(limit, &deadline).await {
                Ok(Claim::Empty) => {
                    self.limits.pace.give_back(turn).await;
                    break;
                }
                Ok(Claim::Again) => self.limits.pace.give_back(turn).await,
                // One alone, for whom even that was too much: the others do not wait for it.
                Ok(Claim::Mails { id, mails }) if mails.iter().any(|mail| mail.too_slow && !mail.expired) => {
                    self.limits.pace.give_back(turn).await;
                    match self.put_off(id, &mails, &deadline).await {
                        Ok(put_off) => report.add(put_off),
                        Err(failed) => error = Some(failed),
                    }
                }
                Ok(Claim::Mails { id, mails }) => {
                    most = (most * 2).min(LARGEST_BATCH);
                    // Reserve the quota sequentially, so that more urgent mail gets it first.
                    let reserved = match self.reserve(&mails, &deadline).await {
                        Ok(reserved) => reserved,
                        Err(failure) => {
                            let back: Vec<i64> = mails.iter().map(|mail| mail.delivery_id).collect();
                            report.given_back += back.len() as u64;
                            report.blocked = Some(failure);
                            let given =
                                self.outbox.give_back(id, &back, Duration::ZERO, None, None, &deadline);
                            error = given.await.err();
                            break;
                        }
                    };
                    let mailer = self.clone();
                    working.spawn(async move { mailer.work(id, mails, reserved, deadline).await });
                }
                // Some of these users have very much in their books: fewer of them at once, and then more again.
                Err(failed) if failed.asks_too_much() && limit > 1 => {
                    most = (limit / 10).max(1);
                    self.limits.pace.give_back(turn).await;
                }
                Err(failed) => error = Some(failed),
            }
        }
        while let Some(done) = working.join_next().await {
            add_batch(&mut report, &mut error, done);
        }
        error.map_or(Ok(report), Err)
    }

    /// Puts off mails whose facts take too long to read: an attempt, the last of which fails them.
    async fn put_off(
        &self,
        claim: Uuid,
        mails: &[Claimed],
        deadline: &Deadline,
    ) -> Result<MailReport, SupabaseError> {
        let ids: Vec<i64> = mails.iter().map(|mail| mail.delivery_id).collect();
        tracing::warn!(mails = ids.len(), "what a mail is about takes too long to read");
        let failure = Failure {
            code: "too_slow".into(),
            message: "Les données de ce courriel sont trop nombreuses pour être lues à temps.".into(),
        };
        self.outbox.give_back(claim, &ids, PUT_OFF, Some(&failure), None, deadline).await?;
        let count = ids.len() as u64;
        Ok(MailReport {
            given_back: count,
            attempts_failed: count,
            attempt_failure: Some(failure),
            ..MailReport::default()
        })
    }

    /// Reserves quota for these mails and returns for how many. A sealed batch has had its quota reserved before. It fails
    /// where something else than the mail service answers: then nothing is sealed, and no mail becomes unknown.
    async fn reserve(&self, mails: &[Claimed], deadline: &Deadline) -> Result<usize, Failure> {
        if mails.iter().any(|mail| mail.batch_id.is_some()) {
            return Ok(mails.len());
        }
        // Asking for the quotas is a request like another and takes a turn, too.
        if self.limits.quotas.asks().await && self.turn(deadline).await.is_ok() {
            match self.sender.allowance(deadline).await {
                Ok(Some(allowance)) => self.limits.quotas.learn(allowance).await,
                Ok(None) => {}
                Err(failure) => {
                    self.limits.quotas.ask_again().await;
                    return Err(failure);
                }
            }
        }
        Ok(self.limits.quotas.take(mails.len()).await)
    }
}

fn unknown(delivery: i64) -> Outcome {
    let failure = Failure {
        code: "unknown_outcome".into(),
        message: "Nul ne peut dire si ce courriel est parti ; il n’est pas renvoyé.".into(),
    };
    Outcome::because(delivery, Status::Unknown, &failure)
}

/// Adds up what a batch's task did. After a panic, its mails become visible again by themselves.
fn add_batch(
    report: &mut MailReport,
    first_error: &mut Option<SupabaseError>,
    done: Result<Result<MailReport, SupabaseError>, tokio::task::JoinError>,
) {
    match done {
        Ok(Ok(of_batch)) => report.add(of_batch),
        Ok(Err(error)) => {
            first_error.get_or_insert(error);
        }
        Err(_) => {
            first_error.get_or_insert(SupabaseError::Encoding("a batch's task panicked".into()));
        }
    }
}
