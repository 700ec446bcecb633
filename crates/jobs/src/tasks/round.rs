//! Sums up what rounds of draining come to, and what a run's summary takes from them.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::outcome::RunSummary;
use crate::{
    email::MailReport,
    failure::Failure,
    lane::Lane,
    queue::{LaneReport, RunReport},
};

/// Tells why a run left everything where it was although nothing stood in its way.
const NO_TIME: &str = "Le temps de l’appel s’est écoulé avant qu’une seule lecture soit terminée\u{a0}: vérifier \
                       JOB_BUDGET_SECONDS et la lenteur des services.";

/// Tells the same of a run that only sends.
const NO_TIME_TO_SEND: &str = "Le temps de l’appel s’est écoulé avant qu’un seul courriel soit accepté\u{a0}: vérifier \
                               JOB_BUDGET_SECONDS et la lenteur des services.";

/// Counts what one round, or several, worked on, and names what stood in the way.
#[derive(Debug, Default)]
pub struct Round {
    /// The run's report, once it was asked for.
    pub(super) report: Option<RunReport>,
    pub ended: u64,
    pub failed: u64,
    /// Says how many items and mails are tried again after an attempt that failed.
    pub attempts_failed: u64,
    /// Says why such attempts failed.
    pub attempt_failures: Vec<Failure>,
    /// Lists what stopped a whole lane of data.
    pub blocked: Vec<Failure>,
    /// Says what stopped the mails.
    pub post_blocked: Option<Failure>,
    /// Says of each lane of data whether it moved.
    pub(super) lanes: BTreeMap<Lane, Movement>,
    /// Counts the mails that left.
    pub(super) mails_sent: u64,
    /// Lists what put mails off without an attempt: it passes by itself.
    pub(super) mail_setbacks: Vec<Failure>,
    /// Lists what kept a part of the work from beginning.
    pub faults: Vec<Failure>,
    pub out_of_time: bool,
    /// A lane was left before its end: waiting for it is of no use.
    pub(super) stopped: bool,
}

/// Says whether a lane moved, and what put its items off without an attempt: it passes by itself.
#[derive(Debug, Default)]
pub(super) struct Movement {
    moved: bool,
    /// Items of it have failed, or will be tried again after an attempt that failed.
    failed: bool,
    setbacks: Vec<Failure>,
}

impl Round {
    pub(super) fn of_lanes(lanes: Vec<(Lane, LaneReport)>) -> Self {
        let mut all = Self::default();
        for (name, lane) in lanes {
            all.ended += lane.settled;
            all.failed += lane.failed;
            all.attempts_failed += lane.attempts_failed;
            all.attempt_failures.extend(lane.attempt_failure);
            all.out_of_time |= lane.out_of_time;
            all.stopped |= lane.stopped;
            all.blocked.extend(lane.blocked);
            let failed = lane.failed + lane.attempts_failed > 0;
            let setbacks = lane.setback.into_iter().collect();
            all.lanes.insert(name, Movement { moved: lane.moved, failed, setbacks });
        }
        all
    }

    pub(super) fn fault(code: &str, message: String) -> Self {
        Self { faults: vec![Failure { code: code.into(), message }], ..Self::default() }
    }

    /// Lists what passes by itself, and yet let nothing through: a lane of data that did not move, mails of which none left.
    pub fn standstills(&self) -> Vec<&Failure> {
        let lanes = self.lanes.values().filter(|lane| !lane.moved).flat_map(|lane| &lane.setbacks);
        let mut all: Vec<&Failure> = Vec::new();
        for failure in lanes.chain(self.mail_setbacks.iter().filter(|_| self.mails_sent == 0)) {
            if !all.contains(&failure) {
                all.push(failure);
            }
        }
        all
    }

    /// Takes another round in; the same trouble is told once.
    pub(super) fn add(&mut self, other: Self) {
        self.ended += other.ended;
        self.failed += other.failed;
        self.attempts_failed += other.attempts_failed;
        self.out_of_time |= other.out_of_time;
        self.stopped |= other.stopped;
        for (all, new) in [
            (&mut self.blocked, other.blocked),
            (&mut self.mail_setbacks, other.mail_setbacks),
            (&mut self.faults, other.faults),
            (&mut self.attempt_failures, other.attempt_failures),
        ] {
            add_new(all, new);
        }
        for (name, lane) in other.lanes {
            let all = self.lanes.entry(name).or_default();
            all.moved |= lane.moved;
            all.failed |= lane.failed;
            add_new(&mut all.setbacks, lane.setbacks);
        }
        self.mails_sent += other.mails_sent;
        self.post_blocked = other.post_blocked.or(self.post_blocked.take());
    }
}

/// Adds what is not told yet.
fn add_new(all: &mut Vec<Failure>, new: Vec<Failure>) {
    for failure in new {
        if !all.contains(&failure) {
            all.push(failure);
        }
    }
}

impl From<MailReport> for Round {
    fn from(report: MailReport) -> Self {
        Self {
            ended: report.sent + report.skipped,
            mails_sent: report.sent,
            failed: report.failed,
            attempts_failed: report.attempts_failed,
            attempt_failures: report.attempt_failure.into_iter().collect(),
            stopped: report.blocked.is_some(),
            post_blocked: report.blocked,
            mail_setbacks: report.setback.into_iter().collect(),
            out_of_time: report.out_of_time,
            ..Self::default()
        }
    }
}

impl RunSummary {
    pub(super) fn empty(joined: Option<String>) -> Self {
        Self { joined, ..Self::default() }
    }

    pub(super) fn new(run_id: Uuid, joined: Option<String>, round: Round) -> Self {
        let mut summary = Self {
            run_id: Some(run_id),
            joined,
            out_of_time: round.out_of_time,
            faults: round.faults,
            ..Self::default()
        };
        let Some(report) = round.report else { return summary };
        // Only what still keeps items of this run waiting is told. What passes is a notice where the run and the lane
        // made progress all the same, and an error where nothing could be read. What failed, or is not wanted any more, is
        // no progress.
        let counts = &report.counts;
        summary.only_failed = round.lanes.values().any(|lane| lane.failed && !lane.moved);
        if counts.queued > 0 {
            summary.blocked = round.blocked;
            let moved = counts.done + counts.partial > 0;
            let stood_still = !moved && counts.failed == 0 && counts.begun == 0 && round.out_of_time;
            let has_setback = round.lanes.values().any(|lane| !lane.setbacks.is_empty());
            if stood_still && summary.blocked.is_empty() && !has_setback {
                summary.blocked.push(Failure::new("no_time", NO_TIME));
            }
            for lane in round.lanes.into_values() {
                let told = if moved && lane.moved { &mut summary.notices } else { &mut summary.blocked };
                add_new(told, lane.setbacks);
            }
        }
        if report.mails.values().any(|mails| mails.queued > 0) {
            summary.blocked.extend(round.post_blocked);
            let ended = report.mails.values().any(|mails| mails.sent + mails.skipped + mails.failed > 0);
            let moved_data = counts.planned > counts.queued || counts.begun > 0;
            let stood_still = !ended && !moved_data && round.out_of_time;
            if stood_still && summary.blocked.is_empty() && round.mail_setbacks.is_empty() {
                summary.blocked.push(Failure::new("no_time", NO_TIME_TO_SEND));
            }
            let moved = report.mails.values().any(|mails| mails.sent > 0);
            if moved { &mut summary.notices } else { &mut summary.blocked }.extend(round.mail_setbacks);
        }
        summary.out_of_time |= report.unplanned > 0;
        summary.unplanned = report.unplanned;
        summary.counts = report.counts;
        summary.records = report.records;
        summary.troubles = report.errors;
        summary.results = report.results;
        summary.results_total = report.results_total;
        summary.mails = report.mails;
        summary
    }
}
