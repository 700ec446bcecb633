//! Draws a year's turnover against its ceilings, the nearest first, and says when VAT is due by it.

use std::cmp::Reverse;

use chrono::NaiveDate;

use super::{
    alert::capitalised,
    consequence::Limit,
    french::{euros, per_mille, percent, round_euros},
};
use crate::urssaf::{ActivitySum, Progress, VatPassed, progress, vat_passed, without_repetition};

/// Represents a year's turnover against one ceiling.
pub(super) struct Ceiling {
    /// Names the ceiling, as in "Plafond de la micro-entreprise, services".
    pub(super) name: String,
    /// Says how far it is, as in "17 500,00 € sur 203 100 €, soit 8,6 %".
    pub(super) reached: String,
    /// Is the width of the bar's filled part, 1 to 100.
    pub(super) filled: i64,
    pub(super) near: bool,
}

impl Ceiling {
    /// Returns the ceilings of a year that tell something. `liberal`: liberal professions are among the services.
    pub(super) fn all(
        sums: &[ActivitySum],
        created: Option<NaiveDate>,
        year: i32,
        liberal: bool,
    ) -> Vec<Self> {
        let mut found = without_repetition(&progress(sums, created, year));
        found.sort_by_key(|progress| {
            (Reverse(per_mille(progress.turnover, progress.ceiling)), progress.ceiling)
        });
        found.iter().enumerate().map(|(place, found)| Self::new(found, liberal, place == 0)).collect()
    }

    fn new(progress: &Progress, liberal: bool, nearest: bool) -> Self {
        let limit = Limit::of(progress.threshold);
        let scope = match (limit.services, liberal) {
            (false, _) => "chiffre d’affaires total",
            (true, false) => "services",
            (true, true) => "services et professions libérales",
        };
        let reached = per_mille(progress.turnover, progress.ceiling);
        let part = progress.full_year_ceiling.map_or_else(String::new, |whole| {
            format!(" (au prorata de {} pour une année)", round_euros(whole))
        });
        Self {
            name: format!("{}, {scope}", capitalised(limit.name)),
            reached: format!(
                "{} sur {}{part}, soit {}{}",
                euros(progress.turnover),
                round_euros(progress.ceiling),
                percent(reached),
                match progress.turnover > progress.ceiling {
                    true => " : dépassé",
                    false if nearest => " : c’est le plus proche",
                    false => "",
                }
            ),
            filled: (reached / 10).clamp(1, 100),
            near: reached >= 800,
        }
    }
}

/// Says that VAT is due by a year's own turnover, of which `twice` cents may be there twice. What the years before made due
/// is not known here: it is not denied.
pub(super) fn vat_due(
    sums: &[ActivitySum],
    twice: i64,
    created: Option<NaiveDate>,
    year: i32,
) -> Option<String> {
    let (limit, due) = match vat_passed(sums, twice, created, year)? {
        VatPassed::Increased => (
            "Le seuil majoré de TVA est dépassé",
            "si la TVA n’était pas due avant, elle l’est depuis le jour de ce dépassement".to_owned(),
        ),
        VatPassed::Base => (
            "Le seuil de franchise de TVA est dépassé",
            format!("si la TVA n’est pas due avant, elle l’est à partir du 1er\u{a0}janvier {}", year + 1),
        ),
    };
    Some(format!("{limit} : {due}, sauf activité exonérée ou seuil propre."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_of_two_that_are_as_far_is_the_lower_one() {
        for cents in [-5_000, 1] {
            let sums = [ActivitySum { activity: "services".to_owned(), typed: cents, imported: 0 }];
            let all = Ceiling::all(&sums, None, 2026, false);
            assert_eq!(all[0].name, "Seuil de franchise de TVA, services");
            assert!(all[0].reached.ends_with("c’est le plus proche"), "{}", all[0].reached);
        }
    }
}
