//! Writes what stands around the words of every mail: greeting, reason, ways out, sender.

use super::{
    branding::{Branding, Links},
    foreign::{self, one_line},
    palette::{DARK, LIGHT, Palette},
};
use crate::mail_kind::MailKind;

/// Holds the words of one mail.
pub(super) trait Mail {
    fn headline(&self) -> Headline;
    fn html(&self, frame: &Frame) -> askama::Result<String>;
    fn text(&self, frame: &Frame) -> askama::Result<String>;
}

/// Is what an inbox shows of a mail.
pub(super) struct Headline {
    pub(super) subject: String,
    /// Holds what stands behind the subject.
    pub(super) preheader: String,
}

/// Holds what the base templates need.
pub(super) struct Frame<'a> {
    pub(super) subject: String,
    pub(super) preheader: String,
    /// Names the kind of mail, beside the sender's name.
    pub(super) section: &'static str,
    pub(super) greeting: String,
    /// Says why the reader gets this mail.
    pub(super) why: &'static str,
    /// Says how it is refused.
    pub(super) refuse: Option<Refusal<'a>>,
    /// Leads to where a user chooses what they get; the operator chooses elsewhere.
    pub(super) preferences: Option<String>,
    /// Leads to where a reader confirms whether what was typed and what was imported is the same money.
    pub(super) confirm: Option<&'a str>,
    pub(super) sender: Vec<String>,
    pub(super) app_url: &'a str,
    pub(super) light: &'static Palette,
    pub(super) dark: &'static Palette,
}

/// Represents a link that stops mails of one preference.
pub(super) struct Refusal<'a> {
    pub(super) label: String,
    pub(super) url: &'a str,
}

impl<'a> Frame<'a> {
    /// Greets nobody in particular.
    pub(super) fn new(
        kind: MailKind,
        subject: String,
        preheader: String,
        branding: &'a Branding,
        links: Links<'a>,
    ) -> Self {
        Self {
            subject,
            preheader,
            section: kind.section(),
            greeting: greeting(None),
            why: kind.why(),
            refuse: links
                .unsubscribe
                .filter(|_| kind.has_unsubscribe_link())
                .map(|url| Refusal { label: format!("Ne plus recevoir {}", kind.refused_as()), url }),
            preferences: kind.is_for_users().then(|| format!("{}/dashboard/compte", branding.app_url)),
            confirm: links.confirm,
            sender: branding.sender_identity.lines().map(|line| one_line(line, 200)).collect(),
            app_url: &branding.app_url,
            light: &LIGHT,
            dark: &DARK,
        }
    }
}

/// Writes "Bonjour Camille,". A first name is whatever somebody typed when signing up, perhaps with another person's address.
pub(super) fn greeting(first_name: Option<&str>) -> String {
    match first_name.and_then(foreign::first_name) {
        Some(name) => format!("Bonjour {name},"),
        None => "Bonjour,".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(None, "Bonjour,")]
    #[case(Some("Camille"), "Bonjour Camille,")]
    #[case(Some("Gagnez sur prix.example"), "Bonjour,")]
    fn greetings(#[case] name: Option<&str>, #[case] expected: &str) {
        assert_eq!(greeting(name), expected);
    }
}
