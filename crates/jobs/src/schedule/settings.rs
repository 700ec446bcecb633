//! Holds what the operator may tune about when tasks are due.

/// Holds what the operator may tune.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    marketing_from_hour: u8,
    replay_max_days: u16,
}

/// Some cron of every deployment file still comes after this hour, summer and winter: the
/// Pro plan's daily-tasks run once, at 9 h UTC. A later one would keep the mail back for ever.
const LATEST_MARKETING_HOUR: u8 = 10;

/// Says how many days back `at=` and replays reach where the operator says nothing.
const DEFAULT_REPLAY_DAYS: u16 = 35;

/// `MARKETING_FROM_HOUR` is not an hour that every plan's crons serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("MARKETING_FROM_HOUR doit être une heure entre 0 et {LATEST_MARKETING_HOUR}")]
pub struct InvalidHour;

impl Settings {
    /// Creates settings; `marketing_from_hour` is the Paris hour from which the J+3 mail may leave, 0 to 10.
    pub const fn new(marketing_from_hour: u8) -> Result<Self, InvalidHour> {
        if marketing_from_hour <= LATEST_MARKETING_HOUR {
            Ok(Self { marketing_from_hour, replay_max_days: DEFAULT_REPLAY_DAYS })
        } else {
            Err(InvalidHour)
        }
    }

    /// Returns the same settings, with `at=` and replays reaching this many days back.
    #[must_use]
    pub const fn with_replay_max_days(self, replay_max_days: u16) -> Self {
        Self { replay_max_days, ..self }
    }

    /// Returns how many days back `at=` and replays reach.
    pub const fn replay_max_days(self) -> u16 {
        self.replay_max_days
    }

    /// Returns the Paris hour from which the J+3 mail may leave.
    pub const fn marketing_from_hour(self) -> u8 {
        self.marketing_from_hour
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { marketing_from_hour: 7, replay_max_days: DEFAULT_REPLAY_DAYS }
    }
}
