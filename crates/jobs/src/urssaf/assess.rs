//! Assesses what a year's turnover newly crosses, and what follows from it.
//!
//! All turnover counts against the total ceilings, activities that are not known too; services and liberal
//! professions alone count against those of services. Each step of each threshold is told of once a year:
//! what is [held](Held) already is never crossed again, and neither is a lower step.
//!
//! # Doubt
//!
//! Where a month has both typed and imported rows, the same money may be in it twice. So there are two
//! figures: the full one adds everything up; the certain one takes of each such month the greater of the two
//! sides, where that is less. What only the full figure crosses is in [`Doubt`]: it is reported with both
//! totals, and nothing follows from it.
//!
//! The step reported is the highest that the full figure crosses, even if the certain figure crosses a lower
//! one: one line a threshold, and the one that matters. It is used up like any other. If the money turns out
//! to be there, the step is not told of a second time with its consequence: "once a year" is what users were
//! promised, the mail has asked them to look, and they know by then. The other way round, holding the step
//! back until it is certain, would keep silent exactly while VAT may already be due.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use chrono::{Datelike, NaiveDate};
use serde::{Deserialize, Serialize};

use super::figures::{Bucket, Regime};
use super::{Activity, Consequence, Crossing, Doubt, Threshold};

#[cfg(test)]
mod tests;

/// Represents one year of a user's turnover, as the database adds it up. Amounts are cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct YearBooks {
    pub year: i32,
    /// The whole year. Empty: nothing is recorded.
    pub sums: Vec<ActivitySum>,
    /// Of it, the months that have both typed and imported rows.
    pub mixed: Vec<MixedMonth>,
}

/// Represents a year's turnover of one activity, by where its rows come from.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ActivitySum {
    /// As it is spelled in the rows.
    pub activity: String,
    pub typed: i64,
    pub imported: i64,
}

/// Represents the turnover of one activity in a month that has both typed and imported rows, of whatever activity.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MixedMonth {
    /// 1 to 12.
    pub month: u32,
    /// As it is spelled in the rows.
    pub activity: String,
    pub typed: i64,
    pub imported: i64,
}

/// Represents a step that is used up for a user and a year.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Held {
    pub threshold: Threshold,
    pub step: u8,
}

/// Holds what [`assess`] finds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Assessment {
    /// What to tell: at most one step a threshold, the gravest first.
    pub crossings: Vec<Crossing>,
    /// What to store once it is told: the steps in `crossings`, and those below that are not held yet.
    pub used_up: Vec<Held>,
    /// Spellings in the year's books that no activity is known for, in order.
    pub unknown_activities: Vec<String>,
}

/// Holds `year` against its thresholds. Of `books` it reads `year` and, for what follows, the year before.
///
/// `created` is the day the activity started: it makes the ceilings of its own year smaller, and says that
/// there was no year before. In any other year it changes nothing.
pub fn assess(books: &[YearBooks], created: Option<NaiveDate>, year: i32, held: &[Held]) -> Assessment {
    let Some(of_year) = recorded(books, year) else { return Assessment::default() };
    let (mut crossings, mut used_up) = (Vec::new(), Vec::new());
    for threshold in Threshold::ALL {
        let Some(ceiling) = threshold.ceiling(year, created) else { continue };
        let count = Count::of(of_year, threshold.bucket());
        let steps = threshold.steps().iter().copied();
        let Some(step) = steps.clone().rev().find(|&step| ceiling.is_crossed(count.full(), step)) else {
            continue;
        };
        let is_held = |step| held.contains(&Held { threshold, step });
        if steps.clone().any(|other| other >= step && is_held(other)) {
            continue;
        }
        let doubt = (!ceiling.is_crossed(count.certain, step)).then(|| count.sides());
        let consequence = if doubt.is_some() {
            Consequence::ToVerify
        } else if step < 100 {
            Consequence::Approaching
        } else {
            of_exceeding(threshold, books, created, year)
        };
        crossings.push(Crossing {
            threshold,
            step,
            turnover: cents(count.full()),
            ceiling: ceiling.value(),
            full_year_ceiling: ceiling.full_year(),
            doubt,
            consequence,
        });
        let new = steps.filter(|&other| other <= step && !is_held(other));
        used_up.extend(new.map(|step| Held { threshold, step }));
    }
    crossings
        .sort_by_key(|crossing| (gravity(crossing.consequence), Reverse(crossing.step), crossing.threshold));
    Assessment { crossings, used_up, unknown_activities: unknown_activities(of_year) }
}

/// Returns the years that are checked on a date of Paris, the oldest first: the current one and, until 31 January,
/// the one before, whose last month is being recorded.
pub fn years_checked(date: NaiveDate) -> Vec<i32> {
    let year = date.year();
    if date.month() == 1 { vec![year - 1, year] } else { vec![year] }
}

/// Returns a year's books, if anything is recorded in it.
fn recorded(books: &[YearBooks], year: i32) -> Option<&YearBooks> {
    books.iter().find(|books| books.year == year && !books.sums.is_empty())
}

fn unknown_activities(books: &YearBooks) -> Vec<String> {
    let unknown: BTreeSet<&str> = books
        .sums
        .iter()
        .map(|sum| sum.activity.trim())
        .filter(|activity| Activity::parse(activity).is_none())
        .collect();
    unknown.into_iter().map(str::to_owned).collect()
}

/// Says what a year counts in one bucket.
pub(super) struct Count {
    typed: i128,
    imported: i128,
    /// Without what may be there twice. Never above [`full`](Self::full).
    certain: i128,
}

impl Count {
    pub(super) fn of(books: &YearBooks, bucket: Bucket) -> Self {
        let counts = |activity: &str| match bucket {
            Bucket::Total => true,
            Bucket::Services => Activity::parse(activity).is_some_and(Activity::is_services),
        };
        let (mut typed, mut imported) = (0, 0);
        for sum in books.sums.iter().filter(|sum| counts(&sum.activity)) {
            typed += i128::from(sum.typed);
            imported += i128::from(sum.imported);
        }
        // By month: what is typed under one activity may be imported under another.
        let mut months: BTreeMap<u32, (i128, i128)> = BTreeMap::new();
        for row in books.mixed.iter().filter(|row| counts(&row.activity)) {
            let (typed, imported) = months.entry(row.month).or_default();
            *typed += i128::from(row.typed);
            *imported += i128::from(row.imported);
        }
        // A side that is negative (refunds) makes the sum the lesser one: nothing is there twice.
        let twice: i128 = months.into_values().map(|(typed, imported)| typed.min(imported).max(0)).sum();
        Self { typed, imported, certain: typed + imported - twice }
    }

    pub(super) fn full(&self) -> i128 {
        self.typed + self.imported
    }

    fn sides(&self) -> Doubt {
        Doubt { typed: cents(self.typed), imported: cents(self.imported) }
    }
}

/// A year of `numeric(12, 2)` rows fits; what does not was no turnover.
fn cents(sum: i128) -> i64 {
    i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX })
}

/// Returns what follows when the full ceiling is exceeded for certain.
fn of_exceeding(
    threshold: Threshold,
    books: &[YearBooks],
    created: Option<NaiveDate>,
    year: i32,
) -> Consequence {
    let from = NaiveDate::from_ymd_opt(year + 1, 1, 1).expect("years with ceilings have four digits");
    match threshold.regime() {
        Regime::Micro => match micro_year_before(books, created, year) {
            YearBefore::Exceeded => Consequence::MicroOut { from },
            YearBefore::Within => Consequence::MicroOnce,
            YearBefore::Unknown => Consequence::MicroPreviousUnknown,
        },
        Regime::VatBase => Consequence::VatFrom { from },
        Regime::VatIncreased => Consequence::VatAtOnce,
    }
}

/// Says how the year before stands to the ceilings of the micro regime.
#[derive(Clone, Copy)]
enum YearBefore {
    Exceeded,
    Within,
    /// Nothing recorded, no ceilings known, or exceeded only with what may be there twice.
    Unknown,
}

fn micro_year_before(books: &[YearBooks], created: Option<NaiveDate>, year: i32) -> YearBefore {
    let before = year - 1;
    let Some(books) = recorded(books, before) else {
        let is_first = created.is_some_and(|created| created.year() == year);
        return if is_first { YearBefore::Within } else { YearBefore::Unknown };
    };
    let (mut exceeded, mut perhaps) = (false, false);
    // The two ceilings are of one regime: it does not matter which of them each year exceeds.
    for threshold in [Threshold::MicroTotal, Threshold::MicroServices] {
        let Some(ceiling) = threshold.ceiling(before, created) else { return YearBefore::Unknown };
        let count = Count::of(books, threshold.bucket());
        exceeded |= ceiling.is_crossed(count.certain, 100);
        perhaps |= ceiling.is_crossed(count.full(), 100);
    }
    match (exceeded, perhaps) {
        (true, _) => YearBefore::Exceeded,
        (false, true) => YearBefore::Unknown,
        (false, false) => YearBefore::Within,
    }
}

/// Returns the order of a mail: what is due now, what comes with the new year, what may come. The least is gravest.
fn gravity(consequence: Consequence) -> u8 {
    match consequence {
        Consequence::VatAtOnce => 0,
        Consequence::MicroOut { .. } => 1,
        Consequence::MicroPreviousUnknown => 2,
        Consequence::VatFrom { .. } => 3,
        Consequence::MicroOnce => 4,
        // One of the other's rank: 90 % for certain weighs more than 80 % perhaps, and less than 100 %.
        Consequence::ToVerify | Consequence::Approaching => 5,
    }
}
