//! Makes mails to look at: every kind in every variant, for the preview and for the snapshots.
//!
//! Nobody's data. The figures are those of 2026.

mod alerts;
mod monthly;
mod story;

use chrono::{DateTime, NaiveDate, Utc};

use super::{Branding, DigestPoint, Facts, Links, Promo, Rendered, render};
use crate::mail_kind::MailKind;

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

const LINKS: Links = Links {
    unsubscribe: Some("https://jobs.comptalyze.example/api/unsubscribe?t=v1.exemple"),
    confirm: Some("https://jobs.comptalyze.example/api/confirm?t=v1.exemple"),
};

/// Returns every sample as it looks to its reader, by name. What a promotional code changes comes twice.
pub fn mails() -> Result<Vec<(String, Rendered)>, askama::Error> {
    let mut mails = Vec::new();
    for (name, facts) in samples() {
        mails.push((name.to_owned(), render(&facts, &branding(false), LINKS)?));
        if facts.kind() == MailKind::MarketingDay3 {
            mails.push((format!("{name}-promo"), render(&facts, &branding(true), LINKS)?));
        }
    }
    Ok(mails)
}

/// Represents a day of a user's year: what happened, and the mail that came, if any.
pub struct StoryPage {
    pub day: NaiveDate,
    pub event: String,
    pub mail: Option<Rendered>,
}

/// Returns a year of one user, in order: signs up, connects, crosses, corrects, sees the new year.
pub fn story() -> Result<Vec<StoryPage>, askama::Error> {
    let page = |page: story::Page| {
        let mail = page.mail.map(|facts| render(&facts, &branding(false), LINKS)).transpose()?;
        Ok(StoryPage { day: page.day, event: page.event, mail })
    };
    story::pages().into_iter().map(page).collect()
}

/// Returns every variant, under the name of its file.
pub fn samples() -> Vec<(&'static str, Facts)> {
    let mut samples = vec![
        ("marketing-day3", Facts::MarketingDay3 { first_name: Some("Camille".to_owned()) }),
        ("marketing-day3-hostile-name", Facts::MarketingDay3 { first_name: Some(HOSTILE.to_owned()) }),
    ];
    samples.extend(monthly::reminders());
    samples.extend(monthly::recaps());
    samples.extend(monthly::definitive());
    samples.extend(alerts::alerts());
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
            trouble(
                "shopify",
                "La connexion à Shopify n’a pas l’autorisation de lire ces données : elle doit être refaite avec toutes \
                 les autorisations.",
                None,
            ),
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

fn at(instant: &str) -> DateTime<Utc> {
    instant.parse().expect("an instant of the samples")
}
