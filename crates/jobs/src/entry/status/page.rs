//! The pages: templates, and how what they show is said in French.

use std::borrow::Cow;

use askama::Template;
use chrono::{DateTime, Datelike, Timelike, Utc};

use super::{
    chart::{Bar, bars},
    session::MINUTES,
};
use crate::{
    entry::answer::Answer,
    lane,
    operations::{
        facts::{Broken, Lane, MailCounts, MailDay, Reason, Run, RunLane, Troubled},
        health::State,
        view::{DatabaseView, MissedSlot, MonthDates, Status, TaskView},
    },
    providers::Provider,
    schedule::{self, paris},
    words::{self, agreeing, capitalized, counted},
};

/// Who looks at the page: without a token there are no forms.
pub(super) struct Viewer<'a> {
    pub(super) token: Option<&'a str>,
}

/// Class, name and number of each state that some integration is in.
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

/// `24/11 à 21 h 05`, Paris time.
pub(super) fn short(at: &DateTime<Utc>) -> String {
    let at = paris::local(*at);
    format!("{:02}/{:02} à {}\u{a0}h\u{a0}{:02}", at.day(), at.month(), at.hour(), at.minute())
}

fn long(at: DateTime<Utc>) -> String {
    paris::french_minute(at)
}

/// How long ago something was, roughly.
fn ago(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let minutes = (now - at).num_minutes().max(0);
    match minutes {
        0 => "à l’instant".to_owned(),
        1..=59 => format!("il y a {minutes} min"),
        60..=2879 => format!("il y a {} h", minutes / 60),
        _ => format!("il y a {} jours", minutes / 1440),
    }
}

impl Status {
    fn seen_at(&self) -> String {
        long(self.generated_at)
    }

    fn headline(&self) -> &'static str {
        match self.state {
            State::Good => "Tout va bien",
            State::Unknown => "État inconnu",
            State::Bad => "À corriger",
        }
    }
}

impl DatabaseView {
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
        lane::Lane::ALL
            .into_iter()
            .map(lane::Lane::as_str)
            .map(|name| match self.queue.iter().find(|lane| lane.lane == name) {
                Some(lane) => Cow::Borrowed(lane),
                None => Cow::Owned(Lane::empty(name)),
            })
            .collect()
    }
}

impl MissedSlot {
    fn name(&self) -> String {
        capitalized(self.task.french())
    }

    fn due(&self) -> String {
        schedule::describe_time(self.task, self.due_at)
    }
}

impl TaskView {
    fn next(&self) -> String {
        schedule::describe_time(self.task, self.next_at)
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
        words::run_status(&self.status)
    }

    fn title(&self) -> String {
        if let Some(slot) = &self.slot {
            return format!("Créneau {slot}");
        }
        match self.parameters["retry"].as_str() {
            Some(retried) => format!("Reprise de la file «\u{a0}{}\u{a0}»", words::lane(retried)),
            None => "Sans créneau".to_owned(),
        }
    }

    fn french_trigger(&self) -> &'static str {
        words::trigger(&self.trigger)
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
        let all: Vec<String> = self
            .skipped
            .iter()
            .map(|(why, count)| format!("{count}\u{a0}× {}", words::reason(why)))
            .collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    fn more_troubles(&self) -> u64 {
        self.troubles.saturating_sub(self.troubled.len() as u64)
    }
}

impl RunLane {
    fn said(&self) -> String {
        let mails = lane::Lane::from_stored(&self.lane).is_some_and(lane::Lane::is_mail);
        let parts: Vec<String> = [
            (
                self.done,
                if mails {
                    agreeing(self.done, "envoyé", "envoyés")
                } else {
                    agreeing(self.done, "fait", "faits")
                },
            ),
            (self.partial, "en partie"),
            (self.failed, "en échec"),
            (self.skipped, agreeing(self.skipped, "écarté", "écartés")),
            (self.superseded, "repris par une autre exécution"),
            (self.queued, "en attente"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count}\u{a0}{what}"))
        .collect();
        format!("{}\u{a0}: {} sur {}", capitalized(words::lane(&self.lane)), parts.join(", "), self.planned)
    }
}

impl Troubled {
    fn who(&self) -> &str {
        self.address.as_deref().unwrap_or("compte supprimé")
    }

    fn lane(&self) -> String {
        capitalized(words::lane(&self.lane))
    }

    fn what(&self) -> &str {
        let message = self.message.as_deref().filter(|message| !message.is_empty());
        message.or(self.code.as_deref().map(words::reason)).unwrap_or(words::NO_EXPLANATION)
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

    fn name(&self) -> String {
        capitalized(words::lane(&self.lane))
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
    fn french_kind(&self) -> String {
        capitalized(words::mail_kind(&self.kind))
    }

    fn french_day(&self) -> String {
        paris::french(self.day)
    }
}

impl Reason {
    fn said(&self) -> String {
        format!("{}\u{a0}: {}", capitalized(words::mail_kind(&self.kind)), words::reason(&self.reason))
    }
}

impl Broken {
    fn who(&self) -> &str {
        self.address.as_deref().unwrap_or("sans adresse")
    }

    fn what(&self) -> &str {
        self.message.as_deref().or(self.code.as_deref().map(words::reason)).unwrap_or(words::NO_EXPLANATION)
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
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::Tuning, contrast::contrast, mail_kind::MailKind, operations::facts::DatabaseFacts,
        schedule::Task,
    };

    /// What a reader sees of a page.
    fn text(html: &str) -> String {
        let body = html.split("<body").nth(1).unwrap();
        body.split('<')
            .filter_map(|piece| piece.split_once('>'))
            .map(|(_, text)| text)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn no_stored_name_reaches_the_page() {
        let now: DateTime<Utc> = "2026-11-25T12:00:00Z".parse().unwrap();
        let (id, day) = ("5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001", "2026-11-25");
        let counts =
            json!({"sent": 1, "failed": 1, "unknown": 1, "skipped": 1, "suppressed": 1, "returned": 1});
        let kinds: Vec<&str> =
            MailKind::ALL.map(MailKind::as_str).into_iter().chain(["later_kind"]).collect();
        let lanes: Vec<&str> =
            lane::Lane::ALL.map(lane::Lane::as_str).into_iter().chain(["later_lane"]).collect();
        let days: Vec<Value> = kinds
            .iter()
            .map(|kind| {
                let mut day = json!({"kind": kind, "day": day});
                day.as_object_mut().unwrap().extend(counts.as_object().unwrap().clone());
                day
            })
            .collect();
        let run = |task: Task| {
            let of_lanes = lanes.iter().map(|lane| {
                json!({"lane": lane, "planned": 7, "queued": 1, "done": 1,
                "partial": 1, "failed": 1, "skipped": 1, "superseded": 1})
            });
            let troubled = lanes.iter().map(|lane| {
                json!({"user_id": id, "address": null, "lane": lane,
                "status": "queued", "code": "unknown_outcome", "message": null})
            });
            json!({"run_id": id, "task": task, "slot": null, "trigger": "replay", "as_of": now, "status": "partial",
                "started_at": now, "duration_ms": 1, "parameters": {"retry": "alerts"}, "records": 1, "troubles": 9,
                "skipped": {"metadata_says_paid": 1, "later_reason": 2}, "lanes": of_lanes.collect::<Vec<_>>(),
                "troubled": troubled.collect::<Vec<_>>()})
        };
        let facts: DatabaseFacts = serde_json::from_value(json!({
            "missing": [], "slots": [], "first_claims": {"marketing_day3": "2026-11-20T12:00:00Z"},
            "runs": {"runs": Task::ALL.map(run), "single": [{"task": "monthly_sync", "runs": 1, "erred": 1}]},
            "queue": lanes.iter().map(|lane| json!({"lane": lane, "waiting": 2, "in_flight": 1, "put_off": 1,
                "oldest": "2026-11-24T12:00:00Z", "failed": 1, "unknown": 1})).collect::<Vec<_>>(),
            "mails": {"days": days, "suppressed_addresses": 1, "reasons": kinds.iter().map(|kind| json!({
                "kind": kind, "status": "skipped", "reason": "refused_by_user", "count": 1})).collect::<Vec<_>>()},
            "integrations": {"broken_total": 2, "shopify_renewed": null, "refused_credentials": [],
                "states": [{"provider": "stripe", "state": "failing", "count": 1}],
                "broken": [{"user_id": id, "address": null, "provider": "stripe", "failures": 1, "failed_at": now,
                    "last_success_at": null, "code": "token_rejected", "message": null}]},
        }))
        .unwrap();
        let status = Status::new(now, &Tuning::default(), Vec::new(), Some(facts));
        let page = super::status(&status, &Viewer { token: Some("t") }, None);
        let text = text(page.body());
        let stored: Vec<&str> = text
            .split(|char: char| !char.is_ascii_alphanumeric() && char != '_')
            .filter(|word| word.contains('_') && word.chars().all(|char| !char.is_ascii_uppercase()))
            .collect();
        assert_eq!(stored, Vec::<&str>::new());
        for lane in lane::Lane::ALL {
            assert!(text.contains(&capitalized(lane.french())), "{lane:?}");
        }
        for kind in MailKind::ALL {
            assert!(text.contains(&capitalized(kind.french())), "{kind:?}");
        }
        for wrong in ["1\u{a0}envoyés", "1 envoyés", "1\u{a0}écartés", "1\u{a0}faits", "Et 1 autres"] {
            assert!(!text.contains(wrong), "{wrong}");
        }
    }

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
