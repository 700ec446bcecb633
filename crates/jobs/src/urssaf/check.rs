//! Checks a user's years: what a mail would tell of each, by steps and without, and what does not hold any more. Pure.
//!
//! The check of thresholds writes down what it says; the page of one user shows it.

use chrono::NaiveDate;
use serde::Deserialize;

use super::Threshold;
use super::assess::{Assessment, Crossing, Told, ToldAs, assess};
use super::books::UserBooks;
use super::consequence::Consequence;
use super::news::{ConsequenceNews, ToldConsequence, YearBefore, consequence_news};

#[cfg(test)]
mod tests;

/// Represents something that was told of a year.
#[derive(Clone, Debug, Deserialize)]
pub struct ToldInYear<T> {
    pub year: i32,
    #[serde(flatten)]
    pub told: T,
}

/// Holds what a check finds of one year.
#[derive(Clone, Debug)]
pub struct YearCheck {
    pub year: i32,
    /// Holds what was told of the year by steps.
    pub told: Vec<Told>,
    pub assessment: Assessment,
    pub consequences: ConsequenceNews,
}

impl YearCheck {
    /// Returns what has to be told without a step: no crossing of the same regime tells it.
    pub fn alone(&self) -> Vec<Consequence> {
        let is_alone = |one: &Consequence| !tells_of(&self.assessment.crossings, *one);
        self.consequences.tell.iter().copied().filter(is_alone).collect()
    }

    /// Returns whether there is a mail to write.
    pub fn is_mail(&self) -> bool {
        !self.assessment.crossings.is_empty() || !self.alone().is_empty()
    }

    /// Returns whether there is anything to write down.
    pub fn is_news(&self) -> bool {
        !self.assessment.tell.is_empty()
            || !self.assessment.turned.is_empty()
            || self.consequences != ConsequenceNews::default()
    }

    /// Takes out what nobody is told: it is not used up. What was told is withdrawn all the same.
    #[must_use]
    pub fn silenced(mut self) -> Self {
        self.assessment.tell.clear();
        self.assessment.crossings.clear();
        self.consequences.tell.clear();
        self.consequences.announced.clear();
        self
    }
}

/// Checks `years`, the oldest first, as of a day. `may_tell`: mail may go to the user, so that what is found of one year
/// counts as told for the next one.
pub fn check(
    books: &UserBooks,
    told: &[ToldInYear<Told>],
    followed: &[ToldInYear<ToldConsequence>],
    years: &[i32],
    as_of: NaiveDate,
    may_tell: bool,
) -> Vec<YearCheck> {
    let mut found = Vec::new();
    let mut before = YearBefore::default();
    for &year in years {
        let of_year = of(told, year);
        before.add_standing(&of(told, year - 1), &of(followed, year - 1));
        let Some(assessment) = assess(books, &of_year, year, as_of) else { continue };
        let says_so = of_year.iter().copied().filter(|told| says_vat_is_due(*told)).map(|told| told.telling);
        before.tellings.extend(says_so);
        let consequences = consequence_news(
            &assessment.state.certain,
            &assessment.nearly_so,
            &of(followed, year),
            &before,
            |one| tells_of(&assessment.crossings, one),
        );
        before = YearBefore::default();
        if may_tell {
            before.tellings.clone_from(&assessment.tell);
            before.consequences = [consequences.tell.as_slice(), &consequences.announced].concat();
        }
        found.push(YearCheck { year, told: of_year, assessment, consequences });
    }
    found
}

/// Returns whether a step tells of the regime that a consequence is about.
fn tells_of(crossings: &[Crossing], consequence: Consequence) -> bool {
    crossings.iter().any(|crossing| crossing.threshold.is_vat() == consequence.is_vat())
}

fn of<T: Copy>(told: &[ToldInYear<T>], year: i32) -> Vec<T> {
    told.iter().filter(|told| told.year == year).map(|told| told.told).collect()
}

/// Returns whether a mail, perhaps of an older version, has told that the increased threshold is passed.
fn says_vat_is_due(told: Told) -> bool {
    let increased = [Threshold::VatIncreasedTotal, Threshold::VatIncreasedServices];
    !told.withdrawn && told.telling.told_as == ToldAs::Certain && increased.contains(&told.telling.threshold)
}
