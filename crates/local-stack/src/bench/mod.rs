//! Measures how fast the functions are: each workload several times on fresh databases, against the bound that the
//! network sets.
//!
//! Everything is on this machine: the function, PostgreSQL and PostgREST, and in this process the stand-ins, which
//! answer after the round trip of the real network. The bound of a run is computed from its own requests: the
//! largest, over the lanes, of (requests × round trip ÷ concurrency), (requests ÷ rate) and (the longest chain of
//! dependent requests × round trip). What the processors had to do is told beside it, for the bound knows nothing
//! of it: of the function, of the stand-ins, of the database, and of whoever else is on the machine.
//!
//! Not in a wall: the start of the process, which `routes` measures.

mod bounds;
mod measure;
mod paced;
mod report;
pub mod routes;
mod seed;
mod workloads;
mod world;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use jobs::routes::Route;

use self::{report::Report, world::World};

/// Names all workloads, in the order in which they are run.
const WORKLOADS: [&str; 13] = [
    "routes",
    "w1",
    "w2",
    "w3",
    "w4-10k",
    "w4-100k",
    "w4-300k",
    "w5",
    "w1p",
    "w1p-learned",
    "w1p-accounts",
    "w1p-accounts-learned",
    "w1p-changes",
];
/// Each route is started so often.
const STARTS: usize = 20;

/// Runs what `arguments` name, prints the table, and writes it as JSON where they say so. Whatever goes by the calendar
/// goes by `now`, which is the real time: release builds have no other clock.
pub async fn run(arguments: &[&str], now: DateTime<Utc>) -> Result<()> {
    let options = Options::read(arguments)?;
    if cfg!(debug_assertions) {
        println!(
            "! The stand-ins of a debug build are slow: cargo run --release --bin local-stack -- bench {}",
            arguments.join(" ")
        );
    }
    let world = World::start(&options.binaries(), now).await?;
    let mut report = Report {
        processors: std::thread::available_parallelism().map_or(0, Into::into),
        ..Report::default()
    };
    let wants = |name: &str| options.workloads.iter().any(|wanted| wanted == name);
    let runs = options.runs;
    if wants("routes") {
        println!("· routes");
        report.routes = routes::measure(world.binaries(), STARTS).await?;
    }
    if wants("w1") || wants("w2") {
        let synced = world.sync(runs).await?;
        report.runs.extend(synced.into_iter().filter(|run| wants(run.workload)));
    }
    if wants("w3") {
        report.runs.extend(world.marketing(runs).await?);
    }
    for (name, users) in [("w4-10k", 10_000), ("w4-100k", 100_000), ("w4-300k", 300_000)] {
        if wants(name) {
            report.runs.extend(world.thresholds(name, users, runs).await?);
        }
    }
    if wants("w5") {
        report.runs.extend(world.month(runs).await?);
    }
    // Waiting for turns takes its time: one run of each is enough.
    if wants("w1p") || wants("w1p-learned") {
        report.runs.extend(world.paced_sync().await?);
    }
    if wants("w1p-accounts") || wants("w1p-accounts-learned") {
        report.runs.extend(world.paced_accounts().await?);
    }
    if wants("w1p-changes") {
        report.runs.extend(world.changing_limits().await?);
    }
    println!("\n{}", report.table());
    if let Some(file) = options.json {
        fs::write(&file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        println!("Written to {}.", file.display());
    }
    Ok(())
}

struct Options {
    workloads: Vec<String>,
    runs: usize,
    json: Option<PathBuf>,
}

impl Options {
    /// Returns the functions that are called.
    fn binaries(&self) -> Vec<&'static str> {
        let mut binaries: Vec<&str> = Vec::new();
        for workload in &self.workloads {
            match workload.as_str() {
                "routes" => binaries.extend(Route::ALL.map(Route::binary)),
                "w1" | "w2" => {
                    binaries.extend([Route::SyncIntegrations, Route::DailyOrchestrator].map(Route::binary));
                }
                name if name.starts_with("w1p") => binaries.push(Route::SyncIntegrations.binary()),
                "w3" => binaries.push(Route::DailyTasks.binary()),
                "w5" => binaries.push(Route::MonthlySync.binary()),
                _ => binaries.push(Route::CheckThresholds.binary()),
            }
        }
        binaries.sort_unstable();
        binaries.dedup();
        binaries
    }

    fn read(arguments: &[&str]) -> Result<Self> {
        let mut options = Self { workloads: Vec::new(), runs: 3, json: None };
        let mut arguments = arguments.iter();
        while let Some(&argument) = arguments.next() {
            match argument {
                "--runs" => {
                    let runs = arguments.next().context("--runs takes a number")?;
                    options.runs = runs.parse().context("--runs takes a number")?;
                    ensure!(options.runs > 0, "at least one run");
                }
                "--json" => options.json = Some(arguments.next().context("--json takes a file")?.into()),
                name if WORKLOADS.contains(&name) => options.workloads.push(name.into()),
                name => bail!("`{name}` is no workload; there are {}", WORKLOADS.join(", ")),
            }
        }
        if options.workloads.is_empty() {
            options.workloads = WORKLOADS.map(Into::into).into();
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn arguments_are_workloads_and_two_options() {
        let options = Options::read(&["w1", "--runs", "5", "w3", "--json", "a.json"]).expect("reads");
        assert_eq!((options.workloads, options.runs), (vec!["w1".into(), "w3".into()], 5));
        assert_eq!(options.json, Some("a.json".into()));
        assert_eq!(Options::read(&[]).expect("reads").workloads.len(), WORKLOADS.len());
        for wrong in [&["w9"][..], &["--runs"], &["--runs", "0"], &["--json"]] {
            assert!(Options::read(wrong).is_err(), "{wrong:?}");
        }
    }

    /// Compares the table of workloads and that of their results.
    #[test]
    fn the_documentation_names_every_workload_and_nothing_else() {
        let documentation = include_str!("../../../../docs/benchmark.md");
        let cells = documentation.lines().filter_map(|row| row.strip_prefix("| `")?.split(" |").next());
        let named: BTreeSet<&str> =
            cells.flat_map(|cell| cell.split(", ")).map(|name| name.trim_matches('`')).collect();
        assert_eq!(named, BTreeSet::from(WORKLOADS));
    }
}
