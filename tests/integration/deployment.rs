//! The three deployment files, the functions and the table of gates say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::{DateTime, Datelike, TimeDelta, Timelike, Utc};
use jobs::{
    routes::Route,
    schedule::{Decision, Settings, Task, Via, gate, next_due},
};
use serde_json::Value;

const DEFAULT: &str = "vercel.json";
const HOBBY: &str = "vercel.hobby.json";
const PRO: &str = "vercel.pro.json";
const WORKFLOW: &str = ".github/workflows/manual-crons.yml";

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn config(file: &str) -> Value {
    serde_json::from_str(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Represents a cron expression as Vercel takes it: five numeric fields, not both kinds of day.
struct Cron {
    minutes: BTreeSet<u32>,
    hours: BTreeSet<u32>,
    days: BTreeSet<u32>,
    months: BTreeSet<u32>,
    weekdays: BTreeSet<u32>,
}

impl Cron {
    fn parse(expression: &str) -> Self {
        let fields: Vec<&str> = expression.split(' ').collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            panic!("{expression:?} has not five fields")
        };
        assert!(days == "*" || weekdays == "*", "{expression:?} names days of both kinds");
        Self {
            minutes: field(minutes, 0, 59),
            hours: field(hours, 0, 23),
            days: field(days, 1, 31),
            months: field(months, 1, 12),
            weekdays: field(weekdays, 0, 6),
        }
    }

    fn matches(&self, at: DateTime<Utc>) -> bool {
        self.minutes.contains(&at.minute())
            && self.hours.contains(&at.hour())
            && self.days.contains(&at.day())
            && self.months.contains(&at.month())
            && self.weekdays.contains(&at.weekday().num_days_from_sunday())
    }

    fn firings_a_day(&self) -> usize {
        self.minutes.len() * self.hours.len()
    }

    /// Returns when it fires in a year and two days: a slot that opens in the last hour of a year
    /// is claimed in the next. All of ours fire at the full hour.
    fn firings(&self, year: i32) -> impl Iterator<Item = DateTime<Utc>> {
        assert_eq!(self.minutes, BTreeSet::from([0]));
        hours_of(year).chain(hours_of(year + 1).take(48)).filter(|at| self.matches(*at))
    }
}

/// Reads `*`, `*/n`, `a`, `a-b`, or several of the last two with commas.
fn field(text: &str, first: u32, last: u32) -> BTreeSet<u32> {
    let number = |text: &str| -> u32 {
        let number = text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"));
        assert!((first..=last).contains(&number), "{number} is not between {first} and {last}");
        number
    };
    if text == "*" {
        return (first..=last).collect();
    }
    if let Some(step) = text.strip_prefix("*/") {
        let step = number(step);
        assert!(step > 0, "a step of nothing");
        return (first..=last).step_by(step as usize).collect();
    }
    let one = |item: &str| match item.split_once('-') {
        Some((from, to)) => number(from)..=number(to),
        None => number(item)..=number(item),
    };
    text.split(',').flat_map(one).collect()
}

fn start_of_year(year: i32) -> DateTime<Utc> {
    format!("{year}-01-01T00:00:00Z").parse().unwrap()
}

fn hours_of(year: i32) -> impl Iterator<Item = DateTime<Utc>> {
    let (first, end) = (start_of_year(year), start_of_year(year + 1));
    (0..).map(move |hour| first + TimeDelta::hours(hour)).take_while(move |at| *at < end)
}

fn crons(file: &str) -> Vec<(String, Cron)> {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    config(file)["crons"]
        .as_array()
        .expect("crons")
        .iter()
        .map(|cron| (text(&cron["path"]), Cron::parse(&text(&cron["schedule"]))))
        .collect()
}

fn route(path: &str) -> Route {
    Route::ALL.into_iter().find(|route| route.path() == path).unwrap_or_else(|| panic!("no route {path}"))
}

/// Returns the slots that a file's crons claim in a year, each fired `late` after its full hour.
fn claimed(file: &str, year: i32, late: TimeDelta, settings: Settings) -> BTreeMap<Task, BTreeSet<String>> {
    let mut slots = BTreeMap::<Task, BTreeSet<String>>::new();
    for (path, cron) in crons(file) {
        let route = route(&path);
        for at in cron.firings(year) {
            for task in route.tasks() {
                if let Decision::Due { slot } = gate(*task, route.via(), at + late, settings) {
                    slots.entry(*task).or_default().insert(slot.to_string());
                }
            }
        }
    }
    slots
}

/// Returns every slot that opens in a year.
fn wanted(task: Task, year: i32, settings: Settings) -> BTreeSet<String> {
    let before = start_of_year(year) - TimeDelta::seconds(1);
    let first = next_due(task, Via::CronRoute, before, settings);
    std::iter::successors(Some(first), |opening| {
        Some(next_due(task, Via::CronRoute, opening.opens, settings))
    })
    .take_while(|opening| opening.opens < start_of_year(year + 1))
    .map(|opening| opening.slot.to_string())
    .collect()
}

#[test]
fn each_files_crons_meet_every_slot_of_a_year() {
    for file in [DEFAULT, HOBBY, PRO] {
        for year in [2026, 2028] {
            // A Hobby plan fires anywhere within the hour.
            for late in [TimeDelta::zero(), TimeDelta::minutes(59)] {
                for hour in [0, 7, 10] {
                    let settings = Settings::new(hour).unwrap();
                    let claimed = claimed(file, year, late, settings);
                    for task in Task::ALL {
                        if !task.is_scheduled_everywhere() && file != PRO {
                            continue; // the workflow's, see below
                        }
                        let wanted = wanted(task, year, settings);
                        let none = BTreeSet::new();
                        let missed: Vec<_> = wanted.difference(claimed.get(&task).unwrap_or(&none)).collect();
                        assert!(missed.is_empty(), "{file}: {task} misses {missed:?}, {late} late");
                    }
                }
            }
        }
    }
}

#[test]
fn the_workflow_checks_thresholds_every_week() {
    let workflow = read(WORKFLOW);
    let schedules: Vec<&str> = workflow
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- cron: '"))
        .map(|line| line.split('\'').next().unwrap())
        .collect();
    assert_eq!(schedules, ["0 10 * * 1"]);

    let settings = Settings::default();
    let claimed: BTreeSet<String> = Cron::parse(schedules[0])
        .firings(2026)
        .filter_map(|at| match gate(Task::CheckThresholds, Via::ManualRoute, at, settings) {
            Decision::Due { slot } => Some(slot.to_string()),
            Decision::NotDue(_) => None,
        })
        .collect();
    assert!(claimed.is_superset(&wanted(Task::CheckThresholds, 2026, settings)));
}

/// A tag can be moved to other code later; a commit cannot.
#[test]
fn every_action_is_pinned_by_its_commit() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/workflows");
    let mut actions = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let workflow = std::fs::read_to_string(&path).unwrap();
        let used =
            workflow.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses:"));
        for action in used {
            let (name, version) = action.trim().split_once(" # v").unwrap_or_default();
            let commit = name.split_once('@').unwrap_or_default().1;
            assert!(
                commit.len() == 40 && commit.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
                "{}: {action} names no commit",
                path.display()
            );
            assert!(version.split('.').count() == 3, "{}: {action} does not say its version", path.display());
            actions += 1;
        }
    }
    assert!(actions >= 4, "{actions} actions found");
}

#[test]
fn hobby_crons_fire_once_a_day_at_most() {
    for (path, cron) in crons(HOBBY) {
        assert_eq!(cron.firings_a_day(), 1, "{path}");
    }
}

#[test]
fn the_crons_are_the_documented_ones() {
    let listed = |file: &str| -> Vec<String> {
        let crons = config(file)["crons"].take();
        let line = |cron: &Value| format!("{} {}", cron["schedule"], cron["path"]).replace('"', "");
        crons.as_array().expect("crons").iter().map(line).collect()
    };
    assert_eq!(
        listed(DEFAULT),
        ["0 */6 * * * /api/cron/daily-orchestrator", "0 7 * * * /api/cron/monthly-orchestrator"]
    );
    assert_eq!(
        listed(HOBBY),
        [
            "0 0 * * * /api/cron/daily-orchestrator",
            "0 6 * * * /api/cron/daily-orchestrator",
            "0 12 * * * /api/cron/daily-orchestrator",
            "0 18 * * * /api/cron/daily-orchestrator",
            "0 7 * * * /api/cron/monthly-orchestrator",
        ]
    );
    assert_eq!(
        listed(PRO),
        [
            "0 7 2 * * /api/cron/send-reminders",
            "0 9 * * * /api/cron/daily-tasks",
            "0 10 * * 1 /api/manual/check-thresholds",
            "0 */6 * * * /api/manual/sync-integrations",
            "0 7 * * * /api/cron/monthly-orchestrator",
        ]
    );
}

#[test]
fn the_files_differ_in_their_crons_only() {
    let without_crons = |file: &str| {
        let mut config = config(file);
        config.as_object_mut().expect("an object").remove("crons").expect("crons");
        config
    };
    let default = without_crons(DEFAULT);
    assert_eq!(without_crons(HOBBY), default);
    assert_eq!(without_crons(PRO), default);

    assert_eq!(default["$schema"], "https://openapi.vercel.sh/vercel.json");
    assert_eq!(default["framework"], Value::Null);
    assert_eq!(default["regions"], serde_json::json!(["cdg1"]));
    assert_eq!(default["functions"], serde_json::json!({ "api/**/*.rs": { "maxDuration": 300 } }));
}

/// Returns every `.rs` below a directory, relative to the repository.
fn sources(directory: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut open) = (Vec::new(), vec![root.join(directory)]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Returns (name, source) of every binary of the workspace.
fn binaries() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .current_dir(root)
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();

    let mut binaries = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        for target in package["targets"].as_array().unwrap() {
            if target["kind"] == serde_json::json!(["bin"]) {
                let source = Path::new(target["src_path"].as_str().unwrap());
                let source = source.strip_prefix(root).unwrap_or(source).to_owned();
                binaries.push((target["name"].as_str().unwrap().to_owned(), source));
            }
        }
    }
    binaries
}

#[test]
fn every_file_below_api_is_one_route_and_its_function() {
    let (mut sources, binaries) = (sources("api"), binaries());
    assert!(Route::ALL.len() <= 12, "{} functions; a Hobby deployment takes 12", Route::ALL.len());
    for route in Route::ALL {
        let source = PathBuf::from(format!("{}.rs", route.path().trim_start_matches('/')));
        let place = sources.iter().position(|known| *known == source);
        sources.remove(place.unwrap_or_else(|| panic!("{} is missing", source.display())));
        let names: Vec<_> =
            binaries.iter().filter(|(_, path)| *path == source).map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [route.binary()], "[[bin]] of {}", source.display());
        let serves = format!("jobs::serve(jobs::Route::{route:?})");
        assert!(read(source.to_str().unwrap()).contains(&serves), "{}: {serves}", source.display());
    }
    assert_eq!(sources, Vec::<PathBuf>::new(), "no route is served by these");
    for (name, source) in &binaries {
        let same = binaries.iter().filter(|(other, _)| other == name).count();
        assert_eq!(same, 1, "{name} names {same} binaries of the workspace");
        let missing = source.starts_with("api") && !Route::ALL.iter().any(|route| route.binary() == name);
        assert!(!missing, "{name} is no route's");
    }
}

/// The benchmark calls each function with the least that it needs to begin its work: a new one comes in by itself.
#[tokio::test]
async fn each_function_refuses_a_stranger_and_begins_to_work_when_it_is_called_rightly() {
    let binaries = Path::new(env!("CARGO_BIN_EXE_status")).parent().expect("it lies in a folder");
    let measured = local_stack::bench::routes::measure(binaries, 1).await.expect("each of them begins");
    assert_eq!(measured.len(), Route::ALL.len());
}
