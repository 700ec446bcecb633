//! Makes alerts to look at: each threshold, each consequence, and several at once.

use chrono::NaiveDate;

use crate::{
    email::Facts,
    urssaf::{Consequence, Crossing, Doubt, Threshold},
};

/// Makes alerts of the ceilings of the micro regime.
pub(super) fn micro() -> Vec<(&'static str, Facts)> {
    let over =
        |consequence| alert(vec![crossing(Threshold::MicroServices, 100, 8_912_040, 8_360_000, consequence)]);
    vec![
        (
            "alert-micro-80",
            alert(vec![crossing(
                Threshold::MicroTotal,
                80,
                16_250_000,
                20_310_000,
                Consequence::Approaching,
            )]),
        ),
        ("alert-micro-once", over(Consequence::MicroOnce)),
        ("alert-micro-previous-unknown", over(Consequence::MicroPreviousUnknown)),
        ("alert-micro-out", over(Consequence::MicroOut { from: new_year(2027) })),
    ]
}

/// Makes alerts of the thresholds of VAT.
pub(super) fn vat() -> Vec<(&'static str, Facts)> {
    let from = Consequence::VatFrom { from: new_year(2027) };
    vec![
        (
            "alert-vat-90",
            alert(vec![crossing(
                Threshold::VatBaseServices,
                90,
                3_399_999,
                3_750_000,
                Consequence::Approaching,
            )]),
        ),
        (
            "alert-vat-from-january",
            alert(vec![crossing(Threshold::VatBaseServices, 100, 3_750_001, 3_750_000, from)]),
        ),
        (
            "alert-vat-at-once",
            alert(vec![
                crossing(Threshold::VatBaseServices, 100, 4_300_000, 3_750_000, from),
                crossing(Threshold::VatIncreasedServices, 100, 4_300_000, 4_125_000, Consequence::VatAtOnce),
            ]),
        ),
        (
            "alert-creation-year",
            alert(vec![
                Crossing {
                    full_year_ceiling: Some(3_750_000),
                    ..crossing(Threshold::VatBaseServices, 100, 3_200_000, 2_825_342, from)
                },
                Crossing {
                    full_year_ceiling: Some(4_125_000),
                    ..crossing(
                        Threshold::VatIncreasedServices,
                        100,
                        3_200_000,
                        3_107_876,
                        Consequence::VatAtOnce,
                    )
                },
            ]),
        ),
    ]
}

/// Makes alerts of typed and imported rows that may be the same, and of several thresholds at once.
pub(super) fn mixed() -> Vec<(&'static str, Facts)> {
    let doubtful = |threshold, step, ceiling| Crossing {
        doubt: Some(Doubt { typed: 4_000_000, imported: 3_100_050 }),
        ..crossing(threshold, step, 7_100_050, ceiling, Consequence::ToVerify)
    };
    let many = Facts::ThresholdAlert {
        first_name: None,
        year: 2026,
        crossings: vec![
            crossing(Threshold::MicroTotal, 90, 18_700_000, 20_310_000, Consequence::Approaching),
            doubtful(Threshold::VatBaseTotal, 80, 8_500_000),
            crossing(Threshold::MicroServices, 100, 123_456_789, 8_360_000, Consequence::MicroOnce),
            crossing(Threshold::VatIncreasedServices, 90, 3_800_000, 4_125_000, Consequence::Approaching),
        ],
        unknown_activities: vec!["artisanat d’art".to_owned(), "<b>autre</b>".to_owned()],
    };
    vec![
        ("alert-to-verify", alert(vec![doubtful(Threshold::MicroServices, 80, 8_360_000)])),
        ("alert-many", many),
    ]
}

fn alert(crossings: Vec<Crossing>) -> Facts {
    Facts::ThresholdAlert {
        first_name: Some("Camille".to_owned()),
        year: 2026,
        crossings,
        unknown_activities: Vec::new(),
    }
}

fn crossing(
    threshold: Threshold,
    step: u8,
    turnover: i64,
    ceiling: i64,
    consequence: Consequence,
) -> Crossing {
    Crossing { threshold, step, turnover, ceiling, full_year_ceiling: None, doubt: None, consequence }
}

fn new_year(year: i32) -> NaiveDate {
    NaiveDate::from_ymd_opt(year, 1, 1).expect("a year of the samples")
}
