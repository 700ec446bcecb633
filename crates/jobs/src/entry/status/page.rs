//! The pages: their templates, filled.

mod said;

use askama::Template;

use super::{
    chart::{Bar, bars},
    session::MINUTES,
};
use crate::{
    entry::answer::Answer,
    operations::{
        facts::{Broken, MailCounts},
        view::{DatabaseView, MonthDates, Status},
    },
    providers::Provider,
    words::{self, counted},
};

/// Says who looks at the page: without a token there are no forms.
pub(super) struct Viewer<'a> {
    pub(super) token: Option<&'a str>,
}

/// Holds class, name and number of each state that some integration is in.
type States = Vec<(&'static str, &'static str, u64)>;

#[derive(Template)]
#[template(path = "status.html")]
struct StatusPage<'a> {
    status: &'a Status,
    known: Option<&'a DatabaseView>,
    token: Option<&'a str>,
    notice: Option<&'a str>,
    bars: Vec<Bar>,
    kinds: Vec<(String, MailCounts)>,
    total: MailCounts,
    providers: Vec<(Provider, States)>,
    /// Lists broken integrations by provider and reason, in the order of the worst of each.
    broken: Vec<(Provider, &'a str, Vec<&'a Broken>)>,
}

#[derive(Template)]
#[template(path = "status_sign_in.html")]
struct SignInPage<'a> {
    trouble: Option<&'a str>,
    minutes: i64,
}

#[derive(Template)]
#[template(path = "status_message.html")]
struct MessagePage<'a> {
    message: &'a str,
}

pub(super) fn status(status: &Status, viewer: &Viewer, notice: Option<&str>) -> Answer {
    let known = status.known.as_ref();
    let mut kinds: Vec<(String, MailCounts)> = Vec::new();
    let mut total = MailCounts::default();
    for mail in known.iter().flat_map(|known| &known.mails.days) {
        total.add(mail.counts);
        let kind = mail.french_kind();
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, counts)) => counts.add(mail.counts),
            None => kinds.push((kind, mail.counts)),
        }
    }
    let providers = Provider::ALL
        .into_iter()
        .map(|provider| (provider, known.map(|known| states(known, provider)).unwrap_or_default()))
        .collect();
    let mut broken: Vec<(Provider, &str, Vec<&Broken>)> = Vec::new();
    for one in known.iter().flat_map(|known| &known.integrations.broken) {
        match broken.iter_mut().find(|(provider, what, _)| (*provider, *what) == (one.provider, one.what())) {
            Some((.., all)) => all.push(one),
            None => broken.push((one.provider, one.what(), vec![one])),
        }
    }
    let page = StatusPage {
        broken,
        status,
        known,
        token: viewer.token,
        notice,
        bars: bars(status.generated_at, known.map_or(&[], |known| &known.mails.days)),
        kinds,
        total,
        providers,
    };
    rendered(200, &page)
}

pub(super) fn sign_in(status: u16, trouble: Option<&str>) -> Answer {
    rendered(status, &SignInPage { trouble, minutes: MINUTES })
}

/// Answers a complaint, and the way back.
pub(super) fn message(status: u16, message: &str) -> Answer {
    rendered(status, &MessagePage { message })
}

pub(super) fn rendered(status: u16, page: &impl Template) -> Answer {
    match page.render() {
        Ok(html) => Answer::page(status, html),
        Err(error) => {
            tracing::error!(%error, "a page cannot be rendered");
            Answer::error(500, "Erreur interne ; voir les journaux.")
        }
    }
}

fn states(known: &DatabaseView, provider: Provider) -> States {
    const STATES: [(&str, &str); 5] =
        [("good", "good"), ("new", "unknown"), ("late", "bad"), ("failing", "bad"), ("inactive", "quiet")];
    STATES
        .into_iter()
        .filter_map(|(state, class)| {
            let states = known.integrations.states.iter();
            let found =
                states.into_iter().find(|found| found.provider == provider && found.state == state)?;
            Some((class, words::integration_state(state, found.count), found.count))
        })
        .collect()
}

#[cfg(test)]
mod tests;
