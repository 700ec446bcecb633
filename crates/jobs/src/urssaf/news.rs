//! Says what follows from a year that its user has to hear of, by itself where no step tells it. Pure.
//!
//! A mail that tells of a step of a regime says what follows for it. But a year may change without a step: turnover of the
//! year before is typed, a date of creation, an answer to what is twice. So what was told is kept apart from the steps.
//!
//! What a mail of the year before has announced is the same truth: whoever read in 2026 that VAT is due from 1 January 2027
//! needs no mail in 2027.

use serde::{Deserialize, Serialize};

use super::assess::{MOST_TIMES, Telling, Told, ToldAs};
use super::consequence::Consequence;
use super::verdict::Verdict;

/// Represents a consequence that a mail has told.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ToldConsequence {
    pub consequence: Consequence,
    /// Counts how often it was told.
    pub times: u8,
    /// Says that it does not hold any more.
    pub withdrawn: bool,
}

/// Holds what a year's consequences make of what was told.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct ConsequenceNews {
    /// Lists what is to be told now.
    pub tell: Vec<Consequence>,
    /// Lists what a mail of the year before has announced, and the year after this one is to know: it is kept as told.
    pub announced: Vec<Consequence>,
    /// Lists what was told and does not hold any more; and what holds again, but was told too often to be told again.
    pub turned: Vec<ToldConsequence>,
}

/// Holds what stands of the year before: tellings and consequences; and what an older version's mail of the year itself
/// says without having noted what follows.
#[derive(Clone, Debug, Default)]
pub(super) struct YearBefore {
    pub(super) tellings: Vec<Telling>,
    pub(super) consequences: Vec<Consequence>,
}

impl YearBefore {
    /// Adds what was told of the year, as far as it holds.
    pub(super) fn add_standing(&mut self, told: &[Told], consequences: &[ToldConsequence]) {
        self.tellings.extend(told.iter().filter(|told| !told.withdrawn).map(|told| told.telling));
        let standing = consequences.iter().filter(|told| !told.withdrawn);
        self.consequences.extend(standing.map(|told| told.consequence));
    }

    /// Returns whether its mails have said what follows. Above a VAT threshold, they name 1 January; that VAT was due in
    /// that year says nothing of the next one.
    fn has_announced(&self, consequence: Consequence) -> bool {
        let exceeded = |telling: &Telling| {
            telling.step == 100 && telling.told_as == ToldAs::Certain && telling.threshold.is_vat()
        };
        match consequence {
            Consequence::VatDue => self.tellings.iter().any(exceeded),
            Consequence::MicroLeft => self.consequences.contains(&consequence),
        }
    }
}

/// Holds what follows from a year against what was told of it, and of the year before. `nearly`: see
/// [`Assessment::nearly_so`](super::Assessment). `is_told_of`: a step tells of its regime, in a mail that says what is. So it
/// tells what follows as well, though it was announced; and what is nearly so is not so.
pub(super) fn consequence_news(
    verdict: &Verdict,
    nearly: &[Consequence],
    told: &[ToldConsequence],
    before: &YearBefore,
    is_told_of: impl Fn(Consequence) -> bool,
) -> ConsequenceNews {
    let mut news = ConsequenceNews::default();
    for consequence in Consequence::ALL {
        let told = told.iter().find(|told| told.consequence == consequence);
        match (consequence.holds(verdict), told) {
            (true, None) if is_told_of(consequence) || !before.has_announced(consequence) => {
                news.tell.push(consequence);
            }
            // A step of VAT announces it each year; the regime is left once.
            (true, None) if !consequence.is_vat() => news.announced.push(consequence),
            (true, Some(told)) if told.withdrawn && told.times < MOST_TIMES => news.tell.push(consequence),
            (true, Some(told)) if told.withdrawn => news.turned.push(*told),
            (false, Some(told))
                if !told.withdrawn && (is_told_of(consequence) || !nearly.contains(&consequence)) =>
            {
                news.turned.push(*told);
            }
            _ => {}
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;

    use super::*;
    use crate::urssaf::verdict::Micro;
    use crate::urssaf::{Before, Threshold, Vat};

    const WITHIN: Micro = Micro::Within { before: Before::Within };

    fn liable() -> Verdict {
        let since = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
        Verdict { vat: Vat::SinceNewYear { since }, micro: WITHIN }
    }

    fn told(times: u8, withdrawn: bool) -> ToldConsequence {
        ToldConsequence { consequence: Consequence::VatDue, times, withdrawn }
    }

    #[test]
    fn each_is_told_once_and_once_more_after_a_withdrawal() {
        let free = Verdict { vat: Vat::Free { before: Before::Within }, micro: WITHIN };
        let news = |verdict: &Verdict, told: &[ToldConsequence]| {
            let news = consequence_news(verdict, &[], told, &YearBefore::default(), |_| false);
            (news.tell.len(), news.turned.len())
        };
        assert_eq!(news(&liable(), &[]), (1, 0));
        assert_eq!(news(&liable(), &[told(1, false)]), (0, 0));
        assert_eq!(news(&free, &[told(1, false)]), (0, 1));
        assert_eq!(news(&free, &[told(1, true)]), (0, 0));
        assert_eq!(news(&liable(), &[told(1, true)]), (1, 0));
        assert_eq!(
            news(&liable(), &[told(2, true)]),
            (0, 1),
            "it holds again, and nobody is told a third time"
        );
        assert_eq!(news(&free, &[]), (0, 0));
        let swings = consequence_news(
            &free,
            &[Consequence::VatDue],
            &[told(1, false)],
            &YearBefore::default(),
            |_| false,
        );
        assert_eq!(swings, ConsequenceNews::default());
        let denied = consequence_news(
            &free,
            &[Consequence::VatDue],
            &[told(1, false)],
            &YearBefore::default(),
            |_| true,
        );
        assert_eq!(denied.turned, [told(1, false)], "a mail says that VAT is not due");
    }

    #[test]
    fn what_the_year_before_has_announced_is_no_news() {
        let telling = |step, told_as| Telling { threshold: Threshold::VatBaseServices, step, told_as };
        let is_news =
            |before: &YearBefore| !consequence_news(&liable(), &[], &[], before, |_| false).tell.is_empty();
        for (tellings, expected) in [
            (vec![telling(100, ToldAs::Certain)], false),
            (vec![telling(100, ToldAs::ToVerify)], true),
            (vec![telling(90, ToldAs::Certain)], true),
        ] {
            assert_eq!(is_news(&YearBefore { tellings, consequences: Vec::new() }), expected);
        }
        let before = |consequence| YearBefore { tellings: Vec::new(), consequences: vec![consequence] };
        // Due in the year before for what came before it: it is another cause that makes it due now.
        assert!(is_news(&before(Consequence::VatDue)) && is_news(&before(Consequence::MicroLeft)));
        let out =
            Verdict { micro: Micro::Out { since: NaiveDate::from_ymd_opt(2027, 1, 1).unwrap() }, ..liable() };
        let news = consequence_news(&out, &[], &[], &before(Consequence::MicroLeft), |_| false);
        assert_eq!(news.tell, [Consequence::VatDue]);
        // Whoever left it in 2027 hears nothing of it in 2028 either.
        assert_eq!(news.announced, [Consequence::MicroLeft]);
    }
}
