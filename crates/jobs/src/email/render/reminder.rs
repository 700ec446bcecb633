//! Says "Record your turnover of last month."

use askama::Template;

use super::{
    declaration::Declaration,
    frame::{Frame, Headline, Mail},
    french::{self, date, euros, grouped, of_month, quarter},
    twice::{Remark, Twice, both_sides},
};
use crate::{
    email::{ActivityTurnover, BooksVerdict, MonthTwice},
    schedule::Month,
    urssaf::{TaxProfile, monthly_due, quarterly_due},
};

pub(super) struct View {
    of: Month,
    /// "novembre 2026".
    month: String,
    /// "de novembre 2026".
    of_month: String,
    /// "4e trimestre 2026".
    quarter: String,
    recorded: String,
    /// "12 enregistrements"; none where nothing is recorded.
    entries: Option<String>,
    negative: bool,
    monthly_due: String,
    quarterly_due: String,
    declaration: Declaration,
    twice: Twice,
}

impl View {
    pub(super) fn new(month: Month, recorded: i64, entries: u32) -> Self {
        Self {
            of: month,
            month: french::month(month),
            of_month: of_month(month),
            quarter: quarter(month),
            recorded: euros(recorded),
            entries: match entries {
                0 => None,
                1 => Some("1\u{a0}enregistrement".to_owned()),
                many => Some(format!("{}\u{a0}enregistrements", grouped(many.into()))),
            },
            negative: recorded < 0,
            monthly_due: date(monthly_due(month)),
            quarterly_due: date(quarterly_due(month)),
            declaration: Declaration::default(),
            twice: Twice::default(),
        }
    }

    /// Says what may count twice, or what the user has confirmed.
    pub(super) fn confirmed(mut self, mixed: &[MonthTwice], verdict: Option<BooksVerdict>) -> Self {
        let open = mixed.iter().find(|mixed| mixed.month == self.of).map(|mixed| {
            Remark::open(format!(
                "Pour ce mois, {}. S’ils sont distincts, déclarez les deux, comme ici. Si votre saisie reprend des \
                 encaissements importés, ils sont comptés deux fois ici : ne déclarez que l’un des deux montants.",
                both_sides(mixed.typed, mixed.imported)
            ))
        });
        let settled = verdict.map(|verdict| {
            Remark::settled(
                verdict,
                "Ce mois contient à la fois des montants saisis et des montants importés.",
            )
        });
        let quarter = quarter(self.of);
        self.twice = Twice {
            month: open.or(settled),
            others: Twice::others(mixed, self.of, |other| {
                other < self.of && french::quarter(other) == quarter && !self.declaration.quarter.is_empty()
            }),
        };
        self
    }

    /// Says what to declare and what to put aside, too.
    pub(super) fn declaring(mut self, books: &[ActivityTurnover], profile: TaxProfile) -> Self {
        self.declaration = Declaration::new(self.of, books, profile);
        self
    }
}

impl Mail for View {
    fn headline(&self) -> Headline {
        Headline {
            subject: format!("Pensez à enregistrer votre chiffre d’affaires {}", self.of_month),
            preheader: format!(
                "Déclaration mensuelle à l’Urssaf : au plus tard le {}. Trimestrielle : le {}.",
                self.monthly_due, self.quarterly_due
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
#[template(path = "monthly_reminder.html")]
struct Html<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}

#[derive(Template)]
#[template(path = "monthly_reminder.txt")]
struct Text<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}
