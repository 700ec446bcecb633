//! Reads `at=`: run as of another instant, to replay a cron that was missed or to look ahead.

use std::ops::RangeInclusive;

use chrono::{DateTime, Datelike, TimeDelta, Utc};

/// The calendar is tested for these years.
pub const YEARS: RangeInclusive<i32> = 1970..=2099;

/// Says why an `at=` is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AtError {
    /// The instant is not written as RFC 3339 has it.
    #[error(
        "la date s’écrit selon la RFC 3339, par exemple 2026-11-22T07:00:00Z \
         (dans une URL, le + d’un fuseau s’écrit %2B)"
    )]
    Malformed,
    /// The instant is later than now, and this is no dry run.
    #[error("la date est dans le futur : seul un essai (dry_run=true) peut anticiper")]
    Future,
    /// The instant was too long ago, and this is no dry run.
    #[error("la date remonte à plus de {max_days} jours : seul un essai (dry_run=true) peut aller plus loin")]
    TooOld {
        /// Is `REPLAY_MAX_DAYS`.
        max_days: u16,
    },
    /// The instant is outside the years for which the calendar is tested, even for a dry run.
    #[error("l’année doit être comprise entre 1970 et 2099")]
    OutOfCalendar,
}

/// Reads an `at=`. A run that writes goes back `max_days` at most and never forward; a dry run goes
/// anywhere in the tested calendar.
pub fn parse_at(
    text: &str,
    now: DateTime<Utc>,
    dry_run: bool,
    max_days: u16,
) -> Result<DateTime<Utc>, AtError> {
    let at = DateTime::parse_from_rfc3339(text).map_err(|_| AtError::Malformed)?.to_utc();
    if !YEARS.contains(&at.year()) {
        Err(AtError::OutOfCalendar)
    } else if dry_run {
        Ok(at)
    } else if at > now {
        Err(AtError::Future)
    } else if at < now - TimeDelta::days(max_days.into()) {
        Err(AtError::TooOld { max_days })
    } else {
        Ok(at)
    }
}
