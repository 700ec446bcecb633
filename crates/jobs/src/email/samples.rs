//! Makes mails to look at: every kind in every variant, for the preview and for the snapshots.
//!
//! Nobody's data. The figures are those of 2026.

mod alerts;

use chrono::{DateTime, NaiveDate, Utc};

use super::{
    ActivityTurnover, BooksVerdict, Branding, DigestPoint, Facts, Links, MonthTwice, Promo, Rendered,
    SourceTotal, render,
};
use crate::{
    mail_kind::MailKind,
    schedule::Month,
    urssaf::{ActivitySum, IncomeTax, TaxProfile},
};

/// Returns the branding of a deployment; with `promo`, it offers a code.
pub fn branding(promo: bool) -> Branding {
    Branding {
        app_url: "https://app.comptalyze.example".to_owned(),
        sender_identity: "Comptalyze SAS, 12 rue de l’Exemple, 75000 Paris\n\
                          RCS Paris 000 000 000 – contact@comptalyze.example"
            .to_owned(),
        promo: promo.then(|| Promo {
            code: "BIENVENUE20".to_owned(),
            label: "20 % de remise sur les trois premiers mois".to_owned(),
        }),
    }
}

/// Returns every sample as it looks to its reader, by name. What a promotional code changes comes twice.
pub fn mails() -> Result<Vec<(String, Rendered)>, askama::Error> {
    const LINKS: Links = Links {
        unsubscribe: Some("https://jobs.comptalyze.example/api/unsubscribe?t=v1.exemple"),
        confirm: Some("https://jobs.comptalyze.example/api/confirm?t=v1.exemple"),
    };
    let mut mails = Vec::new();
    for (name, facts) in samples() {
        mails.push((name.to_owned(), render(&facts, &branding(false), LINKS)?));
        if facts.kind() == MailKind::MarketingDay3 {
            mails.push((format!("{name}-promo"), render(&facts, &branding(true), LINKS)?));
        }
    }
    Ok(mails)
}

/// Returns every variant, under the name of its file.
pub fn samples() -> Vec<(&'static str, Facts)> {
    let mut samples = vec![
        ("marketing-day3", Facts::MarketingDay3 { first_name: Some("Camille".to_owned()) }),
        ("marketing-day3-hostile-name", Facts::MarketingDay3 { first_name: Some(HOSTILE.to_owned()) }),
    ];
    samples.extend(reminders());
    samples.extend(recaps());
    samples.extend(alerts::micro());
    samples.extend(alerts::vat());
    samples.extend(alerts::mixed());
    samples.extend(troubles());
    samples
}

fn troubles() -> Vec<(&'static str, Facts)> {
    let trouble = |provider: &str, reason: &str, read_until| Facts::IntegrationTrouble {
        first_name: Some("Camille".to_owned()),
        provider: provider.to_owned(),
        reason: reason.to_owned(),
        read_until,
    };
    let point = |title: &str, detail: &str, count| DigestPoint {
        title: title.to_owned(),
        detail: detail.to_owned(),
        count,
    };
    vec![
        (
            "trouble-stripe",
            trouble(
                "stripe",
                "L’accès au compte Stripe a été retiré : la connexion doit être refaite.",
                Some(at("2026-11-21T18:05:00Z")),
            ),
        ),
        (
            "trouble-shopify-never-read",
            trouble("shopify", "La boutique Shopify est gelée ou fermée : rien ne peut y être lu.", None),
        ),
        (
            "operator-digest",
            Facts::OperatorDigest {
                day: NaiveDate::from_ymd_opt(2026, 11, 24).expect("a date"),
                points: vec![
                    point(
                        "Un passage manqué : synchronisation des intégrations",
                        "Le créneau 2026-11-24T06Z n’a été pris par aucun cron. La synchronisation suivante lit tout depuis la dernière réussite.",
                        1,
                    ),
                    point(
                        "Des intégrations en échec",
                        "L’accès au compte Stripe a été retiré : la connexion doit être refaite.",
                        3,
                    ),
                    point(
                        "Des courriels dont on ne sait pas s’ils sont partis",
                        "Ils ne sont pas renvoyés : cherchez-les dans le journal de Resend.",
                        12,
                    ),
                ],
                status_url: "https://jobs.comptalyze.example/api/status".to_owned(),
            },
        ),
    ]
}

/// Somebody may have typed this as a first name.
pub(super) const HOSTILE: &str = "<img src=x onerror=alert(1)>";

fn reminders() -> Vec<(&'static str, Facts)> {
    let reminder = |month, recorded, entries| Facts::MonthlyReminder {
        first_name: Some("Camille".to_owned()),
        month,
        recorded,
        entries,
        books: None,
        profile: TaxProfile::default(),
        mixed: Vec::new(),
        verdict: None,
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

fn recaps() -> Vec<(&'static str, Facts)> {
    vec![
        (
            "recap",
            recap(412_350, vec![source("stripe", 318_250, -5_900), source("shopify", 102_000, -2_000)]),
        ),
        ("recap-provisional", provisional(recap(318_250, vec![source("stripe", 318_250, 0)]))),
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
                partial: true,
                maybe_twice: 2,
                passed_on: 3,
                year: Some(vec![
                    sum("Vente de marchandises", 98_765_400, 1_240_000_000),
                    sum("Prestation de services", 0, 3_223_445),
                    sum("autre", 1_250, 0),
                ]),
                created: NaiveDate::from_ymd_opt(2026, 2, 9),
                mixed: [2, 3, 4]
                    .map(|number| MonthTwice {
                        month: month(2026, number),
                        typed: 150_000,
                        imported: 250_000,
                    })
                    .to_vec(),
                verdict: None,
            },
        ),
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
        partial: false,
        maybe_twice: 0,
        passed_on: 0,
        year: Some(vec![
            sum("Vente de marchandises", 90_000, 2_815_400),
            sum("services", 640_000, 2_412_350),
        ]),
        created: None,
        mixed: Vec::new(),
        verdict: None,
    }
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
