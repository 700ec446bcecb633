//! Reads from `/proc` what processes cost.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};

/// `/proc` counts in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);

/// Represents a line of `/proc/PID/stat`.
struct Stat {
    parent: u32,
    /// Counts its own ticks.
    ticks: u32,
    /// Counts the ticks of children that have ended.
    of_children: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u32>().ok();
    Some(Stat {
        parent: number(1)?,
        ticks: number(11)? + number(12)?,
        of_children: number(13)? + number(14)?,
    })
}

fn processes() -> HashMap<u32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

/// Counts the CPU time of the whole benchmark so far, by whose it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Is the time of the function's process.
    pub(super) function: Duration,
    /// Is the time of this process: the stand-ins, the gateway, and what calls the function.
    pub(super) stand_ins: Duration,
    /// Is the time of `PostgreSQL` and `PostgREST`.
    pub(super) database: Duration,
    /// Is the time of all processes of the machine.
    machine: Duration,
}

impl Usage {
    pub(super) fn now(function: u32) -> Self {
        let processes = processes();
        let own = std::process::id();
        let (mut family, mut grown) = (HashSet::from([own]), true);
        while grown {
            let before = family.len();
            family.extend(
                processes
                    .iter()
                    .filter(|(_, s)| family.contains(&s.parent))
                    .map(|(pid, _)| *pid)
                    .collect::<Vec<_>>(),
            );
            grown = family.len() > before;
        }
        let mut usage = Self { machine: machine().unwrap_or_default(), ..Self::default() };
        for (pid, stat) in processes.iter().filter(|(pid, _)| family.contains(pid)) {
            if *pid == function {
                usage.function += TICK * stat.ticks;
            } else if *pid == own {
                usage.stand_ins += TICK * stat.ticks;
            } else {
                usage.database += TICK * (stat.ticks + stat.of_children);
            }
        }
        usage
    }

    /// Returns what was used since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            function: self.function.saturating_sub(before.function),
            stand_ins: self.stand_ins.saturating_sub(before.stand_ins),
            database: self.database.saturating_sub(before.database),
            machine: self.machine.saturating_sub(before.machine),
        }
    }

    /// Returns what processes that are none of ours used meanwhile.
    pub(super) fn others(self) -> Duration {
        self.machine.saturating_sub(self.function + self.stand_ins + self.database)
    }
}

/// Returns the time that the machine's processors have worked.
fn machine() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u32> =
        stat.lines().next()?.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system; then idle and waiting; then interrupts.
    Some(TICK * (fields.get(..3)?.iter().sum::<u32>() + fields.get(5..7)?.iter().sum::<u32>()))
}

/// Returns the process that runs `binary` under the watchdog `parent`.
pub(super) fn child_of(parent: u32, binary: &Path) -> Result<u32> {
    let runs = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == binary);
    let found = processes().into_iter().find(|(pid, stat)| stat.parent == parent && runs(*pid));
    found.map(|(pid, _)| pid).context("the function's process is not there")
}

/// Returns the most memory that a process has had resident, in bytes.
pub(super) fn peak_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the function is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("the system does not tell a process's memory")?;
    Ok(kibibytes * 1024)
}

/// Returns the load of the machine over the last minute.
pub(super) fn load() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default()
}
