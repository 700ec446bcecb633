//! Gathers what the status page shows and its JSON says: one value, made of facts, health and the table of gates. Pure.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde::Serialize;

use super::{
    claims::{expects, in_use_since, unclaimed},
    facts::{DatabaseFacts, Integrations, Lane, Mails, OwedMonths, Run, Single, Unreadable},
    health::{Check, State},
    waiting::WAITS_TOO_LONG,
};
use crate::{
    config::Tuning,
    lane,
    schedule::{self, Missed, Settings, Task, occurrences, paris},
    words::{self, capitalized, counted},
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    pub(crate) generated_at: DateTime<Utc>,
    pub(crate) version: &'static str,
    pub(crate) state: State,
    pub(crate) attention: Vec<Attention>,
    pub(crate) health: Vec<Check>,
    /// It is missing where the database did not answer.
    #[serde(flatten)]
    pub(crate) known: Option<DatabaseView>,
    pub(crate) calendar: Vec<MonthDates>,
}

/// Represents something to act on, or to know.
#[derive(Debug, Serialize)]
pub(crate) struct Attention {
    /// Says whether it has to be put right, or only to be known.
    pub(crate) state: State,
    /// Names the section of the page that tells it in full.
    pub(crate) section: &'static str,
    pub(crate) message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DatabaseView {
    /// Crons were looked for from this instant on; it is missing where no cron has ever called.
    pub(crate) missed_since: Option<DateTime<Utc>>,
    pub(crate) missed: Vec<MissedSlot>,
    pub(crate) tasks: Vec<TaskView>,
    pub(crate) queue: Vec<Lane>,
    pub(crate) mails: Mails,
    pub(crate) integrations: Integrations,
    pub(crate) unreadable: Unreadable,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MissedSlot {
    pub(crate) task: Task,
    pub(crate) slot: String,
    pub(crate) due_at: DateTime<Utc>,
    /// A later run did what this one would have done.
    pub(crate) made_up: bool,
    /// The next call of its cron makes it up, until this instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) made_up_until: Option<DateTime<Utc>>,
    /// Is the instant that a replay works for; `None` where nothing can be replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replay_at: Option<DateTime<Utc>>,
    /// Says why there is no replay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) no_replay: Option<String>,
}

impl From<Missed> for MissedSlot {
    fn from(missed: Missed) -> Self {
        Self {
            task: missed.occurrence.task,
            slot: missed.occurrence.slot.to_string(),
            due_at: missed.occurrence.opens,
            made_up: missed.made_up,
            made_up_until: missed.made_up_until,
            replay_at: missed.replay.ok(),
            no_replay: missed.replay.err().map(|why| why.to_string()),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TaskView {
    pub(crate) task: Task,
    pub(crate) name: String,
    pub(crate) rule: String,
    pub(crate) next_slot: String,
    pub(crate) next_at: DateTime<Utc>,
    pub(crate) runs: Vec<Run>,
    /// Runs for single users of the last day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) single: Option<Single>,
}

/// Holds a month's due dates of the tasks that are due once a month.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MonthDates {
    pub(crate) month: String,
    pub(crate) reminders_at: Option<DateTime<Utc>>,
    pub(crate) monthly_sync_at: Option<DateTime<Utc>>,
}

/// Returns how far back missed crons are looked for.
pub(crate) fn slot_days(tuning: &Tuning) -> u16 {
    tuning.schedule.replay_max_days().clamp(14, 60)
}

impl Status {
    pub(crate) fn new(
        now: DateTime<Utc>,
        tuning: &Tuning,
        health: Vec<Check>,
        facts: Option<DatabaseFacts>,
    ) -> Self {
        let owed = facts.as_ref().map(|facts| owed(now, &facts.owed_months)).unwrap_or_default();
        let outages = facts.as_ref().map(|facts| facts.outages.clone()).unwrap_or_default();
        let known = facts.map(|facts| DatabaseView::new(now, tuning, facts));
        let mut attention = attention(now, &health, known.as_ref());
        attention.extend(owed);
        attention.extend(outages.iter().map(|outage| Attention {
            state: State::Bad,
            section: "integrations",
            message: outage.message(),
        }));
        attention.sort_by_key(|attention| std::cmp::Reverse(attention.state));
        let worst = attention.iter().map(|attention| attention.state).max();
        let state = match (worst, &known) {
            (Some(State::Bad), _) => State::Bad,
            (_, None) => State::Unknown,
            _ => State::Good,
        };
        let calendar = calendar(now, tuning.schedule);
        Self {
            generated_at: now,
            version: env!("CARGO_PKG_VERSION"),
            state,
            attention,
            health,
            known,
            calendar,
        }
    }
}

impl DatabaseView {
    fn new(now: DateTime<Utc>, tuning: &Tuning, facts: DatabaseFacts) -> Self {
        let (missed_since, missed) = missed(now, tuning, &facts);
        let mut runs: BTreeMap<String, Vec<Run>> = BTreeMap::new();
        for run in facts.runs.runs {
            runs.entry(run.task.clone()).or_default().push(run);
        }
        let mut single: BTreeMap<String, Single> =
            facts.runs.single.into_iter().map(|single| (single.task.clone(), single)).collect();
        let tasks = Task::ALL.map(|task| {
            let next = occurrences(task, now, tuning.schedule).next();
            TaskView {
                task,
                name: capitalized(task.french()),
                rule: schedule::describe_rule(task, tuning.schedule),
                next_slot: next.as_ref().map(|next| next.slot.to_string()).unwrap_or_default(),
                next_at: next.map_or(now, |next| next.opens),
                runs: runs.remove(task.as_str()).unwrap_or_default(),
                single: single.remove(task.as_str()),
            }
        });
        let mut queue = facts.queue;
        queue.sort_by_key(|lane| lane::Lane::ALL.iter().position(|known| known.as_str() == lane.lane));
        Self {
            missed_since,
            missed,
            tasks: tasks.into(),
            queue,
            mails: facts.mails,
            integrations: facts.integrations,
            unreadable: facts.unreadable,
        }
    }
}

/// Returns the slots that nobody claimed, since this deployment's crons have come by at all.
fn missed(
    now: DateTime<Utc>,
    tuning: &Tuning,
    facts: &DatabaseFacts,
) -> (Option<DateTime<Utc>>, Vec<MissedSlot>) {
    let Some(&first) = facts.first_claims.values().min() else { return (None, Vec::new()) };
    let horizon = now - TimeDelta::days(slot_days(tuning).into());
    let mut all = Vec::new();
    for task in Task::ALL {
        if !expects(tuning.file, task) {
            continue;
        }
        // What only some files schedule is expected since its first call, or else since the crons of this file come by.
        let own = facts.first_claims.get(task.as_str()).copied();
        let own = own.or_else(|| in_use_since(tuning.file, &facts.first_calls));
        let first = own.filter(|_| !task.is_scheduled_everywhere()).unwrap_or(first);
        let missed = unclaimed(&facts.slots, task, first.max(horizon), now, tuning.schedule);
        all.extend(missed.into_iter().map(MissedSlot::from));
    }
    all.sort_by_key(|missed| std::cmp::Reverse(missed.due_at));
    (Some(first.max(horizon)), all)
}

fn calendar(now: DateTime<Utc>, settings: Settings) -> Vec<MonthDates> {
    let this = paris::month(now);
    let dates = |task| -> BTreeMap<schedule::Month, DateTime<Utc>> {
        occurrences(task, now, settings).take(13).map(|due| (paris::month(due.opens), due.opens)).collect()
    };
    let (reminders, syncs) = (dates(Task::MonthlyReminders), dates(Task::MonthlySync));
    std::iter::successors(Some(this), |month| Some(month.next()))
        .map(|month| MonthDates {
            month: month.french(),
            reminders_at: reminders.get(&month).copied(),
            monthly_sync_at: syncs.get(&month).copied(),
        })
        .filter(|month| month.reminders_at.is_some() || month.monthly_sync_at.is_some())
        .take(12)
        .collect()
}

/// Is the day from which Shopify takes no permanent token of a public application any more
/// (<https://shopify.dev/changelog/expiring-offline-access-tokens-required-for-all-public-apps-as-of-january-1-2027>).
const LAST_PERMANENT_TOKENS: NaiveDate = NaiveDate::from_ymd_opt(2027, 1, 1).unwrap();

/// Says how many permanent tokens are left, and until when they work.
pub(crate) fn permanent_tokens(count: u64, now: DateTime<Utc>) -> String {
    let tokens = counted(count, "jeton Shopify permanent", "jetons Shopify permanents");
    let until = if now < paris::start_of(LAST_PERMANENT_TOKENS) {
        "à échanger avant le 1er janvier 2027 (2027-01-01), sauf ceux d’applications personnalisées"
    } else {
        "que Shopify n’accepte plus depuis le 1er janvier 2027 (2027-01-01), sauf d’applications personnalisées"
    };
    format!("{tokens} {until}")
}

/// Says how many lists lack what they have shown before, and what to look at.
pub(crate) fn doubted_lists(count: u64) -> String {
    let lists = counted(count, "liste ne montre plus", "listes ne montrent plus");
    format!(
        "{lists} ce qui y était connu\u{a0}: vérifier l’approbation de l’application Shopify et les connexions"
    )
}

/// Tells whose recap has not left because their month could not be read, and why.
fn owed(now: DateTime<Utc>, months: &[OwedMonths]) -> Vec<Attention> {
    let mut all = Vec::new();
    for owed in months {
        let Ok(month) = owed.month.parse::<schedule::Month>() else { continue };
        let over = now >= schedule::second_chances_end(month);
        let why = owed.message.as_deref().unwrap_or(words::NO_EXPLANATION);
        let (state, still) = if over { (State::Bad, "non envoyé") } else { (State::Unknown, "en attente") };
        let plural = if owed.count > 1 && over { "s" } else { "" };
        all.push(Attention {
            state,
            section: "taches",
            message: format!(
                "{} ({}), {still}{plural}\u{a0}: {why}",
                counted(owed.count, "récapitulatif", "récapitulatifs"),
                month.french()
            ),
        });
    }
    all
}

/// Returns what the operator should look at first.
fn attention(now: DateTime<Utc>, health: &[Check], known: Option<&DatabaseView>) -> Vec<Attention> {
    let mut all = Vec::new();
    let mut add = |state, section, message| all.push(Attention { state, section, message });
    for check in health.iter().filter(|check| check.state == State::Bad) {
        add(State::Bad, "sante", format!("{}\u{a0}: {}", check.name, check.message));
    }
    let Some(known) = known else { return all };

    if known.missed_since.is_none() {
        add(
            State::Bad,
            "manquees",
            "Aucun cron n’est encore passé\u{a0}: vérifier Settings, Cron Jobs chez Vercel.".into(),
        );
    }
    let open = known.missed.iter().filter(|missed| !missed.made_up).count() as u64;
    if open > 0 {
        add(State::Bad, "manquees", counted(open, "exécution manquée", "exécutions manquées"));
    }
    for task in &known.tasks {
        let Some(last) = task.runs.first() else { continue };
        match last.status.as_str() {
            "error" => {
                let message = format!("{}\u{a0}: la dernière exécution a échoué", task.name);
                add(State::Bad, "taches", message);
            }
            "partial" => {
                add(
                    State::Unknown,
                    "taches",
                    format!("{}\u{a0}: la dernière exécution n’a réussi qu’en partie", task.name),
                );
            }
            _ => {}
        }
    }
    let mails = |lane: &&Lane| lane.is_mail();
    let failed: u64 = known.queue.iter().filter(mails).map(|lane| lane.failed).sum();
    if failed > 0 {
        add(
            State::Bad,
            "file",
            format!("{} à relancer", counted(failed, "courriel en échec", "courriels en échec")),
        );
    }
    let unknown: u64 = known.queue.iter().map(|lane| lane.unknown).sum();
    if unknown > 0 {
        add(
            State::Unknown,
            "file",
            counted(unknown, "courriel d’issue inconnue", "courriels d’issue inconnue"),
        );
    }
    for lane in &known.queue {
        if lane.oldest.is_some_and(|oldest| now - oldest > WAITS_TOO_LONG) {
            add(State::Bad, "file", words::waits_too_long(&lane.lane));
        }
    }
    let late: u64 =
        known.integrations.states.iter().filter(|state| state.state == "late").map(|state| state.count).sum();
    if late > 0 {
        let message = counted(late, "intégration sans synchronisation", "intégrations sans synchronisation");
        add(State::Bad, "integrations", format!("{message} depuis plus de 36\u{a0}h"));
    }
    let broken = known.integrations.broken_total;
    if broken > 0 {
        add(State::Unknown, "integrations", counted(broken, "intégration en panne", "intégrations en panne"));
    }
    let doubted = known.integrations.doubted_lists;
    if doubted > 0 {
        add(State::Unknown, "integrations", doubted_lists(doubted));
    }
    let permanent = known.integrations.shopify_permanent;
    if permanent > 0 {
        add(State::Unknown, "integrations", permanent_tokens(permanent, now));
    }
    let unreadable = known.unreadable.total;
    if unreadable > 0 {
        let message =
            counted(unreadable, "utilisateur aux saisies illisibles", "utilisateurs aux saisies illisibles");
        add(State::Unknown, "saisies", message);
    }
    all.sort_by_key(|attention| std::cmp::Reverse(attention.state));
    all
}
