//! Asks a user to connect an integration again.

use askama::Template;
use chrono::{DateTime, Utc};

use super::{
    foreign::one_line,
    frame::{Frame, Headline, Mail},
    french::{date_and_time, source},
};

pub(super) struct View {
    /// Is the provider's name as its users know it, such as "Stripe".
    provider: String,
    /// As the service tells it.
    reason: String,
    /// Says up to when everything was read, as in "21 novembre 2026 à 19 h 05"; `None` where
    /// nothing ever was.
    read_until: Option<String>,
}

impl View {
    pub(super) fn new(provider: &str, reason: &str, read_until: Option<DateTime<Utc>>) -> Self {
        Self {
            provider: source(provider),
            reason: one_line(reason, 300),
            read_until: read_until.map(date_and_time),
        }
    }
}

impl Mail for View {
    fn headline(&self) -> Headline {
        Headline {
            subject: format!("Votre connexion à {} est à refaire", self.provider),
            preheader: format!("Vos encaissements {} ne sont plus importés dans Comptalyze.", self.provider),
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
#[template(path = "integration_trouble.html")]
struct Html<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}

#[derive(Template)]
#[template(path = "integration_trouble.txt")]
struct Text<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}
