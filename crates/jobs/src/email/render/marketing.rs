//! Writes the J+3 mail: what Premium adds. It names nothing that a free account has anyway: alerts, recaps, imports.

use askama::Template;

use super::{
    branding::{Branding, Promo},
    foreign::one_line,
    frame::{Frame, Headline, Mail},
};

pub(super) struct View {
    promo: Option<Promo>,
}

impl View {
    pub(super) fn new(branding: &Branding) -> Self {
        let promo = branding
            .promo
            .as_ref()
            .map(|promo| Promo { code: one_line(&promo.code, 40), label: one_line(&promo.label, 120) });
        Self { promo }
    }
}

impl Mail for View {
    fn headline(&self) -> Headline {
        Headline {
            subject: "Ce que Comptalyze Premium ajoute à votre compte".to_owned(),
            preheader: "Chaque mois : quoi déclarer, combien mettre de côté, avant quand.".to_owned(),
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
#[template(path = "marketing_day3.html")]
struct Html<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}

#[derive(Template)]
#[template(path = "marketing_day3.txt")]
struct Text<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}
