//! Tells of the steps newly crossed, all in one mail.

use askama::Template;

use super::{
    consequence::{Level, Limit, urgency, words},
    frame::{Frame, Headline, Mail},
    french::{euros, list, one_line, per_mille, percent, round_euros},
    palette::Palette,
};
use crate::urssaf::{Consequence, Crossing};

/// So many unknown activities are named; the others are counted.
const NAMED: usize = 5;

pub(super) struct View {
    year: i32,
    /// The most serious one first.
    crossings: Vec<Step>,
    /// "« a » et « b »".
    unknown: Option<String>,
    several_unknown: bool,
}

/// Represents one crossing, in words.
struct Step {
    level: Level,
    urgency: u8,
    /// "Plafond de la micro-entreprise".
    name: String,
    /// "Prestations de services".
    scope: &'static str,
    /// "80 % atteints", "Dépassé", "À vérifier".
    status: String,
    /// As the subject tells it.
    told: String,
    percent: String,
    /// Width of the bar's filled part, 1 to 100.
    filled: i64,
    turnover: String,
    ceiling: String,
    full_year_ceiling: Option<String>,
    doubt: Option<Split>,
    means: String,
    advice: String,
}

/// Says where a turnover comes from.
struct Split {
    typed: String,
    imported: String,
}

impl View {
    pub(super) fn new(year: i32, crossings: &[Crossing], unknown_activities: &[String]) -> Self {
        let at_once = crossings
            .iter()
            .any(|crossing| crossing.doubt.is_none() && crossing.consequence == Consequence::VatAtOnce);
        let mut steps: Vec<_> = crossings.iter().map(|crossing| Step::new(crossing, year, at_once)).collect();
        steps.sort_by_key(|step| std::cmp::Reverse(step.urgency));
        Self {
            year,
            crossings: steps,
            unknown: unknown(unknown_activities),
            several_unknown: unknown_activities.len() > 1,
        }
    }

    fn unknown_title(&self) -> &'static str {
        if self.several_unknown { "Activités non reconnues" } else { "Activité non reconnue" }
    }

    fn unknown_words(&self, unknown: &str) -> String {
        let (theirs, them) =
            if self.several_unknown { ("Leur", "ces activités") } else { ("Son", "cette activité") };
        format!(
            "{theirs} chiffre d’affaires compte dans le total, mais pas dans celui des services : {unknown}. \
             Corrigez {them} dans vos enregistrements."
        )
    }
}

fn unknown(activities: &[String]) -> Option<String> {
    let mut named: Vec<_> =
        activities.iter().take(NAMED).map(|activity| format!("« {} »", one_line(activity, 60))).collect();
    match activities.len().saturating_sub(NAMED) {
        0 => {}
        1 => named.push("une autre".to_owned()),
        more => named.push(format!("{more} autres")),
    }
    (!named.is_empty()).then(|| list(&named))
}

impl Step {
    fn new(crossing: &Crossing, year: i32, at_once: bool) -> Self {
        let (level, limit) = (Level::of(crossing), Limit::of(crossing.threshold));
        let words = words(crossing, year, at_once);
        let reached = per_mille(crossing.turnover, crossing.ceiling);
        let services = if limit.services { " (services)" } else { "" };
        let name = capitalised(limit.name);
        Self {
            level,
            urgency: urgency(crossing),
            scope: if limit.services { "Prestations de services" } else { "Chiffre d’affaires total" },
            status: match level {
                Level::Check => "À vérifier".to_owned(),
                Level::Near => format!("{} % atteints", crossing.step),
                Level::Over => "Dépassé".to_owned(),
            },
            told: match level {
                Level::Check => format!("Seuils de {year} : des montants à vérifier"),
                Level::Near => format!("{name}{services} : {} % atteints en {year}", crossing.step),
                Level::Over => format!("{name}{services} dépassé en {year}"),
            },
            name,
            percent: percent(reached),
            filled: (reached / 10).clamp(1, 100),
            turnover: euros(crossing.turnover),
            ceiling: round_euros(crossing.ceiling),
            full_year_ceiling: crossing.full_year_ceiling.map(round_euros),
            doubt: crossing
                .doubt
                .map(|doubt| Split { typed: euros(doubt.typed), imported: euros(doubt.imported) }),
            means: words.means,
            advice: words.advice,
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

pub(super) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

impl Mail for View {
    fn headline(&self) -> Headline {
        let told = self.crossings.first().map_or("Vos seuils", |step| &step.told);
        let others = match self.crossings.len() {
            0 | 1 => String::new(),
            // They say the same of all.
            _ if self.crossings[0].level == Level::Check => String::new(),
            2 => ", et 1 autre alerte".to_owned(),
            several => format!(", et {} autres alertes", several - 1),
        };
        let preheader = self.crossings.first().map_or_else(String::new, |step| {
            format!("{}, soit {} de {}.", step.turnover, step.percent, step.ceiling)
        });
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
