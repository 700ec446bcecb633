//! Names what follows from a year that its user has to hear of, and says whether it holds. Pure.

use serde::{Deserialize, Serialize};

use super::Threshold;
use super::books::{Months, Reading};
use super::figures::Regime;
use super::verdict::{Micro, Verdict};

listed! {
    /// Represents something that follows from a year. The names are stored in `told_consequences`: they never change.
    #[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Consequence {
        /// VAT is due already.
        VatDue,
        /// The micro regime is left, or will be on 1 January.
        MicroLeft,
    }
}

impl Consequence {
    /// Returns whether it is about VAT.
    pub const fn is_vat(self) -> bool {
        matches!(self, Self::VatDue)
    }

    pub(super) const fn holds(self, verdict: &Verdict) -> bool {
        match self {
            Self::VatDue => verdict.vat.is_liable(),
            Self::MicroLeft => matches!(verdict.micro, Micro::Twice { .. } | Micro::Out { .. }),
        }
    }
}

/// Returns what holds, or fails to by less than a step: a year that swings around a ceiling takes nothing back.
pub(super) fn nearly_so(months: &Months<'_>, year: i32) -> Vec<Consequence> {
    let is_near = |year: i32, regime: Regime| {
        let mut limits = Threshold::ALL.into_iter().filter(|threshold| threshold.regime() == regime);
        limits.any(|threshold| {
            let turnover = months.year(year, threshold.bucket()).read(Reading::Same);
            let ceiling = threshold.ceiling(year, months.created());
            ceiling.is_some_and(|ceiling| ceiling.is_crossed(turnover, threshold.step_under(100)))
        })
    };
    let vat_due = is_near(year, Regime::VatIncreased)
        || is_near(year - 1, Regime::VatIncreased)
        || is_near(year - 1, Regime::VatBase);
    let micro_left = is_near(year - 1, Regime::Micro)
        && (is_near(year, Regime::Micro) || is_near(year - 2, Regime::Micro));
    let so = [(Consequence::VatDue, vat_due), (Consequence::MicroLeft, micro_left)];
    so.into_iter().filter(|(_, is_so)| *is_so).map(|(consequence, _)| consequence).collect()
}
