//! What rounds of draining come to, and what a run's summary takes from them.

use uuid::Uuid;

use super::outcome::RunSummary;
use crate::{
    email::MailReport,
    failure::Failure,
    queue::{LaneReport, RunReport},
};

/// Counts what one round, or several, worked on, and names what stood in the way.
#[derive(Debug, Default)]
pub struct Round {
    /// The run's report, once it was asked for.
    pub(super) report: Option<RunReport>,
    pub ended: u64,
    pub failed: u64,
    /// Each stopped a whole lane of data.
    pub blocked: Vec<Failure>,
    /// It stopped the mails.
    pub post_blocked: Option<Failure>,
    /// Each kept a part of the work from beginning.
    pub faults: Vec<Failure>,
    pub out_of_time: bool,
    /// A lane was left before its end: waiting for it is of no use.
    pub(super) stopped: bool,
}

impl Round {
    pub(super) fn of_lanes(lanes: Vec<LaneReport>) -> Self {
        let mut all = Self::default();
        for lane in lanes {
            all.ended += lane.settled;
            all.failed += lane.failed;
            all.out_of_time |= lane.out_of_time;
            all.stopped |= lane.stopped;
            all.blocked.extend(lane.blocked);
        }
        all
    }

    pub(super) fn fault(code: &str, message: String) -> Self {
        Self { faults: vec![Failure { code: code.into(), message }], ..Self::default() }
    }

    /// Takes another round in; the same trouble is told once.
    pub(super) fn add(&mut self, other: Self) {
        self.ended += other.ended;
        self.failed += other.failed;
        self.out_of_time |= other.out_of_time;
        self.stopped |= other.stopped;
        for (all, new) in [(&mut self.blocked, other.blocked), (&mut self.faults, other.faults)] {
            for failure in new {
                if !all.contains(&failure) {
                    all.push(failure);
                }
            }
        }
        self.post_blocked = other.post_blocked.or(self.post_blocked.take());
    }
}

impl From<MailReport> for Round {
    fn from(report: MailReport) -> Self {
        Self {
            ended: report.sent + report.skipped,
            failed: report.failed,
            stopped: report.blocked.is_some(),
            post_blocked: report.blocked,
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
        // Only what still keeps items of this run waiting is told.
        if report.counts.queued > 0 {
            summary.blocked = round.blocked;
        }
        if report.mails.values().any(|mails| mails.queued > 0) {
            summary.blocked.extend(round.post_blocked);
        }
        summary.counts = report.counts;
        summary.records = report.records;
        summary.troubles = report.errors;
        summary.results = report.results;
        summary.results_total = report.results_total;
        summary.mails = report.mails;
        summary
    }
}
