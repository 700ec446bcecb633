//! Shows what a call has changed in the database.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use chrono::NaiveDate;
use uuid::Uuid;

use crate::seed::{books::Turnover, calendar};
use processes::database::Database;

const COUNTS: &str = "
    select 'ca_records' as what, count(*) from public.ca_records
    union all select 'integration_transactions', count(*) from jobs.integration_transactions
    union all select 'integration_state', count(*) from jobs.integration_state
    union all select 'email_deliveries ' || kind || ' ' || status, count(*) from jobs.email_deliveries
        group by kind, status
    union all select 'threshold_alerts', count(*) from jobs.threshold_alerts
    union all select 'job_runs', count(*) from jobs.job_runs
    union all select 'job_items ' || status, count(*) from jobs.job_items group by status
    union all select 'sync_logs', count(*) from public.sync_logs";

const IMPORTED: &str = "
    select user_id, make_date(year, month, 1), activity_type, (sum(amount_eur) * 100)::bigint
    from public.ca_records where source = 'auto_sync' group by 1, 2, 3";

/// Represents the database at one moment, as far as the table shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    counts: BTreeMap<String, i64>,
    /// Is the imported turnover, in cents.
    pub(super) imported: BTreeMap<(Uuid, NaiveDate, String), i64>,
}

impl Snapshot {
    pub(super) async fn take(db: &Database) -> Result<Self> {
        let counts = sqlx::query_as(COUNTS).fetch_all(db.pool()).await.context("cannot count rows")?;
        let rows: Vec<(Uuid, NaiveDate, String, i64)> =
            sqlx::query_as(IMPORTED).fetch_all(db.pool()).await.context("cannot read ca_records")?;
        let imported =
            rows.into_iter().map(|(user, month, activity, cents)| ((user, month, activity), cents));
        Ok(Self { counts: counts.into_iter().collect(), imported: imported.collect() })
    }

    pub(super) fn count(&self, what: &str) -> i64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    /// Prints what is different from `before`.
    pub(super) fn print_changes(&self, before: &Self, names: &BTreeMap<Uuid, String>) {
        println!("   {:<39}{:>8}{:>8}", "rows", "before", "after");
        let mut whats: Vec<&String> = self.counts.keys().chain(before.counts.keys()).collect();
        whats.sort_unstable();
        whats.dedup();
        for what in whats {
            let (was, is) = (before.count(what), self.count(what));
            let change = if is == was { "=".into() } else { format!("{:+}", is - was) };
            println!("   {what:<39}{was:>8}{is:>8}  {change}");
        }
        if self.imported == before.imported {
            println!("   imported turnover (ca_records auto_sync): unchanged");
            return;
        }
        println!("   imported turnover (ca_records auto_sync):");
        for ((user, month, activity), cents) in &self.imported {
            let name = names.get(user).map_or("?", String::as_str);
            let before = before.imported.get(&(*user, *month, activity.clone()));
            let note = match before {
                Some(before) if before == cents => String::new(),
                Some(before) => format!("  (was {})", euros(*before)),
                None => "  (new)".into(),
            };
            let (month, amount) = (calendar::name(*month), euros(*cents));
            println!("     {name:<18} {month}  {activity:<22} {amount:>12}{note}");
        }
    }

    /// Compares the imported turnover with the seed's own.
    pub(super) fn differences(&self, expected: &Turnover, names: &BTreeMap<Uuid, String>) -> Vec<String> {
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|((user, month, activity), cents)| ((*user, *month, (*activity).to_owned()), *cents))
            .collect();
        let mut keys: Vec<_> = expected.keys().chain(self.imported.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let differs = |key: &&(Uuid, NaiveDate, String)| expected.get(*key) != self.imported.get(*key);
        let say = |cents: Option<&i64>| cents.map_or("nothing".into(), |cents| euros(*cents));
        keys.into_iter()
            .filter(differs)
            .map(|key| {
                let (user, month, activity) = key;
                let name = names.get(user).map_or("?", String::as_str);
                let (is, must) = (say(self.imported.get(key)), say(expected.get(key)));
                format!("ca_records: {name}, {}, {activity}: {is} instead of {must}", calendar::name(*month))
            })
            .collect()
    }
}

/// Writes `-1 234.50 €`.
pub(super) fn euros(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let (whole, rest) = (cents.unsigned_abs() / 100, cents.unsigned_abs() % 100);
    let digits = whole.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}.{rest:02} €")
}

#[cfg(test)]
mod tests {
    #[test]
    fn amounts_are_grouped() {
        let written = [0, 99, -123_456, 100_000_000].map(super::euros);
        assert_eq!(written, ["0.00 €", "0.99 €", "-1 234.56 €", "1 000 000.00 €"]);
    }
}
