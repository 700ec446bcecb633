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
    urssaf::{self, State, Threshold, Told, UserBooks, YearBooks},
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
    /// The years that are checked today, in which anything is recorded.
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
    /// A check would tell these steps now, if nothing keeps mail from the user.
    pub(crate) would_tell: Vec<Step>,
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
    told: Vec<ToldInYear>,
    years: Vec<YearBooks>,
}

#[derive(Deserialize)]
struct ToldInYear {
    year: i32,
    #[serde(flatten)]
    told: Told,
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

fn judged(person: Person, years: &[i32], today: NaiveDate) -> Law {
    let books = UserBooks { years: person.years, created: person.created, days: Vec::new() };
    let years = years.iter().filter_map(|year| judged_year(&books, &person.told, *year, today)).collect();
    Law { kept_from_them: person.reason, unreadable: person.flaw, created: books.created, years }
}

fn judged_year(books: &UserBooks, told: &[ToldInYear], year: i32, today: NaiveDate) -> Option<LawYear> {
    let sums = books.years.iter().find(|books| books.year == year)?.sums();
    let of_year: Vec<Told> = told.iter().filter(|told| told.year == year).map(|told| told.told).collect();
    let assessment = urssaf::assess(books, &of_year, year, today)?;
    let told = |threshold| {
        let stands = of_year.iter().filter(|told| !told.withdrawn && told.telling.threshold == threshold);
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
    let would_tell = assessment
        .crossings
        .iter()
        .map(|crossing| Step {
            threshold: crossing.threshold,
            name: words::threshold(crossing.threshold),
            step: crossing.step,
            is_doubtful: crossing.doubt.is_some(),
        })
        .collect();
    Some(LawYear {
        year,
        state: assessment.state,
        state_said: state::said(&assessment.state),
        ceilings,
        would_tell,
        unknown_activities: assessment.unknown_activities,
    })
}

/// Rounds down: nobody is told that a ceiling is reached one cent below it.
fn percent(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part.max(0)) * 100 / i128::from(whole.max(1))).unwrap_or(i64::MAX)
}
