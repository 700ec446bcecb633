//! Works a lane empty: many items at once, each held by a heartbeat until it is settled.
//!
//! Items begin in the order in which they were queued, as many at once as there are permits. An item that has yielded
//! keeps its lease and resumes when no other item waits.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{Id, JoinSet},
    time::{Instant, MissedTickBehavior, interval_at},
};
use uuid::Uuid;

use super::{Claimed, Permit, Progress, Queue, permit::Permits};
use crate::{deadline::Deadline, failure::Failure, lane::Lane, supabase::SupabaseError};

/// This much of the budget is reserved at its end for giving back unfinished items, for the report
/// and for the log.
const RESERVE: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(20);
/// A blocked item of a lane that goes on becomes visible after this invocation has ended, not during it.
const BLOCKED_DELAY: Duration = Duration::from_mins(15);

/// At most this many yielded items are kept: another invocation may have time for more.
const MOST_YIELDED: usize = 64;

/// Says how the work on an item ended.
#[derive(Debug)]
pub enum Outcome {
    /// Its result is stored, or another worker holds the item. `failed`: the result is an error.
    Settled { failed: bool },
    /// It is tried again later. `failure` says why, unless the budget is over; it is an `attempt` where the item itself
    /// is to blame.
    GiveBack { delay: Duration, failure: Option<Failure>, attempt: bool },
    /// What was read so far is stored; the item resumes when no other item waits for a permit.
    Yielded(Progress),
    /// Our own key is refused: the item is given back without an attempt, and with `lane` so are all others of the
    /// lane.
    Blocked { failure: Failure, lane: bool },
}

/// Prepares and works on the items of a lane.
pub trait Worker: Send + Sync + 'static {
    /// Represents a claimed item with what is needed to work on it.
    type Job: Send + 'static;

    /// Fetches what claimed items need, in one request for all of them.
    fn prepare(
        &self,
        items: Vec<Claimed>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Vec<Self::Job>, SupabaseError>> + Send;

    /// Returns the item behind a job.
    fn item(job: &Self::Job) -> &Claimed;

    /// Works on one item until it is settled or yields. The worker releases `permit` once the upstream has answered
    /// everything.
    fn work(
        &self,
        job: Self::Job,
        permit: &mut Permit,
        deadline: Deadline,
    ) -> impl Future<Output = Outcome> + Send;
}

/// Counts what a drain did.
#[derive(Clone, Debug, Default)]
pub struct LaneReport {
    pub settled: u64,
    /// An item was read to its end, or further than before: the provider answers.
    pub moved: bool,
    /// Counts the settled items that ended as an error.
    pub failed: u64,
    pub given_back: u64,
    /// Says how many of those given back had an attempt fail: they are tried again, but this is no
    /// success.
    pub attempts_failed: u64,
    /// Says why the first of these attempts failed.
    pub attempt_failure: Option<Failure>,
    /// Holds what keeps the lane's items back: a key of ours.
    pub blocked: Option<Failure>,
    /// Says why an item was given back without an attempt: it passes, and nobody is told unless it
    /// is said here.
    pub setback: Option<Failure>,
    /// The drain stopped before the lane was empty.
    pub stopped: bool,
    /// The budget was over before the lane was empty.
    pub out_of_time: bool,
}

/// Works on the items of a lane until none is visible, the budget is over or the lane is stopped.
pub async fn drain<W: Worker>(
    queue: &Queue,
    lane: Lane,
    concurrency: usize,
    worker: Arc<W>,
    deadline: Deadline,
) -> Result<LaneReport, SupabaseError> {
    let mut drain = Drain {
        queue: queue.clone(),
        lane,
        deadline,
        permits: Permits::new(concurrency),
        ready: VecDeque::new(),
        yielded: Vec::new(),
        running: JoinSet::new(),
        returning: JoinSet::new(),
        items: HashMap::new(),
        report: LaneReport::default(),
    };
    let ended = drain.run(concurrency, &worker).await;
    // Also after an error: items that were claimed and not begun become visible at once.
    let ready = drain.ready.iter().map(W::item);
    let left: Vec<_> = ready.chain(&drain.yielded).map(hold).collect();
    if !left.is_empty() {
        queue.release(lane, &left, Duration::ZERO, &deadline).await?;
    }
    ended?;
    Ok(drain.report)
}

struct Drain<J> {
    queue: Queue,
    lane: Lane,
    deadline: Deadline,
    permits: Permits,
    /// Holds items that are claimed and not begun.
    ready: VecDeque<J>,
    /// Holds items that have begun and wait until no other item waits.
    yielded: Vec<Claimed>,
    /// Each holds its permit until the outcome is known, so that a refused key stops the lane before another item
    /// begins.
    running: JoinSet<(Outcome, Permit)>,
    /// Holds items on their way back into the queue.
    returning: JoinSet<()>,
    items: HashMap<Id, Claimed>,
    report: LaneReport,
}

fn hold(item: &Claimed) -> (i64, Uuid) {
    (item.item_id, item.lease)
}

impl<J: Send + 'static> Drain<J> {
    async fn run<W: Worker<Job = J>>(
        &mut self,
        concurrency: usize,
        worker: &Arc<W>,
    ) -> Result<(), SupabaseError> {
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beats = JoinSet::new();
        let mut claims: JoinSet<Result<(bool, Vec<J>), SupabaseError>> = JoinSet::new();
        let mut empty = false;
        // A failed claim ends the drain; items that have begun are still worked to their end.
        let mut error: Option<SupabaseError> = None;
        // Items that have released their permit and are being stored come on top.
        let most = concurrency + concurrency.div_ceil(2);
        loop {
            let open = error.is_none() && !self.report.stopped && self.deadline.may_start_work();
            let others = !empty || !self.ready.is_empty();
            self.permits.set_wanted(others && self.yielded.len() < MOST_YIELDED);
            // Claim ahead, so that no permit is idle during a round trip to the database.
            if open && !empty && claims.is_empty() && self.ready.len() <= concurrency / 2 {
                let (queue, lane, worker, deadline) =
                    (self.queue.clone(), self.lane, worker.clone(), self.deadline);
                claims.spawn(async move {
                    let (items, last) = queue.claim(lane, concurrency, &deadline).await?;
                    let jobs =
                        if items.is_empty() { Vec::new() } else { worker.prepare(items, deadline).await? };
                    Ok((last, jobs))
                });
            }
            if open && empty && claims.is_empty() && self.ready.is_empty() && !self.yielded.is_empty() {
                let (items, worker, deadline) = (mem::take(&mut self.yielded), worker.clone(), self.deadline);
                claims.spawn(async move { Ok((true, worker.prepare(items, deadline).await?)) });
            }
            let working = !self.running.is_empty() || !self.returning.is_empty() || !claims.is_empty();
            if !working && (self.ready.is_empty() || !open) {
                let left = !empty || !self.ready.is_empty() || !self.yielded.is_empty();
                self.report.out_of_time |= left && !self.deadline.may_start_work();
                return error.map_or(Ok(()), Err);
            }
            let begins = open && !self.ready.is_empty() && self.running.len() < most;
            tokio::select! {
                biased;
                _ = heartbeat.tick() => {
                    let ready = self.ready.iter().map(W::item);
                    let held: Vec<_> = self.items.values().chain(ready).chain(&self.yielded).map(hold).collect();
                    if held.is_empty() {
                        continue;
                    }
                    let (queue, lane, deadline) = (self.queue.clone(), self.lane, self.deadline);
                    // A failed heartbeat is logged by its call; should the lease be lost, the database refuses our writes.
                    beats.spawn(async move { queue.heartbeat(lane, &held, &deadline).await.is_ok() });
                }
                Some(done) = self.running.join_next_with_id() => self.end(done),
                permit = self.permits.acquire(), if begins => {
                    if let Some(job) = self.ready.pop_front() {
                        self.begin(worker, job, permit);
                    }
                }
                Some(_) = self.returning.join_next() => {}
                Some(claimed) = claims.join_next() => {
                    match claimed.unwrap_or_else(|_| Err(SupabaseError::Encoding("the claim panicked".into()))) {
                        Ok((last, jobs)) => {
                            empty = last;
                            self.ready.extend(jobs);
                        }
                        Err(failed) => error = Some(failed),
                    }
                }
                Some(_) = beats.join_next() => {}
            }
        }
    }

    fn begin<W: Worker<Job = J>>(&mut self, worker: &Arc<W>, job: J, mut permit: Permit) {
        let item = W::item(&job).clone();
        let (worker, deadline) = (worker.clone(), self.deadline.reserving(RESERVE));
        let task = self.running.spawn(async move {
            let outcome = worker.work(job, &mut permit, deadline).await;
            (outcome, permit)
        });
        self.items.insert(task.id(), item);
    }

    /// Counts an outcome. A panic is a failure of its item only: the others go on.
    fn end(&mut self, done: Result<(Id, (Outcome, Permit)), tokio::task::JoinError>) {
        let (id, outcome) = match done {
            Ok((id, (outcome, _permit))) => (id, outcome),
            Err(error) => {
                let message = "Erreur interne ; voir les journaux.".into();
                let failure = Failure { code: "internal".into(), message };
                (
                    error.id(),
                    Outcome::GiveBack {
                        delay: Duration::from_mins(1),
                        failure: Some(failure),
                        attempt: true,
                    },
                )
            }
        };
        let Some(mut item) = self.items.remove(&id) else { return };
        let (delay, failure) = match outcome {
            Outcome::Settled { failed } => {
                self.report.settled += 1;
                self.report.moved |= !failed;
                self.report.failed += u64::from(failed);
                return;
            }
            Outcome::Yielded(progress) => {
                self.report.moved = true;
                item.progress = progress;
                self.yielded.push(item);
                return;
            }
            Outcome::GiveBack { delay, failure: Some(failure), attempt: true } => {
                self.report.attempts_failed += 1;
                self.report.attempt_failure.get_or_insert_with(|| failure.clone());
                (delay, Some(failure))
            }
            Outcome::GiveBack { delay, failure, .. } => {
                self.report.out_of_time |= !self.deadline.may_start_work();
                self.report.setback = self.report.setback.take().or(failure);
                (delay, None)
            }
            Outcome::Blocked { failure, lane } => {
                self.report.blocked.get_or_insert(failure);
                self.report.stopped |= lane;
                (if lane { Duration::ZERO } else { BLOCKED_DELAY }, None)
            }
        };
        self.report.given_back += 1;
        let (queue, deadline) = (self.queue.clone(), self.deadline);
        self.returning.spawn(async move {
            // If even this fails, the item becomes visible again when its visibility timeout expires.
            let _ = queue.give_back(&item, delay, failure.as_ref(), &deadline).await;
        });
    }
}
