//! Reads what an entry's activity is, however it is spelled.
//!
//! The column is free text. The interface writes `Vente de marchandises`, `Prestation de services` and
//! `Activité libérale`, older rows `services`; other hands wrote the rest. Words are compared without case,
//! accents, plural or punctuation. Nothing is guessed: a word that is not in the table, or words of sales and
//! services together, make the activity unknown. It then counts in the total only, and is reported.

/// Names the two kinds of turnover that the ceilings know (services, and the rest) and the liberal
/// professions.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Activity {
    /// It sells goods, food or lodging.
    Sales,
    /// It sells services (BIC).
    Services,
    /// It is a liberal profession (BNC), held against the ceilings of services.
    Liberal,
}

const SALES: [&str; 8] = ["achat", "goods", "marchandise", "negoce", "produit", "revente", "sale", "vente"];
const SERVICES: [&str; 3] = ["prestation", "prestataire", "service"];
const LIBERAL: [&str; 5] = ["bnc", "cipav", "liberal", "liberale", "liberaux"];

/// These say nothing alone: "commerciale", "artisanale" and "BIC" are said of sales and of services. "Non" is only
/// ever said of "réglementée" and "commerciale".
const NEUTRAL: [&str; 21] = [
    "activite",
    "artisanal",
    "artisanale",
    "autre",
    "benefice",
    "bic",
    "commercial",
    "commerciale",
    "commerciaux",
    "d",
    "de",
    "du",
    "et",
    "l",
    "la",
    "le",
    "non",
    "ou",
    "profession",
    "professionnelle",
    "reglementee",
];

impl Activity {
    /// Reads an activity; `None`: it is not known, or not one activity.
    pub fn parse(text: &str) -> Option<Self> {
        let folded: String = text.chars().flat_map(char::to_lowercase).filter_map(without_accent).collect();
        let (mut sales, mut services, mut liberal) = (false, false, false);
        for word in folded.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            let is_in = |words: &[&str]| words.contains(&word) || words.contains(&singular(word));
            if is_in(&SALES) {
                sales = true;
            } else if is_in(&SERVICES) {
                services = true;
            } else if is_in(&LIBERAL) {
                liberal = true;
            } else if !is_in(&NEUTRAL) {
                return None;
            }
        }
        match (sales, services, liberal) {
            (true, false, false) => Some(Self::Sales),
            (false, true, false) => Some(Self::Services),
            // "Prestations de services (BNC)".
            (false, _, true) => Some(Self::Liberal),
            (true, _, _) | (false, false, false) => None,
        }
    }

    /// Tells whether it counts against the ceilings of services.
    pub const fn is_services(self) -> bool {
        match self {
            Self::Sales => false,
            Self::Services | Self::Liberal => true,
        }
    }
}

fn singular(word: &str) -> &str {
    word.strip_suffix('s').unwrap_or(word)
}

/// Takes the accent off, composed or not: `é` is one character on some keyboards, `e` and an accent on others.
fn without_accent(c: char) -> Option<char> {
    match c {
        '\u{300}'..='\u{36f}' => None,
        'à' | 'â' | 'ä' => Some('a'),
        'é' | 'è' | 'ê' | 'ë' => Some('e'),
        'î' | 'ï' => Some('i'),
        'ô' | 'ö' => Some('o'),
        'ù' | 'û' | 'ü' => Some('u'),
        'ç' => Some('c'),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("Vente de marchandises")]
    #[case("vente de marchandise")]
    #[case("VENTES DE MARCHANDISES")]
    #[case("  vente_de_marchandises ")]
    #[case("vente-marchandises")]
    #[case("Vente")]
    #[case("ventes")]
    #[case("marchandises")]
    #[case("Achat-revente")]
    #[case("Achat / revente de produits")]
    #[case("Négoce")]
    #[case("BIC vente")]
    #[case("Vente de marchandises (BIC)")]
    #[case("Activité commerciale : vente")]
    #[case("sales")]
    fn sales(#[case] text: &str) {
        assert_eq!(Activity::parse(text), Some(Activity::Sales));
    }

    #[rstest]
    #[case("Prestation de services")]
    #[case("Prestations de services")]
    #[case("prestation de service")]
    #[case("PRESTATION\u{a0}DE\u{a0}SERVICES")]
    #[case("prestation_services")]
    #[case("prestation-de-services")]
    #[case("services")]
    #[case("Service")]
    #[case("prestations")]
    #[case("BIC services")]
    #[case("Services (BIC)")]
    #[case("Prestations de services commerciales et artisanales (BIC)")]
    fn services(#[case] text: &str) {
        assert_eq!(Activity::parse(text), Some(Activity::Services));
    }

    #[rstest]
    #[case("Activité libérale")]
    #[case("Activite\u{301} libe\u{301}rale")]
    #[case("ACTIVITÉ LIBÉRALE")]
    #[case("ACTIVITE\u{301} LIBE\u{301}RALE")]
    #[case("activite_liberale")]
    #[case("Activités libérales")]
    #[case("liberal")]
    #[case("libérale")]
    #[case("libéraux")]
    #[case("profession libérale")]
    #[case("Professions libérales")]
    #[case("Profession libérale non réglementée")]
    #[case("BNC")]
    #[case("bnc")]
    #[case("Prestations de services (BNC)")]
    #[case("Bénéfices non commerciaux (BNC)")]
    fn liberal(#[case] text: &str) {
        assert_eq!(Activity::parse(text), Some(Activity::Liberal));
    }

    #[rstest]
    #[case("")]
    #[case(" - ")]
    #[case("BIC")]
    #[case("Activité commerciale")]
    #[case("Activité")]
    #[case("autre")]
    #[case("mixte")]
    // Not one activity: which part is services is not said.
    #[case("Ventes et services")]
    #[case("Vente de prestations de services")]
    #[case("vente / BNC")]
    // One strange word is enough.
    #[case("Location de services")]
    #[case("prestige")]
    #[case("servicess")]
    #[case("s")]
    fn unknown(#[case] text: &str) {
        assert_eq!(Activity::parse(text), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = Activity::parse(&text);
        }

        #[test]
        fn case_and_punctuation_do_not_matter(
            (text, expected) in prop::sample::select(vec![
                ("vente de marchandises", Activity::Sales),
                ("prestation de services", Activity::Services),
                ("activité libérale", Activity::Liberal),
            ]),
            gap in "[ _\\-/'’.,:;()]{1,3}",
            upper: bool,
        ) {
            let text = text.replace(' ', &gap);
            let text = if upper { text.to_uppercase() } else { text };
            prop_assert_eq!(Activity::parse(&text), Some(expected));
        }
    }
}
