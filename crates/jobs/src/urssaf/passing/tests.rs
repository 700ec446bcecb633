//! The day, the month or the year in which a ceiling was passed, and when it will be.

use rstest::rstest;

use super::super::books::{BookRow, DaySum, UserBooks, YearBooks};
use super::super::{Threshold, Threshold::VatIncreasedServices};
use super::*;

const SERVICES: &str = "Prestation de services";

fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

/// Rows: month of 2026, typed and imported cents.
fn books(rows: &[(u32, i64, i64)]) -> UserBooks {
    let row = |&(month, typed, imported): &(u32, i64, i64)| BookRow {
        month,
        activity: SERVICES.to_owned(),
        typed,
        imported,
        mixed: typed != 0 && imported != 0,
    };
    let years = vec![YearBooks { year: 2026, rows: rows.iter().map(row).collect() }];
    UserBooks { years, ..UserBooks::default() }
}

fn days(sums: &[(&str, i64)]) -> Vec<DaySum> {
    let sum = |&(on, amount): &(&str, i64)| DaySum { day: day(on), activity: SERVICES.to_owned(), amount };
    sums.iter().map(sum).collect()
}

/// Against the increased threshold of services, 41 250 €.
fn passing_of(books: &UserBooks, reading: Reading) -> Option<Passing> {
    let months = Months::of(books, day("2026-12-31"));
    let ceiling = VatIncreasedServices.ceiling(2026, None).unwrap();
    passing(&months, 2026, Bucket::Services, ceiling, reading)
}

fn on(text: &str) -> Passed {
    Passed::On(day(text))
}

fn within(text: &str) -> Passed {
    Passed::In(text.parse().unwrap())
}

#[rstest]
#[case(&[(3, 4_125_000, 0)], None)]
#[case(&[(3, 4_125_001, 0)], Some(within("2026-03")))]
#[case(&[(3, 4_000_000, 0), (6, 125_001, 0)], Some(within("2026-06")))]
// A refund later takes nothing back: the first time counts.
#[case(&[(3, 4_200_000, 0), (4, -500_000, 0), (9, 900_000, 0)], Some(within("2026-03")))]
// Perhaps in March already.
#[case(&[(3, 3_000_000, 2_000_000), (6, 2_000_000, 0)], Some(Passed::During(2026)))]
// In March, whatever is there twice.
#[case(&[(3, 4_200_000, 1_000), (6, 2_000_000, 0)], Some(within("2026-03")))]
fn the_month_of_what_is_typed(#[case] rows: &[(u32, i64, i64)], #[case] expected: Option<Passed>) {
    let found = passing_of(&books(rows), Reading::Same);
    assert_eq!(found.map(|passing| passing.passed), expected);
    assert!(found.is_none_or(|passing| passing.asks.is_none()), "what is typed has no days");
}

#[test]
fn if_nothing_is_there_twice_the_month_is_known() {
    let found = passing_of(&books(&[(3, 3_000_000, 2_000_000), (6, 2_000_000, 0)]), Reading::Distinct);
    assert_eq!(found.map(|passing| passing.passed), Some(within("2026-03")));
}

#[rstest]
#[case(&[], within("2026-06"))]
#[case(&[("2026-06-04", 300_000), ("2026-06-12", 700_000)], on("2026-06-12"))]
// Reached is not exceeded: 41 250,00, then a cent.
#[case(&[("2026-06-01", 825_000), ("2026-06-30", 175_000)], on("2026-06-30"))]
// The days are those of the books, refunds and all.
#[case(&[("2026-06-02", 900_000), ("2026-06-03", -500_000), ("2026-06-20", 600_000)], on("2026-06-02"))]
// They do not add up to what the books say: the row was edited.
#[case(&[("2026-06-04", 300_000), ("2026-06-12", 800_000)], within("2026-06"))]
// Days of another month say nothing.
#[case(&[("2026-05-04", 1_000_000)], within("2026-06"))]
fn movements_tell_the_day(#[case] sums: &[(&str, i64)], #[case] expected: Passed) {
    let mut books = books(&[(3, 0, 3_300_000), (6, 0, 1_000_000)]);
    books.days = days(sums);
    let found = passing_of(&books, Reading::Same).unwrap();
    assert_eq!(found.passed, expected);
    let is_june = |sum: &&(&str, i64)| sum.0.starts_with("2026-06");
    assert_eq!(found.asks.is_some(), !sums.iter().any(|sum| is_june(&sum)), "asks for the days of June");
}

/// Against the base threshold of services, 37 500 €.
fn outlook_of(rows: &[(u32, i64, i64)], turnover: i64, today: &str) -> Option<Outlook> {
    let books = books(rows);
    let months = Months::of(&books, day(today));
    let ceiling = Threshold::VatBaseServices.ceiling(2026, None).unwrap();
    outlook(&months, Bucket::Services, ceiling, turnover.into(), day(today))
}

#[test]
fn the_pace_of_the_whole_months_goes_on() {
    // 4 300 € a month for eight months; 3 100 € are left, some 22 days from 1 September on: nothing of it is typed yet.
    let eight: Vec<_> = (1..=8).map(|month| (month, 430_000, 0)).collect();
    let found = outlook_of(&eight, 3_440_000, "2026-09-14").unwrap();
    assert_eq!((found.on, found.months), (Some(day("2026-09-22")), 8));
    // With the turnover of September, from today on.
    let nine = [eight.clone(), vec![(9, 100_000, 0)]].concat();
    let found = outlook_of(&nine, 3_540_000, "2026-09-14").unwrap();
    assert_eq!(found.on, Some(day("2026-09-28")));
    // Never in the past.
    let found = outlook_of(&eight, 3_440_000, "2026-09-29").unwrap();
    assert_eq!(found.on, Some(day("2026-09-29")));
}

#[test]
fn what_does_not_come_within_the_year_is_said_to_stay_below() {
    let found = outlook_of(&[(1, 3_050_000, 0)], 3_050_000, "2026-11-24").unwrap();
    assert_eq!((found.on, found.months), (None, 10));
}

#[test]
fn without_a_whole_month_or_without_income_there_is_no_pace() {
    assert_eq!(outlook_of(&[(11, 3_050_000, 0)], 3_050_000, "2026-11-24"), None);
    assert_eq!(outlook_of(&[(3, -100, 0), (11, 3_050_000, 0)], 3_049_900, "2026-11-24"), None);
    assert_eq!(outlook_of(&[(3, 4_000_000, 0)], 4_000_000, "2026-11-24"), None, "it is passed");
}
