//! Assesses what there is to tell about a year: the difference between what was told and what is.
//!
//! All turnover counts against the total ceilings, activities that are not known too; services and liberal professions
//! alone count against those of services. Each step of each threshold is told of once a year; a higher step uses up the
//! lower ones.
//!
//! * What is certain and what is [to be verified](ToldAs::ToVerify), because it may be there twice, are two tellings:
//!   the second does not use up the first.
//! * A telling is withdrawn when the books fall below the step under it (80 % where there is none): a typing mistake
//!   was corrected. Then it can be told once more in that year, and never again. A year that swings around a ceiling
//!   stays above the step under it, so that nothing is told twice.
//! * A step of all turnover that says no more than the services' line is not told, and so not used up either.
//! * What follows is said by the [state](super::State) and never by a step.

use chrono::{Datelike, Days, NaiveDate};
use serde::{Deserialize, Serialize};

use super::books::{Months, Reading, UserBooks, cents};
use super::consequence::{Consequence, nearly_so};
use super::figures::{Bucket, Ceiling};
use super::passing::{Outlook, Passed, outlook, passing};
use super::verdict::{State, state};
use super::{Activity, Threshold, quarterly_due};
use crate::schedule::Month;

#[cfg(test)]
mod tests;

/// A step is told so often in a year at most: once, and once more if it was withdrawn.
pub(super) const MOST_TIMES: u8 = 2;

/// The year before is checked for so many days after the last deadline of its declarations: the weekly check that
/// follows the deadline still finds what was recorded for it.
const DAYS_AFTER_THE_LAST_DEADLINE: u64 = 7;

/// Represents a step of a threshold, as it was told or is to be.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Telling {
    pub threshold: Threshold,
    /// Is 80 or 90 (reached), or 100 (exceeded).
    pub step: u8,
    pub told_as: ToldAs,
}

/// Says how sure a step was when it was told. The names are stored in `threshold_alerts`: they never change.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToldAs {
    Certain,
    /// Only what may be there twice reaches it.
    ToVerify,
}

/// Represents a telling of the past.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Told {
    #[serde(flatten)]
    pub telling: Telling,
    /// Counts how often it was told.
    pub times: u8,
    /// Says that it does not hold any more.
    pub withdrawn: bool,
}

/// Represents a step that a year's turnover has newly crossed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Crossing {
    pub threshold: Threshold,
    /// Is 80 or 90 (reached), or 100 (exceeded).
    pub step: u8,
    /// Is what the year counts against this threshold, in cents.
    pub turnover: i64,
    /// Is in cents, and in proportion to the days of a creation year.
    pub ceiling: i64,
    /// Is the ceiling of a whole year, where `ceiling` is a part of it.
    pub full_year_ceiling: Option<i64>,
    /// Says that it is crossed only where the months with both typed and imported rows are added up.
    pub doubt: Option<Doubt>,
    /// Says when the ceiling was exceeded, where that is certain.
    #[serde(default)]
    pub passed: Option<Passed>,
    /// Says when it will be, at the pace of the last months.
    #[serde(default)]
    pub outlook: Option<Outlook>,
}

/// Holds what counts against a threshold, by where it comes from, in cents.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Doubt {
    pub typed: i64,
    pub imported: i64,
}

/// Holds what [`assess`] finds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Assessment {
    /// Is what to show: at most one step a threshold. It is empty where there is nothing to tell.
    pub crossings: Vec<Crossing>,
    /// Is what to store once it is told: the steps in `crossings`, and those that they use up.
    pub tell: Vec<Telling>,
    /// Is what was told and does not hold any more; and what was withdrawn and holds again, but was told too often to be
    /// told again.
    pub turned: Vec<Told>,
    /// Says what follows from the year.
    pub state: State,
    /// Lists what follows, or would with less than a step more.
    pub nearly_so: Vec<Consequence>,
    /// Lists spellings in the year's books that no activity is known for, in order.
    pub unknown_activities: Vec<String>,
    /// Liberal professions are among the services.
    pub liberal: bool,
    /// Is what is typed for months to come, in cents: it is planned, and does not count.
    pub planned: i64,
    /// Is the day on which the user says that the activity began, which the books contradict, and their first
    /// month.
    pub contradiction: Option<(NaiveDate, Month)>,
    /// Lists the months whose movements, day by day, would tell more.
    pub asks: Vec<Month>,
}

/// Holds `year` against its thresholds, as of `today`. `None`: it has none that are known.
pub fn assess(books: &UserBooks, told: &[Told], year: i32, today: NaiveDate) -> Option<Assessment> {
    let months = Months::of(books, today);
    let created = months.created();
    let thresholds: Vec<(Threshold, Ceiling)> = Threshold::ALL
        .into_iter()
        .filter_map(|threshold| Some((threshold, threshold.ceiling(year, created)?)))
        .collect();
    if thresholds.is_empty() {
        return None;
    }
    let mut asks = Vec::new();
    let state = state(&months, year, &mut asks);
    let spelled = || books.years.iter().filter(|books| books.year == year).flat_map(|books| &books.rows);
    let mut found = Assessment {
        crossings: Vec::new(),
        tell: Vec::new(),
        turned: Vec::new(),
        state,
        nearly_so: nearly_so(&months, year),
        unknown_activities: unknown_activities(spelled().map(|row| row.activity.trim())),
        liberal: spelled().any(|row| Activity::parse(&row.activity) == Some(Activity::Liberal)),
        planned: months.planned(year),
        contradiction: months.contradiction().filter(|(created, _)| created.year() >= year - 1),
        asks,
    };
    for (threshold, ceiling) in thresholds {
        found.hold_against(threshold, ceiling, &months, told, year, today);
    }
    if found.crossings.is_empty() {
        found.asks.clear();
    }
    found.asks.sort_unstable();
    found.asks.dedup();
    // The highest step first, what is certain before what is not.
    found.crossings.sort_by_key(|crossing| {
        (std::cmp::Reverse(crossing.step), crossing.doubt.is_some(), crossing.threshold)
    });
    Some(found)
}

impl Assessment {
    fn hold_against(
        &mut self,
        threshold: Threshold,
        ceiling: Ceiling,
        months: &Months<'_>,
        told: &[Told],
        year: i32,
        today: NaiveDate,
    ) {
        let sides = months.year(year, threshold.bucket());
        let (certain, full) = (sides.read(Reading::Same), sides.read(Reading::Distinct));
        let (withdrawn, standing): (Vec<&Told>, Vec<&Told>) = told
            .iter()
            .filter(|told| told.telling.threshold == threshold && !told.withdrawn)
            .partition(|told| {
                let turnover = if told.telling.told_as == ToldAs::Certain { certain } else { full };
                !ceiling.is_crossed(turnover, threshold.step_under(told.telling.step))
            });
        self.turned.extend(withdrawn);
        self.turned.extend(told.iter().filter(|told| {
            let turnover = if told.telling.told_as == ToldAs::Certain { certain } else { full };
            told.telling.threshold == threshold
                && told.withdrawn
                && told.times >= MOST_TIMES
                && ceiling.is_crossed(turnover, told.telling.step)
        }));

        if !tells_more(threshold, months, year) {
            return;
        }
        let reached = |turnover| {
            threshold.steps().iter().copied().rev().find(|&step| ceiling.is_crossed(turnover, step))
        };
        let is_new = |telling: &Telling| {
            told.iter()
                .find(|told| told.telling == *telling)
                .is_none_or(|told| told.withdrawn && told.times < MOST_TIMES)
        };
        let covers = |told: &Telling, step, told_as| {
            told.step >= step && (told.told_as == ToldAs::Certain || told.told_as == told_as)
        };
        // All steps up to this one that can be told, where none that stands says as much.
        let news = |step: u8, above: u8, told_as: ToldAs| -> Vec<Telling> {
            let steps = threshold.steps().iter().copied().filter(|&other| above < other && other <= step);
            let tellings = steps.map(|step| Telling { threshold, step, told_as });
            let new: Vec<Telling> = tellings.filter(is_new).collect();
            let is_told = standing.iter().any(|told| covers(&told.telling, step, told_as));
            let can_be_told = new.iter().any(|telling| telling.step == step);
            if is_told || !can_be_told { Vec::new() } else { new }
        };
        let sure = reached(certain);
        let Some(perhaps) = reached(full) else { return };
        let for_certain = sure.map(|step| news(step, 0, ToldAs::Certain)).unwrap_or_default();
        let to_verify = match sure {
            Some(step) if step == perhaps => Vec::new(),
            _ => news(perhaps, sure.unwrap_or_default(), ToldAs::ToVerify),
        };
        let (step, turnover, doubt) = match (sure, to_verify.is_empty(), for_certain.is_empty()) {
            (_, false, _) => {
                let doubt = Doubt { typed: cents(sides.typed), imported: cents(sides.imported) };
                (perhaps, full, Some(doubt))
            }
            (Some(step), true, false) => (step, if step == perhaps { full } else { certain }, None),
            _ => return,
        };
        self.tell.extend(for_certain.into_iter().chain(to_verify));
        let bucket = threshold.bucket();
        let passing = passing(months, year, bucket, ceiling, Reading::Same).filter(|_| doubt.is_none());
        self.asks.extend(passing.and_then(|passing| passing.asks));
        let is_open = step < 100 && doubt.is_none() && today.year() == year;
        self.crossings.push(Crossing {
            threshold,
            step,
            turnover: cents(turnover),
            ceiling: ceiling.value(),
            full_year_ceiling: ceiling.full_year(),
            doubt,
            passed: passing.map(|passing| passing.passed),
            outlook: is_open.then(|| outlook(months, bucket, ceiling, turnover, today)).flatten(),
        });
    }
}

fn tells_more(threshold: Threshold, months: &Months<'_>, year: i32) -> bool {
    let of = |bucket| months.year(year, bucket).read(Reading::Distinct);
    threshold.bucket().tells_more(of(Bucket::Total), of(Bucket::Services))
}

/// Returns the years that are checked on a date of Paris, the oldest first: the current one and, until a little after
/// the last deadline of its declarations, the one before.
pub fn years_checked(date: NaiveDate) -> Vec<i32> {
    let year = date.year();
    let december = Month::of(date - Days::new(date.ordinal0().into())).previous();
    let until = quarterly_due(december) + Days::new(DAYS_AFTER_THE_LAST_DEADLINE);
    if date <= until { vec![year - 1, year] } else { vec![year] }
}

fn unknown_activities<'a>(spelled: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut unknown: Vec<&str> = spelled.filter(|activity| Activity::parse(activity).is_none()).collect();
    unknown.sort_unstable();
    unknown.dedup();
    unknown.into_iter().map(str::to_owned).collect()
}
