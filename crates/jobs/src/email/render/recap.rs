//! Tells what was imported for a month.

use askama::Template;
use chrono::{DateTime, Utc};

use super::{
    frame::{Frame, Headline, Mail},
    french::{self, date_and_time, euros, list, of_month, one_line},
};
use crate::{email::SourceTotal, schedule::Month};

pub(super) struct View {
    /// "novembre 2026".
    month: String,
    /// "de novembre 2026".
    of_month: String,
    total: String,
    negative: bool,
    sources: Vec<Source>,
    /// "30 novembre 2026 à 18 h 05".
    provisional_at: Option<String>,
    /// Says what was typed by hand as well.
    typed: Option<String>,
    /// "USD et GBP".
    uncounted: Option<String>,
    /// "Shopify".
    unread: Option<String>,
    several_unread: bool,
    partial: bool,
}

struct Source {
    name: String,
    gross: String,
    refunds: String,
    net: String,
}

impl View {
    pub(super) fn new(month: Month, total: i64, sources: &[SourceTotal]) -> Self {
        Self {
            month: french::month(month),
            of_month: of_month(month),
            total: euros(total),
            negative: total < 0,
            sources: sources.iter().map(Source::new).collect(),
            provisional_at: None,
            typed: None,
            uncounted: None,
            unread: None,
            several_unread: false,
            partial: false,
        }
    }

    pub(super) fn provisional(mut self, at: Option<DateTime<Utc>>) -> Self {
        self.provisional_at = at.map(date_and_time);
        self
    }

    pub(super) fn typed(mut self, typed: Option<i64>) -> Self {
        self.typed = typed.map(euros);
        self
    }

    pub(super) fn missing(mut self, uncounted: &[String], unread: &[String], partial: bool) -> Self {
        let currencies: Vec<_> = uncounted.iter().map(|currency| one_line(currency, 10)).collect();
        let sources: Vec<_> = unread.iter().map(|source| french::source(source)).collect();
        self.uncounted = (!currencies.is_empty()).then(|| list(&currencies));
        self.unread = (!sources.is_empty()).then(|| list(&sources));
        self.several_unread = sources.len() > 1;
        self.partial = partial;
        self
    }

    /// Returns whether the total is not all that there is.
    fn incomplete(&self) -> bool {
        self.partial || self.unread.is_some() || self.uncounted.is_some()
    }

    fn unread_words(&self, unread: &str) -> String {
        if self.several_unread {
            format!(
                "{unread} n’ont pas pu être lus. Vérifiez que ces sources sont bien reliées à Comptalyze."
            )
        } else {
            format!("{unread} n’a pas pu être lu. Vérifiez que cette source est bien reliée à Comptalyze.")
        }
    }

    /// Returns what the total is, beside its amount.
    fn caption(&self) -> &'static str {
        match (self.provisional_at.is_some(), self.incomplete()) {
            (false, false) => "Total importé",
            (true, false) => "Total importé, provisoire",
            (false, true) => "Total importé, incomplet",
            (true, true) => "Total importé, provisoire et incomplet",
        }
    }
}

impl Source {
    fn new(source: &SourceTotal) -> Self {
        Self {
            name: french::source(&source.source),
            gross: euros(source.gross),
            refunds: euros(source.refunds),
            net: euros(source.gross.saturating_add(source.refunds)),
        }
    }
}

impl Mail for View {
    fn headline(&self) -> Headline {
        let provisional = if self.provisional_at.is_some() { " provisoire" } else { "" };
        Headline {
            subject: format!("Votre récapitulatif{provisional} {}", self.of_month),
            preheader: format!("{} : {}.", self.caption(), self.total),
        }
    }

    fn html(&self, frame: &Frame) -> askama::Result<String> {
        Html { frame, view: self }.render()
    }

    fn text(&self, frame: &Frame) -> askama::Result<String> {
        Text { frame, view: self }.render()
    }
}

#[derive(Template)]
#[template(path = "monthly_recap.html")]
struct Html<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}

#[derive(Template)]
#[template(path = "monthly_recap.txt")]
struct Text<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}
