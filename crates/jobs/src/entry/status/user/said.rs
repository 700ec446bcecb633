//! What the page of one user shows, said in French.

use chrono::{DateTime, Utc};

use crate::{
    email::BooksVerdict,
    money::{Currency, MinorAmount},
    operations::user::{
        facts::{Account, Confirmations, Confirmed, Connection, Expected, Mail, Person, Read, Told, Wishes},
        law::{Ceiling, Followed},
        money::{Movement, OpenMonth, Recap, Recorded, Row, Source, Uncounted},
    },
    schedule::{Month, paris},
    words::{self, capitalized, counted},
};

/// Writes "1 234,56 €".
pub(super) fn euros(cents: i64) -> String {
    MinorAmount::new(cents, Currency::EUR).to_string()
}

/// Writes an amount that may be missing.
pub(super) fn some_euros(cents: Option<&i64>) -> String {
    cents.map_or_else(|| "—".to_owned(), |cents| euros(*cents))
}

/// Writes an amount in a currency that others have told.
fn money(minor: Option<i64>, currency: Option<&str>) -> String {
    match (minor, currency.map(str::parse::<Currency>)) {
        (Some(minor), Some(Ok(currency))) => MinorAmount::new(minor, currency).to_string(),
        (Some(minor), _) => format!("{minor} (devise inconnue)"),
        (None, _) => "illisible".to_owned(),
    }
}

pub(super) fn minute(at: &DateTime<Utc>) -> String {
    paris::french_minute(*at)
}

pub(super) fn some_minute(at: Option<&DateTime<Utc>>) -> String {
    at.map_or_else(|| "jamais".to_owned(), minute)
}

pub(super) fn day(at: &DateTime<Utc>) -> String {
    paris::french(paris::date(*at))
}

/// Writes ", octobre 2026" behind the name of a mail.
pub(super) fn about(about: &str) -> String {
    match about.parse::<Month>() {
        Ok(month) => format!(", {}", month.french()),
        Err(_) if about.is_empty() => String::new(),
        Err(_) => format!(", {about}"),
    }
}

impl Person {
    pub(super) fn who(&self) -> &str {
        self.address.as_deref().unwrap_or("sans adresse")
    }

    pub(super) fn plan_said(&self) -> &'static str {
        words::plan(self.plan.as_deref())
    }
}

impl Wishes {
    /// Returns the kinds of mail with whether they are wanted.
    pub(super) fn said(self) -> [(&'static str, bool); 4] {
        [
            ("alertes de seuil", self.threshold_alert),
            ("rappels mensuels", self.monthly_reminder),
            ("récapitulatifs mensuels", self.monthly_recap),
            ("actualités et offres", self.marketing_day3),
        ]
    }
}

impl Connection {
    pub(super) fn class(&self) -> &'static str {
        match self.state.as_str() {
            "good" => "good",
            "new" => "unknown",
            "late" | "failing" => "bad",
            _ => "quiet",
        }
    }

    pub(super) fn state_said(&self) -> &'static str {
        words::integration_state(&self.state, 1)
    }

    pub(super) fn account_said(&self) -> String {
        match (&self.account, &self.claimed_account) {
            (Some(proven), Some(claimed)) if proven != claimed => {
                format!("{proven} (prouvé)\u{a0}; la ligne indique maintenant {claimed}, à prouver")
            }
            (Some(proven), _) => proven.clone(),
            (None, Some(claimed)) => format!("{claimed} (pas encore prouvé)"),
            (None, None) => "aucun".to_owned(),
        }
    }

    pub(super) fn failures_said(&self) -> String {
        counted(self.failures, "échec de suite", "échecs de suite")
    }

    pub(super) fn why(&self) -> &str {
        self.message.as_deref().or(self.code.as_deref().map(words::reason)).unwrap_or(words::NO_EXPLANATION)
    }
}

impl Read {
    pub(super) fn said(&self) -> String {
        let what = match &self.month {
            Some(month) => format!("mois de {}", month.french()),
            None => words::lane(&self.lane).to_owned(),
        };
        let records = counted(self.records, "mouvement nouveau ou changé", "mouvements nouveaux ou changés");
        format!("{}\u{a0}: {}, {records}", capitalized(&what), words::item_status(&self.status))
    }

    pub(super) fn at(&self) -> String {
        minute(&self.settled_at.unwrap_or(self.created_at))
    }

    pub(super) fn trigger_said(&self) -> &'static str {
        words::trigger(&self.trigger)
    }
}

impl OpenMonth {
    pub(super) fn worth_said(&self) -> &'static str {
        words::month_worth(&self.worth.status)
    }

    pub(super) fn flaws_said(&self) -> Vec<String> {
        self.worth.flaws.iter().map(|(flaw, n)| format!("{n}\u{a0}× {}", words::reason(flaw))).collect()
    }

    pub(super) fn title(&self) -> String {
        capitalized(&self.month.french())
    }

    pub(super) fn total_said(&self) -> String {
        euros(self.total)
    }

    pub(super) fn counted_said(&self) -> String {
        counted(self.counted, "mouvement", "mouvements")
    }
}

impl Source {
    pub(super) fn said(&self) -> String {
        let refunds = if self.refunds == 0 {
            String::new()
        } else {
            format!(", remboursé {}", euros(self.refunds.saturating_neg()))
        };
        format!("{}\u{a0}: {}{refunds}", self.provider.name(), euros(self.gross))
    }
}

impl Recorded {
    pub(super) fn entries_said(&self) -> String {
        counted(self.entries, "ligne", "lignes")
    }
}

impl Recap {
    /// Writes ", il disait 1 234,56 € (provisoire)".
    pub(super) fn told(&self) -> String {
        let Some(total) = self.total else { return String::new() };
        let provisional = if self.provisional_at.is_some() { " (provisoire)" } else { "" };
        format!(", il disait {}{provisional}", euros(total))
    }
}

impl Account {
    pub(super) fn movements_said(&self) -> String {
        counted(self.movements, "mouvement", "mouvements")
    }
}

impl Ceiling {
    pub(super) fn said(&self) -> String {
        let Self { name, turnover, ceiling, percent, .. } = self;
        format!("{name}\u{a0}: {} sur {}, {percent}\u{a0}%", euros(*turnover), euros(*ceiling))
    }
}

impl Followed {
    pub(super) fn said(&self) -> String {
        let Self { name, times, is_withdrawn, .. } = self;
        let twice = if *times > 1 { " deux fois" } else { "" };
        let withdrawn = if *is_withdrawn { ", retiré depuis" } else { "" };
        format!("{name}\u{a0}: annoncé{twice}{withdrawn}")
    }
}

impl Uncounted {
    pub(super) fn said(&self) -> String {
        let amount = self.amount.map(|minor| money(Some(minor), self.currency.as_deref()));
        let amount = amount.map(|amount| format!(", {amount}")).unwrap_or_default();
        format!("{}{amount}\u{a0}: {}", counted(self.count, "mouvement", "mouvements"), self.reason.said())
    }
}

impl Row {
    pub(super) fn said(&self) -> String {
        let amount = self.amount.map_or_else(|| "montant illisible".to_owned(), euros);
        let origin = if self.is_imported { "importé" } else { "saisi" };
        format!("{amount}, {}, {origin}", self.activity.as_deref().unwrap_or("sans activité"))
    }
}

impl Movement {
    pub(super) fn kind_said(&self) -> String {
        capitalized(words::movement_kind(&self.kind))
    }

    pub(super) fn amount_said(&self) -> String {
        money(self.amount, self.currency.as_deref())
    }

    pub(super) fn at_said(&self) -> String {
        self.at.map_or_else(
            || "date absente".to_owned(),
            |at| paris::local(at).format("%d/%m/%Y %H\u{a0}h\u{a0}%M").to_string(),
        )
    }

    /// Says where it is known from.
    pub(super) fn origin(&self) -> String {
        let mut parts = vec![self.account.clone()];
        parts.extend(self.source_kind.clone().map(|kind| format!("type {kind}")));
        parts.extend(
            self.state.as_deref().filter(|state| *state != "succeeded").map(|state| format!("état {state}")),
        );
        parts.extend(self.method.as_deref().map(|method| words::means(method).to_owned()));
        if let Some(amount) = &self.original_amount {
            let currency = self.original_currency.as_deref().unwrap_or_default();
            parts.push(format!("lu\u{a0}: {amount} {currency}"));
        }
        parts.push(format!("vu le {}", day(&self.first_seen_at)));
        parts.join(", ")
    }
}

impl Mail {
    pub(super) fn name(&self) -> String {
        format!("{}{}", words::one_mail(&self.kind), about(&self.about))
    }

    pub(super) fn class(&self) -> &'static str {
        match (self.status.code(), &self.feedback) {
            ("sent", Some(feedback)) if feedback.is_open() => "unknown",
            ("sent", Some(_)) | ("refused" | "failed", _) => "bad",
            ("sent", None) => "good",
            ("unknown" | "planned" | "sealed", _) => "unknown",
            _ => "quiet",
        }
    }

    pub(super) fn at(&self) -> String {
        minute(&self.settled_at.unwrap_or(self.planned_at))
    }
}

impl Expected {
    pub(super) fn name(&self) -> String {
        format!("{}{}", words::one_mail(&self.kind), about(self.month.as_deref().unwrap_or_default()))
    }

    pub(super) fn said(&self) -> String {
        let at = self.at.as_ref().map(|at| format!(" le {}", day(at))).unwrap_or_default();
        match (&self.status, &self.reason) {
            (Some(status), Some(reason)) => format!("{}{at}\u{a0}: {}", status.said(), reason.said()),
            (Some(status), None) => format!("{}{at}", status.said()),
            (None, Some(reason)) if reason.code() == "not_due_yet" => reason.said().to_owned(),
            (None, Some(reason)) => match &self.message {
                Some(message) => format!("pas envoyé\u{a0}: {} ({message})", reason.said()),
                None => format!("pas envoyé\u{a0}: {}", reason.said()),
            },
            (None, None) => words::NO_EXPLANATION.to_owned(),
        }
    }
}

impl Confirmations {
    /// Says each answer, that about every month first.
    pub(super) fn said(&self) -> Vec<String> {
        let every = self.every.as_ref().map(|answer| format!("Chaque mois\u{a0}: {}", answer.said()));
        let months = self
            .months
            .iter()
            .map(|one| format!("{}\u{a0}: {}", capitalized(&one.month.french()), one.confirmed.said()));
        every.into_iter().chain(months).collect()
    }
}

impl Confirmed {
    fn said(&self) -> String {
        let verdict = match self.verdict {
            BooksVerdict::Distinct => "encaissements distincts, les deux comptent",
            BooksVerdict::Same => "mêmes encaissements, seul le montant le plus élevé compte",
        };
        format!("{verdict} (répondu le {})", day(&self.at))
    }
}

impl Told {
    pub(super) fn said(&self) -> String {
        let doubt = if self.to_verify { ", à vérifier" } else { "" };
        let withdrawn = self.withdrawn_at.as_ref().map(|at| format!("\u{a0}; retiré le {}", day(at)));
        format!(
            "{}\u{a0}: {}, {}\u{a0}%{doubt}, le {}{}",
            self.year,
            words::threshold(self.threshold),
            self.step,
            day(&self.at),
            withdrawn.unwrap_or_default()
        )
    }
}
