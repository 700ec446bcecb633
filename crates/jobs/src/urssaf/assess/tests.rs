//! The steps of every threshold, to the cent, and what is told of them.

use proptest::prelude::*;
use rstest::rstest;

use super::super::Threshold::{
    MicroServices, MicroTotal, VatBaseServices, VatBaseTotal, VatIncreasedServices, VatIncreasedTotal,
};
use super::super::{BookRow, YearBooks, floor};
use super::*;

mod told;

const SALES: &str = "Vente de marchandises";
const SERVICES: &str = "Prestation de services";
const LIBERAL: &str = "Activité libérale";

/// Returns typed rows of one month.
fn typed(month: u32, sums: &[(&str, i64)]) -> Vec<BookRow> {
    sums.iter().map(|&(activity, typed)| row(month, activity, typed, 0)).collect()
}

/// Returns a row of a month that is mixed if it has both sides.
fn row(month: u32, activity: &str, typed: i64, imported: i64) -> BookRow {
    let mixed = typed != 0 && imported != 0;
    BookRow { month, activity: activity.to_owned(), typed, imported, mixed }
}

/// Returns rows of months that have both sides each.
fn mixed(months: &[(u32, &str, i64, i64)]) -> Vec<BookRow> {
    let row = |&(month, activity, typed, imported): &(u32, &str, i64, i64)| BookRow {
        mixed: true,
        ..row(month, activity, typed, imported)
    };
    months.iter().map(row).collect()
}

fn books(rows: Vec<BookRow>, created: Option<&str>) -> UserBooks {
    of_year(2026, rows, created)
}

fn of_year(year: i32, rows: Vec<BookRow>, created: Option<&str>) -> UserBooks {
    UserBooks { years: vec![YearBooks { year, rows }], created: created.map(date), days: Vec::new() }
}

fn date(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

/// New Year's Eve: nothing is still to come.
fn eve(year: i32) -> NaiveDate {
    NaiveDate::from_ymd_opt(year, 12, 31).unwrap()
}

fn found(books: &UserBooks, told: &[Told]) -> Assessment {
    assess(books, told, 2026, eve(2026)).unwrap()
}

/// Returns the highest steps to be told, by threshold.
fn steps(assessment: &Assessment) -> Vec<(Threshold, u8)> {
    let mut steps = std::collections::BTreeMap::new();
    for told in &assessment.tell {
        let highest = steps.entry(told.threshold).or_insert(told.step);
        *highest = told.step.max(*highest);
    }
    steps.into_iter().collect()
}

fn of(assessment: &Assessment, threshold: Threshold) -> &Crossing {
    let mut crossings = assessment.crossings.iter();
    crossings.find(|crossing| crossing.threshold == threshold).expect("crossed")
}

#[track_caller]
fn check(year: i32, sums: &[(&str, i64)], created: Option<&str>, expected: &[(Threshold, u8)]) {
    let books = of_year(year, typed(12, sums), created);
    let Some(assessment) = assess(&books, &[], year, eve(year)) else {
        return assert_eq!(expected, [], "{year}");
    };
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
#[case(7_523_999, &[(MicroServices, 80), (VatBaseServices, 100), (VatIncreasedServices, 100)])]
#[case(7_524_000, &[(MicroServices, 90), (VatBaseServices, 100), (VatIncreasedServices, 100)])]
#[case(8_360_000, &[(MicroServices, 90), (VatBaseServices, 100), (VatIncreasedServices, 100)])]
#[case(8_360_001, &[(MicroServices, 100), (VatBaseServices, 100), (VatIncreasedServices, 100)])]
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
    let books = of_year(year, typed(12, &[(activity, cents)]), None);
    assert_eq!(of(&assess(&books, &[], year, eve(year)).unwrap(), threshold).step, step);
}

#[test]
fn a_year_without_figures_has_no_thresholds() {
    check(2022, &[(SALES, i64::MAX)], None, &[]);
    check(2024, &[(SALES, 20_000_000)], None, &[(MicroTotal, 100)]);
    check(2029, &[(SALES, 50_000_000)], None, &[(VatBaseTotal, 100), (VatIncreasedTotal, 100)]);
    assert_eq!(assess(&of_year(2026, typed(1, &[(SALES, 1)]), None), &[], i32::MIN, eve(2026)), None);
    assert_eq!(assess(&of_year(2026, typed(1, &[(SALES, 1)]), None), &[], i32::MAX, eve(2026)), None);
}

#[test]
fn sales_never_count_as_services() {
    check(2026, &[(SALES, 3_800_001), (SERVICES, 2_999_999)], None, &[(VatBaseTotal, 80)]);
    let both = [(SALES, 3_800_001), (SERVICES, 3_000_000)];
    check(2026, &both, None, &[(VatBaseTotal, 80), (VatBaseServices, 80)]);
    let assessment = found(&books(typed(12, &both), None), &[]);
    assert_eq!(of(&assessment, VatBaseTotal).turnover, 6_800_001);
    assert_eq!(of(&assessment, VatBaseServices).turnover, 3_000_000);
}

/// The total has higher limits: of services alone it tells nothing that the services' line does not.
#[test]
fn the_total_is_told_of_only_where_there_is_other_turnover() {
    let shown = |sums: &[(&str, i64)]| -> Vec<(Threshold, u8)> {
        let assessment = found(&books(typed(12, sums), None), &[]);
        let is_shown = assessment.crossings.iter().any(|crossing| crossing.threshold == VatBaseTotal);
        let is_used_up = assessment.tell.iter().any(|told| told.threshold == VatBaseTotal);
        assert_eq!(is_used_up, is_shown, "what no mail says is not used up");
        assessment.crossings.iter().map(|crossing| (crossing.threshold, crossing.step)).collect()
    };
    let services = [(VatBaseServices, 100), (VatIncreasedServices, 100), (MicroServices, 80)];
    assert_eq!(shown(&[(SERVICES, 4_000_000), (LIBERAL, 2_800_000)]), services);
    assert_eq!(shown(&[(SERVICES, 6_900_000), (SALES, -10_000)]), services);
    let expected =
        [(VatBaseServices, 100), (VatIncreasedServices, 100), (MicroServices, 80), (VatBaseTotal, 80)];
    assert_eq!(shown(&[(SERVICES, 6_800_000), ("troc", 1)]), expected);
}

#[test]
fn an_unknown_activity_counts_in_the_total_and_is_reported() {
    let sums = [("mixte", 6_000_000), (SERVICES, 1_000_000), (" Troc ", 0), ("mixte ", 0), ("", 1)];
    let assessment = found(&books(typed(12, &sums), None), &[]);
    assert_eq!(steps(&assessment), [(VatBaseTotal, 80)]);
    assert_eq!(assessment.unknown_activities, ["", "Troc", "mixte"]);
    // Those of another year are that year's.
    let mut books = books(typed(12, &[(SALES, 1)]), None);
    books.years.push(YearBooks { year: 2025, rows: typed(1, &[("mixte", 1)]) });
    let assessment = found(&books, &[]);
    assert_eq!((assessment.unknown_activities, assessment.tell), (vec![], vec![]));
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
// (services) and 256,1643… € (total): what all turnover reaches is not told beside the services' line.
#[case("2026-12-31", 8_219, &[])]
#[case("2026-12-31", 8_220, &[(VatBaseServices, 80)])]
#[case("2026-12-31", 10_274, &[(VatBaseServices, 100)])]
#[case("2026-12-31", 22_905, &[
    (MicroServices, 100), (VatBaseServices, 100), (VatIncreasedServices, 100),
])]
#[case("2026-12-31", 25_617, &[
    (MicroServices, 100), (VatBaseServices, 100), (VatIncreasedServices, 100),
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
    let assessment = found(&books(typed(12, &[(SERVICES, 4_125_001)]), Some("2026-04-01")), &[]);
    let shown = |threshold| {
        let crossing = of(&assessment, threshold);
        (crossing.ceiling, crossing.full_year_ceiling)
    };
    assert_eq!(shown(VatBaseServices), (2_825_342, Some(3_750_000)));
    assert_eq!(shown(VatIncreasedServices), (3_107_876, Some(4_125_000)));
}

/// Turnover of a month before it says that the date is wrong, or that the activity began anew. Nothing is reduced by
/// it.
#[test]
fn a_creation_date_that_the_books_contradict_shrinks_no_ceiling() {
    let rows = [typed(3, &[(SERVICES, 100)]), typed(5, &[(SERVICES, 2_999_899)])].concat();
    let assessment = found(&books(rows.clone(), Some("2026-04-01")), &[]);
    assert_eq!(assessment.tell, []);
    assert_eq!(assessment.contradiction, Some((date("2026-04-01"), "2026-03".parse().unwrap())));
    let assessment = found(&books(rows, Some("2026-03-31")), &[]);
    assert_eq!((steps(&assessment)[0], assessment.contradiction), ((VatBaseServices, 100), None));
    // A refund, or nothing, is no turnover.
    let rows = [typed(3, &[(SERVICES, -100)]), typed(5, &[(SERVICES, 2_999_899)])].concat();
    assert_eq!(found(&books(rows, Some("2026-04-01")), &[]).contradiction, None);
}

/// It is planned, not cashed.
#[test]
fn what_is_typed_for_a_month_to_come_does_not_count_yet() {
    let rows = [typed(10, &[(SERVICES, 2_999_999)]), typed(11, &[(SERVICES, 1)])].concat();
    let books = books(rows, None);
    let on = |day| assess(&books, &[], 2026, date(day)).unwrap();
    assert_eq!((on("2026-10-31").tell.len(), on("2026-10-31").planned), (0, 1));
    assert_eq!((on("2026-11-01").tell.len(), on("2026-11-01").planned), (1, 0));
}

#[test]
fn after_new_year_the_year_before_is_checked_until_a_week_after_its_last_deadline() {
    // The fourth quarter of 2026 is due on 1 February 2027, a Monday; that of 2027 on 31 January 2028.
    for (day, years) in [
        ("2026-11-22", vec![2026]),
        ("2026-12-31", vec![2026]),
        ("2027-01-01", vec![2026, 2027]),
        ("2027-02-01", vec![2026, 2027]),
        ("2027-02-08", vec![2026, 2027]),
        ("2027-02-09", vec![2027]),
        ("2028-02-07", vec![2027, 2028]),
        ("2028-02-08", vec![2028]),
    ] {
        assert_eq!(years_checked(date(day)), years, "{day}");
    }
    let mut books = books(typed(12, &[(SALES, 8_500_001)]), None);
    books.years.push(YearBooks { year: 2027, rows: typed(1, &[(SERVICES, 3_000_000)]) });
    let on = |year| assess(&books, &[], year, date("2027-01-20")).unwrap();
    assert_eq!(steps(&on(2026)), [(VatBaseTotal, 100)]);
    assert_eq!(steps(&on(2027)), [(VatBaseServices, 80)]);
    assert_eq!(steps(&on(2028)), []);
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
    let assessment = found(&books(mixed(months), None), &[]);
    let crossing = of(&assessment, VatBaseTotal);
    assert_eq!((crossing.step, crossing.doubt), (90, doubt));
    let told_as = if doubt.is_some() { ToldAs::ToVerify } else { ToldAs::Certain };
    assert!(assessment.tell.contains(&Telling { threshold: VatBaseTotal, step: 90, told_as }));
}

#[test]
fn typed_and_imported_months_that_do_not_meet_add_up() {
    let rows = vec![row(4, SALES, 4_000_000, 0), row(5, SALES, 0, 4_500_001)];
    let assessment = found(&books(rows, None), &[]);
    assert_eq!((of(&assessment, VatBaseTotal).step, of(&assessment, VatBaseTotal).doubt), (100, None));
}

#[test]
fn each_bucket_has_its_own_doubt() {
    // Services are there once; sales and services together may hide a repetition.
    let months = [(5, SALES, 4_000_000, 0), (5, SERVICES, 0, 3_500_000)];
    let assessment = found(&books(mixed(&months), None), &[]);
    assert_eq!(of(&assessment, VatBaseServices).doubt, None);
    let doubt = Doubt { typed: 4_000_000, imported: 3_500_000 };
    assert_eq!(of(&assessment, VatBaseTotal).doubt, Some(doubt));
}

#[test]
fn books_are_read_as_the_database_writes_them() {
    let json = r#"{
        "year": 2026,
        "sums": [{"activity": "services", "typed": 100, "imported": -5}],
        "rows": [{"month": 5, "activity": "services", "typed": 100, "imported": -5, "mixed": true}]
    }"#;
    let books: YearBooks = serde_json::from_str(json).unwrap();
    assert_eq!(books, YearBooks { year: 2026, rows: mixed(&[(5, "services", 100, -5)]) });
    let json = r#"{"threshold": "vat_base_total", "step": 80, "told_as": "to_verify", "times": 1, "withdrawn": false}"#;
    let told: Told = serde_json::from_str(json).unwrap();
    let telling = Telling { threshold: VatBaseTotal, step: 80, told_as: ToldAs::ToVerify };
    assert_eq!(told, Told { telling, times: 1, withdrawn: false });
}

/// Makes rows of (month, activity, typed, imported), of which every month with both sides is mixed.
fn any_rows(cents: std::ops::Range<i64>) -> impl Strategy<Value = Vec<BookRow>> {
    let activity = prop::sample::select(vec![SALES, SERVICES, LIBERAL, "services", "mixte"]);
    let side = prop_oneof![Just(0), cents];
    let row = (1_u32..=12, activity, side.clone(), side);
    prop::collection::vec(row, 1..12).prop_map(|rows| with_mixed(mixed(&rows)))
}

/// Marks the months that have both sides.
fn with_mixed(mut rows: Vec<BookRow>) -> Vec<BookRow> {
    let has = |month, side: fn(&BookRow) -> i64, rows: &[BookRow]| {
        rows.iter().any(|row| row.month == month && side(row) != 0)
    };
    for index in 0..rows.len() {
        let month = rows[index].month;
        rows[index].mixed = has(month, |row| row.typed, &rows) && has(month, |row| row.imported, &rows);
    }
    rows
}

fn any_created() -> impl Strategy<Value = Option<NaiveDate>> {
    prop::option::of((2025..=2027, 1_u32..=365).prop_map(|(y, o)| NaiveDate::from_yo_opt(y, o).unwrap()))
}

/// Goes from refunds to well above the highest ceiling, in a dozen rows.
const SOME: std::ops::Range<i64> = -1_000_000..6_000_000;

proptest! {
    #[test]
    fn more_turnover_never_crosses_less(
        rows in any_rows(SOME),
        activity in prop::sample::select(vec![SALES, SERVICES, "mixte"]),
        more in 0_i64..10_000_000,
        is_typed: bool,
        month in 1_u32..=12,
    ) {
        let less = found(&books(rows.clone(), None), &[]);
        let (typed, imported) = if is_typed { (more, 0) } else { (0, more) };
        let mut richer = rows;
        richer.push(row(month, activity, typed, imported));
        let more = found(&books(with_mixed(richer), None), &[]);
        for told in less.tell.iter().filter(|told| told.told_as == ToldAs::Certain) {
            prop_assert!(more.tell.contains(told), "{told:?}");
        }
    }

    #[test]
    fn a_crossing_is_one_of_a_threshold_and_true(rows in any_rows(SOME), created in any_created()) {
        let books = UserBooks { created, ..books(rows, None) };
        let assessment = found(&books, &[]);
        let mut thresholds: Vec<_> = assessment.crossings.iter().map(|crossing| crossing.threshold).collect();
        thresholds.sort_unstable();
        thresholds.dedup();
        prop_assert_eq!(thresholds.len(), assessment.crossings.len());
        for crossing in &assessment.crossings {
            // The value shown is rounded down: what is shown never contradicts the step.
            let step = i64::from(crossing.step);
            prop_assert!(crossing.turnover * 100 >= crossing.ceiling * step);
            prop_assert!(crossing.step < 100 || crossing.turnover > crossing.ceiling);
            if let Some(doubt) = crossing.doubt {
                prop_assert_eq!(doubt.typed + doubt.imported, crossing.turnover);
                prop_assert_eq!(crossing.passed, None);
            }
        }
    }

    #[test]
    fn services_are_a_part_of_the_total(
        rows in any_rows(0..6_000_000),
        created in any_created(),
        sales in 0_i64..30_000_000,
    ) {
        let books = UserBooks { created, ..books(rows.clone(), None) };
        let of = |books: &UserBooks, bucket| Months::of(books, eve(2026)).year(2026, bucket);
        let (services, total) = (of(&books, Bucket::Services), of(&books, Bucket::Total));
        for reading in [Reading::Same, Reading::Distinct] {
            prop_assert!(services.read(reading) <= total.read(reading));
        }
        prop_assert!(total.read(Reading::Same) <= total.read(Reading::Distinct));

        // And sales are no part of them.
        let mut richer = books.clone();
        richer.years[0].rows.push(row(12, SALES, sales, 0));
        prop_assert_eq!(of(&richer, Bucket::Services).typed, services.typed);
    }

    #[test]
    fn below_the_floor_nobody_is_told_anything(rows in any_rows(-1_000_000..1_000_000)) {
        let positive: i64 = rows.iter().map(|row| (row.typed + row.imported).max(0)).sum();
        if positive < floor(2026).unwrap() {
            prop_assert_eq!(found(&books(rows, None), &[]).tell, vec![]);
        }
    }

    #[test]
    fn no_books_panic(
        typed: i64, imported: i64, month: u32, activity in "\\PC*",
        year in prop_oneof![any::<i32>(), 2020..2032], created in any_created(),
        today in (2020..2032, 1_u32..=365).prop_map(|(y, o)| NaiveDate::from_yo_opt(y, o).unwrap()),
    ) {
        let rows = mixed(&[(month, SERVICES, typed, imported), (month % 13, &activity, typed, imported)]);
        let books = UserBooks { created, ..of_year(year, rows, None) };
        let _ = assess(&books, &[], year, today);
    }
}
