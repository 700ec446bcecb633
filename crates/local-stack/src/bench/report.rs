//! Reports what a run cost, the bound below it, the table and the JSON.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

use super::measure::Usage;

/// Says what one lane's requests take at least, in three ways; the largest is the lane's bound.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Lane {
    pub(super) name: &'static str,
    pub(super) requests: usize,
    /// Is the number of requests × round trip ÷ how many may be under way at once.
    pub(super) by_concurrency: f64,
    /// Is the number of requests ÷ the rate that is allowed.
    pub(super) by_rate: f64,
    /// Is the longest chain of requests that wait for each other × round trip.
    pub(super) by_chain: f64,
}

impl Lane {
    pub(super) fn new(name: &'static str, requests: usize, round_trip: Duration, at_once: usize) -> Self {
        let by_concurrency = times(requests, round_trip) / float(at_once);
        Self { name, requests, by_concurrency, by_rate: 0.0, by_chain: 0.0 }
    }

    #[must_use]
    pub(super) fn rate(mut self, per_second: Option<usize>) -> Self {
        self.by_rate = per_second.map_or(0.0, |rate| float(self.requests) / float(rate));
        self
    }

    #[must_use]
    pub(super) fn chain(mut self, requests: usize, round_trip: Duration) -> Self {
        self.by_chain = times(requests, round_trip);
        self
    }

    fn bound(&self) -> f64 {
        self.by_concurrency.max(self.by_rate).max(self.by_chain)
    }
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
pub(super) fn float(number: usize) -> f64 {
    number as f64
}

fn times(requests: usize, round_trip: Duration) -> f64 {
    float(requests) * round_trip.as_secs_f64()
}

/// Represents one run of a workload. Times are in seconds, sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    pub(super) workload: &'static str,
    pub(super) items: usize,
    pub(super) wall: f64,
    /// Is the time until everything was planned.
    pub(super) planned: f64,
    pub(super) upstream_requests: usize,
    pub(super) database_requests: usize,
    pub(super) lanes: Vec<Lane>,
    pub(super) lower_bound: f64,
    pub(super) ratio: f64,
    pub(super) peak_rss: u64,
    pub(super) cpu: f64,
    pub(super) stand_in_cpu: f64,
    pub(super) database_cpu: f64,
    /// Is the time that processes that are none of ours used meanwhile.
    pub(super) other_cpu: f64,
    /// Is the machine's load before the run.
    pub(super) load: f64,
    /// Holds what only this workload has to tell.
    pub(super) notes: Vec<String>,
}

impl Run {
    #[must_use]
    pub(super) fn bounded(mut self) -> Self {
        self.lower_bound = self.lanes.iter().map(Lane::bound).fold(0.0, f64::max);
        self.ratio = self.wall / self.lower_bound;
        self
    }

    #[must_use]
    pub(super) fn cost(mut self, usage: Usage) -> Self {
        self.cpu = usage.function.as_secs_f64();
        self.stand_in_cpu = usage.stand_ins.as_secs_f64();
        self.database_cpu = usage.database.as_secs_f64();
        self.other_cpu = usage.others().as_secs_f64();
        self
    }
}

/// Represents a route from the start of its process. Times are medians in milliseconds, sizes are
/// in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Cold {
    pub(super) route: &'static str,
    pub(super) starts: usize,
    /// Is the time to the answer of a request that it refuses.
    pub(super) refusal_ms: f64,
    /// Is the time to the first request that it makes itself.
    pub(super) upstream_ms: f64,
    pub(super) binary: u64,
}

/// Holds everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) processors: usize,
    pub(super) runs: Vec<Run>,
    pub(super) routes: Vec<Cold>,
}

const MEBIBYTE: f64 = 1024.0 * 1024.0;

#[expect(clippy::cast_precision_loss, reason = "a size to show")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MEBIBYTE
}

impl Report {
    /// Returns the runs of each workload, the fastest, the median and the slowest.
    pub(super) fn table(&self) -> String {
        let mut out = String::new();
        if !self.runs.is_empty() {
            let _ = writeln!(
                out,
                "{:<9} {:>7} {:>4} {:>8} {:>15} {:>8} {:>8} {:>7} {:>8} {:>6} {:>8} {:>7} {:>8} {:>8} {:>6}",
                "workload",
                "items",
                "runs",
                "wall s",
                "(from – to)",
                "plan s",
                "upstream",
                "database",
                "bound s",
                "ratio",
                "RSS MiB",
                "CPU s",
                "stand-in",
                "database",
                "others"
            );
        }
        let mut names: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !names.contains(&run.workload) {
                names.push(run.workload);
            }
        }
        for name in names {
            let mut runs: Vec<&Run> = self.runs.iter().filter(|run| run.workload == name).collect();
            runs.sort_by(|a, b| a.wall.total_cmp(&b.wall));
            let (first, run, last) = (runs[0], runs[runs.len() / 2], runs[runs.len() - 1]);
            let memory = runs.iter().map(|run| run.peak_rss).max().unwrap_or_default();
            let span = format!("({:.2} – {:.2})", first.wall, last.wall);
            let _ = writeln!(
                out,
                "{:<9} {:>7} {:>4} {:>8.2} {:>15} {:>8.2} {:>8} {:>7} {:>8.2} {:>6.2} {:>8.1} {:>7.2} {:>8.2} {:>8.2} {:>6.1}",
                name,
                run.items,
                runs.len(),
                run.wall,
                span,
                run.planned,
                run.upstream_requests,
                run.database_requests,
                run.lower_bound,
                run.ratio,
                mebibytes(memory),
                run.cpu,
                run.stand_in_cpu,
                run.database_cpu,
                run.other_cpu,
            );
            for note in &run.notes {
                let _ = writeln!(out, "          {note}");
            }
        }
        if !self.routes.is_empty() {
            let _ = writeln!(
                out,
                "\n{:<28} {:>6} {:>11} {:>12} {:>10}",
                "route", "starts", "refusal ms", "upstream ms", "binary MiB"
            );
        }
        for route in &self.routes {
            let _ = writeln!(
                out,
                "{:<28} {:>6} {:>11.1} {:>12.1} {:>10.2}",
                route.route,
                route.starts,
                route.refusal_ms,
                route.upstream_ms,
                mebibytes(route.binary)
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_bound_by_the_slowest_of_three() {
        let trip = Duration::from_millis(160);
        let lane = Lane::new("stripe", 2_000, trip, 32);
        assert!((lane.bound() - 10.0).abs() < 1e-9);
        assert!((lane.clone().rate(Some(20)).bound() - 100.0).abs() < 1e-9);
        assert!((lane.chain(100, trip).bound() - 16.0).abs() < 1e-9);
    }
}
