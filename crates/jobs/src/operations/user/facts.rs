//! Asks for what `jobs_user` answers: everything that the database knows of one user, in one call.
#![expect(clippy::struct_field_names, reason = "fields are named as in the database")]

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    coded::{Coded, Reported},
    money::{MonthRow, Months, OpenMonth},
};
use crate::{
    deadline::Deadline,
    email::{BooksVerdict, Prices},
    operations::facts::LATE_AFTER,
    providers::Provider,
    schedule::{DAYS_AFTER_SIGN_UP, Month},
    supabase::{Supabase, SupabaseError},
    urssaf::Threshold,
};

/// A page shows so many movements.
pub(crate) const PAGE: u32 = 100;

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct UserFacts {
    pub(crate) person: Person,
    pub(crate) connections: Vec<Connection>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) reads: Vec<Read>,
    pub(crate) months: Months,
    /// The month that is opened.
    pub(crate) month: Option<OpenMonth>,
    pub(crate) mails: Mails,
    pub(crate) expected: Vec<Expected>,
    pub(crate) told: Vec<Told>,
    pub(crate) confirmations: Confirmations,
    /// Imported totals have changed since the thresholds were checked last.
    pub(crate) check_due: bool,
}

impl UserFacts {
    pub(crate) fn months(&self) -> &[MonthRow] {
        &self.months.shown
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Person {
    pub(crate) user_id: Uuid,
    pub(crate) address: Option<String>,
    pub(crate) signed_up_at: Option<DateTime<Utc>>,
    /// It is missing where the user's price is not known.
    pub(crate) plan: Option<String>,
    /// Says why no mail of any kind can reach them.
    pub(crate) unreachable: Option<Coded>,
    pub(crate) suppressed_for: Option<Coded>,
    pub(crate) suppressed_at: Option<DateTime<Utc>>,
    pub(crate) wants: Wishes,
    pub(crate) flaws: Vec<Flaw>,
}

/// Says which kinds of mail the user wishes.
#[expect(clippy::struct_excessive_bools, reason = "each is a preference of its own")]
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Wishes {
    pub(crate) threshold_alert: bool,
    pub(crate) monthly_reminder: bool,
    pub(crate) monthly_recap: bool,
    pub(crate) marketing_day3: bool,
}

/// Names what of the user's own writing cannot be read.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Flaw {
    pub(crate) flaw: Coded,
    pub(crate) since: DateTime<Utc>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Connection {
    pub(crate) provider: Provider,
    /// The token opened it when it was proven last.
    pub(crate) account: Option<String>,
    /// The user says that it is this one.
    pub(crate) claimed_account: Option<String>,
    pub(crate) is_proven: bool,
    pub(crate) state: String,
    /// Says who has to do what; it is worked out here.
    #[serde(default)]
    pub(crate) to_do: Vec<String>,
    pub(crate) connected_at: Option<DateTime<Utc>>,
    pub(crate) first_month: Option<Month>,
    pub(crate) activity: Option<String>,
    pub(crate) left_out: bool,
    pub(crate) last_success_at: Option<DateTime<Utc>>,
    pub(crate) read_to: Option<DateTime<Utc>>,
    pub(crate) deep_read_to: Option<DateTime<Utc>>,
    pub(crate) failures: u64,
    pub(crate) failed_at: Option<DateTime<Utc>>,
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) refusals: u64,
    pub(crate) trouble_mailed_at: Option<DateTime<Utc>>,
    pub(crate) is_permanent: Option<bool>,
    pub(crate) token_expires_at: Option<DateTime<Utc>>,
    pub(crate) reads_all_orders: Option<bool>,
    pub(crate) also_claimed_by: u64,
}

/// Represents an account whose movements the ledger holds.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Account {
    pub(crate) provider: Provider,
    pub(crate) account: String,
    pub(crate) first_month: Option<Month>,
    pub(crate) left_out: bool,
    pub(crate) replaced_at: Option<DateTime<Utc>>,
    pub(crate) movements: u64,
    pub(crate) movements_from: Option<Month>,
    pub(crate) movements_to: Option<Month>,
}

/// Represents an item that read something.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Read {
    pub(crate) lane: String,
    pub(crate) month: Option<Month>,
    pub(crate) trigger: String,
    pub(crate) status: String,
    pub(crate) attempts: u64,
    pub(crate) records: u64,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) settled_at: Option<DateTime<Utc>>,
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Mails {
    pub(crate) total: u64,
    pub(crate) shown: Vec<Mail>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Mail {
    pub(crate) delivery_id: i64,
    pub(crate) kind: String,
    /// The month, the year or the source that it is about.
    pub(crate) about: String,
    pub(crate) status: Coded,
    pub(crate) reason: Option<Coded>,
    pub(crate) feedback: Option<Reported>,
    pub(crate) service_id: Option<String>,
    /// A second attempt waits until then.
    #[serde(default)]
    pub(crate) not_before: Option<DateTime<Utc>>,
    pub(crate) planned_at: DateTime<Utc>,
    pub(crate) settled_at: Option<DateTime<Utc>>,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) attempts: Option<u64>,
    pub(crate) waits_for: Option<String>,
}

/// Represents a mail that the user might have expected.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Expected {
    pub(crate) kind: String,
    pub(crate) month: Option<String>,
    /// The delivery's; without one the reason says why there is none.
    pub(crate) status: Option<Coded>,
    pub(crate) reason: Option<Coded>,
    pub(crate) message: Option<String>,
    pub(crate) at: Option<DateTime<Utc>>,
}

/// Represents a step of a threshold that was told, or used up by a higher one.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct Told {
    pub(crate) year: i32,
    pub(crate) threshold: Threshold,
    pub(crate) step: u8,
    pub(crate) at: DateTime<Utc>,
    /// Only what may be there twice reached it.
    #[serde(default)]
    pub(crate) to_verify: bool,
    /// The books do not say so any more since then.
    #[serde(default)]
    pub(crate) withdrawn_at: Option<DateTime<Utc>>,
}

/// Holds what the user has confirmed of months with both typed and imported turnover.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Confirmations {
    /// Is about every month without an answer of its own, those to come too.
    pub(crate) every: Option<Confirmed>,
    /// Lists the answers about one month, the latest month first.
    pub(crate) months: Vec<ConfirmedMonth>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Confirmed {
    pub(crate) verdict: BooksVerdict,
    pub(crate) at: DateTime<Utc>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ConfirmedMonth {
    pub(crate) month: Month,
    #[serde(flatten)]
    pub(crate) confirmed: Confirmed,
}

/// Says which month is opened, and which of its movements are shown.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Opened {
    pub(crate) month: Option<Month>,
    /// Only movements that do not count.
    pub(crate) uncounted: bool,
    /// From 0 on.
    pub(crate) page: u32,
}

/// Asks the database; `None`: there is no such user.
pub(crate) async fn ask(
    supabase: &Supabase,
    user: Uuid,
    opened: Opened,
    prices: Option<&Prices>,
    kept: TimeDelta,
    now: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<Option<UserFacts>, SupabaseError> {
    let arguments = json!({
        "p_user_id": user, "p_month": opened.month.map(Month::first_day), "p_uncounted": opened.uncounted,
        "p_offset": opened.page.saturating_mul(PAGE), "p_limit": PAGE, "p_prices": prices.map_or_else(|| json!({}), |prices| json!(prices)),
        "p_late_before": now - LATE_AFTER, "p_first_day": DAYS_AFTER_SIGN_UP.start(), "p_last_day": DAYS_AFTER_SIGN_UP.end(),
        "p_kept_since": now - kept, "p_now": now,
    });
    supabase.rpc("jobs_user", &arguments, deadline).await
}

/// Finds the account of an id or a whole address, which goes no further than this.
pub(crate) async fn find(
    supabase: &Supabase,
    who: &str,
    deadline: &Deadline,
) -> Result<Option<Uuid>, SupabaseError> {
    supabase.rpc("jobs_find_user", &json!({"p_who": who}), deadline).await
}
