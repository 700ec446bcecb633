//! Tells what was imported for a month.

use askama::Template;
use chrono::{DateTime, NaiveDate, Utc};

use super::{
    alert_remarks::{assumed_activities, contradicted},
    ceiling::{Ceiling, vat_due},
    foreign::unlinked,
    frame::{Frame, Headline, Mail},
    french::{self, date_and_time, euros, list, of_month, round_euros},
    incomplete, recap_words, retraction,
    twice::{Remark, Twice, converted},
};
use crate::{
    email::{ActivityTotal, Assumed, BooksVerdict, MonthTwice, Retracted, SourceTotal, UnreadSource},
    schedule::Month,
    urssaf::{Activity, ActivitySum, Category, by_category, declared},
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
    /// Says what could not be read, and whether the user has to look at it.
    unread: Option<String>,
    partial: bool,
    /// Says that some sales may be counted twice.
    maybe_twice: Option<&'static str>,
    /// Says that a platform passed some payments on.
    passed_on: Option<&'static str>,
    year: i32,
    /// Lists the year's turnover by category: what it is, how much.
    categories: Vec<(&'static str, String)>,
    ceilings: Vec<Ceiling>,
    /// Says that VAT is due by the year's turnover.
    vat_due: Option<String>,
    /// Holds what was imported for the month, by activity.
    activities: Vec<(&'static str, String)>,
    /// Holds what of them is above zero, as it is declared: "Prestations de services : 300 €".
    above_zero: Vec<String>,
    /// Is what is typed for the months after.
    ahead: Option<String>,
    /// Says why the ceilings are not reduced.
    contradicted: Option<String>,
    /// Names the months of which nothing is recorded.
    empty: Option<String>,
    /// Says which activities nobody has said.
    assumed: Vec<String>,
    /// Takes back what earlier alerts have said.
    retracted: Vec<String>,
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
            partial: false,
            maybe_twice: None,
            passed_on: None,
            year: month.year(),
            categories: Vec::new(),
            ceilings: Vec::new(),
            vat_due: None,
            activities: Vec::new(),
            above_zero: Vec::new(),
            ahead: None,
            contradicted: None,
            empty: None,
            assumed: Vec::new(),
            retracted: Vec::new(),
        }
    }

    /// Shows the whole year, too, of which `mixed` may be there twice.
    pub(super) fn year(
        mut self,
        sums: &[ActivitySum],
        created: Option<NaiveDate>,
        mixed: &[MonthTwice],
    ) -> Self {
        let year = self.year;
        let counted = mixed.iter().filter(|mixed| mixed.month <= self.of);
        let twice = counted.map(|mixed| mixed.typed.min(mixed.imported).max(0)).fold(0, i64::saturating_add);
        self.vat_due = vat_due(sums, twice, created, year);
        let categories = by_category(sums);
        let liberal = categories.iter().any(|(category, _)| category.is_some_and(Category::is_liberal));
        self.categories =
            categories.into_iter().map(|(category, cents)| (name(category), euros(cents))).collect();
        self.ceilings = Ceiling::all(sums, created, year, liberal);
        self
    }

    /// Says that the books contradict the date of creation. Comes after [`year`](Self::year).
    pub(super) fn contradicting(mut self, dates: Option<(NaiveDate, Month)>) -> Self {
        self.contradicted =
            dates.filter(|_| !self.ceilings.is_empty()).map(|(created, first)| contradicted(created, first));
        self
    }

    /// Shows what was imported by activity, too.
    pub(super) fn activities(mut self, totals: &[ActivityTotal]) -> Self {
        let sums: Vec<_> = totals
            .iter()
            .map(|of| ActivitySum { activity: of.activity.clone(), typed: 0, imported: of.total })
            .collect();
        let found = by_category(&sums);
        self.above_zero = found
            .iter()
            .filter(|(_, cents)| *cents > 0)
            .map(|(category, cents)| {
                format!("{} : {}", name(*category), round_euros(declared(*cents).0.saturating_mul(100)))
            })
            .collect();
        self.activities = found.into_iter().map(|(category, cents)| (name(category), euros(cents))).collect();
        self
    }

    /// Takes back what earlier alerts have said.
    pub(super) fn retracting(mut self, retracted: &[Retracted]) -> Self {
        self.retracted = retraction::words(retracted);
        self
    }

    /// Says of which money of the month the activity was assumed.
    pub(super) fn assumed(mut self, assumed: &[Assumed], totals: &[ActivityTotal]) -> Self {
        let counts = |activity| {
            let mut of_activity = totals.iter().filter(|of| Activity::parse(&of.activity) == activity);
            of_activity.any(|of| of.total != 0)
        };
        self.assumed = assumed_activities(assumed, "d’autres limites s’appliquent", counts);
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

    /// Returns what to declare where more was paid back than cashed: the title and the words.
    fn negative(&self) -> Option<(&'static str, String)> {
        (self.cents < 0).then(|| recap_words::negative(self.provisional_at.is_some(), &self.above_zero))
    }

    /// Returns what to declare where nothing was sold, as far as is known: the title and the words.
    fn nothing_to_declare(&self) -> Option<(&'static str, &'static str)> {
        let is_nothing = self.cents == 0 && self.typed.is_none() && !self.incomplete();
        is_nothing.then(|| recap_words::nothing(self.provisional_at.is_some()))
    }

    pub(super) fn provisional(mut self, at: Option<DateTime<Utc>>) -> Self {
        self.provisional_at = at.map(date_and_time);
        self
    }

    pub(super) fn typed(mut self, typed: Option<i64>) -> Self {
        self.typed = typed;
        self
    }

    /// Says what may count twice, or what the user has confirmed. Comes after [`typed`](Self::typed) and
    /// [`missing`](Self::missing).
    pub(super) fn confirmed(mut self, mixed: &[MonthTwice], verdict: Option<BooksVerdict>) -> Self {
        let month = self.typed.map(|typed| {
            let both = format!("Vous avez aussi saisi {} à la main pour ce mois.", euros(typed));
            match verdict {
                // A side that is not above zero is in nothing twice.
                _ if typed.min(self.cents) <= 0 => Remark::beside(&both),
                Some(verdict) => Remark::settled(verdict, &both),
                None => Remark::open(format!(
                    "{both} Si cette saisie reprend des encaissements importés, ils sont comptés deux fois dans votre \
                     année : gardez l’un ou l’autre.{}",
                    converted(self.uncounted.as_deref())
                )),
            }
        });
        let others = if self.ceilings.is_empty() {
            None
        } else {
            Twice::others(mixed, self.of, |other| other < self.of)
        };
        self.twice = Twice { month, others };
        self
    }

    pub(super) fn missing(mut self, uncounted: &[String], partial: bool) -> Self {
        let currencies: Vec<_> = uncounted.iter().map(|currency| unlinked(currency, 10)).collect();
        self.uncounted = (!currencies.is_empty()).then(|| list(&currencies));
        self.partial = partial;
        self
    }

    /// Says which sources could not be read; of those that are `not_theirs` the user has nothing to mend.
    pub(super) fn unread(mut self, unread: &[String], not_theirs: &[String]) -> Self {
        self.unread = incomplete::unread_sources(unread, not_theirs);
        self
    }

    /// Says which sources were replaced or disconnected before the month's end, after what could not be read.
    pub(super) fn ended(mut self, sources: &[UnreadSource]) -> Self {
        let ended = incomplete::sources(sources, self.of)
            .map(|said| format!("{said}. Comparez ce total avec ce que vous avez reçu."));
        self.unread = match (self.unread, ended) {
            (Some(unread), Some(ended)) => Some(format!("{unread} {ended}")),
            (unread, ended) => unread.or(ended),
        };
        self
    }

    /// Says how many sales may be counted twice.
    pub(super) fn maybe_twice(mut self, sales: u32) -> Self {
        self.maybe_twice = incomplete::maybe_twice(sales);
        self
    }

    /// Says how many payments a platform passed on, which may have kept a part of what the buyers paid.
    pub(super) fn passed_on(mut self, payments: u32) -> Self {
        self.passed_on = incomplete::passed_on(payments);
        self
    }

    /// Returns whether the total is not all that there is.
    fn incomplete(&self) -> bool {
        self.partial || self.unread.is_some() || self.uncounted.is_some()
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
