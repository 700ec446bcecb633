//! Asks what else the alerts of a page tell: days of movements, money in other currencies, activities that nobody said.

use std::collections::HashMap;

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::super::context::Context;
use crate::{
    email::{Assumed, Uncounted},
    supabase::SupabaseError,
    urssaf::DaySum,
};

/// One request asks about so many users at most: each may have movements of a whole year to go through.
const ASKED_AT_ONCE: usize = 100;
/// A part that takes too long is cut into so many.
const FEWER: usize = 10;

/// Represents one year of a user who is to get an alert.
#[derive(Serialize)]
pub(super) struct Asked {
    pub(super) user_id: Uuid,
    pub(super) year: i32,
    /// The first days of the months whose days matter.
    pub(super) months: Vec<NaiveDate>,
}

/// Holds what `threshold_details` answers about one year of a user.
#[derive(Default, Deserialize)]
pub(super) struct Details {
    pub(super) days: Vec<DaySum>,
    pub(super) uncounted: Vec<Uncounted>,
    pub(super) assumed: Vec<Assumed>,
}

#[derive(Deserialize)]
struct Answer {
    user_id: Uuid,
    year: i32,
    #[serde(flatten)]
    details: Details,
}

/// Asks about all of these, by user and year. Where some have too much to go through, fewer are asked about at once; who
/// alone has too much is told without details.
pub(super) async fn fetch(
    context: &Context,
    asked: &[Asked],
) -> Result<HashMap<(Uuid, i32), Details>, SupabaseError> {
    let mut found = HashMap::new();
    let mut parts: Vec<&[Asked]> = asked.chunks(ASKED_AT_ONCE).collect();
    while let Some(part) = parts.pop() {
        let arguments = json!({"p_asked": part});
        let answers: Vec<Answer> =
            match context.supabase.rpc("threshold_details", &arguments, &context.deadline).await {
                Err(error) if error.asks_too_much() && part.len() > 1 => {
                    parts.extend(part.chunks(part.len().div_ceil(FEWER)));
                    continue;
                }
                Err(error) if error.asks_too_much() => {
                    tracing::warn!("an alert's details take too long to read: it goes without them");
                    continue;
                }
                answers => answers?,
            };
        found.extend(answers.into_iter().map(|answer| ((answer.user_id, answer.year), answer.details)));
    }
    Ok(found)
}
