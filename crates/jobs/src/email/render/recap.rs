//! Tells what was imported for a month.

use std::cmp::Reverse;

use askama::Template;
use chrono::{DateTime, NaiveDate, Utc};

use super::{
    alert::capitalised,
    consequence::Limit,
    frame::{Frame, Headline, Mail},
    french::{self, date_and_time, euros, list, of_month, one_line, per_mille, percent, round_euros},
    twice::{Remark, Twice},
};
use crate::{
    email::{ActivityTotal, BooksVerdict, MonthTwice, SourceTotal},
    schedule::Month,
    urssaf::{ActivitySum, Category, Progress, by_category, progress},
    words::agreeing,
};

pub(super) struct View {
    of: Month,
    /// Names the month, as in "novembre 2026".
    month: String,
    /// Names the month behind a noun, as in "de novembre 2026".
    of_month: String,
    total: String,
    cents: i64,
    sources: Vec<Source>,
    /// Says up to when the month was read, as in "30 novembre 2026 à 18 h 05"; `None` where it is
    /// over.
    provisional_at: Option<String>,
    /// Holds what was typed by hand as well, in cents.
    typed: Option<i64>,
    twice: Twice,
    /// Names the currencies that are not counted, as in "USD et GBP".
    uncounted: Option<String>,
    /// Names the sources that could not be read, as in "Shopify".
    unread: Option<String>,
    several_unread: bool,
    partial: bool,
    /// Says that some sales may be counted twice.
    maybe_twice: Option<&'static str>,
    /// Says that a platform passed some payments on.
    passed_on: Option<&'static str>,
    year: i32,
    /// Lists the year's turnover by category: what it is, how much.
    categories: Vec<(&'static str, String)>,
    ceilings: Vec<Ceiling>,
    /// Holds what was imported for the month, by activity.
    activities: Vec<(&'static str, String)>,
    /// Is what is typed for the months after.
    ahead: Option<String>,
    /// Names the months of which nothing is recorded.
    empty: Option<String>,
}

/// Represents a year's turnover against one ceiling.
struct Ceiling {
    /// Names the ceiling, as in "Plafond de la micro-entreprise, services".
    name: String,
    /// Says how far it is, as in "17 500,00 € sur 203 100 €, soit 8,6 %".
    reached: String,
    /// Is the width of the bar's filled part, 1 to 100.
    filled: i64,
    near: bool,
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
            of: month,
            month: french::month(month),
            of_month: of_month(month),
            total: euros(total),
            cents: total,
            sources: sources.iter().map(Source::new).collect(),
            provisional_at: None,
            typed: None,
            twice: Twice::default(),
            uncounted: None,
            unread: None,
            several_unread: false,
            partial: false,
            maybe_twice: None,
            passed_on: None,
            year: month.year(),
            categories: Vec::new(),
            ceilings: Vec::new(),
            activities: Vec::new(),
            ahead: None,
            empty: None,
        }
    }

    /// Shows the whole year, too.
    pub(super) fn year(mut self, year: i32, sums: &[ActivitySum], created: Option<NaiveDate>) -> Self {
        self.categories =
            by_category(sums).into_iter().map(|(category, cents)| (name(category), euros(cents))).collect();
        let mut found = progress(sums, created, year);
        found.sort_by_key(|progress| Reverse(per_mille(progress.turnover, progress.ceiling)));
        self.ceilings =
            found.iter().enumerate().map(|(place, found)| Ceiling::new(found, place == 0)).collect();
        self
    }

    /// Shows what was imported by activity, too.
    pub(super) fn activities(mut self, totals: &[ActivityTotal]) -> Self {
        let sums: Vec<_> = totals
            .iter()
            .map(|of| ActivitySum { activity: of.activity.clone(), typed: 0, imported: of.total })
            .collect();
        self.activities =
            by_category(&sums).into_iter().map(|(category, cents)| (name(category), euros(cents))).collect();
        self
    }

    /// Names the months of the year of which nothing is recorded, and says what is typed for those to come.
    pub(super) fn months(mut self, empty: &[Month], ahead: Option<i64>) -> Self {
        let names: Vec<_> = empty.iter().map(|month| french::month_name(*month)).collect();
        self.empty = (!names.is_empty()).then(|| {
            let then = if names.len() == 1 {
                "ce mois-là, il se déclare à 0\u{a0}€ ; sinon, complétez-le"
            } else {
                "ces mois-là, ils se déclarent à 0\u{a0}€ ; sinon, complétez-les"
            };
            format!(
                "Rien n’est enregistré pour {} {}. Si vous n’avez rien encaissé {then}.",
                list(&names),
                self.year
            )
        });
        self.ahead = ahead.filter(|cents| *cents != 0).map(euros);
        self
    }

    /// Returns whether more was paid back than cashed.
    fn is_negative(&self) -> bool {
        self.cents < 0
    }

    /// Returns whether the month is to be declared as 0, as far as is known.
    fn is_nothing_to_declare(&self) -> bool {
        self.cents == 0 && self.typed.is_none() && !self.incomplete()
    }

    pub(super) fn provisional(mut self, at: Option<DateTime<Utc>>) -> Self {
        self.provisional_at = at.map(date_and_time);
        self
    }

    pub(super) fn typed(mut self, typed: Option<i64>) -> Self {
        self.typed = typed;
        self
    }

    /// Says what may count twice, or what the user has confirmed. Comes after [`typed`](Self::typed).
    pub(super) fn confirmed(mut self, mixed: &[MonthTwice], verdict: Option<BooksVerdict>) -> Self {
        let month = self.typed.map(|typed| {
            let both = format!("Vous avez aussi saisi {} à la main pour ce mois.", euros(typed));
            match verdict {
                Some(verdict) => Remark::settled(verdict, &both),
                None => Remark::open(format!(
                    "{both} Si cette saisie reprend des encaissements importés, ils sont comptés deux fois dans votre \
                     année : gardez l’un ou l’autre."
                )),
            }
        });
        let others = if self.ceilings.is_empty() { None } else { Twice::others(mixed, self.of, |_| true) };
        self.twice = Twice { month, others };
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

    /// Says how many sales may be counted twice.
    pub(super) fn maybe_twice(mut self, sales: u32) -> Self {
        self.maybe_twice = (sales > 0).then(|| {
            agreeing(
                sales.into(),
                "Une vente Shopify a le même montant et le même jour qu’un paiement Stripe. Si c’est le même \
                 paiement, il est compté deux fois\u{a0}: vérifiez-le.",
                "Des ventes Shopify ont le même montant et le même jour que des paiements Stripe. Si ce sont les mêmes \
                 paiements, ils sont comptés deux fois\u{a0}: vérifiez-les.",
            )
        });
        self
    }

    /// Says how many payments a platform passed on, which may have kept a part of what the buyers paid.
    pub(super) fn passed_on(mut self, payments: u32) -> Self {
        self.passed_on = (payments > 0).then(|| {
            agreeing(
                payments.into(),
                "Un paiement Stripe vous a été reversé par une plateforme. Si elle a encaissé pour votre compte et gardé \
                 sa commission, le client a payé davantage, et c’est ce qu’il a payé qui se déclare\u{a0}: vérifiez-le sur le relevé de la plateforme.",
                "Des paiements Stripe vous ont été reversés par une plateforme. Si elle a encaissé pour votre compte et \
                 gardé sa commission, vos clients ont payé davantage, et c’est ce qu’ils ont payé qui se déclare\u{a0}: vérifiez-le sur le relevé de la \
                 plateforme.",
            )
        });
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

impl Ceiling {
    fn new(progress: &Progress, nearest: bool) -> Self {
        let limit = Limit::of(progress.threshold);
        let scope = if limit.services { "services" } else { "chiffre d’affaires total" };
        let reached = per_mille(progress.turnover, progress.ceiling);
        let part = progress.full_year_ceiling.map_or_else(String::new, |whole| {
            format!(" (au prorata de {} pour une année)", round_euros(whole))
        });
        Self {
            name: format!("{}, {scope}", capitalised(limit.name)),
            reached: format!(
                "{} sur {}{part}, soit {}{}",
                euros(progress.turnover),
                round_euros(progress.ceiling),
                percent(reached),
                if nearest { " : c’est le plus proche" } else { "" }
            ),
            filled: (reached / 10).clamp(1, 100),
            near: reached >= 800,
        }
    }
}

const fn name(category: Option<Category>) -> &'static str {
    match category {
        Some(Category::Sales) => "Ventes de marchandises",
        Some(Category::Services) => "Prestations de services",
        Some(Category::Liberal | Category::Cipav) => "Activités libérales",
        None => "Activité non reconnue",
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
