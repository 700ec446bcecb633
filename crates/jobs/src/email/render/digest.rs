//! Tells what went wrong to whoever runs this deployment.

use askama::Template;
use chrono::NaiveDate;

use super::{
    foreign::one_line,
    frame::{Frame, Headline, Mail},
    french::{date, grouped},
};
use crate::email::DigestPoint;

/// The status page shows the rest.
const MOST: usize = 20;

pub(super) struct View {
    day: String,
    points: Vec<Point>,
    beyond: usize,
    status_url: String,
}

struct Point {
    title: String,
    /// Says how often it happened, as in "12 fois"; `None` where once.
    times: Option<String>,
    detail: String,
}

impl View {
    pub(super) fn new(day: NaiveDate, points: &[DigestPoint], status_url: &str) -> Self {
        let shown = points.iter().take(MOST).map(|point| Point {
            title: one_line(&point.title, 150),
            times: (point.count > 1)
                .then(|| format!("{}\u{a0}fois", grouped(i64::try_from(point.count).unwrap_or(i64::MAX)))),
            detail: one_line(&point.detail, 400),
        });
        Self {
            day: date(day),
            points: shown.collect(),
            beyond: points.len().saturating_sub(MOST),
            status_url: status_url.to_owned(),
        }
    }
}

impl Mail for View {
    fn headline(&self) -> Headline {
        let count = self.points.len() + self.beyond;
        Headline {
            subject: match count {
                1 => format!("Comptalyze Jobs : un point à regarder le {}", self.day),
                _ => format!("Comptalyze Jobs : {count} points à regarder le {}", self.day),
            },
            preheader: self.points.first().map(|point| point.title.clone()).unwrap_or_default(),
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
#[template(path = "operator_digest.html")]
struct Html<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}

#[derive(Template)]
#[template(path = "operator_digest.txt")]
struct Text<'a> {
    frame: &'a Frame<'a>,
    view: &'a View,
}
