//! Holds the figures: which ceilings hold in which year, and what a creation year makes of them.
//!
//! | | years | all turnover | services | source |
//! |---|---|---|---|---|
//! | micro regime | 2023–2025 | 188 700 € | 77 700 € | official text; Urssaf's published rules |
//! | micro regime | 2026–2028 | 203 100 € | 83 600 € | the same |
//! | VAT, base | 2025, 2026 | 85 000 € | 37 500 € | the same, unchanged in 2026 |
//! | VAT, increased | 2025, 2026 | 93 500 € | 41 250 € | the same |
//!
//! Urssaf publishes its rules as `betagouv/mon-entreprise`. The reform that would have lowered the VAT
//! thresholds to 25 000 € was repealed by the law of 3 November 2025 ([2025-1044]).
//!
//! In a creation year every ceiling is in proportion to the days, the increased VAT threshold too ([CGI, 293 D, III];
//! [BOI-TVA-DECLA-40-10-10], § 290). From 1 January 2027 on the code of taxes on goods and services says the same
//! in so many words; that its VAT part applies on that day, and not on 1 September 2026, is [ordinance 2026-671].
//! docs/law.md has who says otherwise, and how sure each of this is.
//!
//! [2025-1044]: https://www.legifrance.gouv.fr/jorf/id/JORFTEXT000052485808
//! [CGI, 293 D, III]: https://www.legifrance.gouv.fr/codes/article_lc/LEGIARTI000052488147
//! [BOI-TVA-DECLA-40-10-10]: https://bofip.impots.gouv.fr/bofip/849-PGP.html/identifiant=BOI-TVA-DECLA-40-10-10-20260701
//! [ordinance 2026-671]: https://www.legifrance.gouv.fr/loda/id/JORFTEXT000054497160
//!
//! Of other years:
//!
//! * The micro ceilings change by law every third year: from 2029 on those of 2026 are certainly wrong, and
//!   there is no threshold until the table has the new ones.
//! * The VAT thresholds have no end of their own. Those of 2026, the last that are known, are carried on until
//!   the table says otherwise: a warning that is slightly off beats silence.
//! * Nothing is assumed of the years before the table: 2022 has no micro ceiling, 2024 no VAT threshold. Only
//!   this year and the one before are ever held against it.

use std::ops::RangeInclusive;

use chrono::{Datelike, NaiveDate};

use super::Threshold;

/// A figure without an end is carried on until then: the last year of four digits.
const FAR: i32 = 9999;

/// The days of a creation year are counted in so many, in leap years too.
const YEAR: u32 = 365;

/// Says what a threshold limits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Regime {
    Micro,
    VatBase,
    VatIncreased,
}

/// Says which turnover counts against a threshold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Bucket {
    /// It limits all turnover, that of activities that are not known, too.
    Total,
    /// It limits the turnover of services and liberal professions.
    Services,
}

impl Bucket {
    /// Returns whether its ceilings tell more than those of services, which are lower: those of all turnover do not where
    /// there is none but services.
    pub(super) fn tells_more(self, total: i128, services: i128) -> bool {
        match self {
            Self::Services => true,
            Self::Total => services == 0 || total > services,
        }
    }
}

/// Holds the two figures of a regime, in cents, for some years.
struct Figures {
    regime: Regime,
    years: RangeInclusive<i32>,
    total: i64,
    services: i64,
}

static TABLE: [Figures; 4] = [
    Figures { regime: Regime::Micro, years: 2023..=2025, total: 18_870_000, services: 7_770_000 },
    Figures { regime: Regime::Micro, years: 2026..=2028, total: 20_310_000, services: 8_360_000 },
    Figures { regime: Regime::VatBase, years: 2025..=FAR, total: 8_500_000, services: 3_750_000 },
    Figures { regime: Regime::VatIncreased, years: 2025..=FAR, total: 9_350_000, services: 4_125_000 },
];

impl Threshold {
    /// Returns the steps that users are told of, lowest first.
    pub const fn steps(self) -> &'static [u8] {
        match self.regime() {
            Regime::Micro | Regime::VatBase => &[80, 90, 100],
            // Its 80 and 90 % lie below the base threshold, which has already been told of.
            Regime::VatIncreased => &[100],
        }
    }

    /// Returns the step below which a told step does not hold any more: the one under it, 80 % where there is none.
    pub(super) fn step_under(self, step: u8) -> u8 {
        self.steps().iter().copied().rev().find(|&other| other < step).unwrap_or(80)
    }

    /// Returns whether it is one of VAT.
    pub fn is_vat(self) -> bool {
        self.regime() != Regime::Micro
    }

    pub(super) const fn regime(self) -> Regime {
        match self {
            Self::MicroTotal | Self::MicroServices => Regime::Micro,
            Self::VatBaseTotal | Self::VatBaseServices => Regime::VatBase,
            Self::VatIncreasedTotal | Self::VatIncreasedServices => Regime::VatIncreased,
        }
    }

    pub(super) const fn bucket(self) -> Bucket {
        match self {
            Self::MicroTotal | Self::VatBaseTotal | Self::VatIncreasedTotal => Bucket::Total,
            Self::MicroServices | Self::VatBaseServices | Self::VatIncreasedServices => Bucket::Services,
        }
    }

    /// Returns the ceiling of `year` for a company created on `created`. `None`: the threshold does not exist then.
    pub(super) fn ceiling(self, year: i32, created: Option<NaiveDate>) -> Option<Ceiling> {
        let whole = self.whole_year(year)?;
        let first_year = created.filter(|created| created.year() == year);
        // A part that is the whole is none: who starts on 1 January has the ceilings of everyone.
        let days = first_year.map_or(YEAR, |created| days_from(created).min(YEAR));
        Some(Ceiling { whole, days })
    }

    fn whole_year(self, year: i32) -> Option<i64> {
        TABLE.iter().find(|figures| figures.regime == self.regime() && figures.years.contains(&year)).map(
            |figures| match self.bucket() {
                Bucket::Total => figures.total,
                Bucket::Services => figures.services,
            },
        )
    }
}

/// Counts the days from the day of creation to 31 December, both included. 366 for 1 January of a leap year.
fn days_from(created: NaiveDate) -> u32 {
    YEAR + u32::from(created.leap_year()) - created.ordinal0()
}

/// Represents a whole year's ceiling, and the days of it that count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ceiling {
    whole: i64,
    /// Is `YEAR` at most.
    days: u32,
}

impl Ceiling {
    /// Returns the ceiling in cents, rounded down, to be shown: [`is_crossed`](Self::is_crossed) compares without
    /// rounding.
    pub(super) fn value(self) -> i64 {
        self.whole * i64::from(self.days) / i64::from(YEAR)
    }

    /// Returns the whole year's ceiling, where this is a part of it.
    pub(super) fn full_year(self) -> Option<i64> {
        (self.days < YEAR).then_some(self.whole)
    }

    /// 80 and 90 % are crossed when they are reached, the ceiling itself only when it is exceeded.
    pub(super) fn is_crossed(self, turnover: i128, step: u8) -> bool {
        let turnover = turnover.saturating_mul(i128::from(YEAR) * 100);
        let limit = i128::from(self.whole) * i128::from(self.days) * i128::from(step);
        if step < 100 { turnover >= limit } else { turnover > limit }
    }
}

/// Returns the least turnover, in cents, that can reach any step of any threshold in a whole year: below it a user's
/// year need not be looked at. `None`: the year has no thresholds.
///
/// For a company created within the year the limit is this times its days (31 December counted) / 365, which
/// is the caller's to apply. What is held against it must not be lowered by refunds of another activity: with
/// 31 000 € of services and −2 000 € of sales the total is below the floor of 2026, the services are not.
/// Add up the positive sums of each activity instead.
pub fn floor(year: i32) -> Option<i64> {
    lowest(year, |threshold| threshold.steps().first().copied())
}

/// Returns, as [`floor`] does, what a year's turnover must reach to exceed any of its limits. `None`: the year has none.
pub fn exceeding_floor(year: i32) -> Option<i64> {
    lowest(year, |threshold| threshold.steps().last().copied())
}

fn lowest(year: i32, step: impl Fn(Threshold) -> Option<u8>) -> Option<i64> {
    Threshold::ALL
        .into_iter()
        .filter_map(|threshold| {
            Some((threshold.whole_year(year)? * i64::from(step(threshold)?)).div_euclid(100))
        })
        .min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn date(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    #[rstest]
    #[case(2022, [None; 6])]
    #[case(2023, [Some(188_700), Some(77_700), None, None, None, None])]
    #[case(2024, [Some(188_700), Some(77_700), None, None, None, None])]
    #[case(2025, [Some(188_700), Some(77_700), Some(85_000), Some(37_500), Some(93_500), Some(41_250)])]
    #[case(2026, [Some(203_100), Some(83_600), Some(85_000), Some(37_500), Some(93_500), Some(41_250)])]
    #[case(2028, [Some(203_100), Some(83_600), Some(85_000), Some(37_500), Some(93_500), Some(41_250)])]
    #[case(2029, [None, None, Some(85_000), Some(37_500), Some(93_500), Some(41_250)])]
    #[case(10_000, [None; 6])]
    fn whole_years(#[case] year: i32, #[case] euros: [Option<i64>; 6]) {
        for (threshold, euros) in Threshold::ALL.into_iter().zip(euros) {
            let ceiling = threshold.ceiling(year, None);
            assert_eq!(ceiling.map(Ceiling::value), euros.map(|euros| euros * 100), "{threshold:?}");
            assert_eq!(ceiling.and_then(Ceiling::full_year), None);
        }
    }

    #[test]
    fn the_last_known_vat_thresholds_are_carried_on() {
        const LAST_KNOWN: i32 = 2026;
        for threshold in Threshold::ALL.into_iter().filter(|threshold| threshold.regime() != Regime::Micro) {
            let known = threshold.whole_year(LAST_KNOWN);
            assert!(known.is_some(), "{threshold:?}");
            assert_eq!(threshold.whole_year(LAST_KNOWN + 10), known);
        }
    }

    #[test]
    fn the_figures_of_one_regime_never_overlap() {
        for (index, one) in TABLE.iter().enumerate() {
            for other in TABLE[index + 1..].iter().filter(|other| other.regime == one.regime) {
                assert!(one.years.end() < other.years.start(), "{:?}", one.years);
            }
        }
    }

    #[rstest]
    #[case("2026-01-01", 365)]
    #[case("2026-01-02", 364)]
    #[case("2026-04-01", 275)]
    #[case("2026-12-30", 2)]
    #[case("2026-12-31", 1)]
    // A leap year has a day too many for its first of January, none for its second.
    #[case("2028-01-01", 366)]
    #[case("2028-01-02", 365)]
    #[case("2028-01-03", 364)]
    #[case("2028-04-01", 275)]
    #[case("2028-12-31", 1)]
    fn days_of_a_creation_year(#[case] created: &str, #[case] days: u32) {
        assert_eq!(days_from(date(created)), days);
    }

    #[rstest]
    #[case("2026-01-01", 20_310_000, None)]
    #[case("2026-01-02", 20_254_356, Some(20_310_000))]
    #[case("2026-04-01", 15_302_054, Some(20_310_000))]
    #[case("2026-12-31", 55_643, Some(20_310_000))]
    #[case("2028-01-01", 20_310_000, None)]
    #[case("2028-01-02", 20_310_000, None)]
    #[case("2028-04-01", 15_302_054, Some(20_310_000))]
    fn creation_years(#[case] created: &str, #[case] value: i64, #[case] full_year: Option<i64>) {
        let created = date(created);
        let ceiling = Threshold::MicroTotal.ceiling(created.year(), Some(created)).unwrap();
        assert_eq!((ceiling.value(), ceiling.full_year()), (value, full_year));

        for year in [created.year() - 1, created.year() + 1] {
            assert_eq!(
                Threshold::MicroTotal.ceiling(year, Some(created)),
                Threshold::MicroTotal.ceiling(year, None),
                "created in another year than {year}"
            );
        }
    }

    #[rstest]
    #[case("2026-04-01", 2_825_342, 3_107_876)]
    // 41 250 × 92 / 365.
    #[case("2025-10-01", 945_205, 1_039_726)]
    #[case("2027-10-01", 945_205, 1_039_726)]
    #[case("2026-01-01", 3_750_000, 4_125_000)]
    fn both_vat_thresholds_are_in_proportion(
        #[case] created: &str,
        #[case] base: i64,
        #[case] increased: i64,
    ) {
        let created = date(created);
        let ceiling = |threshold: Threshold, year| threshold.ceiling(year, Some(created)).map(Ceiling::value);
        assert_eq!(ceiling(Threshold::VatBaseServices, created.year()), Some(base));
        assert_eq!(ceiling(Threshold::VatIncreasedServices, created.year()), Some(increased));
        // Nothing is in proportion in the second year.
        assert_eq!(ceiling(Threshold::VatIncreasedServices, created.year() + 1), Some(4_125_000));
    }

    #[rstest]
    // 37 500 €, whole: every step is a whole number of cents.
    #[case(365, 2_999_999, &[])]
    #[case(365, 3_000_000, &[80])]
    #[case(365, 3_374_999, &[80])]
    #[case(365, 3_375_000, &[80, 90])]
    #[case(365, 3_750_000, &[80, 90])]
    #[case(365, 3_750_001, &[80, 90, 100])]
    // Of 275 days: 28 253,4246… €, shown as 28 253,42 €; its steps are 22 602,7397… and 25 428,0821… €.
    #[case(275, 2_260_273, &[])]
    #[case(275, 2_260_274, &[80])]
    #[case(275, 2_542_808, &[80])]
    #[case(275, 2_542_809, &[80, 90])]
    #[case(275, 2_825_342, &[80, 90])]
    #[case(275, 2_825_343, &[80, 90, 100])]
    fn steps(#[case] days: u32, #[case] turnover: i128, #[case] crossed: &[u8]) {
        let ceiling = Ceiling { whole: 3_750_000, days };
        let steps = Threshold::VatBaseServices.steps();
        let all: Vec<u8> = steps.iter().copied().filter(|&step| ceiling.is_crossed(turnover, step)).collect();
        assert_eq!(all, crossed);
    }

    #[rstest]
    #[case(2022, None)]
    #[case(2024, Some(6_216_000))]
    #[case(2025, Some(3_000_000))]
    #[case(2026, Some(3_000_000))]
    #[case(2030, Some(3_000_000))]
    fn floors(#[case] year: i32, #[case] expected: Option<i64>) {
        assert_eq!(floor(year), expected);
        assert_eq!(exceeding_floor(year).map(|whole| whole * 8 / 10), expected);
    }

    proptest! {
        #[test]
        fn below_the_floor_nothing_is_crossed(
            year in 2020..2032,
            ordinal in prop::option::of(1_u32..=365),
            turnover in 0_i64..4_000_000,
        ) {
            let created = ordinal.and_then(|ordinal| NaiveDate::from_yo_opt(year, ordinal));
            let days = created.map_or(YEAR, |created| days_from(created).min(YEAR));
            // As a database would compare, without dividing.
            let is_below = |floor| turnover * i64::from(YEAR) < floor * i64::from(days);
            let below = floor(year).is_none_or(is_below);
            let crossed = Threshold::ALL.into_iter().any(|threshold| {
                threshold.ceiling(year, created).is_some_and(|ceiling| {
                    threshold.steps().iter().any(|&step| ceiling.is_crossed(turnover.into(), step))
                })
            });
            prop_assert_eq!(crossed, !below);
        }

        #[test]
        fn no_ceiling_is_above_the_whole(year in 2023..2032, ordinal in 1_u32..=365) {
            let created = NaiveDate::from_yo_opt(year, ordinal);
            for threshold in Threshold::ALL {
                if let Some(ceiling) = threshold.ceiling(year, created) {
                    prop_assert!(ceiling.value() > 0);
                    prop_assert!(Some(ceiling.value()) <= threshold.whole_year(year));
                }
            }
        }
    }
}
