//! Says how far a year's turnover has come towards its ceilings, and what it is made of. Pure.

use chrono::NaiveDate;

use super::books::{ActivitySum, cents};
use super::figures::{Bucket, Regime};
use super::{Category, Threshold};

/// Holds a year's turnover against one ceiling. Cents.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    pub threshold: Threshold,
    /// Holds what counts against it, typed and imported together.
    pub turnover: i64,
    /// Is in proportion to the days of a creation year.
    pub ceiling: i64,
    /// Is the ceiling of a whole year, where `ceiling` is a part of it.
    pub full_year_ceiling: Option<i64>,
}

/// Holds a year against the regime's ceilings and the base thresholds of VAT: those of all turnover, and those of
/// services where there are any. Empty where nothing is recorded or no ceilings are known.
pub fn progress(sums: &[ActivitySum], created: Option<NaiveDate>, year: i32) -> Vec<Progress> {
    let of = |threshold: Threshold| {
        let ceiling = threshold.ceiling(year, created)?;
        Some(Progress {
            threshold,
            turnover: cents(turnover(sums, threshold.bucket())),
            ceiling: ceiling.value(),
            full_year_ceiling: ceiling.full_year(),
        })
    };
    let total = [Threshold::MicroTotal, Threshold::VatBaseTotal].into_iter().filter_map(of);
    let services = [Threshold::MicroServices, Threshold::VatBaseServices]
        .into_iter()
        .filter_map(of)
        .filter(|progress| progress.turnover != 0);
    if sums.is_empty() { Vec::new() } else { total.chain(services).collect() }
}

fn turnover(sums: &[ActivitySum], bucket: Bucket) -> i128 {
    let counted = sums.iter().filter(|sum| bucket.counts(&sum.activity));
    counted.map(|sum| i128::from(sum.typed) + i128::from(sum.imported)).sum()
}

/// Says which of the two thresholds of VAT a year's turnover has passed for certain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum VatPassed {
    /// VAT is due from 1 January of the next year, where it is not due already (see [`verdict`](super::verdict)).
    Base,
    /// VAT is due since the day on which the threshold was passed, where it was not due before.
    Increased,
}

/// Returns the higher threshold of VAT that a year has passed by itself, whatever the years before it were. `twice` is
/// what may be in the sums a second time, in cents: it does not count.
pub fn vat_passed(
    sums: &[ActivitySum],
    twice: i64,
    created: Option<NaiveDate>,
    year: i32,
) -> Option<VatPassed> {
    let is_passed = |threshold: &Threshold| {
        let certain = turnover(sums, threshold.bucket()) - i128::from(twice);
        threshold.ceiling(year, created).is_some_and(|ceiling| ceiling.is_crossed(certain, 100))
    };
    let passes = |regime| {
        Threshold::ALL.into_iter().filter(|threshold| threshold.regime() == regime).any(|of| is_passed(&of))
    };
    if passes(Regime::VatIncreased) {
        return Some(VatPassed::Increased);
    }
    passes(Regime::VatBase).then_some(VatPassed::Base)
}

/// Leaves out what tells no more than the lower ceiling of services does: the ceilings of all turnover, where there is none
/// but services.
pub fn without_repetition(found: &[Progress]) -> Vec<Progress> {
    let services = found.iter().find(|one| one.threshold.bucket() == Bucket::Services);
    let services = services.map_or(0, |one| i128::from(one.turnover));
    let tells_more = |one: &&Progress| one.threshold.bucket().tells_more(one.turnover.into(), services);
    found.iter().filter(tells_more).copied().collect()
}

/// Adds up a year's turnover by category, in the order of the categories; `None` is what is not known. Cents.
pub fn by_category(sums: &[ActivitySum]) -> Vec<(Option<Category>, i64)> {
    let sum = |category: Option<Category>| {
        sums.iter()
            .filter(|sum| Category::parse(&sum.activity) == category)
            .fold(0_i64, |total, sum| total.saturating_add(sum.typed).saturating_add(sum.imported))
    };
    let categories = Category::ALL.into_iter().map(Some).chain([None]);
    categories.map(|category| (category, sum(category))).filter(|(_, total)| *total != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(activity: &str, typed: i64, imported: i64) -> ActivitySum {
        ActivitySum { activity: activity.to_owned(), typed, imported }
    }

    #[test]
    fn services_count_against_both_and_sales_against_all() {
        let sums = [sum("Vente de marchandises", 1_000_000, 0), sum("services", 500_000, 250_000)];
        let found: Vec<_> = progress(&sums, None, 2026)
            .iter()
            .map(|progress| (progress.threshold, progress.turnover, progress.ceiling))
            .collect();
        assert_eq!(
            found,
            [
                (Threshold::MicroTotal, 1_750_000, 20_310_000),
                (Threshold::VatBaseTotal, 1_750_000, 8_500_000),
                (Threshold::MicroServices, 750_000, 8_360_000),
                (Threshold::VatBaseServices, 750_000, 3_750_000),
            ]
        );
        assert_eq!(progress(&sums[..1], None, 2026).len(), 2, "no services, no ceiling of services");
        assert!(progress(&[], None, 2026).is_empty() && progress(&sums, None, 2022).is_empty());
    }

    #[test]
    fn services_alone_have_their_own_ceilings_only() {
        let told = |sums: &[ActivitySum]| -> Vec<Threshold> {
            without_repetition(&progress(sums, None, 2026))
                .iter()
                .map(|progress| progress.threshold)
                .collect()
        };
        let of_services = [Threshold::MicroServices, Threshold::VatBaseServices];
        assert_eq!(told(&[sum("services", 500_000, 0), sum("BNC", 100, 0)]), of_services);
        assert_eq!(told(&[sum("services", 500_000, 0), sum("Vente", -100, 0)]), of_services);
        assert_eq!(told(&[sum("services", 500_000, 0), sum("Vente", 1, 0)]).len(), 4);
        assert_eq!(told(&[sum("services", 500_000, 0), sum("autre", 1, 0)]).len(), 4, "it may be anything");
        assert_eq!(told(&[sum("Vente", 1, 0)]), [Threshold::MicroTotal, Threshold::VatBaseTotal]);
    }

    /// 37 500,00 is not above it, nor is what may be there twice; services and all turnover have their own.
    #[test]
    fn vat_follows_from_what_is_certain() {
        let services = |cents| vec![sum("services", 0, cents)];
        let passed = |sums: &[ActivitySum], twice| vat_passed(sums, twice, None, 2026);
        assert_eq!(passed(&services(3_750_000), 0), None);
        assert_eq!(passed(&services(3_750_001), 0), Some(VatPassed::Base));
        assert_eq!(passed(&services(4_125_000), 0), Some(VatPassed::Base));
        assert_eq!(passed(&services(4_125_001), 0), Some(VatPassed::Increased));
        assert_eq!(passed(&services(4_125_001), 1), Some(VatPassed::Base));
        assert_eq!(passed(&services(4_125_001), 375_001), None);
        assert_eq!(passed(&[sum("Vente", 4_500_000, 4_000_000)], 0), None);
        assert_eq!(passed(&[sum("Vente", 4_500_000, 4_000_001)], 0), Some(VatPassed::Base));
        assert_eq!(vat_passed(&services(9_000_000), 0, None, 2022), None, "no ceilings are known");
        let created = NaiveDate::from_ymd_opt(2026, 10, 1);
        assert_eq!(
            vat_passed(&services(1_000_000), 0, created, 2026),
            Some(VatPassed::Base),
            "a quarter of each"
        );
    }

    #[test]
    fn a_creation_year_has_a_part_of_each_ceiling() {
        let created = NaiveDate::from_ymd_opt(2026, 4, 1);
        let found = progress(&[sum("services", 1, 0)], created, 2026);
        assert!(
            found.iter().all(|progress| progress.full_year_ceiling > Some(progress.ceiling)),
            "{found:?}"
        );
    }

    #[test]
    fn turnover_by_category() {
        let sums = [sum("services", 500, 0), sum("Vente", 0, 200), sum("Ventes", 100, 0), sum("autre", 7, 0)];
        let expected = [(Some(Category::Sales), 300), (Some(Category::Services), 500), (None, 7)];
        assert_eq!(by_category(&sums), expected);
    }
}
