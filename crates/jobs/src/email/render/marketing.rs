//! Writes the J+3 mail: what Pro and Premium bring.

use askama::Template;

use super::{
    branding::{Branding, Promo},
    frame::{Frame, Headline, Mail},
    french::one_line,
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
            subject: "Ce que Comptalyze Pro et Premium vous apportent".to_owned(),
            preheader: "Chiffre d’affaires, cotisations Urssaf et seuils suivis au même endroit.".to_owned(),
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
