//! The post: works the mail lanes empty, most urgent first, a batch at a time.
//!
//! Claim, render, seal, send, settle. A batch is sealed just before its first request; from then on it is only ever
//! sent again as sealed, until an answer says definitely that it was not accepted. See `docs/ARCHITECTURE.md`, "The
//! life of a mail".

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    Domain, Facts, Look, links,
    outbox::{Claim, Claimed, Outbox, Outcome, Sealed, Status},
    quotas::Quotas,
    render,
    sender::{self, Allowance, KEY_REMEMBERED, LARGEST_BATCH, Sender, Sent},
};
use crate::{
    config::{MailConfig, Prices},
    deadline::{Deadline, OutOfTime},
    pace::{SharedPace, Turn},
    queue::{Failure, pause_after},
    supabase::{Supabase, SupabaseError},
};

/// Batches under way at once: at ten requests a second, answers may take almost a second.
const AT_ONCE: usize = 8;
/// Kept from the mail service's requests for writing down what came of them, the report and the log.
const RESERVE: Duration = Duration::from_secs(10);
/// A rate limit longer than this is waited for in the queue, not here.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// Rate limits that one batch waits for before it makes room for others.
const MOST_WAITS: usize = 5;
/// Requests of one batch within a claim, where their outcome is not known.
const TRIES: usize = 2;
/// Another request with the same key is under way: it may take as long as a request.
const UNDER_WAY: Duration = Duration::from_secs(30);

/// Sends what is in the outbox. One value a process.
pub struct Post {
    config: Arc<MailConfig>,
    look: Look,
    outbox: Outbox,
    sender: Sender,
    /// Of all instances together.
    pace: SharedPace,
    quotas: Quotas,
}

/// What a drain did.
#[derive(Clone, Debug, Default)]
pub struct PostReport {
    pub sent: u64,
    pub failed: u64,
    pub skipped: u64,
    pub given_back: u64,
    /// Why the rest was left: a quota, or credentials of ours.
    pub blocked: Option<Failure>,
    /// The budget was over before the outbox was empty.
    pub out_of_time: bool,
}

impl PostReport {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.given_back += other.given_back;
        self.out_of_time |= other.out_of_time;
        self.blocked = self.blocked.take().or(other.blocked);
    }

    fn book(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            match outcome.status {
                Status::Sent => self.sent += 1,
                Status::Skipped | Status::Expired => self.skipped += 1,
                Status::Refused | Status::Failed | Status::Unknown => self.failed += 1,
            }
        }
    }
}

/// A mail, written.
struct Letter {
    delivery_id: i64,
    payload: Value,
}

/// A sealed batch.
struct Batch {
    id: Uuid,
    claim: Uuid,
    letters: Vec<Letter>,
    /// Attempts so far, of the mail that had most.
    attempts: u32,
    /// An earlier request may have been accepted.
    doubtful: bool,
    /// The payload is the sealed one, byte for byte.
    faithful: bool,
}

impl Batch {
    fn deliveries(&self) -> Vec<i64> {
        self.letters.iter().map(|letter| letter.delivery_id).collect()
    }

    /// What may be released: a batch that was definitely not accepted, ever.
    fn release(&self) -> Option<Uuid> {
        (!self.doubtful).then_some(self.id)
    }

    fn all(&self, outcome: impl Fn(i64) -> Outcome) -> Vec<Outcome> {
        self.letters.iter().map(|letter| outcome(letter.delivery_id)).collect()
    }
}

impl Post {
    /// Nothing is sent yet. `clock`: another time than the database's, in tests.
    pub fn new(
        http: &reqwest::Client,
        supabase: Supabase,
        config: Arc<MailConfig>,
        prices: Option<&Prices>,
        clock: Option<DateTime<Utc>>,
    ) -> Self {
        let look = Look {
            app_url: config.app_url.clone(),
            sender_identity: config.sender_identity.clone(),
            promo: config.promo.clone(),
        };
        let prices = serde_json::to_value(prices).unwrap_or(Value::Null);
        Self {
            look,
            outbox: Outbox::new(supabase.clone(), prices, clock),
            sender: Sender::new(http.clone(), config.clone()),
            pace: SharedPace::new(supabase, "resend"),
            quotas: Quotas::default(),
            config,
        }
    }

    /// What the mail service says of the domain that mails come from.
    pub async fn domain(&self, timeout: Duration) -> Domain {
        self.sender.domain(timeout).await
    }

    async fn turn(&self, deadline: &Deadline) -> Result<Turn, OutOfTime> {
        self.pace.turn(self.quotas.interval().await, deadline).await
    }

    /// Sends until nothing waits, the budget is over, or nothing may be sent any more.
    pub async fn drain(self: &Arc<Self>, deadline: Deadline) -> Result<PostReport, SupabaseError> {
        let mut report = PostReport::default();
        let mut working: JoinSet<Result<PostReport, SupabaseError>> = JoinSet::new();
        let mut fault = None;
        loop {
            if working.len() >= AT_ONCE
                && let Some(done) = working.join_next().await
            {
                book(&mut report, &mut fault, done);
            }
            let turn = match self.turn(&deadline).await {
                Ok(turn) if deadline.may_start_work() => turn,
                _ => {
                    report.out_of_time = true;
                    break;
                }
            };
            // After the turn, which may have been long: what is blocked by now is not asked for again.
            while let Some(done) = working.try_join_next() {
                book(&mut report, &mut fault, done);
            }
            if report.blocked.is_some() || fault.is_some() {
                break;
            }
            let limit = match self.quotas.allowance().await {
                Some(allowance) if allowance.left == Some(0) => {
                    report.blocked = Some(allowance.exhausted());
                    break;
                }
                Some(allowance) => allowance.left.map_or(LARGEST_BATCH, |left| {
                    usize::try_from(left).unwrap_or(LARGEST_BATCH).min(LARGEST_BATCH)
                }),
                None => LARGEST_BATCH,
            };
            match self.outbox.claim(limit, &deadline).await {
                Ok(Claim::Empty) => {
                    self.pace.leave(turn).await;
                    break;
                }
                Ok(Claim::Again) => self.pace.leave(turn).await,
                Ok(Claim::Mails { id, mails }) => {
                    // Here and not beside each other: what is claimed later, and less urgent, takes what is left then.
                    let room = self.room(&mails, &deadline).await;
                    let post = self.clone();
                    working.spawn(async move { post.work(id, mails, room, deadline).await });
                }
                Err(error) => fault = Some(error),
            }
        }
        while let Some(done) = working.join_next().await {
            book(&mut report, &mut fault, done);
        }
        fault.map_or(Ok(report), Err)
    }

    /// Takes these mails off the quota; how many it allows. A sealed batch was taken off before.
    async fn room(&self, mails: &[Claimed], deadline: &Deadline) -> usize {
        if mails.iter().any(|mail| mail.batch_id.is_some()) {
            return mails.len();
        }
        // A request like another: it takes a turn, too.
        if self.quotas.asks().await
            && self.turn(deadline).await.is_ok()
            && let Some(allowance) = self.sender.allowance(deadline).await
        {
            self.quotas.learn(allowance).await;
        }
        self.quotas.take(mails.len()).await
    }

    async fn work(
        &self,
        claim: Uuid,
        mails: Vec<Claimed>,
        room: usize,
        deadline: Deadline,
    ) -> Result<PostReport, SupabaseError> {
        match mails.first().and_then(|mail| mail.batch_id) {
            Some(batch) => self.resume(claim, batch, mails, &deadline).await,
            None => self.begin(claim, mails, room, &deadline).await,
        }
    }

    /// A batch that an earlier claim sealed: its request may have been accepted.
    async fn resume(
        &self,
        claim: Uuid,
        batch: Uuid,
        mails: Vec<Claimed>,
        deadline: &Deadline,
    ) -> Result<PostReport, SupabaseError> {
        let age = mails.iter().filter_map(|mail| mail.age_seconds).max().unwrap_or_default();
        let mut letters = Vec::with_capacity(mails.len());
        let (mut faithful, mut attempts) = (true, 0);
        for mail in &mails {
            attempts = attempts.max(mail.attempts);
            if let Ok(payload) = self.write(mail) {
                faithful &= mail.digest.as_deref() == Some(digest(&payload).as_str());
                letters.push(Letter { delivery_id: mail.delivery_id, payload });
            }
        }
        let mut batch = Batch { id: batch, claim, letters, attempts, doubtful: true, faithful };
        // Too late for the key, or not what was sealed: another request could be a second mail.
        if age >= KEY_REMEMBERED.as_secs() || batch.letters.len() < mails.len() {
            batch.letters = mails
                .iter()
                .map(|mail| Letter { delivery_id: mail.delivery_id, payload: Value::Null })
                .collect();
            return self.settle(&batch, batch.all(unknown), deadline).await;
        }
        self.deliver(batch, deadline).await
    }

    /// Fresh mails: writes, seals and sends what is still wanted, as far as there is room for it in the quota.
    async fn begin(
        &self,
        claim: Uuid,
        mails: Vec<Claimed>,
        room: usize,
        deadline: &Deadline,
    ) -> Result<PostReport, SupabaseError> {
        let mut report = PostReport::default();
        let (mut settled, mut ready) = (Vec::new(), Vec::with_capacity(mails.len()));
        for mail in &mails {
            let outcome = if mail.expired {
                Outcome { reason: Some("expired".into()), ..Outcome::new(mail.delivery_id, Status::Expired) }
            } else if let Some(reason) = &mail.reason {
                Outcome { reason: Some(reason.clone()), ..Outcome::new(mail.delivery_id, Status::Skipped) }
            } else {
                match self.write(mail) {
                    Ok(payload) => {
                        ready.push((mail, digest(&payload), payload));
                        continue;
                    }
                    Err(failure) => Outcome::because(mail.delivery_id, Status::Failed, &failure),
                }
            };
            settled.push(outcome);
        }
        if !settled.is_empty() {
            self.outbox.settle(claim, &settled, deadline).await?;
            report.book(&settled);
        }
        self.quotas.put_back(room.saturating_sub(ready.len())).await;
        let Some(kind) = ready.first().map(|(mail, ..)| mail.kind) else { return Ok(report) };
        let beyond: Vec<i64> =
            ready.drain(room.min(ready.len())..).map(|(mail, ..)| mail.delivery_id).collect();
        if !beyond.is_empty() {
            self.outbox.give_back(claim, &beyond, Duration::ZERO, None, None, deadline).await?;
            report.given_back += beyond.len() as u64;
            report.blocked = self.quotas.allowance().await.map(|allowance| allowance.exhausted());
        }
        if ready.is_empty() {
            return Ok(report);
        }

        let batch = Uuid::new_v4();
        let sealed: Vec<Sealed> = ready
            .iter()
            .map(|(mail, digest, _)| Sealed {
                delivery_id: mail.delivery_id,
                address: mail.address.as_deref().unwrap_or_default(),
                facts: &mail.facts,
                digest,
            })
            .collect();
        let members = self.outbox.seal(claim, batch, kind, &sealed, deadline).await?;
        self.quotas.put_back(ready.len() - members.len().min(ready.len())).await;
        // Who has refused meanwhile was settled with the seal; who has another address by now comes back with it.
        let left_out: Vec<i64> =
            ready.iter().map(|(mail, ..)| mail.delivery_id).filter(|id| !members.contains(id)).collect();
        if !left_out.is_empty() {
            self.outbox.give_back(claim, &left_out, Duration::ZERO, None, None, deadline).await?;
        }
        let attempts = ready.iter().map(|(mail, ..)| mail.attempts).max().unwrap_or_default();
        let letters: Vec<Letter> = ready
            .into_iter()
            .filter(|(mail, ..)| members.contains(&mail.delivery_id))
            .map(|(mail, _, payload)| Letter { delivery_id: mail.delivery_id, payload })
            .collect();
        if !letters.is_empty() {
            let batch = Batch { id: batch, claim, letters, attempts, doubtful: false, faithful: true };
            report.add(self.deliver(batch, deadline).await?);
        }
        Ok(report)
    }

    /// Writes a mail from its facts; the same facts give the same mail.
    fn write(&self, mail: &Claimed) -> Result<Value, Failure> {
        let broken = |what: &str| {
            tracing::error!(
                delivery_id = mail.delivery_id,
                kind = mail.kind.as_str(),
                what,
                "a mail cannot be written"
            );
            Failure {
                code: "unwritable".into(),
                message: "Le courriel n’a pas pu être rédigé ; voir les journaux.".into(),
            }
        };
        let facts: Facts =
            serde_json::from_value(mail.facts.clone()).map_err(|error| broken(&error.to_string()))?;
        let address = mail.address.as_deref().ok_or_else(|| broken("no address"))?;
        let link = mail.user_id.and_then(|user| {
            links::unsubscribe(&self.config.jobs_url, &self.config.link_key, user, facts.kind())
        });
        let rendered =
            render(&facts, &self.look, link.as_deref()).map_err(|error| broken(&error.to_string()))?;
        Ok(sender::compose(&self.config.from, address, &rendered, link.as_deref()))
    }

    /// Sends a sealed batch, its first turn being taken, and settles it or gives it back.
    async fn deliver(&self, mut batch: Batch, deadline: &Deadline) -> Result<PostReport, SupabaseError> {
        let (mut tries, mut waits) = (0, 0);
        let asking = deadline.reserving(RESERVE);
        loop {
            let payload: Vec<&Value> = batch.letters.iter().map(|letter| &letter.payload).collect();
            let (wait, failure) = match self.sender.send(batch.id, &payload, &asking).await {
                Sent::Accepted(outcomes) => {
                    let outcomes =
                        batch.letters.iter().zip(outcomes).map(|(letter, outcome)| match outcome {
                            Ok(id) => Outcome::sent(letter.delivery_id, Some(id)),
                            Err(failure) => Outcome::because(letter.delivery_id, Status::Refused, &failure),
                        });
                    return self.settle(&batch, outcomes.collect(), deadline).await;
                }
                Sent::AcceptedBefore => {
                    let outcomes = batch.all(|delivery| Outcome::sent(delivery, None));
                    return self.settle(&batch, outcomes, deadline).await;
                }
                // What was refused is not what was sealed; that one may have been accepted.
                Sent::Refused(_) if batch.doubtful && !batch.faithful => {
                    return self.settle(&batch, batch.all(unknown), deadline).await;
                }
                Sent::Refused(failure) if batch.letters.len() == 1 => {
                    let outcomes =
                        batch.all(|delivery| Outcome::because(delivery, Status::Refused, &failure));
                    return self.settle(&batch, outcomes, deadline).await;
                }
                Sent::Refused(_) => return self.split(batch, deadline).await,
                Sent::Blocked(failure) => {
                    let mut report = self.give_back(&batch, Duration::ZERO, None, deadline).await?;
                    report.blocked = Some(failure);
                    return Ok(report);
                }
                Sent::RateLimited { wait, quota } => {
                    if let Some(report) = self.out_of_quota(&batch, quota, deadline).await? {
                        return Ok(report);
                    }
                    waits += 1;
                    self.pace.hold_back(wait, deadline).await;
                    if wait > LONGEST_WAIT || waits >= MOST_WAITS {
                        return self.give_back(&batch, wait, None, deadline).await;
                    }
                    (Duration::ZERO, None)
                }
                Sent::UnderWay => {
                    // Whosever request it is, it may be accepted: only this key may ask again.
                    batch.doubtful = true;
                    return self.give_back(&batch, UNDER_WAY, None, deadline).await;
                }
                Sent::OutOfTime => return self.out_of_time(&batch, deadline).await,
                Sent::NotMade(failure) => {
                    tries += 1;
                    (Duration::from_secs(1), Some((failure, false)))
                }
                Sent::Unknown(failure) => {
                    (batch.doubtful, tries) = (true, tries + 1);
                    (Duration::from_secs(1), Some((failure, true)))
                }
            };
            if let Some((failure, made)) = failure {
                tracing::warn!(batch = %batch.id, code = failure.code, tries, "a batch's outcome is not known");
                if tries >= TRIES && !made {
                    // Nobody's mail would leave now, and none is to blame: no attempt, or a day without the mail
                    // service would end every mail for good.
                    let mut report = self.give_back(&batch, Duration::ZERO, None, deadline).await?;
                    report.blocked = Some(failure);
                    return Ok(report);
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
                return Ok(PostReport::default()); // another claim has it
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
    ) -> Result<Option<PostReport>, SupabaseError> {
        let size = batch.letters.len() as u64;
        let said = self.sender.allowance(&deadline.reserving(RESERVE)).await;
        let Some(allowance) = said.or_else(|| likely.then(|| Allowance::guessed(size / 2))) else {
            return Ok(None);
        };
        let Some(left) = allowance.left.filter(|left| *left < size) else {
            self.quotas.learn(allowance).await;
            return Ok(None);
        };
        let mut report = self.give_back(batch, Duration::ZERO, None, deadline).await?;
        // Where some mails are left, a smaller batch takes them; a sealed one cannot become smaller.
        if left == 0 || batch.doubtful {
            report.blocked = Some(allowance.exhausted());
        }
        // After giving back: what the service says counts nothing of this batch.
        self.quotas.learn(allowance).await;
        Ok(Some(report))
    }

    /// Refused as a whole, although each mail could have been refused alone: halves it until the culprit is found.
    async fn split(&self, mut batch: Batch, deadline: &Deadline) -> Result<PostReport, SupabaseError> {
        let second = batch.letters.split_off(batch.letters.len() / 2);
        let halves = [std::mem::take(&mut batch.letters), second];
        let children = halves.map(|letters| Batch {
            id: Uuid::new_v4(),
            claim: batch.claim,
            letters,
            attempts: batch.attempts,
            doubtful: false,
            faithful: true,
        });
        let members: Vec<_> = children.iter().map(|child| (child.id, child.deliveries())).collect();
        if !self.outbox.split(batch.claim, batch.id, &members, deadline).await? {
            return Ok(PostReport::default());
        }
        let mut report = PostReport::default();
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

    async fn settle(
        &self,
        batch: &Batch,
        outcomes: Vec<Outcome>,
        deadline: &Deadline,
    ) -> Result<PostReport, SupabaseError> {
        let mut report = PostReport::default();
        let written = self.outbox.settle(batch.claim, &outcomes, deadline).await?;
        if written < outcomes.len() as u64 {
            tracing::warn!(batch = %batch.id, "a batch was taken over; its next holder notes its outcome");
        } else {
            report.book(&outcomes);
        }
        Ok(report)
    }

    /// The budget is over, which is no attempt of anybody's.
    async fn out_of_time(&self, batch: &Batch, deadline: &Deadline) -> Result<PostReport, SupabaseError> {
        let mut report = self.give_back(batch, Duration::ZERO, None, deadline).await?;
        report.out_of_time = true;
        Ok(report)
    }

    async fn give_back(
        &self,
        batch: &Batch,
        delay: Duration,
        failure: Option<&Failure>,
        deadline: &Deadline,
    ) -> Result<PostReport, SupabaseError> {
        let deliveries = batch.deliveries();
        self.quotas.put_back(if batch.doubtful { 0 } else { deliveries.len() }).await;
        self.outbox.give_back(batch.claim, &deliveries, delay, failure, batch.release(), deadline).await?;
        Ok(PostReport { given_back: deliveries.len() as u64, ..PostReport::default() })
    }
}

fn unknown(delivery: i64) -> Outcome {
    let failure = Failure {
        code: "unknown_outcome".into(),
        message: "Nul ne peut dire si ce courriel est parti ; il n’est pas renvoyé.".into(),
    };
    Outcome::because(delivery, Status::Unknown, &failure)
}

fn digest(payload: &Value) -> String {
    hex::encode(Sha256::digest(payload.to_string()))
}

/// Books what a batch's task did. A panic is a fault of the task alone: its mails come back by themselves.
fn book(
    report: &mut PostReport,
    fault: &mut Option<SupabaseError>,
    done: Result<Result<PostReport, SupabaseError>, tokio::task::JoinError>,
) {
    match done {
        Ok(Ok(of_batch)) => report.add(of_batch),
        Ok(Err(error)) => {
            fault.get_or_insert(error);
        }
        Err(_) => {
            fault.get_or_insert(SupabaseError::Encoding("a batch's task panicked".into()));
        }
    }
}
