//! Says "Record your turnover of last month."

use askama::Template;
use chrono::NaiveDate;

use super::{
    alert_remarks::assumed_activities,
    declaration::Declaration,
    definitive,
    foreign::unlinked,
    frame::{Frame, Headline, Mail},
    french::{self, date, euros, grouped, list, of_month, quarter},
    incomplete::Reserve,
    retraction,
    twice::{Remark, Twice, both_sides, converted},
};
use crate::{
    email::{ActivityTurnover, Assumed, BooksVerdict, Definitive, IncompleteMonth, MonthTwice, Retracted},
    schedule::Month,
    urssaf::{Activity, TaxProfile, monthly_due, quarterly_due},
};

pub(super) struct View {
    of: Month,
    /// Names the month, as in "novembre 2026".
    month: String,
    /// Names the month behind a noun, as in "de novembre 2026".
    of_month: String,
    /// Names the quarter, as in "4e trimestre 2026".
    quarter: String,
    recorded: String,
    /// Counts the rows, as in "12 enregistrements"; `None` where nothing is recorded.
    entries: Option<String>,
    /// Holds what is recorded for the month, in cents.
    cents: i64,
    monthly_due: String,
    quarterly_due: String,
    /// Is "il vous reste 29 jours"; `None` where the mail's day is not known.
    monthly_left: Option<String>,
    quarterly_left: Option<String>,
    /// Says what the month's recap named and what is true now.
    definitive: Option<String>,
    /// Is "USD et GBP".
    uncounted: Option<String>,
    /// Speaks of the quarter's months whose figures are not whole.
    reserves: Vec<Reserve>,
    declaration: Declaration,
    twice: Twice,
    /// Says which activities nobody has said.
    assumed: Vec<String>,
    /// Takes back what earlier alerts have said.
    retracted: Vec<String>,
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
            cents: recorded,
            monthly_due: date(monthly_due(month)),
            quarterly_due: date(quarterly_due(month)),
            monthly_left: None,
            quarterly_left: None,
            definitive: None,
            uncounted: None,
            reserves: Vec::new(),
            declaration: Declaration::default(),
            twice: Twice::default(),
            assumed: Vec::new(),
            retracted: Vec::new(),
        }
    }

    /// Says what may count twice, or what the user has confirmed. Comes after [`uncounted`](Self::uncounted).
    pub(super) fn confirmed(mut self, mixed: &[MonthTwice], verdict: Option<BooksVerdict>) -> Self {
        let open = mixed.iter().find(|mixed| mixed.month == self.of).map(|mixed| {
            Remark::open(format!(
                "Pour ce mois, {}. S’ils sont distincts, déclarez les deux, comme ici. Si votre saisie reprend des \
                 encaissements importés, ils sont comptés deux fois ici : ne déclarez que l’un des deux montants.{}",
                both_sides(mixed.typed, mixed.imported),
                converted(self.uncounted.as_deref())
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

    /// Takes back what earlier alerts have said.
    pub(super) fn retracting(mut self, retracted: &[Retracted]) -> Self {
        self.retracted = retraction::words(retracted);
        self
    }

    /// Says of which money of the quarter the activity was assumed, and was never typed.
    pub(super) fn assumed(mut self, assumed: &[Assumed], books: &[ActivityTurnover]) -> Self {
        let counts = |activity| {
            let of_activity = || books.iter().filter(|of| Activity::parse(&of.activity) == activity);
            of_activity().all(|of| of.typed == 0)
                && of_activity().any(|of| of.imported != 0 || of.quarter != 0)
        };
        self.assumed = assumed_activities(assumed, "d’autres taux et d’autres limites s’appliquent", counts);
        self
    }

    /// Says how many days are left on the day of the mail.
    pub(super) fn on(mut self, today: Option<NaiveDate>) -> Self {
        let left = |due: NaiveDate| today.map(|today| days_left((due - today).num_days()));
        self.monthly_left = left(monthly_due(self.of));
        self.quarterly_left = left(quarterly_due(self.of));
        self
    }

    /// Says what the month's total is, where its recap said something else or called it provisional.
    pub(super) fn definitive(mut self, definitive: Option<Definitive>) -> Self {
        self.definitive = definitive.and_then(|definitive| definitive::words(self.of, definitive));
        self
    }

    /// Names the currencies that no figure has.
    pub(super) fn uncounted(mut self, currencies: &[String]) -> Self {
        let currencies: Vec<_> = currencies.iter().map(|currency| unlinked(currency, 10)).collect();
        self.uncounted = (!currencies.is_empty()).then(|| list(&currencies));
        self
    }

    /// Says which months' figures are not whole, and why.
    pub(super) fn incomplete(mut self, months: &[IncompleteMonth]) -> Self {
        self.reserves = months.iter().map(Reserve::new).collect();
        self
    }

    /// Returns whether money of the mail's month may be missing in its figures.
    fn month_is_incomplete(&self) -> bool {
        self.uncounted.is_some()
            || self.reserves.iter().any(|reserve| reserve.is_missing && reserve.of == self.of)
    }

    /// Returns whether money of the quarter may be missing in its figures.
    fn quarter_is_incomplete(&self) -> bool {
        self.uncounted.is_some() || self.reserves.iter().any(|reserve| reserve.is_missing)
    }

    /// Returns what follows where nothing is recorded for the month.
    fn nothing_words(&self) -> &'static str {
        if self.month_is_incomplete() {
            "Il manque peut-être des encaissements, comme indiqué ici : complétez ce mois avant de le déclarer."
        } else {
            "Si vous n’avez rien encaissé, déclarez 0 € : un mois sans encaissement se déclare aussi."
        }
    }

    /// Returns what to declare of a month in which more was paid back than cashed: the title and the words.
    fn negative(&self) -> Option<(&'static str, String)> {
        const ASK: &str = "En cas de doute, demandez à l’Urssaf.";
        let said = &self.declaration;
        if self.cents >= 0 && !said.has_negative {
            return None;
        }
        let title = if self.cents < 0 {
            "Le montant du mois est négatif"
        } else {
            "Le montant d’une activité est négatif"
        };
        // Nothing is known by activity.
        if said.month.is_empty() {
            let words = format!(
                "Un montant négatif ne se déclare pas, et chaque activité se déclare à part. Si vous déclarez chaque mois, \
                 déclarez 0 € pour une activité dont le montant est négatif. Si vous déclarez chaque trimestre, seule la \
                 somme du trimestre compte. {ASK}"
            );
            return Some((title, words));
        }
        if said.declares_something {
            let words = format!(
                "Un montant négatif ne se déclare pas, et chaque activité se déclare à part. Si vous déclarez chaque mois, \
                 déclarez par activité ({}). Si vous déclarez chaque trimestre, seule la somme du trimestre compte, par \
                 activité. {ASK}",
                said.month_in_a_line()
            );
            return Some((title, words));
        }
        let words = format!(
            "Un montant négatif ne se déclare pas. Si vous déclarez chaque mois, déclarez 0 €. Si vous déclarez chaque \
             trimestre, seule la somme du trimestre compte. {ASK}"
        );
        Some(("Le montant du mois est négatif : déclarez 0 €", words))
    }

    /// Says what to declare and what to put aside, too.
    pub(super) fn declaring(mut self, books: &[ActivityTurnover], profile: TaxProfile) -> Self {
        self.declaration = Declaration::new(self.of, books, profile);
        self
    }
}

/// Writes "il vous reste 29 jours".
fn days_left(days: i64) -> String {
    match days {
        ..0 => "cette date est passée".to_owned(),
        0 => "c’est aujourd’hui".to_owned(),
        1 => "il vous reste 1\u{a0}jour".to_owned(),
        days => format!("il vous reste {days}\u{a0}jours"),
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(-1, "cette date est passée")]
    #[case(0, "c’est aujourd’hui")]
    #[case(1, "il vous reste 1\u{a0}jour")]
    #[case(29, "il vous reste 29\u{a0}jours")]
    fn days_are_counted(#[case] left: i64, #[case] expected: &str) {
        assert_eq!(days_left(left), expected);
    }
}
