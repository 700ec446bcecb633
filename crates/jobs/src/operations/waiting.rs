//! The one rule of when somebody has waited too long.

use chrono::TimeDelta;

/// Whoever waits longer than this, since they were planned first, has waited too long: the status page and the digest go
/// by it. Every cron works on all lanes, so that nobody waits for half as long where all is well.
pub(crate) const WAITS_TOO_LONG: TimeDelta = TimeDelta::days(1);
