//! What a year's books make of a user, and what is not known.

use proptest::prelude::*;
use rstest::rstest;

use super::super::books::{BookRow, UserBooks, YearBooks};
use super::super::{Assessment, assess};
use super::*;

const SALES: &str = "Vente de marchandises";
const SERVICES: &str = "Prestation de services";

fn date(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

/// Rows: month, activity, typed and imported cents.
fn books(rows: &[(&str, &str, i64, i64)], created: Option<&str>) -> UserBooks {
    let row = |&(month, activity, typed, imported): &(&str, &str, i64, i64)| {
        let month: Month = month.parse().unwrap();
        let mixed = typed != 0 && imported != 0;
        let row = BookRow { month: month.month(), activity: activity.to_owned(), typed, imported, mixed };
        YearBooks { year: month.year(), rows: vec![row] }
    };
    UserBooks { years: rows.iter().map(row).collect(), created: created.map(date), ..UserBooks::default() }
}

fn found(rows: &[(&str, &str, i64, i64)], created: Option<&str>) -> Assessment {
    assess(&books(rows, created), &[], 2026, date("2026-12-31")).unwrap()
}

/// The certain verdict, where there is no other.
fn verdict(rows: &[(&str, &str, i64, i64)], created: Option<&str>) -> Verdict {
    let state = found(rows, created).state;
    assert_eq!(state.if_distinct, None);
    state.certain
}

const WITHIN: Before = Before::Within;
const NOTHING: Before = Before::Unknown(Gap::Nothing);

fn until(month: &str) -> Before {
    Before::Unknown(Gap::Until(month.parse().unwrap()))
}

fn within(month: &str) -> Passed {
    Passed::In(month.parse().unwrap())
}

const FROM_2027: NaiveDate = NaiveDate::from_ymd_opt(2027, 1, 1).unwrap();
const SINCE_2026: NaiveDate = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();

#[rstest]
#[case(3_750_000, Vat::Free { before: WITHIN })]
#[case(3_750_001, Vat::Next { from: FROM_2027, before: WITHIN })]
#[case(4_125_000, Vat::Next { from: FROM_2027, before: WITHIN })]
#[case(4_125_001, Vat::Since { passed: within("2026-03"), before: WITHIN })]
fn vat_of_the_year_itself(#[case] cents: i64, #[case] expected: Vat) {
    let rows = [("2025-01", SERVICES, 100, 0), ("2026-03", SERVICES, cents, 0)];
    assert_eq!(verdict(&rows, None).vat, expected);
}

#[rstest]
// 2025 alone decides about 1 January 2026.
#[case(3_750_000, Vat::Free { before: WITHIN })]
#[case(3_750_001, Vat::SinceNewYear { since: SINCE_2026 })]
#[case(4_125_001, Vat::SinceYearBefore { passed: within("2025-01") })]
fn vat_after_such_a_year(#[case] cents: i64, #[case] expected: Vat) {
    for this_year in [100, 3_100_000] {
        let rows = [("2025-01", SERVICES, cents, 0), ("2026-05", SERVICES, this_year, 0)];
        assert_eq!(verdict(&rows, None).vat, expected);
    }
}

/// 37 500 × 92 / 365 = 9 452,05 and 41 250 × 92 / 365 = 10 397,26.
#[rstest]
#[case(945_205, Vat::Free { before: WITHIN })]
#[case(945_206, Vat::SinceNewYear { since: SINCE_2026 })]
#[case(1_000_000, Vat::SinceNewYear { since: SINCE_2026 })]
#[case(1_039_727, Vat::SinceYearBefore { passed: within("2025-11") })]
fn vat_after_a_year_of_creation(#[case] cents: i64, #[case] expected: Vat) {
    let rows = [("2025-11", SERVICES, cents, 0), ("2026-05", SERVICES, 3_100_000, 0)];
    assert_eq!(verdict(&rows, Some("2025-10-01")).vat, expected);
}

/// What is due is due, whatever is passed after it.
#[test]
fn vat_that_is_due_is_not_due_later() {
    let rows = [("2025-01", SERVICES, 4_000_000, 0), ("2026-03", SERVICES, 6_800_000, 0)];
    assert_eq!(verdict(&rows, None).vat, Vat::SinceNewYear { since: SINCE_2026 });
    let rows = [("2026-03", SERVICES, 4_200_000, 0), ("2026-06", SERVICES, 2_600_000, 0)];
    assert_eq!(verdict(&rows, None).vat, Vat::Since { passed: within("2026-03"), before: NOTHING });
}

#[rstest]
#[case(&[("2025-12", 100_000)], None, until("2025-12"))]
#[case(&[("2025-01", 100_000)], None, WITHIN)]
#[case(&[("2025-01", 0)], None, WITHIN)]
#[case(&[("2025-02", 100_000)], None, until("2025-02"))]
#[case(&[], None, NOTHING)]
// The books go back further.
#[case(&[("2024-12", 100_000), ("2025-12", 100_000)], None, WITHIN)]
#[case(&[("2024-12", 100_000)], None, NOTHING)]
// It began then.
#[case(&[("2025-12", 100_000)], Some("2025-10-15"), WITHIN)]
#[case(&[("2025-12", 100_000)], Some("2025-09-30"), until("2025-12"))]
#[case(&[], Some("2025-10-01"), NOTHING)]
// In 2026: there was no 2025.
#[case(&[], Some("2026-01-01"), Before::None)]
#[case(&[], Some("2026-03-01"), Before::None)]
// The books say otherwise.
#[case(&[("2025-12", 100_000)], Some("2026-03-01"), until("2025-12"))]
#[case(&[], Some("2026-07-01"), NOTHING)]
#[case(&[], Some("2024-05-01"), NOTHING)]
fn what_is_unknown_is_not_denied(
    #[case] before: &[(&str, i64)],
    #[case] created: Option<&str>,
    #[case] expected: Before,
) {
    let mut rows: Vec<_> = before.iter().map(|&(month, cents)| (month, SERVICES, cents, 0)).collect();
    rows.push(("2026-06", SERVICES, 8_360_001, 0));
    let verdict = verdict(&rows, created);
    assert_eq!(verdict.micro, Micro::Once { before: expected });
    assert!(matches!(verdict.vat, Vat::Since { before, .. } if before == expected), "{verdict:?}");
}

const OUT: Micro = Micro::Twice { from: FROM_2027 };

#[rstest]
#[case(SALES, 18_870_001, OUT)]
#[case(SALES, 18_870_000, Micro::Once { before: WITHIN })]
// Between the ceilings of the two years: its own count.
#[case(SALES, 19_000_000, OUT)]
// The other ceiling of the same regime.
#[case(SERVICES, 7_770_001, OUT)]
#[case(SERVICES, 7_770_000, Micro::Once { before: WITHIN })]
#[case(SALES, 0, Micro::Once { before: WITHIN })]
fn the_micro_regime_after_such_a_year(#[case] activity: &str, #[case] cents: i64, #[case] expected: Micro) {
    for (now, amount) in [(SALES, 20_310_001), (SERVICES, 8_360_001)] {
        let rows = [("2025-01", activity, cents, 0), ("2026-06", now, amount, 0)];
        assert_eq!(verdict(&rows, None).micro, expected);
        // A year that is known in part is exceeded as far as it is known.
        let rows = [("2025-11", activity, cents, 0), ("2026-06", now, amount, 0)];
        let of_november = verdict(&rows, None).micro;
        assert_eq!(of_november, if expected == OUT { OUT } else { Micro::Once { before: until("2025-11") } });
    }
}

/// Of 275 days: 142 171,2328… €.
#[rstest]
#[case(14_217_124, OUT)]
#[case(14_217_123, Micro::Once { before: WITHIN })]
fn a_year_of_creation_before(#[case] cents: i64, #[case] expected: Micro) {
    let rows = [("2025-05", SALES, cents, 0), ("2026-06", SALES, 20_310_001, 0)];
    assert_eq!(verdict(&rows, Some("2025-04-01")).micro, expected);
}

#[test]
fn after_two_years_above_the_ceiling_the_regime_is_left() {
    let years = [("2024-03", SERVICES, 8_000_000, 0), ("2025-03", SERVICES, 8_000_000, 0)];
    for now in [100_000, 9_000_000] {
        let rows = [years.to_vec(), vec![("2026-03", SERVICES, now, 0)]].concat();
        assert_eq!(verdict(&rows, None).micro, Micro::Out { since: SINCE_2026 });
    }
    let rows = [&years[1..], &[("2026-03", SERVICES, 100_000, 0)]].concat();
    assert_eq!(verdict(&rows, None).micro, Micro::Within { before: Before::Exceeded });
}

/// Whoever began in a year has heard of its whole limits: the mail says that they were reduced.
#[test]
fn the_year_of_creation_is_known_where_its_limits_are_reduced() {
    for (created, expected) in [
        (Some("2025-10-01"), Some(2025)),
        (Some("2025-01-01"), None),
        (Some("2025-12-01"), None),
        (None, None),
    ] {
        let rows = [("2025-11", SERVICES, 1_000_000, 0), ("2026-05", SERVICES, 3_100_000, 0)];
        assert_eq!(found(&rows, created).state.reduced, expected, "{created:?}");
    }
}

/// The link of the mail leads to the year that can be confirmed.
#[rstest]
#[case(&[("2025-05", 100, 100), ("2026-05", 100, 0)], Some(2025))]
#[case(&[("2024-05", 100, 100), ("2026-05", 0, 100)], Some(2024))]
#[case(&[("2025-05", 100, 100), ("2026-05", 100, 100)], Some(2026))]
#[case(&[("2025-05", 100, 0), ("2025-06", 0, 100), ("2026-05", 100, -100)], None)]
// The year whose doubt decides goes before a later one.
#[case(&[("2025-05", 3_000_000, 1_000_000), ("2026-05", 100, 100)], Some(2025))]
#[case(&[("2024-05", 7_000_000, 1_000_000), ("2025-05", 7_800_000, 0), ("2026-05", 100, 100)], Some(2024))]
#[case(&[("2023-05", 3_000_000, 1_000_000), ("2024-05", 3_900_000, 0), ("2025-05", 3_900_000, 0)], Some(2023))]
#[case(&[("2025-05", 3_000_000, 1_000_000), ("2026-05", 3_000_000, 1_000_000)], Some(2026))]
fn the_doubt_lies_in_a_year(#[case] rows: &[(&str, i64, i64)], #[case] expected: Option<i32>) {
    let rows: Vec<_> =
        rows.iter().map(|&(month, typed, imported)| (month, SERVICES, typed, imported)).collect();
    assert_eq!(found(&rows, None).state.doubtful, expected);
}

#[test]
fn a_year_before_without_known_ceilings_says_nothing() {
    let of_user = books(&[("2022-01", SALES, 30_000_000, 0), ("2023-05", SALES, 18_870_001, 0)], None);
    let state = assess(&of_user, &[], 2023, date("2023-12-31")).unwrap().state;
    assert_eq!(state.certain.micro, Micro::Once { before: Before::Unknown(Gap::Ceilings) });
}

/// Both outcomes are told: what follows if all of it is money of its own, and if it is the same.
#[test]
fn what_may_be_there_twice_has_two_outcomes() {
    let rows = [("2025-01", SERVICES, 100, 0), ("2026-05", SERVICES, 3_000_000, 1_500_000)];
    let state = found(&rows, None).state;
    assert_eq!(state.certain.vat, Vat::Free { before: WITHIN });
    let passed = within("2026-05");
    assert_eq!(state.if_distinct.map(|distinct| distinct.vat), Some(Vat::Since { passed, before: WITHIN }));
    // A doubt about the year before is one about 1 January.
    let rows = [("2025-01", SERVICES, 3_000_000, 1_000_000), ("2026-05", SERVICES, 3_100_000, 0)];
    let state = found(&rows, None).state;
    assert_eq!(state.certain.vat, Vat::Free { before: WITHIN });
    assert_eq!(state.if_distinct.map(|distinct| distinct.vat), Some(Vat::SinceNewYear { since: SINCE_2026 }));
}

/// Verdicts of 2027, by what services brought in each year.
fn of_2027(years: &[(&str, i64)]) -> Verdict {
    let rows: Vec<_> = years.iter().map(|&(month, euros)| (month, SERVICES, euros * 100, 0)).collect();
    assess(&books(&rows, None), &[], 2027, date("2027-03-01")).unwrap().state.certain
}

#[rstest]
// Above the base threshold in 2025, and again in 2026, perhaps above the increased one.
#[case(&[("2025-01", 40_000), ("2026-03", 40_000)], Vat::SinceNewYear { since: SINCE_2026 })]
#[case(&[("2025-01", 40_000), ("2026-06", 45_000)], Vat::SinceNewYear { since: SINCE_2026 })]
#[case(&[("2025-06", 42_000), ("2026-03", 40_000)], Vat::SinceYearBefore { passed: within("2025-06") })]
#[case(&[("2025-06", 42_000), ("2026-03", 90_000)], Vat::SinceYearBefore { passed: within("2025-06") })]
// In 2026 only.
#[case(&[("2025-01", 30_000), ("2026-03", 40_000)], Vat::SinceNewYear { since: FROM_2027 })]
#[case(&[("2025-01", 30_000), ("2026-03", 42_000)], Vat::SinceYearBefore { passed: within("2026-03") })]
// A year below it ends it.
#[case(&[("2025-01", 40_000), ("2026-01", 37_500)], Vat::Free { before: WITHIN })]
fn vat_that_went_on_did_not_begin_anew(#[case] years: &[(&str, i64)], #[case] expected: Vat) {
    for this_year in [10, 31_000, 50_000] {
        let vat = of_2027(&[years, &[("2027-02", this_year)]].concat()).vat;
        let passes = matches!(expected, Vat::Free { .. }) && this_year == 50_000;
        assert_eq!(
            vat,
            if passes { Vat::Since { passed: within("2027-02"), before: WITHIN } } else { expected }
        );
    }
}

/// Whoever charged VAT the year before reads that it is not due any more.
#[rstest]
#[case(&[("2025-01", 40_000), ("2026-01", 37_500)], true)]
#[case(&[("2025-01", 42_000), ("2026-01", 10)], true)]
#[case(&[("2025-01", 37_500), ("2026-01", 37_500)], false)]
// What is not known is not said.
#[case(&[("2025-02", 40_000)], false)]
#[case(&[("2025-01", 40_000), ("2026-01", 37_501)], false)]
fn the_franchise_applies_again_after_a_year_below(#[case] years: &[(&str, i64)], #[case] expected: bool) {
    for this_year in [31_000, 38_000] {
        let years = [years, &[("2027-02", this_year)]].concat();
        let rows: Vec<_> = years.iter().map(|&(month, euros)| (month, SERVICES, euros * 100, 0)).collect();
        let found = assess(&books(&rows, None), &[], 2027, date("2027-03-01")).unwrap();
        assert_eq!(found.state.regained, expected, "{this_year}");
    }
}

#[test]
fn the_regime_that_was_left_is_not_left_anew() {
    let two = [("2024-01", 80_000), ("2025-01", 80_000)];
    assert_eq!(
        of_2027(&[two.as_slice(), &[("2026-01", 90_000)]].concat()).micro,
        Micro::Out { since: SINCE_2026 }
    );
    assert_eq!(of_2027(&[&two[1..], &[("2026-01", 90_000)]].concat()).micro, Micro::Out { since: FROM_2027 });
    let back = of_2027(&[two.as_slice(), &[("2026-01", 83_600)]].concat()).micro;
    assert_eq!(back, Micro::Within { before: WITHIN });
}

proptest! {
    /// What is due on 31 December and on 1 January is due since the same day, whichever year asks.
    #[test]
    fn a_new_year_changes_nothing_that_goes_on(
        rows in prop::collection::vec(
            (2024..=2028_i32, 1..=12_u32, prop::sample::select(vec![SALES, SERVICES]), 0..5_000_000_i64), 1..14),
    ) {
        let spelled: Vec<_> = rows.iter().map(|&(year, month, activity, cents)| {
            (format!("{year}-{month:02}"), activity, cents)
        }).collect();
        let rows: Vec<_> = spelled.iter().map(|(month, activity, cents)| (month.as_str(), *activity, *cents, 0)).collect();
        let of_user = books(&rows, None);
        let of = |year| assess(&of_user, &[], year, date("2028-12-31")).unwrap().state.certain;
        for year in 2026..=2028 {
            let (before, now) = (of(year - 1), of(year));
            match (before.vat, now.vat) {
                (Vat::Since { passed: was, .. } | Vat::SinceYearBefore { passed: was }, Vat::SinceYearBefore { passed }) => {
                    prop_assert_eq!(was, passed);
                }
                (Vat::SinceNewYear { since: was }, Vat::SinceNewYear { since }) => prop_assert_eq!(was, since),
                (Vat::Next { from, .. }, now) => prop_assert_eq!(now, Vat::SinceNewYear { since: from }),
                (Vat::Free { .. }, now) => {
                    prop_assert!(!matches!(now, Vat::SinceNewYear { .. } | Vat::SinceYearBefore { .. }), "{now:?}");
                }
                (was, now) => {
                    prop_assert!(!now.is_liable() || matches!(now, Vat::Since { .. }), "{was:?}, then {now:?}");
                }
            }
            match (before.micro, now.micro) {
                (Micro::Out { since: was }, Micro::Out { since }) => prop_assert_eq!(was, since),
                (Micro::Twice { from }, now) => prop_assert_eq!(now, Micro::Out { since: from }),
                (was, now) => prop_assert!(!matches!(now, Micro::Out { .. }), "{was:?}, then {now:?}"),
            }
        }
    }
}
