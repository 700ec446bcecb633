//! What the account may send: quotas of a day and a month, requests a second, and how much of it is used.
//!
//! After <https://resend.com/docs/api-reference/rate-limit>, on which every answer carries the `ratelimit-*`
//! headers and the used quotas; and <https://resend.com/docs/api-reference/usage/retrieve-usage>, which is a
//! private beta: an account may not have it.

use axum::http::{HeaderMap, HeaderValue};
use chrono::{DateTime, Datelike, Months, NaiveTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use super::refusals::Refusal;
use crate::bucket::Bucket;

/// The headers and `/usage` say this where there is no limit of requests a second: the most that
/// Resend's pages give.
const NOMINAL_PER_SECOND: u32 = 10;

/// Holds the limits of the account, which has none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Is the number of mails a day; the free plan has 100.
    pub daily: Option<u32>,
    /// Is the number of mails a month; the free plan has 3,000.
    pub monthly: Option<u32>,
    /// Is the number of requests a second, with as many at once (a token bucket). Without it
    /// nothing is refused, and the headers say 10.
    pub per_second: Option<u32>,
}

/// Returns a quota as `/usage` has it.
fn period(used: u32, limit: Option<u32>, resets_at: &str) -> Value {
    json!({"used": used, "limit": limit, "sent": used, "received": 0, "resets_at": resets_at})
}

/// Counts against the [`Limits`].
#[derive(Debug, Default)]
pub(super) struct Meter {
    limits: Limits,
    requests: Option<Bucket>,
    today: u32,
    this_month: u32,
}

impl Meter {
    pub(super) fn set(&mut self, limits: Limits) {
        self.limits = limits;
        self.requests = limits.per_second.map(|n| Bucket::new(f64::from(n), f64::from(n)));
    }

    pub(super) fn new_day(&mut self) {
        self.today = 0;
    }

    /// Counts a request.
    pub(super) fn request(&mut self) -> Result<(), Refusal> {
        // At one request a second and more, the next one is possible within a second.
        let admitted = self.requests.as_mut().is_none_or(|bucket| bucket.take(1.0));
        if admitted { Ok(()) } else { Err(Refusal::rate_limit(self.per_second(), 1)) }
    }

    /// Takes this many mails out of the quotas, or none.
    pub(super) fn reserve(&mut self, mails: u32) -> Result<(), Refusal> {
        let exceeds =
            |used: u32, limit: Option<u32>| limit.is_some_and(|limit| used.saturating_add(mails) > limit);
        if exceeds(self.this_month, self.limits.monthly) {
            return Err(Refusal::monthly_quota());
        }
        if exceeds(self.today, self.limits.daily) {
            return Err(Refusal::daily_quota());
        }
        self.today = self.today.saturating_add(mails);
        self.this_month = self.this_month.saturating_add(mails);
        Ok(())
    }

    /// Puts them back.
    pub(super) fn give_back(&mut self, mails: u32) {
        self.today = self.today.saturating_sub(mails);
        self.this_month = self.this_month.saturating_sub(mails);
    }

    /// Returns the answer to `GET /usage` at this instant.
    pub(super) fn usage(&self, now: DateTime<Utc>) -> Value {
        let stamp = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
        // 24 hours roll; a month is one of the calendar.
        let tomorrow = stamp(now + TimeDelta::days(1));
        let next_month = (now.date_naive().with_day(1))
            .and_then(|day| day.checked_add_months(Months::new(1)))
            .map(|day| stamp(day.and_time(NaiveTime::MIN).and_utc()));
        let next_month = next_month.unwrap_or_else(|| tomorrow.clone());
        json!({
            "object": "usage",
            "generated_at": stamp(now),
            "emails": {
                "daily": period(self.today, self.limits.daily, &tomorrow),
                "monthly": period(self.this_month, self.limits.monthly, &next_month),
            },
            "contacts": {"used": 0, "limit": 1000},
            "segments": {"used": 0, "limit": 3},
            "broadcasts": {"used": 0, "limit": null},
            "ai_credits": {"used": 0, "limit": 0, "next_increase_at": null},
            "automation_runs": {"used": 0, "limit": 1000, "resets_at": next_month},
            "domains": {"used": 1, "limit": 1},
            "rate_limit": {"limit": self.per_second(), "duration": "1000ms"},
        })
    }

    /// Writes on an answer what is left.
    pub(super) fn stamp(&mut self, headers: &mut HeaderMap) {
        let per_second = self.per_second();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between nothing and the limit"
        )]
        let remaining = self.requests.as_mut().map_or(per_second, |bucket| bucket.level() as u32);
        headers.insert("ratelimit-limit", HeaderValue::from(per_second));
        headers.insert("ratelimit-remaining", HeaderValue::from(remaining));
        headers.insert("ratelimit-reset", HeaderValue::from(1));
        headers.insert("x-resend-monthly-quota", HeaderValue::from(self.this_month));
        // Only plans with a daily quota have it.
        if self.limits.daily.is_some() {
            headers.insert("x-resend-daily-quota", HeaderValue::from(self.today));
        }
    }

    fn per_second(&self) -> u32 {
        self.limits.per_second.unwrap_or(NOMINAL_PER_SECOND)
    }
}
