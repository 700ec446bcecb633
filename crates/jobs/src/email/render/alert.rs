//! Tells of the steps newly crossed, all in one mail, and of what follows from the year.

use askama::Template;
use chrono::{Datelike, NaiveDate};

use super::{
    alert_remarks::{Remark, remarks},
    alert_words::{Occasion, Words, micro, vat},
    consequence::{Level, Limit},
    frame::{Frame, Headline, Mail},
    french::{date, euros, month, per_mille, percent, round_euros},
    palette::Palette,
    retraction,
};
use crate::{
    email::{AlertRemarks, Retracted},
    schedule::Month,
    urssaf::{Before, Consequence, Crossing, Gap, Micro, Outlook, Passed, State, Threshold, Vat, Verdict},
};

#[cfg(test)]
mod tests;

pub(super) struct View {
    year: i32,
    /// Has the most serious one first.
    blocks: Vec<Block>,
    remarks: Vec<Remark>,
    liberal: bool,
    /// Takes back what earlier alerts have said.
    retracted: Vec<String>,
}

/// Represents what a mail says of one regime: its steps, then what follows.
struct Block {
    urgency: u8,
    /// Is empty where it says what follows, and no step tells it.
    steps: Vec<Step>,
    words: Words,
    /// Names the regime, as in "TVA".
    regime: &'static str,
    /// Is what the mail's subject says without a step.
    told: String,
}

/// Represents one crossing, in words.
struct Step {
    level: Level,
    /// Names the limit, as in "Plafond de la micro-entreprise".
    name: String,
    services: bool,
    increased: bool,
    /// Says how far it is, as in "80 % atteints", "Dépassé", "À vérifier".
    status: String,
    percent: String,
    /// Is the width of the bar's filled part, 1 to 100.
    filled: i64,
    turnover: String,
    ceiling: String,
    full_year_ceiling: Option<String>,
    doubt: Option<Split>,
    /// Is written like "12 juin 2026" or "juin 2026".
    passed: Option<String>,
    /// Is a sentence that begins with "À ce rythme".
    outlook: Option<String>,
}

/// Says where a turnover comes from.
struct Split {
    typed: String,
    imported: String,
}

impl View {
    /// `state` and `as_of` are missing in mails that an older version planned.
    pub(super) fn new(
        year: i32,
        crossings: &[Crossing],
        consequences: &[Consequence],
        state: Option<State>,
        as_of: Option<NaiveDate>,
    ) -> Self {
        let state = state.unwrap_or_else(|| told_by(year, crossings));
        let as_of = as_of.or_else(|| NaiveDate::from_ymd_opt(year, 12, 31)).unwrap_or_default();
        let (of_vat, of_micro): (Vec<&Crossing>, Vec<&Crossing>) =
            crossings.iter().partition(|crossing| Limit::of(crossing.threshold).vat);
        let mut blocks = Vec::new();
        for (crossings, is_vat) in [(of_vat, true), (of_micro, false)] {
            if crossings.is_empty() && !consequences.iter().any(|told| told.is_vat() == is_vat) {
                continue;
            }
            let on = Occasion {
                year,
                as_of,
                to_verify: crossings.iter().any(|crossing| crossing.doubt.is_some()),
                increased: crossings.iter().any(|crossing| Limit::of(crossing.threshold).increased),
                part_of_a_year: crossings.iter().any(|crossing| crossing.full_year_ceiling.is_some()),
                has_step: !crossings.is_empty(),
            };
            // Whoever is liable already waits for no threshold of VAT, whoever is out for no ceiling.
            let shows_outlook = if is_vat {
                !state.certain.vat.is_liable()
            } else {
                !matches!(state.certain.micro, Micro::Out { .. })
            };
            let mut steps: Vec<Step> =
                crossings.iter().map(|crossing| Step::new(crossing, year, shows_outlook)).collect();
            steps.sort_by_key(|step| std::cmp::Reverse((step.level, step.increased)));
            let words = if is_vat { vat(&state, on) } else { micro(&state, on) };
            blocks.push(Block {
                urgency: urgency(&steps, &state.certain, is_vat),
                steps,
                words,
                regime: if is_vat { "TVA" } else { "Régime micro-entreprise" },
                told: told_alone(&state.certain, is_vat, as_of),
            });
        }
        blocks.sort_by_key(|block| std::cmp::Reverse(block.urgency));
        Self { year, blocks, remarks: Vec::new(), liberal: false, retracted: Vec::new() }
    }

    /// Says on what the figures rest, and what is not in them, too.
    pub(super) fn remarking(mut self, told: &AlertRemarks, unknown_activities: &[String]) -> Self {
        self.remarks = remarks(told, unknown_activities);
        self.liberal = told.liberal;
        self
    }

    /// Takes back what earlier alerts have said.
    pub(super) fn retracting(mut self, retracted: &[Retracted]) -> Self {
        self.retracted = retraction::words(retracted);
        self
    }

    /// Returns the title over the mail.
    fn title(&self) -> String {
        if self.blocks.iter().any(|block| !block.steps.is_empty()) {
            format!("Vos seuils de {}", self.year)
        } else {
            format!("Votre situation en {}", self.year)
        }
    }

    /// Returns the sentence that the mail begins with.
    fn opening(&self) -> String {
        if self.blocks.iter().any(|block| !block.steps.is_empty()) {
            format!(
                "Voici où en est le chiffre d’affaires encaissé en {}, tel qu’il est enregistré dans Comptalyze.",
                self.year
            )
        } else {
            // Not that something has changed: what has been so for long may be told for the first time.
            format!("Voici ce qui découle pour {} de ce qui est enregistré dans Comptalyze.", self.year)
        }
    }

    /// Returns what a step's turnover is made of.
    fn scope(&self, step: &Step) -> &'static str {
        match (step.services, self.liberal) {
            (false, _) => "Chiffre d’affaires total",
            (true, false) => "Prestations de services",
            (true, true) => "Prestations de services et professions libérales",
        }
    }
}

/// Returns how urgent a block is; what cannot wait is the greatest.
fn urgency(steps: &[Step], verdict: &Verdict, is_vat: bool) -> u8 {
    // Without a step it says what follows.
    match steps.iter().map(|step| step.level).max().or(Some(Level::Over)) {
        None | Some(Level::Check) => 0,
        Some(Level::Near) => 1,
        Some(Level::Over) if is_vat && verdict.vat.is_liable() => 6,
        Some(Level::Over) if is_vat => 4,
        Some(Level::Over) => match verdict.micro {
            Micro::Twice { .. } | Micro::Out { .. } => 5,
            Micro::Once { before: Before::Unknown(_) } => 3,
            Micro::Once { .. } | Micro::Within { .. } => 2,
        },
    }
}

/// Returns what a mail's subject says of what follows without a step.
fn told_alone(verdict: &Verdict, is_vat: bool, as_of: NaiveDate) -> String {
    match verdict.micro {
        _ if is_vat => "Vous êtes redevable de la TVA, d’après vos enregistrements".to_owned(),
        Micro::Twice { from } if as_of < from => {
            format!("Vous sortez du régime micro-entreprise au {}, d’après vos enregistrements", date(from))
        }
        _ => "Vous ne relevez plus du régime micro-entreprise, d’après vos enregistrements".to_owned(),
    }
}

/// Returns what the steps of an older version's mail say of its year.
fn told_by(year: i32, crossings: &[Crossing]) -> State {
    let exceeded = |of: [Threshold; 2]| {
        let mut told = crossings.iter().filter(|told| told.step == 100 && told.doubt.is_none());
        told.any(|told| of.contains(&told.threshold))
    };
    let before = Before::Unknown(Gap::Ceilings);
    let vat = if exceeded([Threshold::VatIncreasedTotal, Threshold::VatIncreasedServices]) {
        Vat::Since { passed: Passed::During(year), before }
    } else if exceeded([Threshold::VatBaseTotal, Threshold::VatBaseServices]) {
        Vat::Next { from: NaiveDate::from_ymd_opt(year + 1, 1, 1).unwrap_or_default(), before }
    } else {
        Vat::Free { before }
    };
    let micro = if exceeded([Threshold::MicroTotal, Threshold::MicroServices]) {
        Micro::Once { before }
    } else {
        Micro::Within { before }
    };
    State {
        certain: Verdict { vat, micro },
        if_distinct: None,
        reduced: None,
        doubtful: None,
        regained: false,
    }
}

impl Step {
    fn new(crossing: &Crossing, year: i32, shows_outlook: bool) -> Self {
        let (level, limit) = (Level::of(crossing), Limit::of(crossing.threshold));
        let reached = per_mille(crossing.turnover, crossing.ceiling);
        Self {
            level,
            services: limit.services,
            increased: limit.increased,
            status: match level {
                Level::Check => "À vérifier".to_owned(),
                Level::Near => format!("{} % atteints", crossing.step),
                Level::Over => "Dépassé".to_owned(),
            },
            name: capitalised(limit.name),
            percent: percent(reached),
            filled: (reached / 10).clamp(1, 100),
            turnover: euros(crossing.turnover),
            ceiling: round_euros(crossing.ceiling),
            full_year_ceiling: crossing.full_year_ceiling.map(round_euros),
            doubt: crossing
                .doubt
                .map(|doubt| Split { typed: euros(doubt.typed), imported: euros(doubt.imported) }),
            passed: crossing.passed.and_then(|passed| match passed {
                Passed::On(day) => Some(date(day)),
                Passed::In(of) => Some(month(of)),
                Passed::During(_) => None,
            }),
            outlook: crossing.outlook.filter(|_| shows_outlook).map(|outlook| at_this_pace(outlook, year)),
        }
    }

    /// Returns what the mail's subject says of it. `liberal`: liberal professions are among the services.
    fn told(&self, year: i32, liberal: bool) -> String {
        let scope = match (self.services, liberal) {
            (false, _) => "",
            (true, false) => " (services)",
            (true, true) => " (services et libéral)",
        };
        match self.level {
            Level::Check => format!("Seuils de {year} : des montants à vérifier"),
            Level::Near => format!("{}{scope} : {} en {year}", self.name, self.status),
            Level::Over => format!("{}{scope} dépassé en {year}", self.name),
        }
    }

    /// Returns the colour of the status.
    fn colour(&self, palette: &Palette) -> &'static str {
        match self.level {
            Level::Check => palette.check,
            Level::Near => palette.near,
            Level::Over => palette.over,
        }
    }

    fn bar_colour(&self, palette: &Palette) -> &'static str {
        match self.level {
            Level::Near => palette.near_bar,
            Level::Check | Level::Over => self.colour(palette),
        }
    }

    /// Returns the bar of the text part.
    fn drawn(&self) -> String {
        let filled = usize::try_from(self.filled / 5).unwrap_or(0);
        format!("[{}{}]", "#".repeat(filled), ".".repeat(20 - filled))
    }
}

/// Says when a limit will be exceeded, and what that assumes.
fn at_this_pace(outlook: Outlook, year: i32) -> String {
    let when = match outlook.on {
        Some(on) => format!("il serait dépassé {}", around(on)),
        None => format!("il ne serait pas dépassé en {year}"),
    };
    let like = match outlook.months {
        1 => "au dernier mois complet".to_owned(),
        12 => "aux douze derniers mois complets".to_owned(),
        several => format!("aux {several} derniers mois complets"),
    };
    format!(
        "À ce rythme, {when}. C’est une estimation : elle suppose que les mois qui viennent ressemblent {like}."
    )
}

/// Writes "vers la mi-octobre 2026".
fn around(on: NaiveDate) -> String {
    let of = month(Month::of(on));
    match on.day() {
        ..=10 => format!("vers début {of}"),
        11..=20 => format!("vers la mi-{of}"),
        _ => format!("vers fin {of}"),
    }
}

pub(super) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

impl Mail for View {
    fn headline(&self) -> Headline {
        let steps: Vec<&Step> = self.blocks.iter().flat_map(|block| &block.steps).collect();
        let Some(first) = self.blocks.first() else {
            return Headline { subject: "Vos seuils".to_owned(), preheader: String::new() };
        };
        let (told, preheader) = match first.steps.first() {
            Some(step) => (
                step.told(self.year, self.liberal),
                format!("{}, soit {} de {}.", step.turnover, step.percent, step.ceiling),
            ),
            None => (first.told.clone(), first.words.means.first().cloned().unwrap_or_default()),
        };
        let alone = self.blocks.iter().filter(|block| block.steps.is_empty()).count();
        let others = match steps.len() + alone {
            0 | 1 => String::new(),
            // They say the same of all.
            _ if first.steps.first().is_some_and(|step| step.level == Level::Check) => String::new(),
            2 => ", et 1 autre alerte".to_owned(),
            several => format!(", et {} autres alertes", several - 1),
        };
        Headline { subject: format!("{told}{others}"), preheader }
    }

    fn html(&self, frame: &Frame) -> askama::Result<String> {
        Html { frame, view: self }.render()
    }

    fn text(&self, frame: &Frame) -> askama::Result<String> {
        Text { frame, view: self }.render()
    }
}

#[derive(Template)]
#[template(path = "threshold_alert.html")]
struct Html<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}

#[derive(Template)]
#[template(path = "threshold_alert.txt")]
struct Text<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}
