//! What stands around the words of every mail: greeting, reason, ways out, sender.

use super::{
    Look,
    french::one_line,
    palette::{DARK, LIGHT, Palette},
};
use crate::email::Kind;

/// The words of one mail.
pub(super) trait Mail {
    fn headline(&self) -> Headline;
    fn html(&self, frame: &Frame) -> askama::Result<String>;
    fn text(&self, frame: &Frame) -> askama::Result<String>;
}

/// What an inbox shows of a mail.
pub(super) struct Headline {
    pub(super) subject: String,
    /// What stands behind the subject.
    pub(super) preheader: String,
}

/// What the base templates need.
pub(super) struct Frame<'a> {
    pub(super) subject: String,
    pub(super) preheader: String,
    /// The kind of mail, beside the sender's name.
    pub(super) section: &'static str,
    pub(super) greeting: String,
    /// Why the reader gets this mail.
    pub(super) why: &'static str,
    /// How it is refused.
    pub(super) refuse: Option<Refusal<'a>>,
    /// Where a user chooses what they get; the operator chooses elsewhere.
    pub(super) preferences: Option<String>,
    pub(super) sender: Vec<String>,
    pub(super) app_url: &'a str,
    pub(super) light: &'static Palette,
    pub(super) dark: &'static Palette,
}

/// A link that stops mails of one preference.
pub(super) struct Refusal<'a> {
    pub(super) label: &'static str,
    pub(super) url: &'a str,
}

impl<'a> Frame<'a> {
    /// Greets nobody in particular.
    pub(super) fn new(
        kind: Kind,
        subject: String,
        preheader: String,
        look: &'a Look,
        unsubscribe: Option<&'a str>,
    ) -> Self {
        let words = Words::of(kind);
        Self {
            subject,
            preheader,
            section: words.section,
            greeting: greeting(None),
            why: words.why,
            refuse: words.refuse.zip(unsubscribe).map(|(label, url)| Refusal { label, url }),
            preferences: (kind != Kind::OperatorDigest).then(|| format!("{}/dashboard/compte", look.app_url)),
            sender: look.sender_identity.lines().map(|line| one_line(line, 200)).collect(),
            app_url: &look.app_url,
            light: &LIGHT,
            dark: &DARK,
        }
    }
}

/// "Bonjour Camille,".
///
/// A first name is whatever somebody typed when signing up, perhaps with another person's address: one that a mail
/// program would turn into a link is not repeated.
pub(super) fn greeting(first_name: Option<&str>) -> String {
    let name = first_name.map(|name| one_line(name, 40)).filter(|name| !name.is_empty() && !links(name));
    match name {
        Some(name) => format!("Bonjour {name},"),
        None => "Bonjour,".to_owned(),
    }
}

fn links(text: &str) -> bool {
    let dotted = text.split(' ').any(|word| {
        word.split_once('.').is_some_and(|(before, after)| {
            before.ends_with(char::is_alphanumeric) && after.starts_with(char::is_alphanumeric)
        })
    });
    dotted || text.contains(['/', '\\', '@']) || text.contains("www")
}

/// What the frame says of each kind.
struct Words {
    section: &'static str,
    why: &'static str,
    /// None: refused among the preferences only.
    refuse: Option<&'static str>,
}

impl Words {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::ThresholdAlert => Self {
                section: "Alerte de seuil",
                why: "Vous recevez ce message parce que les alertes de seuil sont activées dans votre compte Comptalyze.",
                refuse: None,
            },
            Kind::IntegrationTrouble => Self {
                section: "Connexion à refaire",
                why: "Vous recevez ce message parce que votre compte Comptalyze est relié à une source de paiements.",
                refuse: None,
            },
            Kind::OperatorDigest => Self {
                section: "Exploitation",
                why: "Vous recevez ce message parce que OPERATOR_EMAIL contient votre adresse, et seulement les jours où quelque chose demande votre attention.",
                refuse: None,
            },
            Kind::MonthlyReminder => Self {
                section: "Rappel mensuel",
                why: "Vous recevez ce message parce que le rappel mensuel est activé dans votre compte Comptalyze.",
                refuse: Some("Ne plus recevoir le rappel mensuel"),
            },
            Kind::MonthlyRecap => Self {
                section: "Récapitulatif mensuel",
                why: "Vous recevez ce message parce que votre compte Comptalyze est relié à une source de paiements.",
                refuse: Some("Ne plus recevoir le récapitulatif mensuel"),
            },
            Kind::MarketingDay3 => Self {
                section: "Découvrir Comptalyze",
                why: "Vous recevez cette communication commerciale parce que vous avez créé un compte Comptalyze.",
                refuse: Some("Ne plus recevoir les actualités et les offres"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(None, "Bonjour,")]
    #[case(Some(" \n"), "Bonjour,")]
    #[case(Some("Camille"), "Bonjour Camille,")]
    #[case(Some("J. P. D’Artagnan-Müller"), "Bonjour J. P. D’Artagnan-Müller,")]
    #[case(Some("<img src=x onerror=alert(1)>"), "Bonjour <img src=x onerror=alert(1)>,")]
    #[case(Some("a\r\nBcc: b"), "Bonjour a Bcc: b,")]
    // What would become a link.
    #[case(Some("Gagnez sur prix.example"), "Bonjour,")]
    #[case(Some("https://prix.example"), "Bonjour,")]
    #[case(Some("www prix"), "Bonjour,")]
    #[case(Some("moi@prix"), "Bonjour,")]
    fn greetings(#[case] name: Option<&str>, #[case] expected: &str) {
        assert_eq!(greeting(name), expected);
    }
}
