//! Says what to declare for a month and for its quarter, and what to put aside for the month.

use super::{
    foreign::unlinked,
    french::{self, date, euros, list, of_month, round_euros},
};
use crate::{
    email::ActivityTurnover,
    schedule::Month,
    urssaf::{
        Category, Caveat, DeclaredTurnover, Euros, IncomeTaxAside, PutAside, RATES_KNOWN_UNTIL, Rate,
        Receipts, TaxProfile, put_aside,
    },
};

/// Says that turnover is declared without VAT by whoever charges it: the rule `dirigeant . auto-entrepreneur .
/// chiffre d'affaires` of mon-entreprise.urssaf.fr takes "recettes (hors taxe)". What is imported is what customers paid.
const WITHOUT_VAT: &str = "Si vous êtes redevable de la TVA, déclarez les montants hors TVA : les encaissements importés \
                           sont comptés ici tels que vos clients les ont payés";

/// Goes on where the mail says what to put aside.
const NOR_PUT_ASIDE: &str = ", et la TVA à reverser n’est pas dans ce qu’il faut mettre de côté";

/// Holds what a reminder says of a declaration. It is empty where there is nothing to declare, or
/// nothing is known.
#[derive(Default)]
pub(super) struct Declaration {
    /// Lists each category's turnover of the month.
    pub(super) month: Vec<Figure>,
    /// Lists each category's turnover of the quarter so far.
    pub(super) quarter: Vec<Figure>,
    /// Names the quarter so far, as in "d’octobre à novembre 2026" or "octobre 2026".
    pub(super) quarter_until_now: String,
    /// The month is the last one of its quarter.
    pub(super) quarter_is_over: bool,
    /// Lists what the month's turnover costs, without the total.
    pub(super) aside: Vec<Figure>,
    pub(super) total: String,
    /// Says what the figures assume or leave out.
    pub(super) caveats: Vec<String>,
    /// Says that an activity's amount of the month is below zero.
    pub(super) has_negative: bool,
    /// Says that the month has turnover of some activity to declare.
    pub(super) declares_something: bool,
}

/// Says what a figure is, and how much.
pub(super) struct Figure {
    pub(super) label: String,
    pub(super) amount: String,
}

impl Declaration {
    pub(super) fn new(month: Month, books: &[ActivityTurnover], profile: TaxProfile) -> Self {
        let (mut of_the_month, mut of_the_quarter) = (Receipts::default(), Receipts::default());
        for row in books {
            of_the_month.add(&row.activity, row.typed.saturating_add(row.imported));
            of_the_quarter.add(&row.activity, row.quarter);
        }
        let (Some(aside), Some(quarter)) =
            (put_aside(&of_the_month, month, profile), put_aside(&of_the_quarter, month, profile))
        else {
            return Self::default();
        };
        let known = [of_the_month.sales, of_the_month.services, of_the_month.liberal, of_the_month.cipav];
        let said = Self {
            quarter: turnover(&quarter.lines),
            quarter_until_now: quarter_until(month),
            quarter_is_over: month.month().is_multiple_of(3),
            has_negative: known.iter().any(|cents| *cents < 0),
            declares_something: aside.lines.iter().any(|line| line.declared > Euros(0)),
            ..Self::of(month, &aside)
        };
        let mut said = said.with_unknown(books, of_the_month.unknown, of_the_quarter.unknown);
        let aside = if said.aside.is_empty() { "" } else { NOR_PUT_ASIDE };
        said.caveats.extend(
            books
                .iter()
                .any(|row| row.quarter > 0 || row.typed.saturating_add(row.imported) > 0)
                .then(|| format!("{WITHOUT_VAT}{aside}.")),
        );
        said
    }

    /// Adds what belongs to no known activity: each spelling with its amount, and what is left to do.
    fn with_unknown(mut self, books: &[ActivityTurnover], month: i64, quarter: i64) -> Self {
        for row in books.iter().filter(|row| Category::parse(&row.activity).is_none()) {
            let of_the_month = row.typed.saturating_add(row.imported);
            let figure = |cents| Figure {
                label: format!("Activité non reconnue ({})", unlinked(&row.activity, 40)),
                amount: euros(cents),
            };
            self.month.extend((of_the_month != 0).then(|| figure(of_the_month)));
            self.quarter.extend((row.quarter != 0).then(|| figure(row.quarter)));
            self.has_negative |= of_the_month < 0;
            self.declares_something |= of_the_month > 0;
        }
        if quarter != 0 && quarter != month {
            let first = usize::from(month != 0).min(self.caveats.len());
            self.caveats.insert(
                first,
                format!(
                    "Pour le trimestre, un montant de {} n’est pas compté, car son activité n’est pas reconnue : \
                     corrigez-la dans vos enregistrements.",
                    euros(quarter)
                ),
            );
        }
        self
    }

    /// Returns the month's figures in one line: "Ventes de marchandises : 0 € et Prestations de services : 300 €".
    pub(super) fn month_in_a_line(&self) -> String {
        let figures = self.month.iter().map(|figure| format!("{} : {}", figure.label, figure.amount));
        list(&figures.collect::<Vec<_>>())
    }

    fn of(month: Month, aside: &PutAside) -> Self {
        Self {
            month: turnover(&aside.lines),
            aside: if aside.lines.is_empty() { Vec::new() } else { costs(aside) },
            total: whole(aside.total),
            caveats: caveats(month, aside),
            ..Self::default()
        }
    }
}

fn turnover(lines: &[DeclaredTurnover]) -> Vec<Figure> {
    let figure = |line: &DeclaredTurnover| Figure {
        label: name(line.category).to_owned(),
        amount: whole(line.declared),
    };
    lines.iter().map(figure).collect()
}

fn costs(aside: &PutAside) -> Vec<Figure> {
    let contributions = aside.lines.iter().map(|line| Figure {
        label: format!("Cotisations, {} ({})", short_name(line.category), percent(line.rate)),
        amount: whole(line.contributions),
    });
    let training = Figure { label: "Contribution à la formation".to_owned(), amount: whole(aside.training) };
    let income_tax = match aside.income_tax {
        IncomeTaxAside::Flat(euros) => {
            Some(Figure { label: "Versement libératoire de l’impôt".to_owned(), amount: whole(euros) })
        }
        IncomeTaxAside::Scale | IncomeTaxAside::NotSubject | IncomeTaxAside::Unknown => None,
    };
    contributions.chain([training]).chain(income_tax).collect()
}

fn caveats(month: Month, aside: &PutAside) -> Vec<String> {
    let scale = (aside.income_tax == IncomeTaxAside::Scale && !aside.lines.is_empty()).then(|| {
        "L’impôt sur le revenu n’est pas compté : vous le payez au barème, avec les autres revenus de votre foyer."
            .to_owned()
    });
    aside.caveats.iter().map(|caveat| sentence(month, *caveat)).chain(scale).collect()
}

fn sentence(month: Month, caveat: Caveat) -> String {
    match caveat {
        Caveat::UnknownActivity { cents } => format!(
            "Un montant de {} n’est pas compté, car son activité n’est pas reconnue : corrigez-la dans vos \
             enregistrements.",
            euros(cents)
        ),
        Caveat::AcreUnknown => {
            "Nous ne savons pas si vous bénéficiez de l’Acre : les cotisations sont comptées au taux plein."
                .to_owned()
        }
        Caveat::AcreUndated => {
            "Votre profil indique l’Acre, mais pas la date de création de votre entreprise : les \
                                cotisations sont comptées au taux plein."
                .to_owned()
        }
        Caveat::AcreEnded { on } => format!(
            "Votre profil indique encore l’Acre. Elle a pris fin : depuis le {}, les cotisations sont dues au taux \
             plein.",
            date(on)
        ),
        Caveat::AcreContradicted { created } => format!(
            "Votre profil indique une création le {}, après ces encaissements : les cotisations sont comptées au \
             taux plein, sans l’Acre.",
            date(created)
        ),
        Caveat::TradeAssumed => {
            "La contribution à la formation est comptée à 0,1 %, le taux des commerçants ; celui \
                                 des artisans est de 0,3 %."
                .to_owned()
        }
        Caveat::SchemeAssumed => {
            "Vos activités libérales sont comptées au régime général ; les taux de la Cipav sont \
                                  différents."
                .to_owned()
        }
        Caveat::IncomeTaxUnknown => {
            "Nous ne savons pas comment vous payez l’impôt sur le revenu : il n’est pas compté.".to_owned()
        }
        Caveat::ChamberTax => {
            "La taxe pour frais de chambre, qui dépend du métier et du département, n’est pas comptée."
                .to_owned()
        }
        Caveat::RatesAssumed => format!(
            "Les taux de {} ne nous sont pas connus : ceux de {RATES_KNOWN_UNTIL} sont repris.",
            month.year()
        ),
    }
}

const fn name(category: Category) -> &'static str {
    match category {
        Category::Sales => "Ventes de marchandises",
        Category::Services => "Prestations de services",
        Category::Liberal => "Activités libérales",
        Category::Cipav => "Activités libérales (Cipav)",
    }
}

const fn short_name(category: Category) -> &'static str {
    match category {
        Category::Sales => "ventes",
        Category::Services => "prestations",
        Category::Liberal => "activités libérales",
        Category::Cipav => "Cipav",
    }
}

/// Writes "12,3 %".
fn percent(rate: Rate) -> String {
    let hundredths = rate.as_hundredths_of_percent();
    let (whole, part) = (hundredths / 100, hundredths % 100);
    match part {
        0 => format!("{whole}\u{a0}%"),
        tenths if tenths % 10 == 0 => format!("{whole},{}\u{a0}%", tenths / 10),
        part => format!("{whole},{part:02}\u{a0}%"),
    }
}

/// Writes "2 400 €".
fn whole(amount: Euros) -> String {
    round_euros(amount.0.saturating_mul(100))
}

/// Writes "d’octobre à novembre 2026", or "octobre 2026" in the quarter's first month.
fn quarter_until(month: Month) -> String {
    let mut first = month;
    while first.month() % 3 != 1 {
        first = first.previous();
    }
    if first == month {
        return french::month(month);
    }
    let from = of_month(first);
    let from = from.split('\u{a0}').next().unwrap_or_default();
    format!("{from} à {}", french::month(month))
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;
    use rstest::rstest;

    use super::*;
    use crate::urssaf::IncomeTax;

    fn row(activity: &str, typed: i64, imported: i64, quarter: i64) -> ActivityTurnover {
        ActivityTurnover { activity: activity.to_owned(), typed, imported, quarter }
    }

    fn plain(figures: &[Figure]) -> Vec<(&str, String)> {
        let spaces = ['\u{a0}', '\u{202f}'];
        figures.iter().map(|figure| (figure.label.as_str(), figure.amount.replace(spaces, " "))).collect()
    }

    /// Goods of 1 500 in October, 2 400 in November, and services of 600 in November.
    #[test]
    fn the_month_the_quarter_so_far_and_what_they_cost() {
        let books = [
            row("Vente de marchandises", 240_000, 0, 390_000),
            row("Prestation de services", 0, 60_000, 60_000),
        ];
        let november = Month::new(2026, 11).unwrap();
        let said = Declaration::new(november, &books, TaxProfile::default());
        let figures = |sales: &str, services: &str| {
            vec![
                ("Ventes de marchandises", sales.to_owned()),
                ("Prestations de services", services.to_owned()),
            ]
        };
        assert_eq!(plain(&said.month), figures("2 400 €", "600 €"));
        assert_eq!(plain(&said.quarter), figures("3 900 €", "600 €"));
        assert_eq!(said.quarter_until_now, "d’octobre à novembre\u{a0}2026");
        let costs = plain(&said.aside);
        let amounts: Vec<&str> = costs.iter().map(|(_, amount)| amount.as_str()).collect();
        assert_eq!(amounts, ["295 €", "127 €", "3 €"]);
        assert_eq!(said.total, "425\u{a0}€");
        let flat = TaxProfile { income_tax: Some(IncomeTax::Flat), ..TaxProfile::default() };
        assert_eq!(Declaration::new(november, &books, flat).total, "459\u{a0}€", "24 and 10,20 more");
    }

    /// What belongs to no known activity stands beside the others, of the month and of the quarter: nothing is 0 € but
    /// where nothing is recorded.
    #[test]
    fn an_unknown_activity_is_in_the_month_and_in_the_quarter() {
        let december = Month::new(2026, 12).unwrap();
        let books = [row("mixte", 0, 0, 90_000), row("Prestation de services", 60_000, 0, 60_000)];
        let said = Declaration::new(december, &books, TaxProfile::default());
        assert_eq!(plain(&said.month), [("Prestations de services", "600 €".to_owned())]);
        assert_eq!(
            plain(&said.quarter),
            [
                ("Prestations de services", "600 €".to_owned()),
                ("Activité non reconnue (mixte)", "900,00 €".to_owned())
            ]
        );
        assert!(said.caveats[0].starts_with("Pour le trimestre, un montant de 900,00"), "{:?}", said.caveats);

        let november = Month::new(2026, 11).unwrap();
        let books = [row("Vente de marchandises", 0, 0, 150_000), row("mixte", 90_000, 0, 90_000)];
        let said = Declaration::new(november, &books, TaxProfile::default());
        assert_eq!(plain(&said.month), [("Activité non reconnue (mixte)", "900,00 €".to_owned())]);
        assert!(said.declares_something && !said.has_negative && said.quarter.len() == 2);
        let told = said.caveats.iter().filter(|caveat| caveat.contains("n’est pas reconnue")).count();
        assert_eq!(told, 1, "the month's and the quarter's are one: {:?}", said.caveats);
    }

    #[test]
    fn turnover_is_declared_without_vat() {
        let november = Month::new(2026, 11).unwrap();
        let of = |month, quarter| {
            Declaration::new(november, &[row("services", month, 0, quarter)], TaxProfile::default()).caveats
        };
        let (declared, both) = (format!("{WITHOUT_VAT}."), format!("{WITHOUT_VAT}{NOR_PUT_ASIDE}."));
        assert_eq!(of(0, 30_000).last(), Some(&declared), "turnover of October is declared by the quarter");
        assert_eq!(of(20_000, 30_000).last(), Some(&both), "there is something to put aside");
        let says_so = |caveat: &String| caveat.starts_with(WITHOUT_VAT);
        assert!(of(0, 0).is_empty() && !of(0, -100).iter().any(says_so));
    }

    #[test]
    fn each_activity_is_declared_by_itself() {
        let november = Month::new(2026, 11).unwrap();
        let books = [row("Vente", -50_000, 0, -50_000), row("services", 30_000, 0, 30_000)];
        let said = Declaration::new(november, &books, TaxProfile::default());
        assert!(said.has_negative && said.declares_something);
        assert_eq!(
            said.month_in_a_line().replace('\u{a0}', " "),
            "Ventes de marchandises : 0 € et Prestations de services : 300 €"
        );
        let said = Declaration::new(november, &books[..1], TaxProfile::default());
        assert!(said.has_negative && !said.declares_something);
    }

    #[test]
    fn nothing_is_said_of_what_is_not_known() {
        let said = Declaration::new(Month::new(2026, 11).unwrap(), &[], TaxProfile::default());
        assert!(said.month.is_empty() && said.quarter.is_empty() && said.aside.is_empty());
        assert!(said.caveats.is_empty());
        let before_the_table = Month::new(2022, 11).unwrap();
        let said = Declaration::new(before_the_table, &[row("Vente", 1, 0, 1)], TaxProfile::default());
        assert!(said.month.is_empty() && said.aside.is_empty());
    }

    #[test]
    fn an_acre_that_ended_is_said() {
        let profile = TaxProfile {
            has_acre: Some(true),
            created: NaiveDate::from_ymd_opt(2025, 5, 2),
            ..TaxProfile::default()
        };
        let said = Declaration::new(Month::new(2026, 11).unwrap(), &[row("BNC", 5_000, 0, 5_000)], profile);
        assert!(said.caveats[0].contains("1er\u{a0}avril 2026"), "{:?}", said.caveats);
    }

    #[rstest]
    #[case(1230, "12,3\u{a0}%")]
    #[case(1205, "12,05\u{a0}%")]
    #[case(1700, "17\u{a0}%")]
    fn rates(#[case] hundredths: u32, #[case] expected: &str) {
        assert_eq!(percent(Rate::hundredths_of_percent(hundredths)), expected);
    }

    #[rstest]
    #[case(2026, 10, "octobre\u{a0}2026")]
    #[case(2026, 12, "d’octobre à décembre\u{a0}2026")]
    #[case(2026, 2, "de janvier à février\u{a0}2026")]
    fn quarters(#[case] year: i32, #[case] month: u32, #[case] expected: &str) {
        assert_eq!(quarter_until(Month::new(year, month).unwrap()), expected);
    }
}
