//! Finds what is wrong with an answer: pure functions of it and of what the seed knows.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use super::{call::Answer, changes::euros};
use crate::seed::people::People;

/// Says how an orchestrator's task must have gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Went {
    /// It was due: this many worked, this many failed.
    Ran { worked: usize, failed: usize },
    /// As it was due or not: it ran like that, or it was skipped.
    RanOrSkipped { worked: usize, failed: usize },
    /// Without a failure, whatever it did.
    Well,
}

/// Collects what is wrong, with the call it is wrong about.
#[derive(Debug, Default)]
pub(super) struct Problems {
    call: String,
    pub(super) found: Vec<String>,
}

impl Problems {
    pub(super) fn about(&mut self, call: &str) {
        self.call = call.into();
    }

    pub(super) fn add(&mut self, problem: impl std::fmt::Display) {
        self.found.push(format!("{}: {problem}", self.call));
    }

    fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, is: &T, must: &T) {
        if is != must {
            self.add(format_args!("{what} is {is:?} instead of {must:?}"));
        }
    }

    pub(super) fn status(&mut self, answer: &Answer) {
        self.equal("the status", &answer.status, &200);
    }

    /// Checks an orchestrator's part, whose counter is called `counter`.
    pub(super) fn part(&mut self, answer: &Answer, name: &str, counter: &str, went: Went) {
        let part = &answer.body["results"][name];
        let number = |key: &str| part[key].as_u64().and_then(|n| usize::try_from(n).ok());
        let skipped = part["skipped"] == true;
        if part["remaining"].as_u64().is_some_and(|left| left > 0) {
            self.add(format_args!("{name} left {} undone", part["remaining"]));
        }
        match went {
            Went::Ran { worked, failed } | Went::RanOrSkipped { worked, failed }
                if !(skipped && matches!(went, Went::RanOrSkipped { .. })) =>
            {
                self.equal(&format!("{name}.skipped"), &skipped, &false);
                self.equal(&format!("{name}.{counter}"), &number(counter), &Some(worked));
                self.equal(&format!("{name}.errors"), &number("errors"), &Some(failed));
            }
            _ => self.equal(&format!("{name}.errors"), &number("errors"), &Some(0)),
        }
    }

    /// Checks the mails that a task on data has sent besides.
    pub(super) fn mails(&mut self, answer: &Answer, name: &str, lane: &str, sent: usize) {
        let mails = &answer.body["results"][name][lane];
        self.equal(&format!("{name}.{lane}.sent"), &mails["sent"], &Value::from(sent));
        self.equal(&format!("{name}.{lane}.errors"), &mails["errors"], &Value::from(0));
    }

    /// Checks the answer of a route that only sends mails.
    pub(super) fn sent(&mut self, body: &Value, sent: usize) {
        self.equal("sent", &body["sent"], &Value::from(sent));
        self.equal("errors", &body["errors"], &Value::from(0));
    }

    /// Checks a sync by hand: one failure for each integration in trouble, nothing left. `records`: what it must have
    /// found new, where that is known.
    pub(super) fn sync(&mut self, answer: &Answer, people: &People, records: Option<u64>) {
        self.status(answer);
        let body = &answer.body;
        self.equal("errors", &body["errors"].as_u64(), &Some(people.in_trouble.len() as u64));
        self.equal("results", &body["results"].as_array().map(Vec::len), &Some(people.integrations));
        self.equal("remaining", &body["remaining"], &Value::Null);
        if let Some(records) = records {
            self.equal("totalSynced", &body["totalSynced"].as_u64(), &Some(records));
        }
    }

    /// Compares the results of a monthly sync with the sums of the seed.
    pub(super) fn month(
        &mut self,
        results: &[MonthResult],
        people: &People,
        expected: impl Fn(Uuid) -> BTreeMap<&'static str, i64>,
    ) {
        self.equal("the number of users", &results.len(), &people.connected());
        for result in results {
            let name = people.names.get(&result.user).map_or("?", String::as_str);
            let in_trouble = people.in_trouble.contains(&result.user);
            let Some(total) = result.total.filter(|_| !in_trouble) else {
                self.equal(
                    &format!("whether {name}'s month has a figure"),
                    &result.total.is_some(),
                    &!in_trouble,
                );
                continue;
            };
            let must = expected(result.user);
            let must_total = must.values().sum::<i64>();
            if total != must_total {
                let (is, must) = (euros(total), euros(must_total));
                self.add(format_args!("{name}'s month is {is} instead of {must}"));
            }
            let must = must.into_iter().map(|(source, cents)| (source.to_owned(), cents)).collect();
            self.equal(&format!("{name}'s sources"), &result.by_source, &must);
        }
    }
}

/// Represents one user's month, in cents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MonthResult {
    user: Uuid,
    /// Is `None` where nothing was read to its end, so that there is no figure.
    total: Option<i64>,
    by_source: BTreeMap<String, i64>,
}

impl MonthResult {
    /// Reads `{userId, totalCA, details: [{source, amount}]}`.
    pub(super) fn read(result: &Value) -> Option<Self> {
        let details = result["details"].as_array()?;
        let by_source = details
            .iter()
            .map(|detail| Some((detail["source"].as_str()?.to_owned(), cents(&detail["amount"])?)));
        Some(Self {
            user: result["userId"].as_str()?.parse().ok()?,
            total: match &result["totalCA"] {
                Value::Null => None,
                total => Some(cents(total)?),
            },
            by_source: by_source.collect::<Option<_>>()?,
        })
    }
}

/// Returns an amount in euros with at most two decimals, in cents.
fn cents(amount: &Value) -> Option<i64> {
    let text = amount.as_number()?.to_string();
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    let decimals = match decimals.len() {
        0 => 0,
        1 => decimals.parse::<i64>().ok()? * 10,
        2 => decimals.parse().ok()?,
        _ => return None,
    };
    let sign = if whole.starts_with('-') { -1 } else { 1 };
    Some(whole.parse::<i64>().ok()? * 100 + sign * decimals)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn amounts_become_cents() {
        let read = [json!(12.5), json!(-0.05), json!(1234), json!(99.99), json!(1.005), json!("1")];
        let read = read.map(|amount| cents(&amount));
        assert_eq!(read, [Some(1250), Some(-5), Some(123_400), Some(9_999), None, None]);
    }
}
