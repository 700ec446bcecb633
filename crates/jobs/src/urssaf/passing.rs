//! Says when a year's turnover passed a ceiling, and when it will, if it goes on as it did. Pure.

use chrono::{Datelike, Days, NaiveDate};
use serde::{Deserialize, Serialize};

use super::books::{Months, Reading, cents};
use super::figures::{Bucket, Ceiling};
use crate::schedule::Month;

#[cfg(test)]
mod tests;

/// The pace is that of so many whole months at most.
const PACE_MONTHS: u32 = 12;

/// Says when a ceiling was passed, as far as the books tell.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Passed {
    /// Movements tell the day.
    On(NaiveDate),
    /// What is typed tells the month.
    In(Month),
    /// What may be there twice leaves the month open.
    During(i32),
}

/// Says when a ceiling will be passed at the pace of the last months.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Outlook {
    /// The day; `None`: not within the year.
    pub on: Option<NaiveDate>,
    /// So many whole months tell the pace.
    pub months: u32,
}

/// Holds when a ceiling was passed, and the month whose days would tell more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Passing {
    pub(super) passed: Passed,
    pub(super) asks: Option<Month>,
}

/// Returns when a year first passed a ceiling; `None`: it did not.
pub(super) fn passing(
    months: &Months<'_>,
    year: i32,
    bucket: Bucket,
    ceiling: Ceiling,
    reading: Reading,
) -> Option<Passing> {
    let (mut before, mut in_doubt) = (0_i128, false);
    for (month, sides) in months.of_year(year, bucket) {
        in_doubt |= sides.twice > 0;
        let sum = before + sides.read(reading);
        if !ceiling.is_crossed(sum, 100) {
            before = sum;
            continue;
        }
        if in_doubt && reading == Reading::Same && exceeded_before(month, months, bucket, ceiling) {
            return Some(Passing { passed: Passed::During(year), asks: None });
        }
        let passed = Passed::In(month);
        if in_doubt || sides.typed != 0 {
            return Some(Passing { passed, asks: None });
        }
        let days = months.days(month, bucket);
        if days.is_empty() {
            return Some(Passing { passed, asks: Some(month) });
        }
        // Days that do not add up to the month are not those of the books: the user has edited the row.
        let whole = days.values().sum::<i128>() == sides.imported;
        let day = days.into_iter().filter(|_| whole).find_map(|(day, amount)| {
            before += amount;
            ceiling.is_crossed(before, 100).then_some(day)
        });
        return Some(Passing { passed: day.map_or(passed, Passed::On), asks: None });
    }
    None
}

/// Returns whether a year exceeds a ceiling in a month before this one, if nothing is there twice.
fn exceeded_before(month: Month, months: &Months<'_>, bucket: Bucket, ceiling: Ceiling) -> bool {
    let mut sum = 0;
    let mut before = months.of_year(month.year(), bucket).take_while(|(other, _)| *other < month);
    before.any(|(_, sides)| {
        sum += sides.read(Reading::Distinct);
        ceiling.is_crossed(sum, 100)
    })
}

/// Returns when a ceiling that `turnover` has not passed will be, at the pace of the whole months before `today`'s.
/// `None`: there is no such month, no pace, or the year is over.
pub(super) fn outlook(
    months: &Months<'_>,
    bucket: Bucket,
    ceiling: Ceiling,
    turnover: i128,
    today: NaiveDate,
) -> Option<Outlook> {
    let this_month = Month::of(today);
    let mut first = this_month;
    let begins = months.first()?;
    let mut count = 0;
    let mut income = 0_i128;
    while count < PACE_MONTHS && begins < first {
        first = first.previous();
        income += months.month(first, bucket).read(Reading::Distinct);
        count += 1;
    }
    let left = i128::from(ceiling.value()) - turnover;
    if count == 0 || income <= 0 || left < 0 {
        return None;
    }
    let days = (this_month.first_day() - first.first_day()).num_days();
    // A month that nothing is recorded for yet is still to be taken in.
    let is_open = months.month(this_month, bucket).read(Reading::Distinct) == 0;
    let from = if is_open { this_month.first_day() } else { today };
    let needed = cents(left * i128::from(days) / income);
    let on = u64::try_from(needed).ok().and_then(|needed| from.checked_add_days(Days::new(needed)));
    let on = on.map(|on| on.max(today)).filter(|on| on.year() == today.year());
    Some(Outlook { on, months: count })
}
