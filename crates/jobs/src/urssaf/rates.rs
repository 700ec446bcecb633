//! The rates: what share of its turnover a micro-entreprise pays, by activity and month.
//!
//! Everything is a row of [`TABLE`], with the rule of `modele-social` 11.1.0 (Urssaf's own rules, with which
//! mon-entreprise.urssaf.fr computes) that says so, or the text where the rules are silent. A test of the whole
//! compares some thousand situations with those rules (`oracle`); docs/law.md says what is sure and what is not.
//!
//! Nothing is dated after [`RATES_KNOWN_UNTIL`]. The last rates are carried on after it until the table says
//! otherwise: an estimate that is slightly off beats none, and whoever prints it is told so.

use chrono::{Datelike, Months, NaiveDate};
use serde::{Deserialize, Serialize};

use super::Activity;
use crate::schedule::Month;

/// The rates are known until this year. After it they are assumed to go on unchanged.
pub const RATES_KNOWN_UNTIL: i32 = 2026;

/// Who is created from this month on pays three quarters under ACRE, who was created before it one half.
const ACRE_REFORM: (i32, u32) = (2026, 7);

/// Represents a share of turnover, in hundredths of a percent: 12,3 % is 1230.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Rate(u32);

impl Rate {
    /// 12,3 % is `Rate::hundredths_of_percent(1230)`.
    pub const fn hundredths_of_percent(hundredths: u32) -> Self {
        Self(hundredths)
    }

    /// 12,3 % is 1230.
    pub const fn as_hundredths_of_percent(self) -> u32 {
        self.0
    }

    /// Returns the share of an amount, exactly, in the ten-thousandths of its unit.
    pub(super) const fn ten_thousandths(self, amount: i64) -> i128 {
        amount as i128 * self.0 as i128
    }
}

/// Rounds ten-thousandths of a unit to whole units, half of one away from zero: "la fraction d'euro égale à 0,50
/// est comptée pour 1" (code de la sécurité sociale, L. 133-10), and what PostgreSQL's `round(numeric)` does.
pub(super) fn whole(ten_thousandths: i128) -> i64 {
    let away = if ten_thousandths < 0 { -5_000 } else { 5_000 };
    i64::try_from((ten_thousandths + away) / 10_000).unwrap_or(i64::MAX)
}

/// Says what a rate is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Levy {
    /// Contributions are due in full, without ACRE.
    Full,
    /// Contributions are about one half, under ACRE of who was created before July 2026.
    AcreHalf,
    /// Contributions are about three quarters, under ACRE of who was created since.
    AcreThreeQuarters,
    /// It is the contribution à la formation professionnelle of commerce and liberal professions.
    Training,
    /// It is the same of craft.
    TrainingOfCraft,
    /// It is the versement libératoire de l'impôt sur le revenu.
    FlatTax,
}

listed! {
    /// Says what rates depend on: the activity, and for liberal professions the pension fund.
    #[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Category {
        /// It sells goods, food or lodging.
        Sales,
        /// It sells services (BIC).
        Services,
        /// It is a liberal profession (BNC) of the general scheme (SSI).
        Liberal,
        /// It is a liberal profession (BNC) of the Cipav.
        Cipav,
    }
}

impl Category {
    /// Returns the category of an activity as it is spelled in the rows. Liberal work belongs to
    /// the general scheme unless the spelling names the Cipav.
    pub fn parse(activity: &str) -> Option<Self> {
        Some(match Activity::parse(activity)? {
            Activity::Sales => Self::Sales,
            Activity::Services => Self::Services,
            Activity::Liberal if activity.to_lowercase().contains("cipav") => Self::Cipav,
            Activity::Liberal => Self::Liberal,
        })
    }

    /// Returns whether it is a liberal profession, of whichever scheme.
    pub const fn is_liberal(self) -> bool {
        matches!(self, Self::Liberal | Self::Cipav)
    }
}

/// Represents a rate and the month from which it holds.
struct Row {
    category: Category,
    levy: Levy,
    from: (i32, u32),
    rate: Rate,
}

const fn row(category: Category, levy: Levy, from: (i32, u32), hundredths: u32) -> Row {
    Row { category, levy, from, rate: Rate(hundredths) }
}

/// Lists the rates, the later rows of one category and levy later. `2023-01` says: before it
/// nothing is looked up.
#[rustfmt::skip]
static TABLE: [Row; 33] = {
    use Category::{Cipav, Liberal, Sales, Services};
    use Levy::{AcreHalf, AcreThreeQuarters, FlatTax, Full, Training, TrainingOfCraft};
    const START: (i32, u32) = (2023, 1);
    [
        // dirigeant . auto-entrepreneur . cotisations et contributions . cotisations .
        //   vente restauration hébergement . taux: since 10/2022.
        row(Sales,    Full, START, 1230),
        //   service BIC . taux: since 10/2022.
        row(Services, Full, START, 2120),
        //   service BNC . taux: 10/2022, then decree 2024-484 of 30 May 2024, whose 26,1 % of 2026 never came.
        row(Liberal,  Full, START, 2110),
        row(Liberal,  Full, (2024, 7), 2310),
        row(Liberal,  Full, (2025, 1), 2460),
        row(Liberal,  Full, (2026, 1), 2560),
        //   service BNC Cipav . taux: the same decree.
        row(Cipav,    Full, START, 2120),
        row(Cipav,    Full, (2024, 7), 2320),

        // dirigeant . auto-entrepreneur . Acre . taux Acre: 50 % of the above where created before 07/2026 …
        //   taux vente restauration hébergement, taux service BIC: rounded to one decimal.
        row(Sales,    AcreHalf, START, 620),
        row(Services, AcreHalf, START, 1060),
        //   taux service BNC: to one decimal, from 01/2026 on to two.
        row(Liberal,  AcreHalf, START, 1060),
        row(Liberal,  AcreHalf, (2024, 7), 1160),
        row(Liberal,  AcreHalf, (2025, 1), 1230),
        row(Liberal,  AcreHalf, (2026, 1), 1280),
        //   taux CIPAV: rates of their own, which the rules do not derive.
        row(Cipav,    AcreHalf, START, 1210),
        row(Cipav,    AcreHalf, (2024, 7), 1390),
        row(Cipav,    AcreHalf, (2026, 1), 1340),
        // … and 75 % from then on (decree 2026-69 of 6 February 2026).
        row(Sales,    AcreThreeQuarters, ACRE_REFORM, 920),
        row(Services, AcreThreeQuarters, ACRE_REFORM, 1590),
        row(Liberal,  AcreThreeQuarters, ACRE_REFORM, 1920),
        //   taux CIPAV: the rules make no difference here.
        row(Cipav,    AcreThreeQuarters, ACRE_REFORM, 1340),

        // dirigeant . auto-entrepreneur . cotisations et contributions . CFP (code du travail, L. 6331-48).
        row(Sales,    Training, START, 10),
        row(Services, Training, START, 10),
        row(Liberal,  Training, START, 20),
        row(Cipav,    Training, START, 20),
        row(Sales,    TrainingOfCraft, START, 30),
        row(Services, TrainingOfCraft, START, 30),
        row(Liberal,  TrainingOfCraft, START, 20),
        row(Cipav,    TrainingOfCraft, START, 20),

        // dirigeant . auto-entrepreneur . impôt . versement libératoire . montant (CGI, 151-0).
        row(Sales,    FlatTax, START, 100),
        row(Services, FlatTax, START, 170),
        row(Liberal,  FlatTax, START, 220),
        row(Cipav,    FlatTax, START, 220),
    ]
};

/// Returns the rate of a month; `None` before the table begins.
pub(super) fn rate(category: Category, levy: Levy, month: Month) -> Option<Rate> {
    let holds = |row: &&Row| {
        row.category == category && row.levy == levy && row.from <= (month.year(), month.month())
    };
    TABLE.iter().rfind(holds).map(|row| row.rate)
}

/// Says what ACRE makes of the contributions of a month.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Acre {
    Reduces(Levy),
    /// The month is before the creation.
    NotYet,
    /// From this day on contributions are due in full.
    Ended(NaiveDate),
}

impl Acre {
    pub(super) fn of(created: NaiveDate, month: Month) -> Self {
        let end = acre_end(created);
        if month.last_day() < created {
            Self::NotYet
        } else if month.first_day() >= end {
            Self::Ended(end)
        } else if (created.year(), created.month()) < ACRE_REFORM {
            Self::Reduces(Levy::AcreHalf)
        } else {
            Self::Reduces(Levy::AcreThreeQuarters)
        }
    }
}

/// Returns the first day on which contributions are due in full again: ACRE lasts until the end of
/// the third quarter of the calendar after the one in which the activity began, so nine to twelve
/// months ([F11677], code de la sécurité sociale, D. 131-6-3). `modele-social` only asks how old
/// the activity was on 1 January, and leaves the rest to whoever answers its question
/// "Bénéficiez-vous de l'Acre ?".
///
/// [F11677]: https://entreprendre.service-public.gouv.fr/vosdroits/F11677
pub fn acre_end(created: NaiveDate) -> NaiveDate {
    let month = Month::of(created);
    month.first_day() - Months::new((month.month() - 1) % 3) + Months::new(12)
}

/// Holds the rates of a row of `ca_records` from a month on, as the database takes them: it writes
/// the rows.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RowRate {
    /// Is spelled as imported rows spell it.
    pub activity: &'static str,
    pub from: Month,
    pub full: Rate,
    /// Is the rate with ACRE, if created before July 2026.
    pub acre_half: Option<Rate>,
    /// Is the rate with ACRE, if created since. There is none before.
    pub acre_three_quarters: Option<Rate>,
    pub flat_tax: Rate,
}

/// Returns the rates of imported rows: for each activity one entry for each month in which any of
/// them changes.
pub fn row_rates() -> Vec<RowRate> {
    let activities = [
        ("Vente de marchandises", Category::Sales),
        ("Prestation de services", Category::Services),
        ("Activité libérale", Category::Liberal),
    ];
    let mut changes: Vec<(i32, u32)> = TABLE.iter().map(|row| row.from).collect();
    changes.sort_unstable();
    changes.dedup();
    let mut rates: Vec<RowRate> = Vec::new();
    for (activity, category) in activities {
        for &(year, month) in &changes {
            let Some(from) = Month::new(year, month) else { continue };
            let rate_of = |levy| rate(category, levy, from);
            let (Some(full), Some(flat_tax)) = (rate_of(Levy::Full), rate_of(Levy::FlatTax)) else {
                continue;
            };
            let acre_half = rate_of(Levy::AcreHalf);
            let acre_three_quarters = rate_of(Levy::AcreThreeQuarters);
            rates.push(RowRate { activity, from, full, acre_half, acre_three_quarters, flat_tax });
        }
    }
    rates
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn month(text: &str) -> Month {
        text.parse().unwrap()
    }

    fn months() -> impl Iterator<Item = Month> {
        std::iter::successors(Some(month("2023-01")), |month| Some(month.next())).take(12 * 6)
    }

    #[test]
    fn nothing_is_looked_up_before_the_table_and_everything_after_its_beginning() {
        for category in Category::ALL {
            for levy in [Levy::Full, Levy::AcreHalf, Levy::Training, Levy::TrainingOfCraft, Levy::FlatTax] {
                assert_eq!(rate(category, levy, month("2022-12")), None);
                assert!(months().all(|month| rate(category, levy, month).is_some()), "{category:?} {levy:?}");
            }
            let three_quarters = |at| rate(category, Levy::AcreThreeQuarters, month(at));
            assert_eq!(three_quarters("2026-06"), None);
            assert!(three_quarters("2026-07").is_some());
        }
    }

    #[test]
    fn later_rows_come_later_and_change_something() {
        for (index, one) in TABLE.iter().enumerate() {
            let same = |other: &&Row| other.category == one.category && other.levy == one.levy;
            if let Some(other) = TABLE[index + 1..].iter().find(same) {
                assert!(one.from < other.from && one.rate != other.rate, "{:?} {:?}", one.category, one.levy);
            }
        }
    }

    #[test]
    fn rates_change_between_quarters_only() {
        assert!(TABLE.iter().all(|row| row.from.1 % 3 == 1));
    }

    #[test]
    fn acre_is_a_half_and_three_quarters_rounded_as_the_rules_round() {
        for month in months() {
            for category in [Category::Sales, Category::Services, Category::Liberal] {
                let full = rate(category, Levy::Full, month).unwrap().as_hundredths_of_percent();
                let step = if category == Category::Liberal && month.year() >= 2026 { 1 } else { 10 };
                let rounded = |percent: u32| (full * percent + 50 * step) / (100 * step) * step;
                let half = rate(category, Levy::AcreHalf, month).unwrap();
                assert_eq!(half.as_hundredths_of_percent(), rounded(50), "{category:?} {month}");
                if let Some(more) = rate(category, Levy::AcreThreeQuarters, month) {
                    assert_eq!(more.as_hundredths_of_percent(), rounded(75), "{category:?} {month}");
                }
            }
        }
    }

    #[rstest]
    #[case("2025-06-03", "2026-04-01")] // the example of F11677
    #[case("2025-04-01", "2026-04-01")]
    #[case("2025-12-31", "2026-10-01")]
    #[case("2026-01-01", "2027-01-01")]
    #[case("2026-03-31", "2027-01-01")]
    #[case("2024-02-29", "2025-01-01")]
    fn acre_ends_with_the_third_quarter_after(#[case] created: NaiveDate, #[case] end: NaiveDate) {
        assert_eq!(acre_end(created), end);
        let last = Month::of(end).previous();
        assert!(matches!(Acre::of(created, last), Acre::Reduces(_)));
        assert_eq!(Acre::of(created, last.next()), Acre::Ended(end));
        assert!(matches!(Acre::of(created, Month::of(created)), Acre::Reduces(_)));
        assert_eq!(Acre::of(created, Month::of(created).previous()), Acre::NotYet);
    }

    #[rstest]
    #[case("2026-06-30", Levy::AcreHalf)]
    #[case("2026-07-01", Levy::AcreThreeQuarters)]
    fn the_creation_decides_how_much(#[case] created: NaiveDate, #[case] levy: Levy) {
        assert_eq!(Acre::of(created, month("2026-11")), Acre::Reduces(levy));
    }

    #[rstest]
    #[case("Activité libérale", Some(Category::Liberal))]
    #[case("Profession libérale (CIPAV)", Some(Category::Cipav))]
    #[case("BNC Cipav", Some(Category::Cipav))]
    #[case("cipav", Some(Category::Cipav))]
    #[case("Vente", Some(Category::Sales))]
    #[case("Vente Cipav", None)]
    fn categories(#[case] activity: &str, #[case] expected: Option<Category>) {
        assert_eq!(Category::parse(activity), expected);
    }

    #[rstest]
    #[case(4_999, 0)]
    #[case(5_000, 1)]
    #[case(14_999, 1)]
    #[case(-5_000, -1)]
    #[case(-4_999, 0)]
    fn halves_are_rounded_away_from_zero(#[case] ten_thousandths: i128, #[case] expected: i64) {
        assert_eq!(whole(ten_thousandths), expected);
    }
}
