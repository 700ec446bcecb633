//! What a page shows, said in French.

use std::borrow::Cow;

use chrono::{DateTime, Datelike, TimeDelta, Timelike, Utc};

use crate::{
    lane,
    operations::{
        facts::{Broken, Lane, MailDay, Reason, Run, RunLane, Troubled, UnreadableInput},
        health::State,
        view::{DatabaseView, MissedSlot, MonthDates, Status, TaskView},
    },
    schedule::{self, paris},
    words::{self, agreeing, capitalized, counted},
};

/// Writes an instant as in `24/11 à 21 h 05`, Paris time.
fn short(at: &DateTime<Utc>) -> String {
    let at = paris::local(*at);
    format!("{:02}/{:02} à {}\u{a0}h\u{a0}{:02}", at.day(), at.month(), at.hour(), at.minute())
}

fn long(at: DateTime<Utc>) -> String {
    paris::french_minute(at)
}

/// Says how long ago something was, roughly.
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
    pub(super) fn seen_at(&self) -> String {
        long(self.generated_at)
    }

    pub(super) fn headline(&self) -> &'static str {
        match self.state {
            State::Good => "Tout va bien",
            State::Unknown => "État inconnu",
            State::Bad => "À corriger",
        }
    }
}

impl DatabaseView {
    pub(super) fn open_missed(&self) -> Vec<&MissedSlot> {
        self.missed.iter().filter(|missed| !missed.made_up).collect()
    }

    pub(super) fn made_up(&self) -> Vec<&MissedSlot> {
        self.missed.iter().filter(|missed| missed.made_up).collect()
    }

    pub(super) fn since(&self) -> String {
        self.missed_since.as_ref().map(short).unwrap_or_default()
    }

    /// Returns every lane, also one in which there is nothing.
    pub(super) fn lanes(&self) -> Vec<Cow<'_, Lane>> {
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
    /// Returns the last day on which a cron makes it up by itself.
    pub(super) fn made_up_to(&self) -> Option<String> {
        let end = self.made_up_until.filter(|_| !self.made_up)?;
        Some(paris::french(paris::date(end - TimeDelta::seconds(1))))
    }

    pub(super) fn name(&self) -> String {
        capitalized(self.task.french())
    }

    pub(super) fn due(&self) -> String {
        schedule::describe_time(self.task, self.due_at)
    }
}

impl TaskView {
    pub(super) fn next(&self) -> String {
        schedule::describe_time(self.task, self.next_at)
    }

    pub(super) fn single_said(&self) -> Option<String> {
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
    pub(super) fn class(&self) -> &'static str {
        match self.status.as_str() {
            "success" => "good",
            "error" => "bad",
            "partial" => "unknown",
            _ => "quiet",
        }
    }

    pub(super) fn french_status(&self) -> &'static str {
        words::run_status(&self.status)
    }

    pub(super) fn title(&self) -> String {
        if let Some(slot) = &self.slot {
            return format!("Créneau {slot}");
        }
        match self.parameters["retry"].as_str() {
            Some(retried) => format!("Reprise de la file «\u{a0}{}\u{a0}»", words::lane(retried)),
            None => "Sans créneau".to_owned(),
        }
    }

    pub(super) fn french_trigger(&self) -> &'static str {
        words::trigger(&self.trigger)
    }

    pub(super) fn begun(&self) -> String {
        short(&self.started_at)
    }

    pub(super) fn took(&self) -> String {
        let Some(ms) = self.duration_ms else { return "pas terminée".to_owned() };
        match ms {
            0..1_000 => format!("{ms}\u{a0}ms"),
            1_000..60_000 => format!("{},{}\u{a0}s", ms / 1_000, ms % 1_000 / 100),
            60_000..3_600_000 => format!("{}\u{a0}min {:02}\u{a0}s", ms / 60_000, ms % 60_000 / 1_000),
            _ => format!("{}\u{a0}h {:02}", ms / 3_600_000, ms % 3_600_000 / 60_000),
        }
    }

    /// Says what it was to do and how far it got.
    pub(super) fn said(&self) -> Vec<String> {
        let mut all: Vec<String> = self.lanes.iter().map(RunLane::said).collect();
        if self.records > 0 {
            all.push(counted(self.records, "mouvement nouveau ou changé", "mouvements nouveaux ou changés"));
        }
        if all.is_empty() {
            all.push("Rien à faire.".to_owned());
        }
        all
    }

    pub(super) fn left_out(&self) -> Option<String> {
        let all: Vec<String> = self
            .skipped
            .iter()
            .map(|(why, count)| format!("{count}\u{a0}× {}", words::reason(why)))
            .collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    pub(super) fn more_troubles(&self) -> u64 {
        self.troubles.saturating_sub(self.troubled.len() as u64)
    }
}

impl RunLane {
    pub(super) fn said(&self) -> String {
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
    pub(super) fn who(&self) -> &str {
        self.address.as_deref().unwrap_or("compte supprimé")
    }

    pub(super) fn lane(&self) -> String {
        capitalized(words::lane(&self.lane))
    }

    pub(super) fn what(&self) -> &str {
        let message = self.message.as_deref().filter(|message| !message.is_empty());
        message.or(self.code.as_deref().map(words::reason)).unwrap_or(words::NO_EXPLANATION)
    }

    pub(super) fn outlook(&self) -> &'static str {
        if self.status == "queued" { " (nouvel essai prévu)" } else { "" }
    }
}

impl Lane {
    pub(super) fn empty(lane: &str) -> Self {
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

    pub(super) fn name(&self) -> String {
        capitalized(words::lane(&self.lane))
    }

    pub(super) fn oldest_said(&self, now: &DateTime<Utc>) -> String {
        self.oldest.map_or_else(|| "—".to_owned(), |oldest| ago(oldest, *now))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting + self.failed + self.unknown == 0
    }

    pub(super) fn may_retry(&self) -> bool {
        self.waiting > self.in_flight || self.failed > 0
    }
}

impl MailDay {
    pub(super) fn french_kind(&self) -> String {
        capitalized(words::mail_kind(&self.kind))
    }

    pub(super) fn french_day(&self) -> String {
        paris::french(self.day)
    }
}

impl Reason {
    pub(super) fn said(&self) -> String {
        format!("{}\u{a0}: {}", capitalized(words::mail_kind(&self.kind)), words::reason(&self.reason))
    }
}

impl Broken {
    pub(super) fn who(&self) -> &str {
        self.address.as_deref().unwrap_or("sans adresse")
    }

    pub(super) fn what(&self) -> &str {
        self.message.as_deref().or(self.code.as_deref().map(words::reason)).unwrap_or(words::NO_EXPLANATION)
    }

    pub(super) fn since(&self) -> String {
        match &self.last_success_at {
            Some(at) => format!("dernière réussite le {}", short(at)),
            None => "jamais réussie".to_owned(),
        }
    }

    pub(super) fn failures_said(&self) -> String {
        counted(self.failures, "échec de suite", "échecs de suite")
    }
}

impl UnreadableInput {
    pub(super) fn who(&self) -> &str {
        self.address.as_deref().unwrap_or("sans adresse")
    }

    pub(super) fn why(&self) -> String {
        capitalized(words::reason(&self.flaw))
    }

    pub(super) fn noticed(&self) -> String {
        format!("depuis le {}", short(&self.since))
    }
}

impl MonthDates {
    /// Writes a day as in `mer. 2`: the month is the row's.
    pub(super) fn date(at: Option<&DateTime<Utc>>) -> String {
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
