//! Says what a year's books make of a user: under the VAT franchise or liable, and since when; within the micro regime
//! or out of it, and what is not known. Pure.
//!
//! This is a state, not an event: the same books say the same, whichever step was crossed last and whatever was told.
//!
//! * **VAT** is due from the day on which the increased threshold is passed, or from 1 January of the year after one
//!   above the base threshold ([CGI, 293 B]). What is due already is never due later: each year after that above the base
//!   threshold again keeps it due since the same day.
//! * **The franchise** applies again from 1 January of the year after one that did not exceed the base threshold, unless
//!   its user opts for VAT ([CGI, 293 B], I; BOI-TVA-DECLA-40-10-20, § 240).
//! * **The micro regime** is left on 1 January after two years running above a ceiling, and never during a year
//!   (Urssaf's rules, `entreprise . chiffre d'affaires . seuil micro`; docs/law.md).
//! * A year that is recorded in part may have been above a ceiling: what is not recorded is [unknown](Before::Unknown).
//!
//! [CGI, 293 B]: https://www.legifrance.gouv.fr/codes/article_lc/LEGIARTI000052488142

use chrono::{Datelike, Months as Count, NaiveDate};
use serde::{Deserialize, Serialize};

use super::Threshold;
use super::books::{Months, Reading};
use super::figures::{Bucket, Regime};
use super::passing::{Passed, passing};
use crate::schedule::Month;

#[cfg(test)]
mod tests;

/// Of so many years before the books are known: what goes on may have begun then.
const YEARS_OF_A_DOUBT: i32 = 4;

/// A business that says when it began may take in nothing for so many months at first.
const QUIET_MONTHS: u32 = 2;

/// Holds what follows from a year's books.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    /// Holds even if what may be there twice is.
    pub certain: Verdict,
    /// What would follow if nothing is there twice; `None`: the same.
    pub if_distinct: Option<Verdict>,
    /// Is the year of creation, where its limits are reduced to its days.
    #[serde(default)]
    pub reduced: Option<i32>,
    /// Is a year with months that may be there twice, up to the one that is asked about: the last one whose limits
    /// depend on them, or else the last one.
    #[serde(default)]
    pub doubtful: Option<i32>,
    /// VAT was due in the year before, which did not exceed the base threshold: the franchise applies again.
    #[serde(default)]
    pub regained: bool,
}

/// Holds what a year is to both regimes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Verdict {
    pub vat: Vat,
    pub micro: Micro,
}

/// Says who charges VAT, and from when.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Vat {
    /// The franchise applies: no threshold is passed.
    Free { before: Before },
    /// The base threshold is passed, the increased one is not: VAT from 1 January on.
    Next { from: NaiveDate, before: Before },
    /// The increased threshold was passed: VAT from that day on.
    Since { passed: Passed, before: Before },
    /// The year before that day was above the base threshold: VAT from then on. So was each year since, if any.
    SinceNewYear { since: NaiveDate },
    /// An earlier year passed the increased threshold: VAT from that day on. Each year since was above the base
    /// threshold, if there is any.
    SinceYearBefore { passed: Passed },
}

/// Says how a year stands to the micro regime.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Micro {
    /// No ceiling is passed.
    Within { before: Before },
    /// A ceiling is passed, in the year before none was: nothing changes yet. Or nobody knows of the year before.
    Once { before: Before },
    /// Passed two years running: out of the regime from then on.
    Twice { from: NaiveDate },
    /// The two years before that day were both above a ceiling: out of the regime since then. So was each year since, if
    /// any.
    Out { since: NaiveDate },
}

/// Says how the year before stands to the same ceilings.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    /// The activity began in the year itself: there is none.
    None,
    Within,
    Exceeded,
    Unknown(Gap),
}

/// Says what is not known of a year.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gap {
    /// Nothing is recorded.
    Nothing,
    /// Nothing is recorded before this month.
    Until(Month),
    /// Its ceilings are not known here.
    Ceilings,
}

impl Vat {
    /// Returns whether VAT is due already, whatever the rest of the year brings.
    pub const fn is_liable(self) -> bool {
        matches!(self, Self::Since { .. } | Self::SinceNewYear { .. } | Self::SinceYearBefore { .. })
    }
}

/// Returns what follows from a year, and puts the months whose days would tell more into `asks`.
pub(super) fn state(months: &Months<'_>, year: i32, asks: &mut Vec<Month>) -> State {
    let mut read = |reading| {
        let mut judge = Judge { months, year, reading, asks };
        Verdict { vat: judge.vat(), micro: judge.micro() }
    };
    let (certain, distinct) = (read(Reading::Same), read(Reading::Distinct));
    let knows_the_year_before = matches!(
        certain.vat,
        Vat::Free { before: Before::Within } | Vat::Next { before: Before::Within, .. }
    );
    let mut of_the_year_before =
        Judge { months, year: year - 1, reading: Reading::Same, asks: &mut Vec::new() };
    let regained =
        knows_the_year_before && distinct.vat == certain.vat && of_the_year_before.vat().is_liable();
    let is_part = |created: &NaiveDate| {
        let ceiling = Threshold::VatBaseTotal.ceiling(created.year(), Some(*created));
        ceiling.is_some_and(|ceiling| ceiling.full_year().is_some())
    };
    let reduced = months.created().filter(is_part).map(|created| created.year());
    let is_doubtful = |year: &i32| {
        [Bucket::Total, Bucket::Services].into_iter().any(|bucket| months.year(*year, bucket).twice > 0)
    };
    let years = || (year - YEARS_OF_A_DOUBT..=year).rev().filter(is_doubtful);
    let decides = |of: &i32| {
        let reads = |reading| {
            let judge = Judge { months, year, reading, asks: &mut Vec::new() };
            [Regime::VatBase, Regime::VatIncreased, Regime::Micro].map(|regime| judge.exceeds(*of, regime))
        };
        reads(Reading::Same) != reads(Reading::Distinct)
    };
    let doubtful = years().find(decides).or_else(|| years().next());
    State { certain, if_distinct: (distinct != certain).then_some(distinct), reduced, doubtful, regained }
}

struct Judge<'a> {
    months: &'a Months<'a>,
    year: i32,
    reading: Reading,
    asks: &'a mut Vec<Month>,
}

impl Judge<'_> {
    fn vat(&mut self) -> Vat {
        if let Some(due) = self.due_on_new_year(self.year) {
            return due;
        }
        let before = self.before(Regime::VatBase);
        if let Some(passed) = self.passed(self.year, Regime::VatIncreased) {
            return Vat::Since { passed, before };
        }
        match self.exceeds(self.year, Regime::VatBase) {
            Some(true) => Vat::Next { from: new_year(self.year + 1), before },
            _ => Vat::Free { before },
        }
    }

    /// Returns why VAT is due on 1 January of a year already, from when it became due; `None`: it is not.
    fn due_on_new_year(&mut self, year: i32) -> Option<Vat> {
        let passed = self.passed(year - 1, Regime::VatIncreased);
        if passed.is_none() && self.exceeds(year - 1, Regime::VatBase) != Some(true) {
            return None;
        }
        Some(self.due_on_new_year(year - 1).unwrap_or(match passed {
            Some(passed) => Vat::SinceYearBefore { passed },
            None => Vat::SinceNewYear { since: new_year(year) },
        }))
    }

    /// Returns from when on the regime is left on 1 January of a year; `None`: it is not.
    fn out_on_new_year(&self, year: i32) -> Option<NaiveDate> {
        let exceeds = |year| self.exceeds(year, Regime::Micro) == Some(true);
        let is_out = exceeds(year - 1) && exceeds(year - 2);
        is_out.then(|| self.out_on_new_year(year - 1).unwrap_or(new_year(year)))
    }

    fn micro(&self) -> Micro {
        if let Some(since) = self.out_on_new_year(self.year) {
            return Micro::Out { since };
        }
        let before = self.before(Regime::Micro);
        match (self.exceeds(self.year, Regime::Micro) == Some(true), before) {
            (true, Before::Exceeded) => Micro::Twice { from: new_year(self.year + 1) },
            (true, _) => Micro::Once { before },
            (false, _) => Micro::Within { before },
        }
    }

    /// Returns when a year first passed a limit of a regime.
    fn passed(&mut self, year: i32, regime: Regime) -> Option<Passed> {
        let of = |threshold: Threshold| {
            let ceiling = threshold.ceiling(year, self.months.created())?;
            passing(self.months, year, threshold.bucket(), ceiling, self.reading)
        };
        let first = of_regime(regime).filter_map(of).min_by_key(|passing| match passing.passed {
            Passed::On(day) => day,
            Passed::In(month) => month.last_day(),
            Passed::During(year) => new_year(year + 1),
        })?;
        if year == self.year {
            self.asks.extend(first.asks);
        }
        Some(first.passed)
    }

    /// Returns whether a year exceeds a limit of a regime; `None`: its limits are not known. It does not matter which.
    fn exceeds(&self, year: i32, regime: Regime) -> Option<bool> {
        let mut exceeded = false;
        for threshold in of_regime(regime) {
            let ceiling = threshold.ceiling(year, self.months.created())?;
            let turnover = self.months.year(year, threshold.bucket()).read(self.reading);
            exceeded |= ceiling.is_crossed(turnover, 100);
        }
        Some(exceeded)
    }

    fn before(&self, regime: Regime) -> Before {
        let (before, created) = (self.year - 1, self.months.created());
        if created.is_some_and(|created| created.year() == self.year) {
            return Before::None;
        }
        match self.exceeds(before, regime) {
            None => return Before::Unknown(Gap::Ceilings),
            Some(true) => return Before::Exceeded,
            Some(false) => {}
        }
        let Some(first) = self.months.first().filter(|_| self.months.is_recorded(before)) else {
            return Before::Unknown(Gap::Nothing);
        };
        // From then on the year has to be recorded to be known.
        let begins = match created.filter(|created| created.year() == before) {
            Some(created) => Month::of(Month::of(created).first_day() + Count::new(QUIET_MONTHS)),
            None => Month::of(new_year(before)),
        };
        if first <= begins { Before::Within } else { Before::Unknown(Gap::Until(first)) }
    }
}

fn of_regime(regime: Regime) -> impl Iterator<Item = Threshold> {
    Threshold::ALL.into_iter().filter(move |threshold| threshold.regime() == regime)
}

fn new_year(year: i32) -> NaiveDate {
    NaiveDate::from_ymd_opt(year, 1, 1).expect("years with ceilings have four digits")
}
