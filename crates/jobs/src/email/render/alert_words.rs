//! Says what a year's state means for VAT and for the micro regime, from when, and what to do about it.
//!
//! Each regime has one paragraph in a mail, whatever steps it tells of: it follows from the state, so that no two
//! sentences contradict each other.

use chrono::{Datelike, NaiveDate};

use super::french::{date, list, month};
use crate::{
    urssaf::{Before, Gap, Micro, Passed, State, Vat, Verdict},
    words::capitalized,
};

/// Holds sentences about one regime.
pub(super) struct Words {
    pub(super) means: Vec<String>,
    pub(super) advice: String,
    /// What may be there twice decides: the reader can say what it is.
    pub(super) is_in_doubt: bool,
}

/// Says what a mail tells of, as far as words depend on it.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Occasion {
    pub(super) year: i32,
    pub(super) as_of: NaiveDate,
    /// A step is only reached with what may be there twice.
    pub(super) to_verify: bool,
    /// The increased VAT threshold is among what is told.
    pub(super) increased: bool,
    /// The year is that of the creation: its ceilings are in proportion.
    pub(super) part_of_a_year: bool,
    /// A step of the regime is told: else only what follows.
    pub(super) has_step: bool,
}

impl Occasion {
    const fn before(self) -> i32 {
        self.year - 1
    }

    fn is_over(self) -> bool {
        self.as_of.year() > self.year
    }

    /// Writes "1er janvier 2027".
    fn new_year(self, later: i32) -> String {
        format!("1er\u{a0}janvier {}", self.year + later)
    }
}

const EXEMPT: &str = "sauf activité exonérée ou seuil propre";
const REGIME_GOES_ON: &str = "Être redevable de la TVA ne met pas fin au régime micro-entreprise.";
const VERIFY: &str = "Le niveau à vérifier n’est atteint qu’en additionnant vos saisies et vos importations pour des mois \
                      où il y a les deux.";
const COMPARE: &str = "comparez les deux, supprimez ce qui est en double ou dites-nous ce qu’il en est. Nous ne \
                       tirons aucune conséquence de ce total tant qu’il n’est pas vérifié.";
const COMPARE_TOO: &str =
    "Comparez aussi vos saisies et vos importations, et supprimez ce qui est en double.";
const TALK: &str = "adressez-vous sans attendre à votre service des impôts des entreprises";

/// Returns the sentence, or both where what may be there twice decides.
fn either(certain: &str, distinct: Option<&str>, to_verify: bool) -> Vec<String> {
    let mut means = Vec::new();
    if to_verify {
        means.push(VERIFY.to_owned());
    }
    match distinct {
        Some(distinct) => means.push(format!(
            "Si vos saisies et vos importations sont des encaissements distincts, {distinct}. Si ce sont les mêmes, \
             {certain}."
        )),
        None if to_verify => means.push(format!(
            "Si les mêmes encaissements y figurent deux fois, le total est trop élevé. {}.",
            capitalized(certain)
        )),
        None => means.push(format!("{}.", capitalized(certain))),
    }
    means
}

/// Adds sentences to the last paragraph.
fn add(means: &mut [String], sentences: impl IntoIterator<Item = Option<String>>) {
    if let Some(last) = means.last_mut() {
        for sentence in sentences.into_iter().flatten() {
            last.push(' ');
            last.push_str(&sentence);
        }
    }
}

/// Returns what a year means for VAT.
pub(super) fn vat(state: &State, on: Occasion) -> Words {
    let certain = state.certain.vat;
    let distinct = state.if_distinct.map(|distinct| distinct.vat).filter(|distinct| *distinct != certain);
    let if_distinct = distinct.map(|distinct| vat_clause(distinct, on));
    let mut means = either(&vat_clause(certain, on), if_distinct.as_deref(), on.to_verify);
    let rule = distinct.is_none().then(|| vat_rule(certain, on)).flatten();
    let goes_on = !matches!(certain, Vat::Free { .. }) || !on.is_over();
    let cause = vat_cause(certain).filter(|_| distinct.is_none());
    let again = cause.and_then(|year| again("Le seuil de franchise", year, on));
    let reduced = reduced(state, "ce seuil", |verdict, year| vat_cause(verdict.vat) == Some(year));
    // Not beside the day on which VAT became due again.
    let is_due_again = matches!(certain, Vat::Next { from, .. } if on.as_of >= from);
    let regained = (state.regained && !is_due_again).then(|| {
        format!(
            "Vous étiez redevable de la TVA en {} : comme le seuil de franchise n’y a pas été dépassé, d’après vos \
             enregistrements, la franchise s’applique de nouveau depuis le {}, sauf option pour la TVA.",
            on.before(),
            on.new_year(0)
        )
    });
    add(&mut means, [reduced, again, regained, rule, goes_on.then(|| REGIME_GOES_ON.to_owned())]);
    if on.part_of_a_year && matches!(certain, Vat::Since { .. }) {
        means.push(format!(
            "L’année de la création, les limites sont réduites au prorata des jours d’activité : celles d’une année \
             entière ne valent pas pour {}. Si vous avez compté sur le seuil majoré entier, dites-le à votre service des \
             impôts des entreprises.",
            on.year
        ));
    }
    if let Vat::Free { before } | Vat::Next { before, .. } | Vat::Since { before, .. } = certain
        && let Some(gap) = gap(before, on)
    {
        let due = on.new_year(0);
        means.push(format!(
            "{gap} : si le seuil de franchise y a été dépassé, la TVA est due depuis le {due}."
        ));
    }
    let advice = match certain {
        Vat::Free { .. } if on.to_verify || distinct.is_some() => COMPARE.to_owned(),
        Vat::Free { .. } => record(on),
        Vat::Next { from, .. } if on.as_of < from => format!(
            "préparez la facturation de la TVA à partir du {} avec votre service des impôts des entreprises ou un \
             expert-comptable.",
            date(from)
        ),
        Vat::Since { passed: Passed::In(_) | Passed::During(_), .. } => format!(
            "repérez la date du dépassement, facturez la TVA à partir de ce jour et {TALK}{}.",
            if on.increased { "" } else { ", si ce n’est pas déjà fait" }
        ),
        Vat::Since { passed: Passed::On(_), .. } if on.increased => {
            format!("facturez la TVA à partir de ce jour et {TALK}.")
        }
        _ => format!("facturez la TVA depuis cette date et {TALK}, si ce n’est pas déjà fait."),
    };
    let is_in_doubt = distinct.is_some() || on.to_verify;
    let compare = is_in_doubt && !matches!(certain, Vat::Free { .. });
    let advice = if compare { format!("{advice} {COMPARE_TOO}") } else { advice };
    Words { means, advice, is_in_doubt }
}

/// Says who charges VAT and since when, in the middle of a sentence.
fn vat_clause(vat: Vat, on: Occasion) -> String {
    let due = "vous êtes redevable de la TVA";
    match vat {
        Vat::Free { .. } if on.is_over() => {
            format!("le seuil n’a pas été dépassé en {}, d’après vos enregistrements", on.year)
        }
        Vat::Free { .. } => "le seuil n’est pas dépassé".to_owned(),
        Vat::Next { from, .. } if on.as_of < from => format!("{due} à partir du {}, {EXEMPT}", date(from)),
        Vat::Next { from, .. } => format!(
            "{due} depuis le {}, car le seuil de franchise a été dépassé en {}, {EXEMPT}",
            date(from),
            on.year
        ),
        Vat::Since { passed: Passed::On(day), .. } => {
            format!("{due} depuis le {}, jour où le seuil majoré a été dépassé, {EXEMPT}", date(day))
        }
        Vat::Since { passed: Passed::In(of), .. } => {
            format!("{due} dès la date à laquelle le seuil majoré a été dépassé, en {}, {EXEMPT}", month(of))
        }
        Vat::Since { passed: Passed::During(year), .. } => {
            format!("{due} dès la date à laquelle le seuil majoré a été dépassé, en {year}, {EXEMPT}")
        }
        Vat::SinceNewYear { since } => format!(
            "{due} depuis le {}, car le seuil de franchise a été dépassé en {}, {EXEMPT}",
            date(since),
            since.year() - 1
        ),
        Vat::SinceYearBefore { passed } => {
            let (year, when) = match passed {
                Passed::On(day) => (day.year(), format!("le {}", date(day))),
                Passed::In(of) => (of.year(), format!("en {}", month(of))),
                Passed::During(year) => (year, format!("en {year}")),
            };
            format!("{due} depuis {year}, car le seuil majoré a été dépassé {when}, {EXEMPT}")
        }
    }
}

/// Returns the sentence that a limit was passed again, where what follows began before the year before.
fn again(limit: &str, last: i32, on: Occasion) -> Option<String> {
    let years: Vec<String> = (last + 1..on.year).map(|year| format!("en {year}")).collect();
    (!years.is_empty())
        .then(|| format!("{limit} a encore été dépassé {}, d’après vos enregistrements.", list(&years)))
}

/// Returns the earlier year in which VAT became due, or that made it due.
fn vat_cause(vat: Vat) -> Option<i32> {
    match vat {
        Vat::SinceNewYear { since } => Some(since.year() - 1),
        Vat::SinceYearBefore { passed: Passed::On(day) } => Some(day.year()),
        Vat::SinceYearBefore { passed: Passed::In(of) } => Some(of.year()),
        Vat::SinceYearBefore { passed: Passed::During(year) } => Some(year),
        Vat::Free { .. } | Vat::Next { .. } | Vat::Since { .. } => None,
    }
}

/// Returns whether the year before, or the one before it, is why the regime is left.
fn is_micro_cause(micro: Micro, year: i32, on: Occasion) -> bool {
    match micro {
        Micro::Twice { .. } | Micro::Within { before: Before::Exceeded } => year == on.before(),
        Micro::Out { since } => year == since.year() - 1 || year == since.year() - 2,
        Micro::Within { .. } | Micro::Once { .. } => false,
    }
}

/// Says that the limits of the year of creation were reduced, where something rests on them: their reader knows the whole
/// ones.
fn reduced(state: &State, limit: &str, rests_on: impl Fn(Verdict, i32) -> bool) -> Option<String> {
    let year = state.reduced?;
    let verdicts = [Some(state.certain), state.if_distinct];
    verdicts.into_iter().flatten().any(|verdict| rests_on(verdict, year)).then(|| {
        format!("En {year}, année de la création, {limit} était réduit au prorata des jours d’activité.")
    })
}

/// Returns what may still come, or why the steps change nothing.
fn vat_rule(vat: Vat, on: Occasion) -> Option<String> {
    match vat {
        Vat::Free { .. } if on.is_over() => None,
        Vat::Free { .. } => Some(format!(
            "Au-delà, vous êtes redevable de la TVA à partir du {}, {EXEMPT} ; au-delà du seuil majoré, dès la date du \
             dépassement.",
            on.new_year(1)
        )),
        Vat::Next { from, .. } if on.as_of < from => Some(
            "Si vous dépassez aussi le seuil majoré avant cette date, vous l’êtes dès le jour de ce dépassement."
                .to_owned(),
        ),
        Vat::Next { .. } => None,
        Vat::Since { .. } if on.increased => None,
        _ if !on.has_step => None,
        _ => Some("Le niveau atteint n’y change rien.".to_owned()),
    }
}

/// Returns what a year means for the micro regime.
pub(super) fn micro(state: &State, on: Occasion) -> Words {
    let certain = state.certain.micro;
    let distinct = state.if_distinct.map(|distinct| distinct.micro).filter(|distinct| *distinct != certain);
    let if_distinct = distinct.map(|distinct| micro_clause(distinct, on));
    let mut means = either(&micro_clause(certain, on), if_distinct.as_deref(), on.to_verify);
    let reduced = reduced(state, "le plafond", |verdict, year| is_micro_cause(verdict.micro, year, on));
    add(&mut means, [reduced, distinct.is_none().then(|| micro_rule(certain, on)).flatten()]);
    let accountant = "un expert-comptable ou votre service des impôts des entreprises";
    let advice = match certain {
        Micro::Within { .. } if on.to_verify || distinct.is_some() => COMPARE.to_owned(),
        Micro::Within { .. } => record(on),
        Micro::Once { before: Before::Unknown(_) } => {
            format!("vérifiez votre chiffre d’affaires de {}.", on.before())
        }
        Micro::Once { .. } => {
            format!("vérifiez vos montants et anticipez l’année qui suit avec {accountant}.")
        }
        Micro::Twice { from } if on.as_of < from => {
            format!("préparez le changement de régime avec {accountant}.")
        }
        Micro::Twice { .. } | Micro::Out { .. } => {
            format!("faites le point sur votre régime avec {accountant}, si ce n’est pas déjà fait.")
        }
    };
    let is_in_doubt = distinct.is_some() || on.to_verify;
    let compare = is_in_doubt && !matches!(certain, Micro::Within { .. });
    let advice = if compare { format!("{advice} {COMPARE_TOO}") } else { advice };
    Words { means, advice, is_in_doubt }
}

/// Says how the year stands to the regime, in the middle of a sentence.
fn micro_clause(micro: Micro, on: Occasion) -> String {
    let (year, before) = (on.year, on.before());
    match micro {
        Micro::Within { .. } if on.is_over() => {
            format!("le plafond n’a pas été dépassé en {year}, d’après vos enregistrements")
        }
        Micro::Within { before: Before::Exceeded } => format!(
            "le plafond n’est pas dépassé en {year}, mais l’était en {before} : s’il l’est aussi en {year}, vous sortez \
             du régime micro-entreprise au {}",
            on.new_year(1)
        ),
        Micro::Within { .. } => "le plafond n’est pas dépassé".to_owned(),
        Micro::Once { before: Before::None } => format!(
            "le plafond est dépassé en {year}, votre première année : vous restez au régime micro-entreprise pour \
             l’instant"
        ),
        Micro::Once { before: Before::Unknown(_) } => format!("le plafond est dépassé en {year}"),
        Micro::Once { .. } => format!(
            "le plafond est dépassé en {year}, mais ne l’était pas en {before}, d’après vos enregistrements : vous restez \
             au régime micro-entreprise pour l’instant"
        ),
        Micro::Twice { from } if on.as_of < from => format!(
            "le plafond est dépassé deux années de suite, en {before} et en {year} : vous sortez du régime \
             micro-entreprise au {}",
            date(from)
        ),
        Micro::Twice { from } => format!(
            "le plafond a été dépassé deux années de suite, en {before} et en {year} : vous ne relevez plus du régime \
             micro-entreprise depuis le {}",
            date(from)
        ),
        Micro::Out { since } => format!(
            "vous ne relevez plus du régime micro-entreprise depuis le {} : le plafond a été dépassé deux années de \
             suite, en {} et en {}",
            date(since),
            since.year() - 2,
            since.year() - 1
        ),
    }
}

/// Returns what may still come, or what is not known.
fn micro_rule(micro: Micro, on: Occasion) -> Option<String> {
    match micro {
        Micro::Within { before: Before::Exceeded } => None,
        Micro::Out { since } => again("Le plafond", since.year() - 1, on),
        Micro::Within { .. } => (!on.is_over()).then(|| {
            "S’il ne l’est qu’une année, vous restez au régime micro-entreprise ; s’il l’est deux années de suite, vous \
             en sortez au 1er\u{a0}janvier suivant."
                .to_owned()
        }),
        Micro::Once { before: before @ Before::Unknown(_) } => {
            let gap = gap(before, on).map(|gap| format!("{gap}. ")).unwrap_or_default();
            let out = if on.is_over() { "ne relevez plus du régime depuis le" } else { "sortez du régime au" };
            Some(format!(
                "{gap}Si vous aviez déjà dépassé le plafond en {}, vous {out} {}. Sinon, vous y restez pour l’instant.",
                on.before(),
                on.new_year(1)
            ))
        }
        Micro::Once { .. } => Some(format!(
            "Si vous le dépassez de nouveau en {}, vous sortirez du régime au {}.",
            on.year + 1,
            on.new_year(2)
        )),
        Micro::Twice { from } => (on.as_of < from).then(|| "Vous y restez jusqu’à cette date.".to_owned()),
    }
}

/// Says what is not recorded of the year before, without the end of its sentence.
fn gap(before: Before, on: Occasion) -> Option<String> {
    match before {
        Before::Unknown(Gap::Nothing) => {
            Some(format!("Rien n’est enregistré dans Comptalyze pour {}", on.before()))
        }
        Before::Unknown(Gap::Until(first)) => Some(format!(
            "Pour {}, rien n’est enregistré dans Comptalyze avant {}",
            on.before(),
            month(first)
        )),
        Before::Unknown(Gap::Ceilings) | Before::None | Before::Within | Before::Exceeded => None,
    }
}

fn record(on: Occasion) -> String {
    let then = if on.is_over() { "" } else { ", et suivez les prochains" };
    format!("vérifiez que vos encaissements de {} sont tous enregistrés{then}.", on.year)
}
