//! Collects what a check finds: whom to tell what, what does not hold any more, and what an outline says of it.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use uuid::Uuid;

use super::details::{Asked, Details};
use crate::{
    email::{AlertRemarks, Assumed},
    schedule::paris,
    urssaf::{
        self, Activity, Assessment, Consequence, ConsequenceNews, Crossing, State, Telling, Told,
        ToldConsequence, ToldInYear, UserBooks, YearBooks, YearCheck,
    },
};

/// A dry run's answer names so many candidates at most.
const MOST_CANDIDATES: usize = 100;
/// Bounds how many different activities that no ceiling is known for an outline names: users write them.
const MOST_ACTIVITIES: usize = 100;

/// Represents a user as `threshold_books` answers them.
#[derive(Deserialize)]
pub(super) struct Person {
    user_id: Uuid,
    /// The day on which their activity began.
    created: Option<NaiveDate>,
    /// Why no mail may go to them.
    reason: Option<String>,
    /// Says what of their books cannot be read; then there are no years.
    flaw: Option<String>,
    told: Vec<ToldInYear<Told>>,
    consequences: Vec<ToldInYear<ToldConsequence>>,
    years: Vec<YearBooks>,
}

/// Represents a year of a user that has to be written down, as far as it is known yet.
pub(super) struct Pending {
    user_id: Uuid,
    as_of: NaiveDate,
    books: UserBooks,
    found: YearCheck,
}

/// Represents what one year of a user tells, and what it does not say any more.
#[derive(Serialize)]
pub(super) struct Alert {
    user_id: Uuid,
    year: i32,
    /// Written out when they are found: thousands of alerts as a `Value` take ten times their space.
    facts: Box<RawValue>,
    used_up: Vec<Telling>,
    withdrawn: Vec<Told>,
    consequences: ConsequenceNews,
}

/// Says what an alert's mail is about.
#[derive(Serialize)]
struct AlertFacts<'a> {
    year: i32,
    as_of: NaiveDate,
    crossings: &'a [Crossing],
    /// Is what is told without a step.
    consequences: Vec<Consequence>,
    unknown_activities: &'a [String],
    state: &'a State,
    remarks: AlertRemarks,
}

/// Holds what a check has found.
#[derive(Default)]
pub(in super::super) struct Found {
    pub(super) scanned: u64,
    /// How many alerts; they are noted page by page.
    pub(super) alerts: usize,
    /// Users whose books cannot be read, by what is wrong with them.
    left_out: BTreeMap<String, u64>,
    /// Counts who would have got an alert, by the reason why they do not.
    skipped: BTreeMap<String, u64>,
    /// The first ones, with how many users have each.
    unknown_activities: BTreeMap<String, u64>,
    /// More of them, which are not named.
    more_activities: bool,
    pub(in super::super) candidates: Vec<Value>,
    pub(super) due: Vec<Value>,
    /// More users are marked as changed.
    pub(super) more: bool,
}

impl Found {
    pub(in super::super) fn outline(&self) -> Value {
        json!({
            "items": self.alerts, "scanned": self.scanned, "skipped": self.skipped,
            "unknown_activities": self.unknown_activities, "more_activities": self.more_activities, "left_out": self.left_out,
        })
    }

    fn note_activity(&mut self, activity: &str) {
        if let Some(users) = self.unknown_activities.get_mut(activity) {
            *users += 1;
        } else if self.unknown_activities.len() < MOST_ACTIVITIES {
            self.unknown_activities.insert(activity.to_owned(), 1);
        } else {
            self.more_activities = true;
        }
    }

    /// Answers the years of a person that have news, as of an instant.
    pub(super) fn look_at(&mut self, person: Person, years: &[i32], at: DateTime<Utc>) -> Vec<Pending> {
        if let Some(flaw) = person.flaw {
            *self.left_out.entry(flaw).or_default() += 1;
            return Vec::new();
        }
        let books = UserBooks { years: person.years, created: person.created, days: Vec::new() };
        let as_of = paris::date(at);
        let mut pending = Vec::new();
        let may_tell = person.reason.is_none();
        let years = urssaf::check(&books, &person.told, &person.consequences, years, as_of, may_tell);
        for mut found in years {
            for activity in &found.assessment.unknown_activities {
                self.note_activity(activity);
            }
            if found.is_mail() {
                self.note_candidate(person.user_id, person.reason.as_deref().unwrap_or("due"), &found);
            }
            if !may_tell {
                found = found.silenced();
            }
            self.alerts += usize::from(found.is_mail());
            if found.is_news() {
                pending.push(Pending { user_id: person.user_id, as_of, books: books.clone(), found });
            }
        }
        pending
    }

    fn note_candidate(&mut self, user_id: Uuid, outcome: &str, found: &YearCheck) {
        if self.candidates.len() < MOST_CANDIDATES {
            let step =
                |Crossing { threshold, step, .. }: &Crossing| json!({"threshold": threshold, "step": step});
            let steps: Vec<Value> = found.assessment.crossings.iter().map(step).collect();
            let mut candidate =
                json!({"user_id": user_id, "outcome": outcome, "year": found.year, "steps": steps});
            let alone = found.alone();
            if !alone.is_empty() {
                candidate["consequences"] = json!(alone);
            }
            self.candidates.push(candidate);
        }
        if outcome != "due" {
            *self.skipped.entry(outcome.to_owned()).or_default() += 1;
        }
    }
}

impl Pending {
    /// Returns what there is to ask, where there is a mail to write.
    pub(super) fn asks(&self) -> Option<Asked> {
        self.found.is_mail().then(|| Asked {
            user_id: self.user_id,
            year: self.found.year,
            months: self.found.assessment.asks.iter().map(|month| month.first_day()).collect(),
        })
    }

    pub(super) const fn key(&self) -> (Uuid, i32) {
        (self.user_id, self.found.year)
    }

    /// Writes out what there is to tell, with what was asked for.
    pub(super) fn alert(mut self, details: Details) -> Alert {
        if !details.days.is_empty() {
            self.books.days = details.days;
            let again = urssaf::assess(&self.books, &self.found.told, self.found.year, self.as_of);
            self.found.assessment = again.unwrap_or(self.found.assessment);
        }
        let is_assumed = |assumed: &Assumed| self.is_assumed(assumed);
        let mut consequences = self.found.consequences.clone();
        consequences.tell.append(&mut consequences.announced);
        let Assessment { crossings, tell, turned, state, unknown_activities, .. } = &self.found.assessment;
        let facts = AlertFacts {
            year: self.found.year,
            as_of: self.as_of,
            crossings,
            consequences: self.found.alone(),
            unknown_activities,
            state,
            remarks: AlertRemarks {
                liberal: self.found.assessment.liberal,
                planned: self.found.assessment.planned,
                contradiction: self.found.assessment.contradiction,
                uncounted: details.uncounted,
                assumed: details.assumed.into_iter().filter(is_assumed).collect(),
            },
        };
        Alert {
            user_id: self.user_id,
            year: self.found.year,
            facts: to_raw_value(&facts).expect("plain data"),
            used_up: tell.clone(),
            withdrawn: turned.clone(),
            consequences,
        }
    }

    /// Returns whether an activity that nobody said matters: its money counts in the year, and the user has never typed
    /// any of it.
    fn is_assumed(&self, assumed: &Assumed) -> bool {
        let activity = Activity::parse(&assumed.activity);
        let mut is_imported = false;
        for YearBooks { year, rows } in &self.books.years {
            for row in rows.iter().filter(|row| Activity::parse(&row.activity) == activity) {
                if row.typed != 0 {
                    return false;
                }
                is_imported |= *year == self.found.year && row.imported != 0;
            }
        }
        is_imported
    }
}
