//! Makes alerts to look at: each from books, by the same rules as those that are sent.

use std::collections::BTreeMap;

use chrono::NaiveDate;

use super::super::{AlertRemarks, Assumed, Facts, Retracted, Uncounted};
use crate::{
    schedule::Month,
    urssaf::{BookRow, Consequence, DaySum, Telling, Threshold, Told, ToldAs, UserBooks, YearBooks, assess},
};

const SALES: &str = "Vente de marchandises";
const SERVICES: &str = "Prestation de services";
const LIBERAL: &str = "Activité libérale";

/// Represents a user whose books cause an alert.
struct Story {
    books: UserBooks,
    as_of: NaiveDate,
    /// What the mail tells of; the rest was told before.
    tells_of: Vec<Threshold>,
    remarks: AlertRemarks,
    first_name: Option<&'static str>,
}

impl Story {
    /// Rows: month, activity, typed and imported euros.
    fn new(as_of: &str, rows: &[(&str, &str, i64, i64)], tells_of: &[Threshold]) -> Self {
        let mut years: BTreeMap<i32, Vec<BookRow>> = BTreeMap::new();
        for &(of, activity, typed, imported) in rows {
            let of: Month = of.parse().expect("a month");
            years.entry(of.year()).or_default().push(BookRow {
                month: of.month(),
                activity: activity.to_owned(),
                typed: typed * 100,
                imported: imported * 100,
                mixed: typed != 0 && imported != 0,
            });
        }
        let years = years.into_iter().map(|(year, rows)| YearBooks { year, rows }).collect();
        Self {
            books: UserBooks { years, created: None, days: Vec::new() },
            as_of: day(as_of),
            tells_of: tells_of.to_vec(),
            remarks: AlertRemarks::default(),
            first_name: Some("Camille"),
        }
    }

    fn created(mut self, on: &str) -> Self {
        self.books.created = Some(day(on));
        self
    }

    /// Movements of the days of a month, in euros.
    fn days(mut self, days: &[(&str, i64)]) -> Self {
        let sum = |&(on, euros): &(&str, i64)| DaySum {
            day: day(on),
            activity: SERVICES.to_owned(),
            amount: euros * 100,
        };
        self.books.days = days.iter().map(sum).collect();
        self
    }

    fn facts(self, year: i32) -> Facts {
        let others = Threshold::ALL.into_iter().filter(|threshold| !self.tells_of.contains(threshold));
        let told = |threshold: Threshold| {
            let kinds = [ToldAs::Certain, ToldAs::ToVerify];
            let step = move |told_as| Telling { threshold, step: 100, told_as };
            kinds.map(|told_as| Told { telling: step(told_as), times: 2, withdrawn: false })
        };
        let told: Vec<Told> = others.flat_map(told).collect();
        let found = assess(&self.books, &told, year, self.as_of).expect("thresholds of that year");
        Facts::ThresholdAlert {
            first_name: self.first_name.map(str::to_owned),
            year,
            crossings: found.crossings,
            unknown_activities: found.unknown_activities,
            state: Some(found.state),
            as_of: Some(self.as_of),
            remarks: AlertRemarks {
                liberal: found.liberal,
                planned: found.planned,
                contradiction: found.contradiction,
                ..self.remarks
            },
            consequences: Vec::new(),
            retracted: Vec::new(),
        }
    }
}

fn day(text: &str) -> NaiveDate {
    text.parse().expect("a date of the samples")
}

/// Returns every variant, under the name of its file.
pub(super) fn alerts() -> Vec<(&'static str, Facts)> {
    let mut alerts = micro();
    alerts.extend(vat());
    alerts.extend(others());
    alerts
}

fn micro() -> Vec<(&'static str, Facts)> {
    use Threshold::{MicroServices, MicroTotal};
    let over = |before: &[(&'static str, &'static str, i64, i64)]| {
        let mut rows = before.to_vec();
        rows.extend([("2026-02", SERVICES, 41_000, 0), ("2026-08", SERVICES, 48_120, 0)]);
        Story::new("2026-11-24", &rows, &[MicroServices]).facts(2026)
    };
    vec![
        (
            "alert-micro-80",
            Story::new(
                "2026-09-14",
                &[
                    ("2025-01", SALES, 96_000, 0),
                    ("2025-10", SALES, 14_500, 0),
                    ("2026-01", SALES, 80_000, 0),
                    ("2026-08", SALES, 82_500, 0),
                ],
                &[MicroTotal],
            )
            .facts(2026),
        ),
        ("alert-micro-once", over(&[("2025-01", SERVICES, 60_000, 0)])),
        ("alert-micro-previous-unknown", over(&[])),
        ("alert-micro-out", over(&[("2025-06", SERVICES, 80_000, 0)])),
    ]
}

fn vat() -> Vec<(&'static str, Facts)> {
    use Threshold::{VatBaseServices, VatIncreasedServices};
    let base = [VatBaseServices];
    let both = [VatBaseServices, VatIncreasedServices];
    let monthly = |euros: i64, months: &[&'static str]| -> Vec<(&'static str, &'static str, i64, i64)> {
        months.iter().map(|month| (*month, SERVICES, euros, 0)).collect()
    };
    let eight = ["2026-01", "2026-02", "2026-03", "2026-04", "2026-05", "2026-06", "2026-07", "2026-08"];
    let mut year_before = vec![("2025-01", SERVICES, 30_000, 0)];
    year_before.extend(monthly(4_300, &eight));
    vec![
        ("alert-vat-90", Story::new("2026-09-14", &year_before, &base).facts(2026)),
        (
            "alert-vat-from-january",
            Story::new(
                "2026-11-24",
                &[("2025-01", SERVICES, 30_000, 0), ("2026-10", SERVICES, 37_501, 0)],
                &base,
            )
            .facts(2026),
        ),
        (
            "alert-vat-at-once",
            Story::new(
                "2026-06-22",
                &[
                    ("2025-01", SERVICES, 30_000, 0),
                    ("2026-03", SERVICES, 0, 33_000),
                    ("2026-06", SERVICES, 0, 10_000),
                ],
                &both,
            )
            .days(&[("2026-06-04", 3_000), ("2026-06-11", 2_500), ("2026-06-12", 4_500)])
            .facts(2026),
        ),
        (
            "alert-vat-already-due",
            Story::new(
                "2026-11-24",
                &[("2025-05", SERVICES, 40_000, 0), ("2026-10", SERVICES, 31_000, 0)],
                &base,
            )
            .facts(2026),
        ),
        (
            "alert-vat-year-over",
            Story::new(
                "2027-01-20",
                &[("2025-01", SERVICES, 30_000, 0), ("2026-12", SERVICES, 38_000, 0)],
                &base,
            )
            .facts(2026),
        ),
        (
            "alert-creation-year",
            Story::new(
                "2026-11-24",
                &[("2026-06", SERVICES, 12_000, 0), ("2026-10", SERVICES, 20_000, 0)],
                &both,
            )
            .created("2026-04-01")
            .facts(2026),
        ),
    ]
}

fn others() -> Vec<(&'static str, Facts)> {
    use Threshold::{MicroServices, MicroTotal, VatBaseServices, VatBaseTotal, VatIncreasedServices};
    let to_verify = Story::new(
        "2026-11-24",
        &[
            ("2025-01", SERVICES, 20_000, 0),
            ("2026-05", SERVICES, 20_000, 18_500),
            ("2026-06", SERVICES, 4_000, 0),
        ],
        &[VatBaseServices, VatIncreasedServices],
    );
    let mut many = Story::new(
        "2026-11-24",
        &[
            ("2026-02", LIBERAL, 61_000, 0),
            ("2026-05", SALES, 40_000, 39_000),
            ("2026-09", SERVICES, 24_000, 0),
            ("2026-09", "artisanat d’art", 12_000, 0),
            ("2026-09", "<b>autre</b>", 8_000, 0),
            ("2026-12", SERVICES, 2_500, 0),
        ],
        &[MicroTotal, VatBaseTotal, MicroServices, VatIncreasedServices],
    )
    .created("2026-04-01");
    many.first_name = None;
    many.remarks.uncounted = vec![
        Uncounted { currency: "GBP".to_owned(), amount: 125_050 },
        Uncounted { currency: "USD".to_owned(), amount: 4_000_000 },
    ];
    many.remarks.assumed = vec![Assumed { provider: "stripe".to_owned(), activity: SERVICES.to_owned() }];
    vec![
        ("alert-to-verify", to_verify.facts(2026)),
        ("alert-many", many.facts(2026)),
        (
            "alert-vat-without-step",
            without_step(&[("2025-03", 40_000), ("2026-03", 9_000)], Consequence::VatDue),
        ),
        (
            "alert-micro-without-step",
            without_step(&[("2025-03", 90_000), ("2026-03", 90_000)], Consequence::MicroLeft),
        ),
    ]
}

/// What follows from services of which no step is told; the first one takes back what was said of another ceiling.
fn without_step(typed: &[(&str, i64)], consequence: Consequence) -> Facts {
    let rows: Vec<_> = typed.iter().map(|(month, euros)| (*month, SERVICES, *euros, 0)).collect();
    let mut facts = Story::new("2026-11-24", &rows, &[]).facts(2026);
    if let Facts::ThresholdAlert { consequences, retracted, .. } = &mut facts {
        *consequences = vec![consequence];
        if consequence.is_vat() {
            let threshold = Some(Threshold::MicroServices);
            *retracted = vec![Retracted { year: 2026, threshold, consequence: None }];
        }
    }
    facts
}
