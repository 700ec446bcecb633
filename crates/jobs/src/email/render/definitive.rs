//! Tells the definitive total of a month of which a recap has named another one.

use askama::Template;

use super::{
    alert::capitalised,
    foreign::unlinked,
    frame::{Frame, Headline, Mail},
    french::{self, date, euros, list, of_month, quarter},
    incomplete::Reserve,
};
use crate::{
    email::{Definitive, IncompleteMonth},
    schedule::{Month, paris},
    urssaf::{monthly_due, quarterly_due},
};

pub(super) struct View {
    /// Is "novembre 2026".
    month: String,
    /// Is "de novembre 2026".
    of_month: String,
    /// Is "4e trimestre 2026".
    quarter: String,
    total: String,
    mailed: String,
    /// Is "Annoncé le 30 novembre 2026".
    mailed_when: String,
    /// Is "De plus" or "De moins".
    direction: String,
    /// Is "100,00 €".
    apart: String,
    /// Holds the total, in cents.
    cents: i64,
    /// Says what keeps the total from being whole.
    reserves: Vec<Reserve>,
    /// Is "USD et GBP".
    uncounted: Option<String>,
    monthly_due: String,
    quarterly_due: String,
}

impl View {
    /// Returns "100,00 € de plus".
    fn difference(&self) -> String {
        format!("{} {}", self.apart, self.direction.to_lowercase())
    }

    pub(super) fn new(month: Month, definitive: Definitive) -> Self {
        Self {
            month: french::month(month),
            of_month: of_month(month),
            quarter: quarter(month),
            total: euros(definitive.total),
            mailed: euros(definitive.mailed),
            mailed_when: match definitive.mailed_at {
                Some(at) => format!("Annoncé le {}", date(paris::date(at))),
                None => "Annoncé par le récapitulatif".to_owned(),
            },
            direction: capitalised(direction(definitive)),
            apart: apart(definitive),
            cents: definitive.total,
            reserves: Vec::new(),
            uncounted: None,
            monthly_due: date(monthly_due(month)),
            quarterly_due: date(quarterly_due(month)),
        }
    }

    /// Says what keeps the total from being whole, and which currencies are not in it.
    pub(super) fn lacking(mut self, incomplete: &[IncompleteMonth], uncounted: &[String]) -> Self {
        let currencies: Vec<_> = uncounted.iter().map(|currency| unlinked(currency, 10)).collect();
        self.reserves = incomplete.iter().map(Reserve::new).collect();
        self.uncounted = (!currencies.is_empty()).then(|| list(&currencies));
        self
    }

    /// Says which amount is declared by whoever charges VAT.
    #[expect(clippy::unused_self, reason = "templates call it")]
    const fn without_vat(&self) -> &'static str {
        "Si vous êtes redevable de la TVA, c’est le montant hors TVA qui se déclare ; le total importé est ce que vos \
         clients ont payé, TVA comprise."
    }

    /// Returns what to declare, before the dates until when.
    fn declare(&self) -> &'static str {
        match self.cents {
            ..0 => {
                "Un montant négatif ne se déclare pas. Avec ce que vous avez encaissé par ailleurs : si vous déclarez chaque \
             mois, déclarez 0 € pour une activité dont le montant du mois est négatif ; si vous déclarez chaque trimestre, \
             c’est la somme du trimestre qui se déclare. Vos dates limites :"
            }
            0 => {
                "Si vous n’avez rien encaissé par ailleurs, déclarez 0 € pour ce mois : un mois sans chiffre d’affaires se \
             déclare aussi. Si vous déclarez chaque trimestre, c’est la somme du trimestre qui se déclare. Vos dates \
             limites :"
            }
            _ => "C’est le total définitif qui se déclare, avec ce que vous avez encaissé par ailleurs :",
        }
    }
}

/// Says of a month what its recap named and what is true now; returns `None` where the recap said it all.
pub(super) fn words(month: Month, definitive: Definitive) -> Option<String> {
    let recap = match definitive.mailed_at {
        Some(at) => format!("Le récapitulatif du {}", date(paris::date(at))),
        None => "Le récapitulatif".to_owned(),
    };
    let provisional = if definitive.provisional { " provisoire" } else { "" };
    let mailed = euros(definitive.mailed);
    if definitive.total != definitive.mailed {
        return Some(format!(
            "{recap} annonçait un total importé{provisional} de {mailed}. Le total définitif {} est de {}, soit {} {}.",
            of_month(month),
            euros(definitive.total),
            apart(definitive),
            direction(definitive)
        ));
    }
    definitive
        .provisional
        .then(|| format!("{recap} annonçait {mailed}, provisoirement : rien n’a changé depuis."))
}

/// Writes "100,00 €", by which they differ.
fn apart(definitive: Definitive) -> String {
    euros(definitive.total.saturating_sub(definitive.mailed).saturating_abs())
}

/// Writes "de plus" or "de moins".
fn direction(definitive: Definitive) -> &'static str {
    if definitive.total < definitive.mailed { "de moins" } else { "de plus" }
}

impl Mail for View {
    fn headline(&self) -> Headline {
        Headline {
            subject: format!("Le total définitif {} : {}", self.of_month, self.total),
            preheader: format!(
                "Le récapitulatif annonçait {}. {} : {}.",
                self.mailed, self.direction, self.apart
            ),
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
#[template(path = "definitive_month.html")]
struct Html<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}

#[derive(Template)]
#[template(path = "definitive_month.txt")]
struct Text<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(mailed: i64, total: i64, provisional: bool) -> Option<String> {
        let mailed_at = Some("2026-11-30T17:05:00Z".parse().unwrap());
        let definitive = Definitive { mailed, mailed_at, provisional, total };
        words(Month::new(2026, 11).unwrap(), definitive)
            .map(|words| words.replace(['\u{a0}', '\u{202f}'], " "))
    }

    #[test]
    fn a_month_of_which_nothing_is_left_is_declared_as_0() {
        let declare = |total| {
            let definitive = Definitive { mailed: 10_000, mailed_at: None, provisional: true, total };
            View::new(Month::new(2026, 11).unwrap(), definitive).declare()
        };
        assert!(declare(0).contains("déclarez 0 € pour ce mois"), "{}", declare(0));
        assert!(!declare(1).contains("0 €"), "{}", declare(1));
    }

    #[test]
    fn a_difference_is_said_and_so_is_that_there_is_none() {
        let more = said(10_000, 12_550, true).unwrap();
        assert!(
            more.contains("du 30 novembre 2026 annonçait un total importé provisoire de 100,00 €"),
            "{more}"
        );
        assert!(more.ends_with("est de 125,50 €, soit 25,50 € de plus."), "{more}");
        let less = said(10_000, -500, false).unwrap();
        assert!(
            !less.contains("provisoire") && less.ends_with("est de -5,00 €, soit 105,00 € de moins."),
            "{less}"
        );
        assert!(
            said(10_000, 10_000, true)
                .unwrap()
                .ends_with("annonçait 100,00 €, provisoirement : rien n’a changé depuis.")
        );
        assert_eq!(said(10_000, 10_000, false), None, "the recap has said it");
    }
}
