//! Holds a user's books against the ceilings, as a check of the thresholds would now, and writes nothing.
#![expect(clippy::struct_field_names, reason = "fields are named as in the mails and the database")]

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{coded::Coded, state};
use crate::{
    deadline::Deadline,
    schedule::paris,
    supabase::{Supabase, SupabaseError},
    urssaf::{
        self, Consequence, State, Threshold, Told, ToldConsequence, ToldInYear, UserBooks, YearBooks,
        YearCheck,
    },
    words,
};

/// Says what would be told of a user's thresholds now, and why nothing would be.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Law {
    /// Says why no alert may go to them.
    pub(crate) kept_from_them: Option<Coded>,
    /// Names what of their books cannot be read: then nothing is checked.
    pub(crate) unreadable: Option<Coded>,
    /// The day on which their activity began, as they say.
    pub(crate) created: Option<NaiveDate>,
    /// The years that are checked today, in which anything is recorded, told or to be told.
    pub(crate) years: Vec<LawYear>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LawYear {
    pub(crate) year: i32,
    /// What follows from the year's books, for VAT and for the regime.
    pub(crate) state: State,
    pub(crate) state_said: Vec<String>,
    pub(crate) ceilings: Vec<Ceiling>,
    /// Lists what follows from the year and was told, by itself or beside a step.
    pub(crate) followed: Vec<Followed>,
    /// A check would tell these steps now, if nothing keeps mail from the user.
    pub(crate) would_tell: Vec<Step>,
    /// A check would tell what follows without a step, too.
    pub(crate) would_follow: Vec<Following>,
    pub(crate) unknown_activities: Vec<String>,
}

/// Holds a year's turnover against one ceiling. Cents.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ceiling {
    pub(crate) threshold: Threshold,
    pub(crate) name: &'static str,
    pub(crate) turnover: i64,
    pub(crate) ceiling: i64,
    pub(crate) percent: i64,
    /// The highest step that was told this year, or used up by a higher one.
    pub(crate) told: Option<u8>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Step {
    pub(crate) threshold: Threshold,
    pub(crate) name: &'static str,
    pub(crate) step: u8,
    /// Crossed only where months with both typed and imported rows are added up.
    pub(crate) is_doubtful: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Following {
    pub(crate) consequence: Consequence,
    pub(crate) name: &'static str,
}

/// Represents something that follows from a year and was told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Followed {
    pub(crate) consequence: Consequence,
    pub(crate) name: &'static str,
    /// Counts how often it was told.
    pub(crate) times: u8,
    /// The books do not say so any more.
    pub(crate) is_withdrawn: bool,
}

/// Represents what `threshold_books` answers of one user.
#[derive(Deserialize)]
struct Books {
    people: Vec<Person>,
}

#[derive(Deserialize)]
struct Person {
    created: Option<NaiveDate>,
    reason: Option<Coded>,
    flaw: Option<Coded>,
    told: Vec<ToldInYear<Told>>,
    consequences: Vec<ToldInYear<ToldConsequence>>,
    years: Vec<YearBooks>,
}

/// Asks for the books as a check does, however small they are, and looks at them.
pub(crate) async fn look(
    supabase: &Supabase,
    user: Uuid,
    now: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<Law, SupabaseError> {
    let years = urssaf::years_checked(paris::date(now));
    // The year before those that are checked comes with its own, as in a check.
    let before = years.first().map(|year| year - 1);
    let floors: BTreeMap<i32, i64> = years.iter().copied().chain(before).map(|year| (year, 1)).collect();
    let arguments = json!({
        "p_after": Value::Null, "p_limit": 1, "p_user_id": user, "p_due": false, "p_floors": floors,
        "p_bytes": 4 * 1024 * 1024, "p_noted_at": Value::Null, "p_now": now,
    });
    let books: Books = supabase.rpc("threshold_books", &arguments, deadline).await?;
    Ok(books
        .people
        .into_iter()
        .next()
        .map(|person| judged(person, &years, paris::date(now)))
        .unwrap_or_default())
}

/// Runs the check's own plan dry.
fn judged(person: Person, years: &[i32], today: NaiveDate) -> Law {
    let books = UserBooks { years: person.years, created: person.created, days: Vec::new() };
    let may_tell = person.reason.is_none();
    let found = urssaf::check(&books, &person.told, &person.consequences, years, today, may_tell);
    let years = found
        .into_iter()
        .filter(|found| {
            let is_recorded = books.years.iter().any(|of| of.year == found.year && !of.rows.is_empty());
            let is_followed = person.consequences.iter().any(|told| told.year == found.year);
            is_recorded || is_followed || !found.told.is_empty() || found.is_mail()
        })
        .map(|found| judged_year(&books, &person.consequences, found))
        .collect();
    Law { kept_from_them: person.reason, unreadable: person.flaw, created: books.created, years }
}

fn judged_year(books: &UserBooks, followed: &[ToldInYear<ToldConsequence>], found: YearCheck) -> LawYear {
    let year = found.year;
    let sums = books.years.iter().find(|books| books.year == year).map(YearBooks::sums).unwrap_or_default();
    let told = |threshold| {
        let stands = found.told.iter().filter(|told| !told.withdrawn && told.telling.threshold == threshold);
        stands.map(|told| told.telling.step).max()
    };
    let ceilings = urssaf::progress(&sums, books.created, year)
        .into_iter()
        .map(|progress| Ceiling {
            threshold: progress.threshold,
            name: words::threshold(progress.threshold),
            turnover: progress.turnover,
            ceiling: progress.ceiling,
            percent: percent(progress.turnover, progress.ceiling),
            told: told(progress.threshold),
        })
        .collect();
    let would_tell = found
        .assessment
        .crossings
        .iter()
        .map(|crossing| Step {
            threshold: crossing.threshold,
            name: words::threshold(crossing.threshold),
            step: crossing.step,
            is_doubtful: crossing.doubt.is_some(),
        })
        .collect();
    let following = |consequence| Following { consequence, name: words::consequence(consequence) };
    let followed = followed.iter().filter(|told| told.year == year).map(|told| {
        let ToldConsequence { consequence, times, withdrawn } = told.told;
        Followed { consequence, name: words::consequence(consequence), times, is_withdrawn: withdrawn }
    });
    LawYear {
        year,
        state: found.assessment.state,
        state_said: state::said(&found.assessment.state),
        ceilings,
        followed: followed.collect(),
        would_tell,
        would_follow: found.alone().into_iter().map(following).collect(),
        unknown_activities: found.assessment.unknown_activities,
    }
}

/// Rounds down: nobody is told that a ceiling is reached one cent below it.
fn percent(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part.max(0)) * 100 / i128::from(whole.max(1))).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::urssaf::BookRow;

    /// Nothing is recorded for 2026 yet: VAT is due all the same, for what 2025 was.
    #[test]
    fn what_follows_without_a_step_is_announced_in_a_year_without_rows() {
        let services = BookRow {
            month: 5,
            activity: "Prestation de services".to_owned(),
            typed: 4_000_000,
            imported: 0,
            mixed: false,
        };
        let person = |consequences| Person {
            created: None,
            reason: None,
            flaw: None,
            told: Vec::new(),
            consequences,
            years: vec![YearBooks { year: 2025, rows: vec![services.clone()] }],
        };
        let today = NaiveDate::from_ymd_opt(2026, 3, 1).unwrap();
        let law = judged(person(Vec::new()), &[2026], today);
        let follows: Vec<_> = law.years[0].would_follow.iter().map(|one| one.consequence).collect();
        assert_eq!((law.years[0].year, follows), (2026, vec![Consequence::VatDue]));
        let told = ToldConsequence { consequence: Consequence::VatDue, times: 1, withdrawn: false };
        let law = judged(person(vec![ToldInYear { year: 2026, told }]), &[2026], today);
        assert!(law.years[0].would_follow.is_empty(), "it was told");
        assert_eq!(law.years[0].followed[0].consequence, Consequence::VatDue);
    }
}
