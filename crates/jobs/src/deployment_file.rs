//! Knows the three deployment files, and which crons each of them asks the platform for. They are compiled in: what this
//! deployment should see is declared, and not inferred from what it has seen.

use serde::Deserialize;

listed! {
    /// Names the file that the deployment was made with.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub enum DeploymentFile {
        /// The default schedules two orchestrators.
        #[default]
        Default,
        /// Hobby schedules the same from entries that fire once a day each.
        Hobby,
        /// Pro, with one cron a task.
        Pro,
    }
}

/// Represents one entry of `crons`.
#[derive(Debug, Deserialize, Eq, PartialEq)]
pub struct Cron {
    pub path: String,
    /// Holds minute, hour, day of the month, month, day of the week, in UTC.
    pub schedule: String,
}

#[derive(Deserialize)]
struct File {
    crons: Vec<Cron>,
}

impl DeploymentFile {
    /// Returns the file's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "vercel.json",
            Self::Hobby => "vercel.hobby.json",
            Self::Pro => "vercel.pro.json",
        }
    }

    /// Returns the file of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.as_str() == name)
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Default => include_str!("../../../vercel.json"),
            Self::Hobby => include_str!("../../../vercel.hobby.json"),
            Self::Pro => include_str!("../../../vercel.pro.json"),
        }
    }

    /// Returns the crons that the platform runs for it.
    pub fn crons(self) -> Vec<Cron> {
        serde_json::from_str::<File>(self.text()).map(|file| file.crons).unwrap_or_default()
    }

    /// Returns whether a cron calls this path.
    pub fn schedules(self, path: &str) -> bool {
        self.crons().iter().any(|cron| cron.path == path)
    }

    /// Returns the longest time between two calls of a path, in hours, where it is called every day. What is called once a
    /// week or a month is missed by its slot.
    pub fn longest_gap(self, path: &str) -> Option<u32> {
        let mut hours = Vec::new();
        for cron in self.crons().iter().filter(|cron| cron.path == path) {
            let fields: Vec<&str> = cron.schedule.split_whitespace().collect();
            let [_, hour, "*", "*", "*"] = fields[..] else { return None };
            match (hour.strip_prefix("*/"), hour.parse::<u32>()) {
                (Some(step), _) => hours.extend((0..24).step_by(step.parse().ok()?)),
                (None, Ok(hour)) => hours.push(hour),
                (None, Err(_)) => return None,
            }
        }
        hours.sort_unstable();
        let next = hours.iter().skip(1).copied().chain(hours.first().map(|first| first + 24));
        hours.iter().zip(next).map(|(hour, next)| next - hour).max()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn every_file_is_read() {
        for file in DeploymentFile::ALL {
            assert!(!file.crons().is_empty(), "{file:?}");
            assert_eq!(DeploymentFile::named(file.as_str()), Some(file));
        }
        assert_eq!(DeploymentFile::named("now.json"), None);
    }

    #[rstest]
    #[case(DeploymentFile::Default, "/api/cron/daily-orchestrator", Some(6))]
    #[case(DeploymentFile::Hobby, "/api/cron/daily-orchestrator", Some(6))]
    #[case(DeploymentFile::Default, "/api/cron/monthly-orchestrator", Some(24))]
    #[case(DeploymentFile::Pro, "/api/cron/daily-tasks", Some(24))]
    #[case(DeploymentFile::Pro, "/api/cron/send-reminders", None)]
    #[case(DeploymentFile::Pro, "/api/manual/check-thresholds", None)]
    #[case(DeploymentFile::Pro, "/api/cron/daily-orchestrator", None)]
    fn gaps(#[case] file: DeploymentFile, #[case] path: &str, #[case] hours: Option<u32>) {
        assert_eq!(file.longest_gap(path), hours);
    }
}
