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
        self, Activity, Assessment, Consequence, ConsequenceNews, Crossing, State, Telling, Threshold, Told,
        ToldAs, ToldConsequence, UserBooks, YearBefore, YearBooks,
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
    told: Vec<ToldInYear>,
    consequences: Vec<ConsequenceInYear>,
    years: Vec<YearBooks>,
}

#[derive(Deserialize)]
struct ToldInYear {
    year: i32,
    #[serde(flatten)]
    told: Told,
}

#[derive(Deserialize)]
struct ConsequenceInYear {
    year: i32,
    #[serde(flatten)]
    told: ToldConsequence,
}

/// Represents a year of a user that has to be written down, as far as it is known yet.
pub(super) struct Pending {
    user_id: Uuid,
    year: i32,
    as_of: NaiveDate,
    books: UserBooks,
    told: Vec<Told>,
    assessment: Assessment,
    consequences: ConsequenceNews,
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
        // What this very check tells of the year before counts as told.
        let mut before = YearBefore::default();
        for &year in years {
            let told = of_year(&person.told, year);
            let followed = consequences_of_year(&person.consequences, year);
            before.add_standing(
                &of_year(&person.told, year - 1),
                &consequences_of_year(&person.consequences, year - 1),
            );
            let Some(mut assessment) = urssaf::assess(&books, &told, year, as_of) else { continue };
            for activity in &assessment.unknown_activities {
                self.note_activity(activity);
            }
            if told.iter().copied().any(says_vat_is_due) {
                before.consequences.push(Consequence::VatDue);
            }
            let mut consequences = urssaf::consequence_news(
                &assessment.state.certain,
                &assessment.nearly_so,
                &followed,
                &before,
            );
            let alone = told_alone(&consequences.tell, &assessment.crossings);
            if !assessment.crossings.is_empty() || !alone.is_empty() {
                let outcome = person.reason.as_deref().unwrap_or("due");
                self.note_candidate(person.user_id, year, outcome, &assessment.crossings, &alone);
            }
            if person.reason.is_some() {
                // What they are not told is not used up; what was told is withdrawn all the same.
                assessment.tell.clear();
                assessment.crossings.clear();
                consequences.tell.clear();
                consequences.announced.clear();
            }
            before = YearBefore {
                tellings: assessment.tell.clone(),
                consequences: [consequences.tell.as_slice(), &consequences.announced].concat(),
            };
            let is_mail = !told_alone(&consequences.tell, &assessment.crossings).is_empty();
            self.alerts += usize::from(is_mail || !assessment.crossings.is_empty());
            let is_news = !assessment.tell.is_empty() || !assessment.turned.is_empty();
            if is_news || consequences != ConsequenceNews::default() {
                let books = books.clone();
                let user_id = person.user_id;
                pending.push(Pending { user_id, year, as_of, books, told, assessment, consequences });
            }
        }
        pending
    }

    fn note_candidate(
        &mut self,
        user_id: Uuid,
        year: i32,
        outcome: &str,
        crossings: &[Crossing],
        alone: &[Consequence],
    ) {
        if self.candidates.len() < MOST_CANDIDATES {
            let step =
                |Crossing { threshold, step, .. }: &Crossing| json!({"threshold": threshold, "step": step});
            let steps: Vec<Value> = crossings.iter().map(step).collect();
            let mut candidate = json!({"user_id": user_id, "outcome": outcome, "year": year, "steps": steps});
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

fn of_year(told: &[ToldInYear], year: i32) -> Vec<Told> {
    told.iter().filter(|told| told.year == year).map(|told| told.told).collect()
}

fn consequences_of_year(told: &[ConsequenceInYear], year: i32) -> Vec<ToldConsequence> {
    told.iter().filter(|told| told.year == year).map(|told| told.told).collect()
}

/// Returns whether a mail, perhaps of an older version, has told that the increased threshold is passed.
fn says_vat_is_due(told: Told) -> bool {
    let increased = [Threshold::VatIncreasedTotal, Threshold::VatIncreasedServices];
    !told.withdrawn && told.telling.told_as == ToldAs::Certain && increased.contains(&told.telling.threshold)
}

/// Returns what has to be told without a step: no crossing of the same regime tells it.
fn told_alone(tell: &[Consequence], crossings: &[Crossing]) -> Vec<Consequence> {
    let has_step = |is_vat| crossings.iter().any(|crossing| crossing.threshold.is_vat() == is_vat);
    tell.iter().copied().filter(|consequence| !has_step(consequence.is_vat())).collect()
}

impl Pending {
    /// Returns what there is to ask, where there is a mail to write.
    pub(super) fn asks(&self) -> Option<Asked> {
        let crossings = &self.assessment.crossings;
        let is_mail = !crossings.is_empty() || !told_alone(&self.consequences.tell, crossings).is_empty();
        is_mail.then(|| Asked {
            user_id: self.user_id,
            year: self.year,
            months: self.assessment.asks.iter().map(|month| month.first_day()).collect(),
        })
    }

    pub(super) const fn key(&self) -> (Uuid, i32) {
        (self.user_id, self.year)
    }

    /// Writes out what there is to tell, with what was asked for.
    pub(super) fn alert(mut self, details: Details) -> Alert {
        if !details.days.is_empty() {
            self.books.days = details.days;
            let again = urssaf::assess(&self.books, &self.told, self.year, self.as_of);
            self.assessment = again.unwrap_or(self.assessment);
        }
        let is_assumed = |assumed: &Assumed| self.is_assumed(assumed);
        let mut consequences = self.consequences.clone();
        consequences.tell.append(&mut consequences.announced);
        let Assessment { crossings, tell, turned, state, unknown_activities, .. } = &self.assessment;
        let facts = AlertFacts {
            year: self.year,
            as_of: self.as_of,
            crossings,
            consequences: told_alone(&self.consequences.tell, crossings),
            unknown_activities,
            state,
            remarks: AlertRemarks {
                liberal: self.assessment.liberal,
                planned: self.assessment.planned,
                contradiction: self.assessment.contradiction,
                uncounted: details.uncounted,
                assumed: details.assumed.into_iter().filter(is_assumed).collect(),
            },
        };
        Alert {
            user_id: self.user_id,
            year: self.year,
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
                is_imported |= *year == self.year && row.imported != 0;
            }
        }
        is_imported
    }
}
