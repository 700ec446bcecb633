//! Reads a user's books as the ceilings need them: by month, up to a day.
//!
//! # Doubt
//!
//! Where a month has both typed and imported rows, and its user has not said what they are, the same money may be in it
//! twice. So there are two [readings](Reading): one counts everything, the other takes of each such month the greater
//! of the two sides, where that is less.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::Activity;
use super::figures::Bucket;
use crate::schedule::Month;

/// Represents one year of a user's turnover, as the database adds it up. Amounts are cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct YearBooks {
    pub year: i32,
    /// Holds one row for each month and activity. Empty: nothing is recorded.
    pub rows: Vec<BookRow>,
}

impl YearBooks {
    /// Adds the year up by activity, in the order of their names.
    pub fn sums(&self) -> Vec<ActivitySum> {
        let mut sums: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        for row in &self.rows {
            let sum = sums.entry(&row.activity).or_default();
            *sum = (sum.0.saturating_add(row.typed), sum.1.saturating_add(row.imported));
        }
        let sum = |(activity, (typed, imported)): (&str, _)| ActivitySum {
            activity: activity.to_owned(),
            typed,
            imported,
        };
        sums.into_iter().map(sum).collect()
    }
}

/// Represents the turnover of one activity in one month, by where its rows come from.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BookRow {
    /// 1 to 12.
    pub month: u32,
    /// As it is spelled in the rows.
    pub activity: String,
    pub typed: i64,
    pub imported: i64,
    /// The month has both typed and imported rows, of whatever activity, and nobody knows whether they are the same
    /// money.
    #[serde(default)]
    pub mixed: bool,
}

/// Represents a year's turnover of one activity, by where its rows come from. Cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ActivitySum {
    /// As it is spelled in the rows.
    pub activity: String,
    pub typed: i64,
    pub imported: i64,
}

/// Represents what movements of one activity add up to on one day. Cents.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DaySum {
    pub day: NaiveDate,
    pub activity: String,
    pub amount: i64,
}

/// Holds what is known of a user's turnover.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UserBooks {
    /// The year that is asked about and those before it, in which what is due may have begun; others do not matter.
    pub years: Vec<YearBooks>,
    /// The day on which the user says that the activity began.
    pub created: Option<NaiveDate>,
    /// What movements tell of single months, day by day; empty where nobody has asked.
    pub days: Vec<DaySum>,
}

/// Says how months with both typed and imported rows are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reading {
    /// Both sides are the same money, as far as they can be.
    Same,
    /// All of it is money of its own.
    Distinct,
}

/// Holds what a month, or a year, counts in one bucket, by where it comes from.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Sides {
    pub(super) typed: i128,
    pub(super) imported: i128,
    /// What may be there twice.
    pub(super) twice: i128,
}

impl Sides {
    pub(super) fn read(self, reading: Reading) -> i128 {
        match reading {
            Reading::Same => self.typed + self.imported - self.twice,
            Reading::Distinct => self.typed + self.imported,
        }
    }

    fn add(&mut self, other: Self) {
        self.typed += other.typed;
        self.imported += other.imported;
        self.twice += other.twice;
    }
}

impl Bucket {
    pub(super) fn counts(self, activity: &str) -> bool {
        match self {
            Self::Total => true,
            Self::Services => Activity::parse(activity).is_some_and(Activity::is_services),
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Total => 0,
            Self::Services => 1,
        }
    }
}

/// Holds a user's months up to the one of a day.
pub(super) struct Months<'a> {
    /// By bucket.
    recorded: BTreeMap<Month, [Sides; 2]>,
    /// What is typed for months to come, by year: planned, not cashed.
    planned: BTreeMap<i32, i128>,
    created: Option<NaiveDate>,
    days: &'a [DaySum],
}

impl<'a> Months<'a> {
    pub(super) fn of(books: &'a UserBooks, today: NaiveDate) -> Self {
        let (mut recorded, mut planned) =
            (BTreeMap::<Month, [Sides; 2]>::new(), BTreeMap::<i32, i128>::new());
        let mut mixed: BTreeMap<Month, bool> = BTreeMap::new();
        for (year, row) in books.years.iter().flat_map(|of| of.rows.iter().map(move |row| (of.year, row))) {
            let Some(month) = Month::new(year, row.month) else { continue };
            let (typed, imported) = (i128::from(row.typed), i128::from(row.imported));
            if month > Month::of(today) {
                *planned.entry(year).or_default() += typed + imported;
                continue;
            }
            *mixed.entry(month).or_default() |= row.mixed;
            let sides = recorded.entry(month).or_default();
            for bucket in [Bucket::Total, Bucket::Services] {
                if bucket.counts(&row.activity) {
                    sides[bucket.index()].add(Sides { typed, imported, twice: 0 });
                }
            }
        }
        for (month, buckets) in &mut recorded {
            // What is typed under one activity may be imported under another: by month. A side that is negative
            // (refunds) makes the sum the lesser one: nothing is there twice.
            for sides in buckets.iter_mut().filter(|_| mixed.get(month) == Some(&true)) {
                sides.twice = sides.typed.min(sides.imported).max(0);
            }
        }
        Self { recorded, planned, created: books.created, days: &books.days }
    }

    /// Returns the day on which the activity began, unless the books hold turnover of a month before it.
    pub(super) fn created(&self) -> Option<NaiveDate> {
        self.created.filter(|_| self.contradiction().is_none())
    }

    /// Returns the first month with turnover, where it lies before the day on which the activity is said to have begun.
    pub(super) fn contradiction(&self) -> Option<(NaiveDate, Month)> {
        let created = self.created?;
        let (first, _) = self.recorded.iter().find(|(_, sides)| sides[0].read(Reading::Distinct) > 0)?;
        (*first < Month::of(created)).then_some((created, *first))
    }

    /// Returns the months of a year that anything is recorded for, in order, with what they count in a bucket.
    pub(super) fn of_year(&self, year: i32, bucket: Bucket) -> impl Iterator<Item = (Month, Sides)> {
        let in_year = self.recorded.iter().filter(move |(month, _)| month.year() == year);
        in_year.map(move |(month, sides)| (*month, sides[bucket.index()]))
    }

    pub(super) fn is_recorded(&self, year: i32) -> bool {
        self.of_year(year, Bucket::Total).next().is_some()
    }

    /// Returns the first month that anything is recorded for.
    pub(super) fn first(&self) -> Option<Month> {
        self.recorded.first_key_value().map(|(month, _)| *month)
    }

    pub(super) fn month(&self, month: Month, bucket: Bucket) -> Sides {
        self.recorded.get(&month).map(|sides| sides[bucket.index()]).unwrap_or_default()
    }

    pub(super) fn year(&self, year: i32, bucket: Bucket) -> Sides {
        let mut sum = Sides::default();
        self.of_year(year, bucket).for_each(|(_, sides)| sum.add(sides));
        sum
    }

    /// Returns what is typed for months of a year that have not come yet.
    pub(super) fn planned(&self, year: i32) -> i64 {
        cents(self.planned.get(&year).copied().unwrap_or_default())
    }

    /// Returns what movements add up to on each day of a month, in order, in one bucket.
    pub(super) fn days(&self, month: Month, bucket: Bucket) -> BTreeMap<NaiveDate, i128> {
        let mut days = BTreeMap::new();
        let of_month = self.days.iter().filter(|sum| Month::of(sum.day) == month);
        for sum in of_month.filter(|sum| bucket.counts(&sum.activity)) {
            *days.entry(sum.day).or_default() += i128::from(sum.amount);
        }
        days
    }
}

/// A year of `numeric(12, 2)` rows fits; what does not was no turnover.
pub(super) fn cents(sum: i128) -> i64 {
    i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX })
}
