//! Makes the mails of a month to look at: reminders, recaps, definitive totals.

use chrono::{DateTime, NaiveDate, Utc};

use crate::{
    email::{
        ActivityTotal, ActivityTurnover, Assumed, BooksVerdict, Definitive, Facts, IncompleteMonth,
        MonthTwice, Retracted, SourceTotal, UnreadSource,
    },
    schedule::Month,
    urssaf::{ActivitySum, IncomeTax, TaxProfile, Threshold},
};

/// Makes reminders: with a known and an unknown profile, with nothing, with less than nothing.
pub(super) fn reminders() -> Vec<(&'static str, Facts)> {
    let reminder = |month, recorded, entries| Facts::MonthlyReminder {
        first_name: Some("Camille".to_owned()),
        month,
        recorded,
        entries,
        books: None,
        profile: TaxProfile::default(),
        mixed: Vec::new(),
        verdict: None,
        definitive: None,
        uncounted: Vec::new(),
        today: NaiveDate::from_ymd_opt(2026, 12, 2).filter(|_| month == self::month(2026, 11)),
        incomplete: Vec::new(),
        assumed: Vec::new(),
        retracted: Vec::new(),
    };
    let known = TaxProfile {
        created: NaiveDate::from_ymd_opt(2026, 2, 9),
        has_acre: Some(true),
        income_tax: Some(IncomeTax::Flat),
        ..TaxProfile::default()
    };
    let (sales, services) = ("Vente de marchandises", "Prestation de services");
    let liberal = vec![turnover("Activité libérale", 90_000, 0, 215_000), turnover("autre", 4_000, 0, 4_000)];
    let typed_and_imported = declaring(
        reminder(month(2026, 12), 412_350, 12),
        vec![turnover(services, 98_750, 313_600, 1_204_120)],
        known,
    );
    vec![
        (
            "reminder",
            declaring(
                reminder(month(2026, 11), 300_000, 12),
                vec![turnover(sales, 240_000, 0, 390_000), turnover(services, 60_000, 0, 60_000)],
                TaxProfile { has_acre: Some(false), ..known },
            ),
        ),
        ("reminder-typed-and-imported", twice(typed_and_imported.clone(), None)),
        ("reminder-confirmed", twice(typed_and_imported, Some(BooksVerdict::Distinct))),
        (
            "reminder-unknown-profile",
            declaring(reminder(month(2026, 8), 94_000, 2), liberal, TaxProfile::default()),
        ),
        ("reminder-definitive", {
            let mut facts = reminder(month(2026, 11), 340_700, 3);
            if let Facts::MonthlyReminder { definitive, uncounted, .. } = &mut facts {
                let mailed_at = Some(at("2026-11-30T17:05:00Z"));
                *definitive =
                    Some(Definitive { mailed: 318_250, mailed_at, provisional: true, total: 330_700 });
                *uncounted = vec!["USD".to_owned()];
            }
            facts
        }),
        ("reminder-incomplete", {
            let books = vec![turnover(sales, 0, 120_000, 270_000), turnover("mixte", 0, 0, 90_000)];
            let mut facts = declaring(reminder(month(2026, 11), 120_000, 1), books, known);
            if let Facts::MonthlyReminder { incomplete, .. } = &mut facts {
                *incomplete =
                    vec![lacking(month(2026, 10), Vec::new()), lacking(month(2026, 11), vec![unread()])];
            }
            facts
        }),
        (
            "reminder-negative-activity",
            declaring(
                reminder(month(2026, 11), -20_000, 4),
                vec![turnover(sales, 0, -50_000, 10_000), turnover(services, 30_000, 0, 30_000)],
                known,
            ),
        ),
        ("reminder-assumed", {
            let books = vec![turnover(services, 0, 120_000, 270_000)];
            let mut facts = declaring(reminder(month(2026, 11), 120_000, 1), books, known);
            if let Facts::MonthlyReminder { assumed, .. } = &mut facts {
                *assumed = vec![stripe_services()];
            }
            facts
        }),
        ("reminder-one-entry", reminder(month(2026, 8), 90_000, 1)),
        ("reminder-nothing", reminder(month(2026, 10), 0, 0)),
        (
            "reminder-negative",
            declaring(
                reminder(month(2026, 4), -12_050, 3),
                vec![turnover(services, 0, -12_050, -12_050)],
                TaxProfile { income_tax: Some(IncomeTax::Scale), ..known },
            ),
        ),
    ]
}

/// A month of which something may be counted twice; where a source was not read, something else is missing, too.
fn lacking(month: Month, unread: Vec<UnreadSource>) -> IncompleteMonth {
    let partial = !unread.is_empty();
    IncompleteMonth { month, unread, maybe_twice: u32::from(!partial), passed_on: 0, partial }
}

/// Nobody has said that Stripe's money is for services.
fn stripe_services() -> Assumed {
    Assumed { provider: "stripe".to_owned(), activity: "Prestation de services".to_owned() }
}

fn unread() -> UnreadSource {
    let since = Some(at("2026-11-10T11:00:00Z"));
    UnreadSource {
        source: "stripe".to_owned(),
        since,
        wholly: false,
        is_former: false,
        is_disconnected: false,
    }
}

fn declaring(mut facts: Facts, rows: Vec<ActivityTurnover>, taxed: TaxProfile) -> Facts {
    if let Facts::MonthlyReminder { books, profile, .. } = &mut facts {
        (*books, *profile) = (Some(rows), taxed);
    }
    facts
}

/// The same where October and the mail's month have both typed and imported rows.
fn twice(mut facts: Facts, said: Option<BooksVerdict>) -> Facts {
    if let Facts::MonthlyReminder { month: of, mixed, verdict, .. } = &mut facts {
        let both =
            [month(of.year(), 10), *of].map(|month| MonthTwice { month, typed: 98_750, imported: 313_600 });
        *mixed = if said.is_some() { Vec::new() } else { both.to_vec() };
        *verdict = said;
    }
    facts
}

fn turnover(activity: &str, typed: i64, imported: i64, quarter: i64) -> ActivityTurnover {
    ActivityTurnover { activity: activity.to_owned(), typed, imported, quarter }
}

/// Makes recaps: whole, provisional, of nothing, of everything at once.
pub(super) fn recaps() -> Vec<(&'static str, Facts)> {
    vec![
        (
            "recap",
            recap(412_350, vec![source("stripe", 318_250, -5_900), source("shopify", 102_000, -2_000)]),
        ),
        ("recap-provisional", provisional(recap(318_250, vec![source("stripe", 318_250, 0)]))),
        ("recap-negative-activity", {
            let mut facts = recap(-20_000, vec![source("stripe", 30_000, -50_000)]);
            if let Facts::MonthlyRecap { activities, .. } = &mut facts {
                *activities = vec![
                    activity("Vente de marchandises", -50_000),
                    activity("Prestation de services", 30_000),
                ];
            }
            facts
        }),
        ("recap-negative", recap(-18_990, vec![source("shopify", 4_500, -23_490)])),
        (
            "recap-everything",
            Facts::MonthlyRecap {
                first_name: Some("Marie-Charlotte".to_owned()),
                month: month(2026, 4),
                total: 1_234_567_890,
                sources: vec![
                    source("stripe", 1_240_000_000, -5_655_555),
                    source("shopify", 223_445, 0),
                    source("source-au-nom-particulierement-long", 0, 0),
                ],
                provisional_at: Some(at("2026-04-30T16:05:00Z")),
                typed: Some(98_765_400),
                uncounted: vec!["USD".to_owned(), "GBP".to_owned(), "CHF".to_owned()],
                unread: vec!["shopify".to_owned(), "stripe".to_owned()],
                not_theirs: vec!["stripe".to_owned()],
                ended: Vec::new(),
                partial: true,
                maybe_twice: 2,
                passed_on: 3,
                year: Some(vec![
                    sum("Vente de marchandises", 98_765_400, 1_240_000_000),
                    sum("Prestation de services", 0, 3_223_445),
                    sum("autre", 1_250, 0),
                ]),
                created: NaiveDate::from_ymd_opt(2026, 2, 9),
                contradiction: None,
                mixed: [2, 4]
                    .map(|number| MonthTwice {
                        month: month(2026, number),
                        typed: 150_000,
                        imported: 250_000,
                    })
                    .to_vec(),
                verdict: None,
                activities: vec![
                    activity("Vente de marchandises", 1_231_344_445),
                    activity("Prestation de services", 3_223_445),
                ],
                ahead: Some(120_000),
                empty: vec![month(2026, 3)],
                assumed: vec![stripe_services()],
                retracted: vec![Retracted {
                    year: 2026,
                    threshold: Some(Threshold::VatBaseServices),
                    consequence: None,
                }],
            },
        ),
        ("recap-nothing", {
            let mut facts = recap(0, Vec::new());
            if let Facts::MonthlyRecap { empty, activities, .. } = &mut facts {
                (*empty, *activities) = (vec![month(2026, 8)], Vec::new());
            }
            facts
        }),
        ("recap-disconnected", {
            let mut facts = recap(412_350, vec![source("stripe", 412_350, 0)]);
            if let Facts::MonthlyRecap { ended, .. } = &mut facts {
                *ended = vec![UnreadSource { is_disconnected: true, ..unread() }];
            }
            facts
        }),
        ("recap-confirmed", {
            let mut facts = recap(412_350, vec![source("stripe", 412_350, 0)]);
            if let Facts::MonthlyRecap { typed, verdict, .. } = &mut facts {
                (*typed, *verdict) = (Some(250_000), Some(BooksVerdict::Same));
            }
            facts
        }),
    ]
}

fn recap(total: i64, sources: Vec<SourceTotal>) -> Facts {
    Facts::MonthlyRecap {
        first_name: Some("Camille".to_owned()),
        month: month(2026, 11),
        total,
        sources,
        provisional_at: None,
        typed: None,
        uncounted: Vec::new(),
        unread: Vec::new(),
        not_theirs: Vec::new(),
        ended: Vec::new(),
        partial: false,
        maybe_twice: 0,
        passed_on: 0,
        year: Some(vec![
            sum("Vente de marchandises", 90_000, 2_815_400),
            sum("services", 640_000, 2_412_350),
        ]),
        created: None,
        contradiction: None,
        mixed: Vec::new(),
        verdict: None,
        activities: vec![activity("Vente de marchandises", total)],
        ahead: None,
        empty: Vec::new(),
        assumed: Vec::new(),
        retracted: Vec::new(),
    }
}

fn activity(activity: &str, total: i64) -> ActivityTotal {
    ActivityTotal { activity: activity.to_owned(), total }
}

/// Makes mails that tell a month's definitive total.
pub(super) fn definitive() -> Vec<(&'static str, Facts)> {
    let of = |mailed, total, provisional| Facts::DefinitiveMonth {
        first_name: Some("Camille".to_owned()),
        month: month(2026, 11),
        definitive: Definitive { mailed, mailed_at: Some(at("2026-11-30T17:05:00Z")), provisional, total },
        incomplete: Vec::new(),
        uncounted: Vec::new(),
    };
    let mut negative = of(4_500, -18_990, true);
    if let Facts::DefinitiveMonth { incomplete, uncounted, .. } = &mut negative {
        *incomplete = vec![lacking(month(2026, 11), Vec::new())];
        *uncounted = vec!["USD".to_owned()];
    }
    vec![
        ("definitive-more", of(318_250, 330_700, true)),
        ("definitive-less", of(1_234_567_890, 1_134_567_890, false)),
        ("definitive-negative", negative),
    ]
}

fn sum(activity: &str, typed: i64, imported: i64) -> ActivitySum {
    ActivitySum { activity: activity.to_owned(), typed, imported }
}

fn provisional(mut facts: Facts) -> Facts {
    if let Facts::MonthlyRecap { provisional_at, .. } = &mut facts {
        *provisional_at = Some(at("2026-11-30T17:05:00Z"));
    }
    facts
}

fn source(source: &str, gross: i64, refunds: i64) -> SourceTotal {
    SourceTotal { source: source.to_owned(), gross, refunds }
}

fn month(year: i32, month: u32) -> Month {
    Month::new(year, month).expect("a month of the samples")
}

fn at(instant: &str) -> DateTime<Utc> {
    instant.parse().expect("an instant of the samples")
}
