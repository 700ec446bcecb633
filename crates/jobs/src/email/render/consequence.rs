//! Says what a crossing means, from when, and what to do about it.

use super::french::date;
use crate::urssaf::{Consequence, Crossing, Threshold};

/// Says how much a crossing matters to its reader.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Level {
    /// The figures have to be looked at first.
    Check,
    /// Not exceeded yet.
    Near,
    /// Exceeded.
    Over,
}

impl Level {
    pub(super) fn of(crossing: &Crossing) -> Self {
        match crossing.consequence {
            _ if crossing.doubt.is_some() => Self::Check,
            Consequence::ToVerify => Self::Check,
            Consequence::Approaching => Self::Near,
            _ => Self::Over,
        }
    }

    /// Returns its name in the style sheet and the palette.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Near => "near",
            Self::Over => "over",
        }
    }
}

/// Returns the urgency; what cannot wait is the greatest.
pub(super) fn urgency(crossing: &Crossing) -> u8 {
    match (Level::of(crossing), crossing.consequence) {
        (Level::Check, _) => 0,
        (Level::Near, _) => 1,
        (Level::Over, Consequence::VatAtOnce) => 6,
        (Level::Over, Consequence::MicroOut { .. }) => 5,
        (Level::Over, Consequence::VatFrom { .. }) => 4,
        (Level::Over, Consequence::MicroPreviousUnknown) => 3,
        (Level::Over, _) => 2,
    }
}

/// Holds the two things a limit can be about, and the two turnovers it is held against.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    /// "plafond de la micro-entreprise".
    pub(super) name: &'static str,
    pub(super) vat: bool,
    pub(super) increased: bool,
    pub(super) services: bool,
}

impl Limit {
    pub(super) fn of(threshold: Threshold) -> Self {
        let (name, vat, increased) = match threshold {
            Threshold::MicroTotal | Threshold::MicroServices => {
                ("plafond de la micro-entreprise", false, false)
            }
            Threshold::VatBaseTotal | Threshold::VatBaseServices => {
                ("seuil de franchise de TVA", true, false)
            }
            Threshold::VatIncreasedTotal | Threshold::VatIncreasedServices => {
                ("seuil majoré de TVA", true, true)
            }
        };
        let services = matches!(
            threshold,
            Threshold::MicroServices | Threshold::VatBaseServices | Threshold::VatIncreasedServices
        );
        Self { name, vat, increased, services }
    }
}

/// Sentences about one crossing.
pub(super) struct Words {
    pub(super) means: String,
    pub(super) advice: String,
}

/// Returns what to say; `at_once`: another crossing of the same mail already makes VAT due from the very date of
/// crossing.
pub(super) fn words(crossing: &Crossing, year: i32, at_once: bool) -> Words {
    let limit = Limit::of(crossing.threshold);
    let (means, advice) = match crossing.consequence {
        _ if Level::of(crossing) == Level::Check => to_verify(crossing),
        Consequence::ToVerify => to_verify(crossing),
        Consequence::Approaching => approaching(limit, year),
        Consequence::MicroOnce => (
            format!(
                "Le plafond est dépassé en {year}, mais ne l’était pas en {} : vous restez au régime \
                 micro-entreprise pour l’instant. Si vous le dépassez de nouveau en {}, vous sortirez du régime \
                 au 1er\u{a0}janvier {}.",
                year - 1,
                year + 1,
                year + 2
            ),
            "vérifiez vos montants et anticipez l’année qui suit avec un expert-comptable ou votre service des \
             impôts des entreprises."
                .to_owned(),
        ),
        Consequence::MicroPreviousUnknown => (
            format!(
                "Rien n’est enregistré dans Comptalyze pour {previous}. Si vous aviez déjà dépassé le plafond en \
                 {previous}, vous sortez du régime au 1er\u{a0}janvier {}. Sinon, vous y restez pour l’instant.",
                year + 1,
                previous = year - 1
            ),
            format!("vérifiez votre chiffre d’affaires de {}.", year - 1),
        ),
        Consequence::MicroOut { from } => (
            format!(
                "Le plafond est dépassé deux années de suite, en {} et en {year} : vous sortez du régime \
                 micro-entreprise au {}. Vous y restez jusqu’à cette date.",
                year - 1,
                date(from)
            ),
            "préparez le changement de régime avec un expert-comptable ou votre service des impôts des entreprises."
                .to_owned(),
        ),
        Consequence::VatFrom { from } => vat_from(&date(from), at_once),
        Consequence::VatAtOnce => (
            format!(
                "Vous êtes redevable de la TVA dès la date à laquelle ce seuil a été dépassé. {REGIME_GOES_ON}"
            ),
            "repérez la date du dépassement, facturez la TVA à partir de ce jour et adressez-vous sans attendre à \
             votre service des impôts des entreprises."
                .to_owned(),
        ),
    };
    Words { means, advice }
}

const REGIME_GOES_ON: &str = "Être redevable de la TVA ne met pas fin au régime micro-entreprise.";

fn to_verify(crossing: &Crossing) -> (String, String) {
    let means = if crossing.doubt.is_some() {
        "Ce niveau n’est atteint qu’en additionnant vos saisies et vos importations pour des mois où il y a les deux. \
         Si les mêmes encaissements y figurent deux fois, le total est trop élevé."
    } else {
        "Ce niveau n’est peut-être pas atteint : les montants enregistrés sont à vérifier."
    };
    let advice = "comparez les deux et supprimez ce qui est en double. Nous ne tirons aucune conséquence de ce total \
                  tant qu’il n’est pas vérifié.";
    (means.to_owned(), advice.to_owned())
}

fn approaching(limit: Limit, year: i32) -> (String, String) {
    let means = match limit {
        Limit { vat: false, .. } => {
            "Le plafond n’est pas dépassé. S’il ne l’est qu’une année, vous restez au régime micro-entreprise ; s’il \
             l’est deux années de suite, vous en sortez au 1er\u{a0}janvier suivant."
                .to_owned()
        }
        Limit { increased: false, .. } => format!(
            "Le seuil n’est pas dépassé. Au-delà, vous êtes redevable de la TVA à partir du 1er\u{a0}janvier {}. \
             {REGIME_GOES_ON}",
            year + 1
        ),
        Limit { .. } => format!(
            "Le seuil n’est pas dépassé. Au-delà, vous êtes redevable de la TVA dès la date du dépassement. \
             {REGIME_GOES_ON}"
        ),
    };
    (
        means,
        format!("vérifiez que vos encaissements de {year} sont tous enregistrés, et suivez les prochains."),
    )
}

fn vat_from(from: &str, at_once: bool) -> (String, String) {
    if at_once {
        let means = format!(
            "Ce seuil est dépassé, mais le seuil majoré l’est aussi : c’est la date de dépassement du seuil majoré \
             qui compte, et non le {from}. {REGIME_GOES_ON}"
        );
        return (means, "suivez ce qui est indiqué pour le seuil majoré.".to_owned());
    }
    (
        format!(
            "Vous êtes redevable de la TVA à partir du {from}. Si vous dépassez aussi le seuil majoré avant cette \
             date, vous l’êtes dès le jour de ce dépassement. {REGIME_GOES_ON}"
        ),
        format!(
            "préparez la facturation de la TVA à partir du {from} avec votre service des impôts des entreprises ou \
             un expert-comptable."
        ),
    )
}
