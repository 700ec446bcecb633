//! Working a lane empty: many items at once, each held by a heartbeat until it is settled.
//!
//! Items begin in the order in which they were queued, as many at once as there are places. What is set aside keeps
//! its lease and goes on when nothing else waits.

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

use super::{Claimed, Failure, Place, Progress, Queue, place::Places};
use crate::{deadline::Deadline, lane::Lane, supabase::SupabaseError};

/// Kept from the work for giving back what is not done, the report and the log.
const RESERVE: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(20);
/// A blocked item of a lane that goes on comes back after this invocation, not within it.
const BLOCKED: Duration = Duration::from_mins(15);

/// Items that one invocation keeps aside: no more of them than it can soon go on with, for others may have time.
const MOST_ASIDE: usize = 64;

/// What came of working on an item.
#[derive(Debug)]
pub enum Outcome {
    /// Its result is in the database, or somebody else has it. `failed`: the result is an error.
    Settled { failed: bool },
    /// Try again later; an attempt where there was a failure.
    GiveBack { delay: Duration, failure: Option<Failure> },
    /// What was read so far is stored; the rest when nobody waits for the place any more.
    SetAside(Progress),
    /// Our own key is refused: give the item back, untried, and with `lane` all others of its lane.
    Blocked { failure: Failure, lane: bool },
}

/// What a lane's items are, and how one is worked on.
pub trait Worker: Send + Sync + 'static {
    /// A claimed item with what is needed to work on it.
    type Job: Send + 'static;

    /// Fetches what claimed items need, in one request for all of them.
    fn prepare(
        &self,
        items: Vec<Claimed>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Vec<Self::Job>, SupabaseError>> + Send;

    /// The item behind a job.
    fn item(job: &Self::Job) -> &Claimed;

    /// Works on one item, to its settlement or until it is set aside. `place` is to be left when the upstream has
    /// answered everything.
    fn work(
        &self,
        job: Self::Job,
        place: &mut Place,
        deadline: Deadline,
    ) -> impl Future<Output = Outcome> + Send;
}

/// What a drain did.
#[derive(Clone, Debug, Default)]
pub struct LaneReport {
    pub settled: u64,
    /// Of the settled ones, those that ended as an error.
    pub failed: u64,
    pub given_back: u64,
    /// Why items were given back untried.
    pub blocked: Option<Failure>,
    /// The lane was left before its end.
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
        places: Places::new(concurrency),
        ready: VecDeque::new(),
        aside: Vec::new(),
        running: JoinSet::new(),
        returning: JoinSet::new(),
        items: HashMap::new(),
        report: LaneReport::default(),
    };
    let ended = drain.run(concurrency, &worker).await;
    // Also after an error: what was claimed and not begun is free again at once.
    let ready = drain.ready.iter().map(W::item);
    let left: Vec<_> = ready.chain(&drain.aside).map(hold).collect();
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
    places: Places,
    /// Claimed, not begun.
    ready: VecDeque<J>,
    /// Begun, and waiting until nobody else does.
    aside: Vec<Claimed>,
    /// Each with its place, which others get when the outcome is known: a refused key stops the lane before that.
    running: JoinSet<(Outcome, Place)>,
    /// Items on their way back into the queue.
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
        // A claim that failed ends the lane; what is under way is still worked to its end.
        let mut fault = None;
        // Those that have left their place and are being written down come on top.
        let most = concurrency + concurrency.div_ceil(2);
        loop {
            let open = fault.is_none() && !self.report.stopped && self.deadline.may_start_work();
            let others = !empty || !self.ready.is_empty();
            self.places.set_wanted(others && self.aside.len() < MOST_ASIDE);
            // Claim ahead, so that no place stands empty for a round trip to the database.
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
            if open && empty && claims.is_empty() && self.ready.is_empty() && !self.aside.is_empty() {
                let (items, worker, deadline) = (mem::take(&mut self.aside), worker.clone(), self.deadline);
                claims.spawn(async move { Ok((true, worker.prepare(items, deadline).await?)) });
            }
            let working = !self.running.is_empty() || !self.returning.is_empty() || !claims.is_empty();
            if !working && (self.ready.is_empty() || !open) {
                let left = !empty || !self.ready.is_empty() || !self.aside.is_empty();
                self.report.out_of_time |= left && !self.deadline.may_start_work();
                return fault.map_or(Ok(()), Err);
            }
            let begins = open && !self.ready.is_empty() && self.running.len() < most;
            tokio::select! {
                biased;
                _ = heartbeat.tick() => {
                    let ready = self.ready.iter().map(W::item);
                    let held: Vec<_> = self.items.values().chain(ready).chain(&self.aside).map(hold).collect();
                    if held.is_empty() {
                        continue;
                    }
                    let (queue, lane, deadline) = (self.queue.clone(), self.lane, self.deadline);
                    // A heartbeat that fails is logged where it fails; the fence protects what it would have.
                    beats.spawn(async move { queue.heartbeat(lane, &held, &deadline).await.is_ok() });
                }
                Some(done) = self.running.join_next_with_id() => self.end(done),
                place = self.places.next(), if begins => {
                    if let Some(job) = self.ready.pop_front() {
                        self.begin(worker, job, place);
                    }
                }
                Some(_) = self.returning.join_next() => {}
                Some(claimed) = claims.join_next() => {
                    match claimed.unwrap_or_else(|_| Err(SupabaseError::Encoding("the claim panicked".into()))) {
                        Ok((last, jobs)) => {
                            empty = last;
                            self.ready.extend(jobs);
                        }
                        Err(error) => fault = Some(error),
                    }
                }
                Some(_) = beats.join_next() => {}
            }
        }
    }

    fn begin<W: Worker<Job = J>>(&mut self, worker: &Arc<W>, job: J, mut place: Place) {
        let item = W::item(&job).clone();
        let (worker, deadline) = (worker.clone(), self.deadline.reserving(RESERVE));
        let task = self.running.spawn(async move {
            let outcome = worker.work(job, &mut place, deadline).await;
            (outcome, place)
        });
        self.items.insert(task.id(), item);
    }

    /// Books an outcome. A panic is a failure of the item like another: the others go on.
    fn end(&mut self, done: Result<(Id, (Outcome, Place)), tokio::task::JoinError>) {
        let (id, outcome) = match done {
            Ok((id, (outcome, _place))) => (id, outcome),
            Err(error) => {
                let message = "Erreur interne ; voir les journaux.".into();
                let failure = Failure { code: "internal".into(), message };
                (error.id(), Outcome::GiveBack { delay: Duration::from_mins(1), failure: Some(failure) })
            }
        };
        let Some(mut item) = self.items.remove(&id) else { return };
        let (delay, failure) = match outcome {
            Outcome::Settled { failed } => {
                self.report.settled += 1;
                self.report.failed += u64::from(failed);
                return;
            }
            Outcome::SetAside(progress) => {
                item.progress = progress;
                self.aside.push(item);
                return;
            }
            Outcome::GiveBack { delay, failure } => {
                self.report.out_of_time |= failure.is_none() && !self.deadline.may_start_work();
                (delay, failure)
            }
            Outcome::Blocked { failure, lane } => {
                self.report.blocked.get_or_insert(failure);
                self.report.stopped |= lane;
                (if lane { Duration::ZERO } else { BLOCKED }, None)
            }
        };
        self.report.given_back += 1;
        let (queue, deadline) = (self.queue.clone(), self.deadline);
        self.returning.spawn(async move {
            // Where even this fails, the item comes back by itself when its visibility timeout is over.
            let _ = queue.give_back(&item, delay, failure.as_ref(), &deadline).await;
        });
    }
}
