//! The steps of every threshold, to the cent, and what follows from them.

use proptest::prelude::*;
use rstest::rstest;

use super::super::floor;
use super::Threshold::{
    MicroServices, MicroTotal, VatBaseServices, VatBaseTotal, VatIncreasedServices, VatIncreasedTotal,
};
use super::*;

const SALES: &str = "Vente de marchandises";
const SERVICES: &str = "Prestation de services";
const LIBERAL: &str = "Activité libérale";

/// A year of typed rows.
fn typed(year: i32, sums: &[(&str, i64)]) -> YearBooks {
    let sums = sums.iter().map(|&(activity, typed)| sum(activity, typed, 0)).collect();
    YearBooks { year, sums, mixed: Vec::new() }
}

fn sum(activity: &str, typed: i64, imported: i64) -> ActivitySum {
    ActivitySum { activity: activity.to_owned(), typed, imported }
}

/// A year that consists of months, each of which has rows of both sides.
fn mixed(year: i32, months: &[(u32, &str, i64, i64)]) -> YearBooks {
    let sums = months.iter().map(|&(_, activity, typed, imported)| sum(activity, typed, imported)).collect();
    let month = |&(month, activity, typed, imported): &(u32, &str, i64, i64)| MixedMonth {
        month,
        activity: activity.to_owned(),
        typed,
        imported,
    };
    YearBooks { year, sums, mixed: months.iter().map(month).collect() }
}

fn date(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

fn new_year(year: i32) -> NaiveDate {
    NaiveDate::from_ymd_opt(year, 1, 1).unwrap()
}

/// The highest steps crossed, by threshold.
fn steps(assessment: &Assessment) -> Vec<(Threshold, u8)> {
    let mut steps: Vec<_> =
        assessment.crossings.iter().map(|crossing| (crossing.threshold, crossing.step)).collect();
    steps.sort_unstable();
    steps
}

fn of(assessment: &Assessment, threshold: Threshold) -> &Crossing {
    let mut crossings = assessment.crossings.iter();
    crossings.find(|crossing| crossing.threshold == threshold).expect("crossed")
}

fn consequence(assessment: &Assessment, threshold: Threshold) -> Consequence {
    of(assessment, threshold).consequence
}

#[track_caller]
fn check(year: i32, sums: &[(&str, i64)], created: Option<&str>, expected: &[(Threshold, u8)]) {
    let assessment = assess(&[typed(year, sums)], created.map(date), year, &[]);
    assert_eq!(steps(&assessment), expected, "{sums:?} in {year}, created {created:?}");
    for crossing in &assessment.crossings {
        assert_eq!(crossing.doubt, None);
    }
}

#[rstest]
#[case(0, &[])]
#[case(6_799_999, &[])]
#[case(6_800_000, &[(VatBaseTotal, 80)])]
#[case(7_649_999, &[(VatBaseTotal, 80)])]
#[case(7_650_000, &[(VatBaseTotal, 90)])]
#[case(8_499_999, &[(VatBaseTotal, 90)])]
#[case(8_500_000, &[(VatBaseTotal, 90)])]
#[case(8_500_001, &[(VatBaseTotal, 100)])]
#[case(9_350_000, &[(VatBaseTotal, 100)])]
#[case(9_350_001, &[(VatBaseTotal, 100), (VatIncreasedTotal, 100)])]
#[case(16_247_999, &[(VatBaseTotal, 100), (VatIncreasedTotal, 100)])]
#[case(16_248_000, &[(MicroTotal, 80), (VatBaseTotal, 100), (VatIncreasedTotal, 100)])]
#[case(18_278_999, &[(MicroTotal, 80), (VatBaseTotal, 100), (VatIncreasedTotal, 100)])]
#[case(18_279_000, &[(MicroTotal, 90), (VatBaseTotal, 100), (VatIncreasedTotal, 100)])]
#[case(20_310_000, &[(MicroTotal, 90), (VatBaseTotal, 100), (VatIncreasedTotal, 100)])]
#[case(20_310_001, &[(MicroTotal, 100), (VatBaseTotal, 100), (VatIncreasedTotal, 100)])]
fn sales_of_2026(#[case] cents: i64, #[case] expected: &[(Threshold, u8)]) {
    check(2026, &[(SALES, cents)], None, expected);
}

#[rstest]
#[case(2_999_999, &[])]
#[case(3_000_000, &[(VatBaseServices, 80)])]
#[case(3_374_999, &[(VatBaseServices, 80)])]
#[case(3_375_000, &[(VatBaseServices, 90)])]
#[case(3_750_000, &[(VatBaseServices, 90)])]
#[case(3_750_001, &[(VatBaseServices, 100)])]
#[case(4_125_000, &[(VatBaseServices, 100)])]
#[case(4_125_001, &[(VatBaseServices, 100), (VatIncreasedServices, 100)])]
#[case(6_687_999, &[(VatBaseServices, 100), (VatIncreasedServices, 100)])]
#[case(6_688_000, &[(MicroServices, 80), (VatBaseServices, 100), (VatIncreasedServices, 100)])]
#[case(7_523_999, &[(MicroServices, 80), (VatBaseTotal, 80), (VatBaseServices, 100), (VatIncreasedServices, 100)])]
#[case(7_524_000, &[(MicroServices, 90), (VatBaseTotal, 80), (VatBaseServices, 100), (VatIncreasedServices, 100)])]
#[case(8_360_000, &[(MicroServices, 90), (VatBaseTotal, 90), (VatBaseServices, 100), (VatIncreasedServices, 100)])]
#[case(8_360_001, &[(MicroServices, 100), (VatBaseTotal, 90), (VatBaseServices, 100), (VatIncreasedServices, 100)])]
fn services_of_2026(#[case] cents: i64, #[case] expected: &[(Threshold, u8)]) {
    check(2026, &[(SERVICES, cents)], None, expected);
    check(2026, &[(LIBERAL, cents)], None, expected);
    check(2026, &[("services", 1), (LIBERAL, cents - 1)], None, expected);
}

#[rstest]
#[case(2025, SALES, 18_870_000, MicroTotal, 90)]
#[case(2025, SALES, 18_870_001, MicroTotal, 100)]
#[case(2025, SERVICES, 7_770_000, MicroServices, 90)]
#[case(2025, SERVICES, 7_770_001, MicroServices, 100)]
#[case(2028, SERVICES, 8_360_001, MicroServices, 100)]
fn each_year_has_its_own_ceilings(
    #[case] year: i32,
    #[case] activity: &str,
    #[case] cents: i64,
    #[case] threshold: Threshold,
    #[case] step: u8,
) {
    let assessment = assess(&[typed(year, &[(activity, cents)])], None, year, &[]);
    assert_eq!(of(&assessment, threshold).step, step);
}

#[test]
fn a_year_without_figures_has_no_thresholds() {
    check(2022, &[(SALES, i64::MAX)], None, &[]);
    check(2024, &[(SALES, 20_000_000)], None, &[(MicroTotal, 100)]);
    check(2029, &[(SALES, 50_000_000)], None, &[(VatBaseTotal, 100), (VatIncreasedTotal, 100)]);
    check(i32::MIN, &[(SALES, i64::MAX)], None, &[]);
    check(i32::MAX, &[(SALES, i64::MAX)], None, &[]);
}

#[test]
fn sales_never_count_as_services() {
    check(2026, &[(SALES, 3_800_001), (SERVICES, 2_999_999)], None, &[(VatBaseTotal, 80)]);
    check(
        2026,
        &[(SALES, 3_800_001), (SERVICES, 3_000_000)],
        None,
        &[(VatBaseTotal, 80), (VatBaseServices, 80)],
    );
    let assessment = assess(&[typed(2026, &[(SALES, 3_800_001), (SERVICES, 3_000_000)])], None, 2026, &[]);
    assert_eq!(of(&assessment, VatBaseTotal).turnover, 6_800_001);
    assert_eq!(of(&assessment, VatBaseServices).turnover, 3_000_000);
}

#[test]
fn an_unknown_activity_counts_in_the_total_and_is_reported() {
    let books =
        typed(2026, &[("mixte", 6_000_000), (SERVICES, 1_000_000), (" Troc ", 0), ("mixte ", 0), ("", 1)]);
    let assessment = assess(&[books], None, 2026, &[]);
    assert_eq!(steps(&assessment), [(VatBaseTotal, 80)]);
    assert_eq!(assessment.unknown_activities, ["", "Troc", "mixte"]);
    // Those of another year are that year's.
    let books = [typed(2025, &[("mixte", 1)]), typed(2026, &[(SALES, 1)])];
    assert_eq!(assess(&books, None, 2026, &[]), Assessment::default());
}

#[test]
fn refunds_are_deducted() {
    check(2026, &[(SALES, 7_000_000), ("vente", -200_001)], None, &[]);
    check(2026, &[(SALES, 7_000_000), ("vente", -200_000)], None, &[(VatBaseTotal, 80)]);
    // Refunds of sales lower the total, not the services.
    check(2026, &[(SALES, -500_000), (SERVICES, 3_000_000)], None, &[(VatBaseServices, 80)]);
    check(2026, &[(SALES, 500_000), (SERVICES, -3_000_000)], None, &[]);
    check(2026, &[(SALES, i64::MIN), (SERVICES, i64::MIN)], None, &[]);
}

#[rstest]
// The whole year.
#[case("2026-01-01", 2_999_999, &[])]
#[case("2026-01-01", 3_000_000, &[(VatBaseServices, 80)])]
#[case("2026-01-01", 4_125_001, &[(VatBaseServices, 100), (VatIncreasedServices, 100)])]
// 275 days: base 28 253,4246… €, increased 31 078,7671… €.
#[case("2026-04-01", 2_260_273, &[])]
#[case("2026-04-01", 2_260_274, &[(VatBaseServices, 80)])]
#[case("2026-04-01", 2_825_342, &[(VatBaseServices, 90)])]
#[case("2026-04-01", 2_825_343, &[(VatBaseServices, 100)])]
#[case("2026-04-01", 3_107_876, &[(VatBaseServices, 100)])]
#[case("2026-04-01", 3_107_877, &[(VatBaseServices, 100), (VatIncreasedServices, 100)])]
// One day: base 102,7397… € and 232,8767… € (total), micro 229,0410… € (services), increased 113,0136… €
// (services) and 256,1643… € (total).
#[case("2026-12-31", 8_219, &[])]
#[case("2026-12-31", 8_220, &[(VatBaseServices, 80)])]
#[case("2026-12-31", 10_274, &[(VatBaseServices, 100)])]
#[case("2026-12-31", 22_905, &[
    (MicroServices, 100), (VatBaseTotal, 90), (VatBaseServices, 100), (VatIncreasedServices, 100),
])]
#[case("2026-12-31", 25_617, &[
    (MicroServices, 100), (VatBaseTotal, 100), (VatBaseServices, 100),
    (VatIncreasedTotal, 100), (VatIncreasedServices, 100),
])]
// Created in another year: nothing changes.
#[case("2025-04-01", 2_999_999, &[])]
#[case("2027-04-01", 2_999_999, &[])]
fn creation_years(#[case] created: &str, #[case] cents: i64, #[case] expected: &[(Threshold, u8)]) {
    check(2026, &[(SERVICES, cents)], Some(created), expected);
}

#[rstest]
// Both are whole years in 2028, which has 366 days.
#[case("2028-01-01", 2_999_999, &[])]
#[case("2028-01-02", 2_999_999, &[])]
#[case("2028-01-02", 4_125_001, &[(VatBaseServices, 100), (VatIncreasedServices, 100)])]
#[case("2028-01-03", 2_999_999, &[(VatBaseServices, 80)])]
fn creation_in_a_leap_year(#[case] created: &str, #[case] cents: i64, #[case] expected: &[(Threshold, u8)]) {
    check(2028, &[(SERVICES, cents)], Some(created), expected);
}

#[test]
fn a_creation_year_shows_both_figures_of_a_ceiling() {
    let books = [typed(2026, &[(SERVICES, 4_125_001)])];
    let assessment = assess(&books, Some(date("2026-04-01")), 2026, &[]);
    let shown = |threshold| {
        let crossing = of(&assessment, threshold);
        (crossing.ceiling, crossing.full_year_ceiling, crossing.consequence)
    };
    let from = new_year(2027);
    assert_eq!(shown(VatBaseServices), (2_825_342, Some(3_750_000), Consequence::VatFrom { from }));
    assert_eq!(shown(VatIncreasedServices), (3_107_876, Some(4_125_000), Consequence::VatAtOnce));
}

#[test]
fn a_crossing_says_all_there_is_to_say() {
    let assessment = assess(&[typed(2026, &[(SALES, 7_700_000)])], None, 2026, &[]);
    let crossing = Crossing {
        threshold: VatBaseTotal,
        step: 90,
        turnover: 7_700_000,
        ceiling: 8_500_000,
        full_year_ceiling: None,
        doubt: None,
        consequence: Consequence::Approaching,
    };
    let used_up =
        vec![Held { threshold: VatBaseTotal, step: 80 }, Held { threshold: VatBaseTotal, step: 90 }];
    assert_eq!(assessment, Assessment { crossings: vec![crossing], used_up, unknown_activities: vec![] });
}

#[rstest]
#[case(&[], &[80, 90, 100])]
#[case(&[80], &[90, 100])]
#[case(&[90], &[80, 100])]
#[case(&[80, 90], &[100])]
// Told of already, and with it everything below.
#[case(&[100], &[])]
#[case(&[80, 90, 100], &[])]
fn a_step_uses_up_itself_and_those_below(#[case] held: &[u8], #[case] used_up: &[u8]) {
    let hold = |&step: &u8| Held { threshold: VatBaseTotal, step };
    let held: Vec<Held> = held.iter().map(hold).collect();
    let assessment = assess(&[typed(2026, &[(SALES, 8_500_001)])], None, 2026, &held);
    assert_eq!(assessment.used_up, used_up.iter().map(hold).collect::<Vec<_>>());
    let told: Vec<u8> = assessment.crossings.iter().map(|crossing| crossing.step).collect();
    assert_eq!(told, if used_up.is_empty() { vec![] } else { vec![100] });
}

#[test]
fn a_lower_step_is_not_told_of_after_a_higher_one() {
    let held = [Held { threshold: VatBaseTotal, step: 100 }];
    // A refund has brought the year back under the ceiling.
    let assessment = assess(&[typed(2026, &[(SALES, 8_000_000)])], None, 2026, &held);
    assert_eq!(assessment, Assessment::default());
}

#[test]
fn one_threshold_s_steps_are_no_other_s() {
    let held = [Held { threshold: VatBaseServices, step: 80 }];
    let assessment = assess(&[typed(2026, &[(SERVICES, 6_800_000)])], None, 2026, &held);
    let expected =
        [(MicroServices, 80), (VatBaseTotal, 80), (VatBaseServices, 100), (VatIncreasedServices, 100)];
    assert_eq!(steps(&assessment), expected);
}

const OUT: Consequence = Consequence::MicroOut { from: NaiveDate::from_ymd_opt(2027, 1, 1).unwrap() };

#[rstest]
#[case(&[(SALES, 18_870_001)], None, OUT)]
#[case(&[(SALES, 18_870_000)], None, Consequence::MicroOnce)]
// Between the ceilings of the two years: its own count.
#[case(&[(SALES, 19_000_000)], None, OUT)]
// The other ceiling of the same regime.
#[case(&[(SERVICES, 7_770_001)], None, OUT)]
#[case(&[(SERVICES, 7_770_000)], None, Consequence::MicroOnce)]
#[case(&[(SALES, 12_000_000), (LIBERAL, 7_000_000)], None, OUT)]
// Of 275 days: 142 171,2328… €.
#[case(&[(SALES, 14_217_124)], Some("2025-04-01"), OUT)]
#[case(&[(SALES, 14_217_123)], Some("2025-04-01"), Consequence::MicroOnce)]
#[case(&[(SALES, 14_217_124)], None, Consequence::MicroOnce)]
// Nothing of the year before, and none expected.
#[case(&[], None, Consequence::MicroPreviousUnknown)]
#[case(&[], Some("2025-04-01"), Consequence::MicroPreviousUnknown)]
#[case(&[], Some("2026-01-01"), Consequence::MicroOnce)]
#[case(&[], Some("2026-04-01"), Consequence::MicroOnce)]
#[case(&[], Some("2027-04-01"), Consequence::MicroPreviousUnknown)]
// What is recorded counts more than a date someone typed.
#[case(&[(SALES, 18_870_001)], Some("2026-04-01"), OUT)]
#[case(&[(SALES, 0)], None, Consequence::MicroOnce)]
fn a_ceiling_exceeded_after_such_a_year(
    #[case] before: &[(&str, i64)],
    #[case] created: Option<&str>,
    #[case] expected: Consequence,
) {
    let books = [typed(2025, before), typed(2026, &[(SALES, 20_310_001)])];
    let created = created.map(date);
    assert_eq!(consequence(&assess(&books, created, 2026, &[]), MicroTotal), expected);
    if before.is_empty() {
        let books = &books[1..];
        assert_eq!(consequence(&assess(books, created, 2026, &[]), MicroTotal), expected, "no such year");
    }
    let services = [typed(2025, before), typed(2026, &[(SERVICES, 8_360_001)])];
    assert_eq!(consequence(&assess(&services, created, 2026, &[]), MicroServices), expected);
}

#[test]
fn a_year_before_that_is_exceeded_only_perhaps_says_nothing() {
    let year = typed(2026, &[(SALES, 20_310_001)]);
    let check = |before: YearBooks, expected| {
        let assessment = assess(&[before, year.clone()], None, 2026, &[]);
        assert_eq!(consequence(&assessment, MicroTotal), expected);
    };
    check(mixed(2025, &[(5, SALES, 10_000_000, 10_000_000)]), Consequence::MicroPreviousUnknown);
    check(mixed(2025, &[(5, SALES, 20_000_000, 10_000_000)]), OUT);
    check(mixed(2025, &[(5, SALES, 9_000_000, 9_000_000)]), Consequence::MicroOnce);
    // Of the services it is certain.
    check(mixed(2025, &[(5, SALES, 2_000_000, 10_000_000), (6, SERVICES, 0, 8_000_000)]), OUT);
}

#[test]
fn a_year_before_without_known_ceilings_says_nothing() {
    let books = [typed(2022, &[(SALES, 30_000_000)]), typed(2023, &[(SALES, 18_870_001)])];
    assert_eq!(consequence(&assess(&books, None, 2023, &[]), MicroTotal), Consequence::MicroPreviousUnknown);
}

#[test]
fn in_january_both_years_are_checked_each_by_its_own_books() {
    assert_eq!(years_checked(date("2026-11-22")), [2026]);
    assert_eq!(years_checked(date("2026-12-31")), [2026]);
    assert_eq!(years_checked(date("2027-01-01")), [2026, 2027]);
    assert_eq!(years_checked(date("2027-01-31")), [2026, 2027]);
    assert_eq!(years_checked(date("2027-02-01")), [2027]);

    let books = [typed(2027, &[(SERVICES, 3_000_000)]), typed(2026, &[(SALES, 8_500_001)])];
    let last = assess(&books, None, 2026, &[]);
    assert_eq!(steps(&last), [(VatBaseTotal, 100)]);
    assert_eq!(consequence(&last, VatBaseTotal), Consequence::VatFrom { from: new_year(2027) });
    assert_eq!(steps(&assess(&books, None, 2027, &[])), [(VatBaseServices, 80)]);
    assert_eq!(assess(&books, None, 2028, &[]), Assessment::default());
}

#[rstest]
// The same money twice: 40 000 € may be 80 000 €.
#[case(&[(5, SALES, 4_000_000, 4_000_000)], Some(Doubt { typed: 4_000_000, imported: 4_000_000 }))]
// The greater side alone reaches 90 %.
#[case(&[(5, SALES, 7_650_000, 100_000)], None)]
#[case(&[(5, SALES, 7_649_999, 100_000)], Some(Doubt { typed: 7_649_999, imported: 100_000 }))]
#[case(&[(5, SALES, 0, 7_650_000)], None)]
// Months are looked at one by one: 40 000 € in each are certain.
#[case(&[(5, SALES, 4_000_000, 100), (6, SALES, 100, 4_000_000)], None)]
// Whatever the activities are called.
#[case(&[(5, SALES, 4_000_000, 0), (5, "mixte", 0, 4_000_000)],
    Some(Doubt { typed: 4_000_000, imported: 4_000_000 }))]
// A refund on one side: nothing is there twice.
#[case(&[(5, SALES, 7_700_000, -10_000)], None)]
#[case(&[(5, SALES, -10_000, 7_700_000)], None)]
fn doubts_about_90_percent(#[case] months: &[(u32, &str, i64, i64)], #[case] doubt: Option<Doubt>) {
    let assessment = assess(&[mixed(2026, months)], None, 2026, &[]);
    let crossing = of(&assessment, VatBaseTotal);
    assert_eq!((crossing.step, crossing.doubt), (90, doubt));
    let expected = if doubt.is_some() { Consequence::ToVerify } else { Consequence::Approaching };
    assert_eq!(crossing.consequence, expected);
}

#[test]
fn typed_and_imported_months_that_do_not_meet_add_up() {
    let year = YearBooks { year: 2026, sums: vec![sum(SALES, 4_000_000, 4_500_001)], mixed: vec![] };
    let assessment = assess(&[year], None, 2026, &[]);
    assert_eq!(of(&assessment, VatBaseTotal).doubt, None);
    assert_eq!(consequence(&assessment, VatBaseTotal), Consequence::VatFrom { from: new_year(2027) });
}

#[test]
fn a_doubtful_step_hides_a_certain_lower_one_and_is_used_up() {
    // 70 000 € are certain (80 %), 90 000 € perhaps (100 %).
    let year = mixed(2026, &[(5, SALES, 7_000_000, 2_000_000)]);
    let assessment = assess(std::slice::from_ref(&year), None, 2026, &[]);
    assert_eq!(steps(&assessment), [(VatBaseTotal, 100)]);
    let crossing = of(&assessment, VatBaseTotal);
    assert_eq!(crossing.turnover, 9_000_000);
    assert_eq!(crossing.doubt, Some(Doubt { typed: 7_000_000, imported: 2_000_000 }));
    assert_eq!(crossing.consequence, Consequence::ToVerify);
    let steps: Vec<u8> = assessment.used_up.iter().map(|held| held.step).collect();
    assert_eq!(steps, [80, 90, 100]);
    // Certain later, and told of once.
    let year = typed(2026, &[(SALES, 9_000_000)]);
    assert_eq!(assess(&[year], None, 2026, &assessment.used_up), Assessment::default());
}

#[test]
fn each_bucket_has_its_own_doubt() {
    // Services are there once; sales and services together may hide a repetition.
    let months = [(5, SALES, 4_000_000, 0), (5, SERVICES, 0, 3_500_000)];
    let assessment = assess(&[mixed(2026, &months)], None, 2026, &[]);
    assert_eq!(of(&assessment, VatBaseServices).doubt, None);
    let doubt = Doubt { typed: 4_000_000, imported: 3_500_000 };
    assert_eq!(of(&assessment, VatBaseTotal).doubt, Some(doubt));
}

#[test]
fn a_mail_begins_with_the_gravest() {
    let order = |books: &[YearBooks], created: Option<&str>| -> Vec<(Threshold, u8)> {
        let assessment = assess(books, created.map(date), 2026, &[]);
        assessment.crossings.iter().map(|crossing| (crossing.threshold, crossing.step)).collect()
    };
    let year = typed(2026, &[(SALES, 8_000_000), (SERVICES, 8_360_001)]);
    assert_eq!(
        order(std::slice::from_ref(&year), None),
        [
            (VatIncreasedTotal, 100),
            (VatIncreasedServices, 100),
            (MicroServices, 100), // of the year before nothing is known
            (VatBaseTotal, 100),
            (VatBaseServices, 100),
            (MicroTotal, 80),
        ]
    );
    let before = typed(2025, &[(SALES, 1)]);
    assert_eq!(
        order(&[before, year], None),
        [
            (VatIncreasedTotal, 100),
            (VatIncreasedServices, 100),
            (VatBaseTotal, 100),
            (VatBaseServices, 100),
            (MicroServices, 100),
            (MicroTotal, 80),
        ]
    );
    // 100 % perhaps, then 80 % for certain.
    let perhaps = mixed(2026, &[(4, SALES, 3_800_000, 0), (5, SERVICES, 3_000_000, 800_000)]);
    assert_eq!(order(&[perhaps], None), [(VatBaseServices, 100), (VatBaseTotal, 80)]);
}

#[test]
fn books_are_read_as_the_database_writes_them() {
    let json = r#"{
        "year": 2026,
        "sums": [{"activity": "services", "typed": 100, "imported": -5}],
        "mixed": [{"month": 5, "activity": "services", "typed": 100, "imported": -5}]
    }"#;
    let books: YearBooks = serde_json::from_str(json).unwrap();
    assert_eq!(books, mixed(2026, &[(5, "services", 100, -5)]));
    let held: Held = serde_json::from_str(r#"{"threshold": "vat_base_total", "step": 80}"#).unwrap();
    assert_eq!(held, Held { threshold: VatBaseTotal, step: 80 });
}

/// Rows of (month, activity, typed, imported), of which every month with both sides is mixed.
fn any_books(year: i32, cents: std::ops::Range<i64>) -> impl Strategy<Value = YearBooks> {
    let activity = prop::sample::select(vec![SALES, SERVICES, LIBERAL, "services", "mixte"]);
    let side = prop_oneof![Just(0), cents];
    let row = (1_u32..=12, activity, side.clone(), side);
    prop::collection::vec(row, 1..12).prop_map(move |rows| {
        let mut books = mixed(year, &rows);
        books.mixed.retain(|row| {
            let of_month = rows.iter().filter(|other| other.0 == row.month);
            of_month.clone().any(|row| row.2 != 0) && of_month.clone().any(|row| row.3 != 0)
        });
        books
    })
}

fn any_created() -> impl Strategy<Value = Option<NaiveDate>> {
    prop::option::of((2025..=2027, 1_u32..=365).prop_map(|(y, o)| NaiveDate::from_yo_opt(y, o).unwrap()))
}

fn any_held() -> impl Strategy<Value = Vec<Held>> {
    let held = (prop::sample::select(Threshold::ALL.to_vec()), prop::sample::select(vec![80, 90, 100]))
        .prop_map(|(threshold, step)| Held { threshold, step });
    prop::collection::vec(held, 0..6)
}

/// From refunds to well above the highest ceiling, in a dozen rows.
const SOME: std::ops::Range<i64> = -1_000_000..6_000_000;

proptest! {
    #[test]
    fn more_turnover_never_crosses_less(
        books in any_books(2026, SOME),
        created in any_created(),
        activity in prop::sample::select(vec![SALES, SERVICES, "mixte"]),
        more in 0_i64..10_000_000,
        is_typed: bool,
        month in prop::option::of(1_u32..=12),
    ) {
        let less = assess(std::slice::from_ref(&books), created, 2026, &[]);
        let (typed, imported) = if is_typed { (more, 0) } else { (0, more) };
        let mut richer = books;
        richer.sums.push(sum(activity, typed, imported));
        // In a month that is mixed already, or in one that is not.
        if let Some(month) = month && richer.mixed.iter().any(|row| row.month == month) {
            richer.mixed.push(MixedMonth { month, activity: activity.to_owned(), typed, imported });
        }
        let more = assess(&[richer], created, 2026, &[]);
        for held in &less.used_up {
            prop_assert!(more.used_up.contains(held), "{held:?}");
        }
        for crossing in less.crossings.iter().filter(|crossing| crossing.doubt.is_none()) {
            let other = of(&more, crossing.threshold);
            prop_assert!(other.step > crossing.step || other.doubt.is_none());
        }
    }

    #[test]
    fn what_is_told_is_told_once(
        books in any_books(2026, SOME),
        before in any_books(2025, SOME),
        created in any_created(),
        held in any_held(),
    ) {
        let books = [before, books];
        let first = assess(&books, created, 2026, &held);
        for used_up in &first.used_up {
            prop_assert!(!held.contains(used_up));
        }
        for crossing in &first.crossings {
            let told = Held { threshold: crossing.threshold, step: crossing.step };
            prop_assert!(first.used_up.contains(&told));
        }
        let held = [held, first.used_up].concat();
        let again = assess(&books, created, 2026, &held);
        prop_assert_eq!((again.crossings, again.used_up), (vec![], vec![]));
    }

    #[test]
    fn a_crossing_is_one_of_a_threshold_and_true(
        books in any_books(2026, SOME),
        created in any_created(),
    ) {
        let assessment = assess(&[books], created, 2026, &[]);
        let mut thresholds: Vec<_> = assessment.crossings.iter().map(|crossing| crossing.threshold).collect();
        thresholds.sort_unstable();
        thresholds.dedup();
        prop_assert_eq!(thresholds.len(), assessment.crossings.len());
        for crossing in &assessment.crossings {
            // The value shown is rounded down: what is shown never contradicts the step.
            let step = i64::from(crossing.step);
            prop_assert!(crossing.turnover * 100 >= crossing.ceiling * step);
            prop_assert!(crossing.step < 100 || crossing.turnover > crossing.ceiling);
            prop_assert_eq!(crossing.doubt.is_some(), crossing.consequence == Consequence::ToVerify);
            if let Some(doubt) = crossing.doubt {
                prop_assert_eq!(doubt.typed + doubt.imported, crossing.turnover);
            }
        }
    }

    #[test]
    fn services_are_a_part_of_the_total(
        books in any_books(2026, 0..6_000_000),
        created in any_created(),
        sales in 0_i64..30_000_000,
    ) {
        let services = Count::of(&books, Bucket::Services);
        let total = Count::of(&books, Bucket::Total);
        prop_assert!(services.full() <= total.full());
        prop_assert!(services.certain <= total.certain);
        prop_assert!(total.certain <= total.full());

        // And sales are no part of them.
        let mut richer = books.clone();
        richer.sums.push(sum(SALES, sales, 0));
        let of_services = |books: YearBooks| {
            let mut crossings = assess(&[books], created, 2026, &[]).crossings;
            crossings.retain(|crossing| crossing.threshold.bucket() == Bucket::Services);
            crossings
        };
        prop_assert_eq!(of_services(books), of_services(richer));
    }

    #[test]
    fn below_the_floor_nobody_is_told_anything(books in any_books(2026, -1_000_000..1_000_000)) {
        let positive: i64 = books.sums.iter().map(|sum| (sum.typed + sum.imported).max(0)).sum();
        if positive < floor(2026).unwrap() {
            prop_assert_eq!(assess(&[books], None, 2026, &[]).crossings, vec![]);
        }
    }

    #[test]
    fn no_books_panic(
        typed: i64, imported: i64, month: u32, activity in "\\PC*",
        year in prop_oneof![any::<i32>(), 2020..2032], created in any_created(),
    ) {
        let books = [mixed(year, &[(month, SERVICES, typed, imported), (month, &activity, typed, imported)])];
        let _ = assess(&books, created, year, &[]);
    }
}
