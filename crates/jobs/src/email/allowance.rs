//! Asks what the mail service still lets the account send, and how fast
//! (<https://resend.com/docs/api-reference/usage/retrieve-usage>).

use std::time::Duration;

use chrono::{DateTime, Utc};
use resend_rs::types::Usage;

use crate::{failure::Failure, schedule::paris};

/// Keeps so long between two requests until the service has told its limit; the strictest that it documents.
pub(super) const UNSAID_INTERVAL: Duration = Duration::from_millis(500);

/// Holds what the account may still send, and how fast.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Allowance {
    /// Says how many mails the tighter quota has left; `None` means no limit.
    pub(super) left: Option<u64>,
    /// Says which quota that is, and when it is renewed.
    pub(super) quota: Option<(Quota, Option<DateTime<Utc>>)>,
    /// Says how long to wait between two requests.
    pub(super) interval: Duration,
}

/// Names the two quotas.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Quota {
    Daily,
    Monthly,
}

impl Allowance {
    pub(super) fn of(usage: &Usage) -> Self {
        let periods = [(Quota::Daily, &usage.emails.daily), (Quota::Monthly, &usage.emails.monthly)];
        let tightest = periods
            .into_iter()
            .filter_map(|(quota, period)| {
                let left = u64::from(period.limit?.saturating_sub(period.used));
                let resets = DateTime::parse_from_rfc3339(&period.resets_at).ok().map(|at| at.to_utc());
                Some((left, quota, resets))
            })
            .min_by_key(|(left, ..)| *left);
        let window = usage.rate_limit.duration.strip_suffix("ms").and_then(|ms| ms.parse().ok());
        Self {
            left: tightest.map(|(left, ..)| left),
            quota: tightest.map(|(_, quota, resets)| (quota, resets)),
            interval: Duration::from_millis(window.unwrap_or(1_000)) / usage.rate_limit.limit.max(1),
        }
    }

    /// Assumes that `left` mails are left, for a key that may not ask.
    pub(super) fn guessed(left: u64) -> Self {
        Self { left: Some(left), quota: None, interval: UNSAID_INTERVAL }
    }

    /// Returns the failure that an operator reads when nothing is left.
    pub(super) fn exhausted(&self) -> Failure {
        exhausted(self.quota)
    }
}

/// Returns the failure that an operator reads when a quota is used up; `None` if it is not known which.
fn exhausted(quota: Option<(Quota, Option<DateTime<Utc>>)>) -> Failure {
    let (code, name) = match quota {
        Some((Quota::Daily, _)) => ("daily_quota", "Le quota quotidien"),
        Some((Quota::Monthly, _)) => ("monthly_quota", "Le quota mensuel"),
        None => ("quota", "Un quota"),
    };
    let after = quota.and_then(|(_, resets)| resets).map_or_else(
        || "dès qu’il sera renouvelé".to_owned(),
        |at| format!("après le {}", paris::french_minute(at)),
    );
    Failure {
        code: code.into(),
        message: format!("{name} de Resend est atteint : ce qui reste en file partira {after}."),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;

    proptest! {
        /// Whatever it says of the quotas, nothing panics, and there is a pace.
        #[test]
        fn damaged_quotas_do_not_panic(usage in damaged(json!({
            "emails": {
                "daily": {"used": 1, "limit": 100, "sent": 1, "received": 0, "resets_at": "2026-11-25T00:00:00Z"},
                "monthly": {"used": 1, "sent": 1, "received": 0, "resets_at": "2026-12-01T00:00:00Z"},
            },
            "contacts": {"used": 0, "limit": 1000}, "segments": {"used": 0}, "broadcasts": {"used": 0},
            "ai_credits": {"used": 0}, "domains": {"used": 1},
            "automation_runs": {"used": 0, "limit": 10, "resets_at": "2026-12-01T00:00:00Z"},
            "rate_limit": {"limit": 10, "duration": "1000ms"},
        }))) {
            if let Ok(usage) = serde_json::from_value::<Usage>(usage) {
                let allowance = Allowance::of(&usage);
                let _ = allowance.exhausted();
                prop_assert_eq!(allowance.left.is_some(), allowance.quota.is_some());
            }
        }
    }
}
