//! Says by when turnover is declared. Whether a user declares monthly or quarterly is not known: mails print both.
//!
//! A date on a Saturday, a Sunday or a public holiday of mainland France moves to the next working day.
//!
//! ```
//! # use jobs::{schedule::Month, urssaf::{monthly_due, quarterly_due}};
//! let december: Month = "2026-12".parse().unwrap();
//! // 31 January 2027 is a Sunday.
//! assert_eq!(monthly_due(december).to_string(), "2027-02-01");
//! assert_eq!(quarterly_due(december).to_string(), "2027-02-01");
//! ```

use chrono::{Datelike, Days, NaiveDate, Weekday};

use crate::schedule::Month;

/// Returns the last day of the following month, or the next working day.
pub fn monthly_due(month: Month) -> NaiveDate {
    working_day(month.next().last_day())
}

/// Returns 30 April, 31 July, 31 October or 31 January, whichever follows the month's quarter, or the next working day.
pub fn quarterly_due(month: Month) -> NaiveDate {
    let mut last = month;
    while !last.month().is_multiple_of(3) {
        last = last.next();
    }
    monthly_due(last)
}

/// Returns the first working day from `date` on.
fn working_day(mut date: NaiveDate) -> NaiveDate {
    while !is_working_day(date) {
        date = date + Days::new(1);
    }
    date
}

fn is_working_day(date: NaiveDate) -> bool {
    !matches!(date.weekday(), Weekday::Sat | Weekday::Sun) && !is_holiday(date)
}

/// Returns whether a date is a public holiday of mainland France. Those of Alsace-Moselle and overseas are left out:
/// they could only put a date off for some.
fn is_holiday(date: NaiveDate) -> bool {
    let fixed = matches!(
        (date.month(), date.day()),
        (1 | 5 | 11, 1) | (5, 8) | (7, 14) | (8, 15) | (11, 11) | (12, 25)
    );
    let since_easter = (date - easter(date.year())).num_days();
    // Easter Monday, Ascension, Whit Monday.
    fixed || matches!(since_easter, 1 | 39 | 50)
}

/// Returns Easter Sunday of the Gregorian calendar: the Sunday after the full moon of the church's tables that falls
/// on 21 March or next follows it.
fn easter(year: i32) -> NaiveDate {
    let century = year.div_euclid(100);
    // The moon's phases return to the same dates every nineteen years, but for what the calendar's skipped
    // leap days and the moon's own drift add up to, a century at a time.
    let cycle = year.rem_euclid(19);
    let skipped = century - century.div_euclid(4);
    let drift = (8 * century + 13).div_euclid(25);
    let moon = (19 * cycle + skipped - drift + 15).rem_euclid(30);
    // The tables keep all nineteen moons apart, and none after 18 April.
    let moon = moon - i32::from(moon == 29 || (moon == 28 && cycle > 10));
    let full_moon = NaiveDate::from_ymd_opt(year, 3, 21).expect("a year of the calendar")
        + Days::new(u64::from(moon.unsigned_abs()));
    full_moon + Days::new(u64::from(7 - full_moon.weekday().num_days_from_sunday()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn month(text: &str) -> Month {
        text.parse().unwrap()
    }

    #[rstest]
    #[case("2026-11", "2026-12-31")]
    // Sundays.
    #[case("2026-12", "2027-02-01")]
    #[case("2027-01", "2027-03-01")]
    #[case("2026-01", "2026-03-02")]
    // A Saturday, then All Saints' on the Sunday.
    #[case("2026-09", "2026-11-02")]
    // A Saturday, then Labour Day on the Sunday.
    #[case("2022-03", "2022-05-02")]
    // Easter Sunday, then its Monday.
    #[case("2024-02", "2024-04-02")]
    // Easter Saturday.
    #[case("2018-02", "2018-04-03")]
    // Whit Monday itself.
    #[case("2004-04", "2004-06-01")]
    // Ascension itself.
    #[case("2057-04", "2057-06-01")]
    // Ascension, Labour Day, Saturday, Sunday: the longest there is.
    #[case("2285-03", "2285-05-04")]
    // Leap years.
    #[case("2028-01", "2028-02-29")]
    #[case("2024-01", "2024-02-29")]
    fn monthly(#[case] of: &str, #[case] due: &str) {
        assert_eq!(monthly_due(month(of)).to_string(), due);
    }

    #[rstest]
    #[case(["2026-01", "2026-02", "2026-03"], "2026-04-30")]
    #[case(["2026-04", "2026-05", "2026-06"], "2026-07-31")]
    #[case(["2026-07", "2026-08", "2026-09"], "2026-11-02")]
    #[case(["2026-10", "2026-11", "2026-12"], "2027-02-01")]
    #[case(["2022-01", "2022-02", "2022-03"], "2022-05-02")]
    #[case(["2027-10", "2027-11", "2027-12"], "2028-01-31")]
    fn quarterly(#[case] of: [&str; 3], #[case] due: &str) {
        for of in of {
            assert_eq!(quarterly_due(month(of)).to_string(), due, "of {of}");
        }
    }

    #[rstest]
    #[case("1818-03-22")] // the earliest
    #[case("1943-04-25")] // the latest
    #[case("1954-04-18")]
    #[case("1981-04-19")]
    #[case("2000-04-23")]
    #[case("2008-03-23")]
    #[case("2024-03-31")]
    #[case("2025-04-20")]
    #[case("2026-04-05")]
    #[case("2027-03-28")]
    #[case("2028-04-16")]
    #[case("2038-04-25")]
    #[case("2049-04-18")]
    #[case("2076-04-19")]
    fn easters(#[case] expected: NaiveDate) {
        assert_eq!(easter(expected.year()), expected);
    }

    #[test]
    fn the_holidays_of_a_year() {
        let holidays: Vec<String> = NaiveDate::from_ymd_opt(2026, 1, 1)
            .unwrap()
            .iter_days()
            .take_while(|date| date.year() == 2026)
            .filter(|&date| is_holiday(date))
            .map(|date| date.format("%m-%d").to_string())
            .collect();
        assert_eq!(
            holidays,
            [
                "01-01", "04-06", "05-01", "05-08", "05-14", "05-25", "07-14", "08-15", "11-01", "11-11",
                "12-25"
            ]
        );
    }

    proptest! {
        #[test]
        fn a_due_date_is_the_first_working_day_from_the_nominal_one(year in 1900..2300, number in 1_u32..=12) {
            let month = Month::new(year, number).unwrap();
            let due = monthly_due(month);
            let nominal = month.next().last_day();
            prop_assert!(is_working_day(due));
            prop_assert!(nominal <= due);
            prop_assert!(nominal.iter_days().take_while(|&date| date < due).all(|date| !is_working_day(date)));
            prop_assert!((due - nominal).num_days() <= 4, "{month}: {due}");
        }

        #[test]
        fn a_quarter_has_one_due_date_never_before_the_month_s(year in 1900..2300, number in 1_u32..=12) {
            let month = Month::new(year, number).unwrap();
            let due = quarterly_due(month);
            prop_assert!(is_working_day(due));
            prop_assert!(monthly_due(month) <= due);
            prop_assert!(matches!(due.month(), 1 | 2 | 4 | 5 | 7 | 8 | 10 | 11));
            if number.is_multiple_of(3) {
                prop_assert_eq!(due, monthly_due(month));
            }
        }

        #[test]
        fn easter_is_a_sunday_between_22_march_and_25_april(year in 1583..4100) {
            let easter = easter(year);
            prop_assert_eq!(easter.weekday(), Weekday::Sun);
            prop_assert!((22..=56).contains(&(easter.ordinal() - 59 - u32::from(easter.leap_year()))));
        }
    }
}
