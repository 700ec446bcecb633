//! The pages: templates, and how what they show is said in French.

use std::borrow::Cow;

use askama::Template;
use chrono::{DateTime, Datelike, Timelike, Utc};

use super::{
    chart::{Bar, bars},
    facts::{Broken, Lane, MailCounts, MailDay, Run, RunLane, Troubled},
    health::ago,
    session::MINUTES,
    view::{Known, MissedSlot, MonthDates, Status, TaskView, counted, name},
};
use crate::{
    entry::answer::Answer,
    providers::Provider,
    schedule::{self, paris},
};

/// Whose page it is: without a token there are no forms.
pub(super) struct Session<'a> {
    pub(super) token: Option<&'a str>,
}

/// Class, name and number of each state that some integration is in.
type States = Vec<(&'static str, &'static str, u64)>;

#[derive(Template)]
#[template(path = "status.html")]
struct StatusPage<'a> {
    status: &'a Status,
    known: Option<&'a Known>,
    token: Option<&'a str>,
    notice: Option<&'a str>,
    bars: Vec<Bar>,
    kinds: Vec<(Cow<'static, str>, MailCounts)>,
    total: MailCounts,
    providers: Vec<(Provider, States)>,
    /// By provider and reason, in the order of the worst of each.
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

pub(super) fn status(status: &Status, session: &Session, notice: Option<&str>) -> Answer {
    let known = status.known.as_ref();
    let mut kinds: Vec<(Cow<'static, str>, MailCounts)> = Vec::new();
    let mut total = MailCounts::default();
    for mail in known.iter().flat_map(|known| &known.mails.days) {
        total.add(mail.counts);
        let kind = mail.french_kind();
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, counts)) => counts.add(mail.counts),
            None => kinds.push((kind, mail.counts)),
        }
    }
    let providers = [Provider::Stripe, Provider::Shopify]
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
        token: session.token,
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

/// A complaint, and the way back.
pub(super) fn message(status: u16, message: &str) -> Answer {
    rendered(status, &MessagePage { message })
}

fn rendered(status: u16, page: &impl Template) -> Answer {
    match page.render() {
        Ok(html) => Answer::page(status, html),
        Err(error) => {
            tracing::error!(%error, "a page cannot be rendered");
            Answer::error(500, "Erreur interne ; voir les journaux.")
        }
    }
}

fn states(known: &Known, provider: Provider) -> States {
    const STATES: [(&str, &str, [&str; 2]); 5] = [
        ("good", "good", ["à jour"; 2]),
        ("new", "unknown", ["jamais synchronisée", "jamais synchronisées"]),
        ("late", "bad", ["en retard de plus de 36\u{a0}h"; 2]),
        ("failing", "bad", ["en panne"; 2]),
        ("inactive", "quiet", ["désactivée", "désactivées"]),
    ];
    STATES
        .into_iter()
        .filter_map(|(state, class, [one, several])| {
            let states = known.integrations.states.iter();
            let found =
                states.into_iter().find(|found| found.provider == provider && found.state == state)?;
            Some((class, if found.count == 1 { one } else { several }, found.count))
        })
        .collect()
}

/// `24/11 à 21 h 05`, Paris time.
pub(super) fn short(at: &DateTime<Utc>) -> String {
    let at = paris::local(*at);
    format!("{:02}/{:02} à {}\u{a0}h\u{a0}{:02}", at.day(), at.month(), at.hour(), at.minute())
}

fn long(at: DateTime<Utc>) -> String {
    paris::french_minute(at)
}

/// What a lane is called.
pub(super) fn lane(name: &str) -> &str {
    match name {
        "alerts" => "Alertes de seuil",
        "reminders" => "Rappels mensuels",
        "recaps" => "Récapitulatifs",
        "marketing" => "Mails J+3",
        "stripe" => "Stripe",
        "shopify" => "Shopify",
        "months" => "Mois entiers",
        other => other,
    }
}

/// Why somebody got nothing, or a mail did not leave.
fn reason(code: &str) -> Cow<'_, str> {
    let known = match code {
        "user_deleted" => "compte supprimé",
        "user_banned" => "compte bloqué",
        "anonymous" => "compte anonyme",
        "no_address" => "sans adresse",
        "unconfirmed" => "adresse non confirmée",
        "suppressed" => "adresse écartée (rejet ou plainte)",
        "refused_by_user" => "n’en veut pas",
        "already_planned" => "déjà prévu",
        "already_sent" => "déjà reçu",
        "unknown_price" => "tarif inconnu",
        "paid_plan" => "déjà abonné",
        "metadata_says_paid" => "se dit abonné",
        "not_premium" => "pas Premium",
        "inactive" => "intégration désactivée",
        "expired" => "trop tard pour l’envoyer",
        "skipped" => "écarté",
        "refused" => "refusé",
        "failed" => "en échec",
        "unknown" => "issue inconnue",
        "uncounted_currencies" => "montants dans une autre devise",
        "left_alone" => "lignes modifiées par l’utilisateur, laissées telles quelles",
        "unknown_movements" => "mouvements d’un type inconnu",
        other => return other.into(),
    };
    known.into()
}

impl Status {
    fn seen_at(&self) -> String {
        long(self.generated_at)
    }

    fn headline(&self) -> &'static str {
        match self.state {
            super::health::State::Good => "Tout va bien",
            super::health::State::Unknown => "État inconnu",
            super::health::State::Bad => "À corriger",
        }
    }
}

impl Known {
    fn open_missed(&self) -> Vec<&MissedSlot> {
        self.missed.iter().filter(|missed| !missed.made_up).collect()
    }

    fn made_up(&self) -> Vec<&MissedSlot> {
        self.missed.iter().filter(|missed| missed.made_up).collect()
    }

    fn since(&self) -> String {
        self.missed_since.as_ref().map(short).unwrap_or_default()
    }

    /// Every lane, also one in which there is nothing.
    fn lanes(&self) -> Vec<Cow<'_, Lane>> {
        super::view::LANES
            .into_iter()
            .map(|name| match self.queue.iter().find(|lane| lane.lane == name) {
                Some(lane) => Cow::Borrowed(lane),
                None => Cow::Owned(Lane::empty(name)),
            })
            .collect()
    }
}

impl MissedSlot {
    fn name(&self) -> &'static str {
        name(self.task)
    }

    fn due(&self) -> String {
        schedule::moment(self.task, self.due_at)
    }
}

impl TaskView {
    fn next(&self) -> String {
        schedule::moment(self.task, self.next_at)
    }

    fn single_said(&self) -> Option<String> {
        let single = self.single.as_ref()?;
        let runs = counted(single.runs, "appel", "appels");
        Some(match single.erred {
            0 => format!("Depuis 24\u{a0}h, {runs} pour un seul utilisateur, sans erreur."),
            erred => {
                format!("Depuis 24\u{a0}h, {runs} pour un seul utilisateur, dont {erred} avec des erreurs.")
            }
        })
    }
}

impl Run {
    fn class(&self) -> &'static str {
        match self.status.as_str() {
            "success" => "good",
            "error" => "bad",
            "partial" => "unknown",
            _ => "quiet",
        }
    }

    fn french_status(&self) -> &'static str {
        match self.status.as_str() {
            "success" => "réussie",
            "error" => "échec",
            "partial" => "en partie",
            _ => "en cours",
        }
    }

    fn title(&self) -> String {
        if let Some(slot) = &self.slot {
            return format!("Créneau {slot}");
        }
        match self.parameters["retry"].as_str() {
            Some(retried) => format!("Reprise de la file {}", lane(retried)),
            None => "Sans créneau".to_owned(),
        }
    }

    fn french_trigger(&self) -> &'static str {
        match self.trigger.as_str() {
            "cron" => "cron",
            "replay" => "rejeu",
            _ => "à la main",
        }
    }

    fn begun(&self) -> String {
        short(&self.started_at)
    }

    fn took(&self) -> String {
        let Some(ms) = self.duration_ms else { return "pas terminée".to_owned() };
        match ms {
            0..1_000 => format!("{ms}\u{a0}ms"),
            1_000..60_000 => format!("{},{}\u{a0}s", ms / 1_000, ms % 1_000 / 100),
            60_000..3_600_000 => format!("{}\u{a0}min {:02}\u{a0}s", ms / 60_000, ms % 60_000 / 1_000),
            _ => format!("{}\u{a0}h {:02}", ms / 3_600_000, ms % 3_600_000 / 60_000),
        }
    }

    /// What it was to do and how far it got.
    fn said(&self) -> Vec<String> {
        let mut all: Vec<String> = self.lanes.iter().map(RunLane::said).collect();
        if self.records > 0 {
            all.push(counted(self.records, "mouvement nouveau ou changé", "mouvements nouveaux ou changés"));
        }
        if all.is_empty() {
            all.push("Rien à faire.".to_owned());
        }
        all
    }

    fn left_out(&self) -> Option<String> {
        let all: Vec<String> =
            self.skipped.iter().map(|(why, count)| format!("{count}\u{a0}× {}", reason(why))).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    fn more_troubles(&self) -> u64 {
        self.troubles.saturating_sub(self.troubled.len() as u64)
    }
}

impl RunLane {
    fn said(&self) -> String {
        let mails = matches!(self.lane.as_str(), "alerts" | "reminders" | "recaps" | "marketing");
        let (done, skipped) = if mails { ("envoyés", "écartés") } else { ("faits", "écartés") };
        let parts: Vec<String> = [
            (self.done, done),
            (self.partial, "en partie"),
            (self.failed, "en échec"),
            (self.skipped, skipped),
            (self.superseded, "repris par une autre exécution"),
            (self.queued, "en attente"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count}\u{a0}{what}"))
        .collect();
        format!("{}\u{a0}: {} sur {}", lane(&self.lane), parts.join(", "), self.planned)
    }
}

impl Troubled {
    fn who(&self) -> &str {
        self.address.as_deref().unwrap_or("compte supprimé")
    }

    fn lane(&self) -> &str {
        lane(&self.lane)
    }

    fn what(&self) -> Cow<'_, str> {
        match (self.message.as_deref().filter(|message| !message.is_empty()), &self.code) {
            (Some(message), _) => message.into(),
            (None, Some(code)) => reason(code),
            (None, None) => "sans explication".into(),
        }
    }

    fn outlook(&self) -> &'static str {
        if self.status == "queued" { " (nouvel essai prévu)" } else { "" }
    }
}

impl Lane {
    fn empty(lane: &str) -> Self {
        Self {
            lane: lane.to_owned(),
            waiting: 0,
            in_flight: 0,
            put_off: 0,
            oldest: None,
            failed: 0,
            unknown: 0,
        }
    }

    fn name(&self) -> &str {
        lane(&self.lane)
    }

    fn oldest_said(&self, now: &DateTime<Utc>) -> String {
        self.oldest.map_or_else(|| "—".to_owned(), |oldest| ago(oldest, *now))
    }

    fn is_empty(&self) -> bool {
        self.waiting + self.failed + self.unknown == 0
    }

    fn may_retry(&self) -> bool {
        self.waiting > self.in_flight || self.failed > 0
    }
}

impl MailDay {
    fn french_kind(&self) -> Cow<'static, str> {
        kind(&self.kind)
    }

    fn french_day(&self) -> String {
        paris::french(self.day)
    }
}

fn kind(kind: &str) -> Cow<'static, str> {
    match kind {
        "threshold_alert" => "Alertes de seuil".into(),
        "monthly_reminder" => "Rappels mensuels".into(),
        "monthly_recap" => "Récapitulatifs".into(),
        "marketing_day3" => "Mails J+3".into(),
        other => other.to_owned().into(),
    }
}

impl Broken {
    fn who(&self) -> &str {
        self.address.as_deref().unwrap_or("sans adresse")
    }

    fn what(&self) -> &str {
        self.message.as_deref().or(self.code.as_deref()).unwrap_or("sans explication")
    }

    fn since(&self) -> String {
        match &self.last_success_at {
            Some(at) => format!("dernière réussite le {}", short(at)),
            None => "jamais réussie".to_owned(),
        }
    }

    fn failures_said(&self) -> String {
        counted(self.failures, "échec de suite", "échecs de suite")
    }
}

impl MonthDates {
    /// `mer. 2`: the month is the row's.
    fn date(at: Option<&DateTime<Utc>>) -> String {
        const DAYS: [&str; 7] = ["lun.", "mar.", "mer.", "jeu.", "ven.", "sam.", "dim."];
        at.map_or_else(
            || "—".to_owned(),
            |at| {
                let date = paris::date(*at);
                format!("{}\u{a0}{}", DAYS[date.weekday().num_days_from_monday() as usize], date.day())
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contrast::contrast;

    /// The colours of both schemes, from the page itself.
    #[test]
    fn everything_can_be_read_in_both_schemes() {
        let html = SignInPage { trouble: None, minutes: 30 }.render().unwrap();
        let schemes: Vec<&str> =
            html.split(":root {").skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
        assert_eq!(schemes.len(), 2);
        for scheme in schemes {
            let colour = |name: &str| {
                let (_, rest) = scheme.split_once(&format!("--{name}: ")).unwrap_or_else(|| panic!("{name}"));
                rest.split(';').next().unwrap()
            };
            for ink in ["ink", "soft", "link", "good", "bad", "unknown"] {
                for ground in ["ground", "card", "panel"] {
                    let contrast = contrast(colour(ink), colour(ground));
                    assert!(contrast >= 4.5, "{ink} on {ground}: {contrast}");
                }
            }
            assert!(contrast(colour("on-link"), colour("link")) >= 4.5);
            for bar in ["link", "bad", "unknown", "bar"] {
                assert!(contrast(colour(bar), colour("card")) >= 3.0, "{bar}");
            }
        }
    }
}
