//! Asks the database for what an operator has done for one user. Each is looked at first (`dry_run`), which changes nothing.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::coded::Coded;
use crate::{
    deadline::Deadline,
    email::Prices,
    operations::facts::FAILURES_SINCE,
    providers::Provider,
    supabase::{Supabase, SupabaseError},
};

/// Asks whether there is such a user.
pub(crate) async fn is_known(
    supabase: &Supabase,
    user: Uuid,
    deadline: &Deadline,
) -> Result<bool, SupabaseError> {
    supabase.rpc("jobs_user_exists", &json!({"p_user_id": user}), deadline).await
}

/// Says what taking an account out of the books, or back into them, does.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct LeftOut {
    pub(crate) is_out: bool,
    pub(crate) movements: u64,
    /// Cents of those that count by themselves.
    pub(crate) counted: i64,
    pub(crate) months: Vec<String>,
}

/// Says why no mail went to an address, and since when.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Suppression {
    pub(crate) reason: Coded,
    pub(crate) since: DateTime<Utc>,
}

/// Lists mails that failed, with why one is not sent again.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Resent {
    pub(crate) mails: Vec<FailedMail>,
    pub(crate) queued: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub(crate) struct FailedMail {
    pub(crate) delivery_id: i64,
    pub(crate) kind: String,
    pub(crate) about: String,
    pub(crate) reason: Option<Coded>,
}

/// Takes an account out of the books, or back; `None`: the user has no such account.
pub(crate) async fn leave_account_out(
    supabase: &Supabase,
    user: Uuid,
    (provider, account, out): (Provider, &str, bool),
    dry_run: bool,
    now: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<Option<LeftOut>, SupabaseError> {
    let arguments = json!({
        "p_user_id": user, "p_provider": provider, "p_account": account, "p_out": out, "p_dry_run": dry_run, "p_now": now,
    });
    supabase.rpc("jobs_leave_account_out", &arguments, deadline).await
}

/// Lets mails go to the user's address again; `None`: nothing kept them from it.
pub(crate) async fn lift_suppression(
    supabase: &Supabase,
    user: Uuid,
    dry_run: bool,
    deadline: &Deadline,
) -> Result<Option<Suppression>, SupabaseError> {
    supabase.rpc("jobs_lift_suppression", &json!({"p_user_id": user, "p_dry_run": dry_run}), deadline).await
}

/// Queues the user's failed mails again, as far as they are still true.
pub(crate) async fn resend_mails(
    supabase: &Supabase,
    user: Uuid,
    prices: Option<&Prices>,
    dry_run: bool,
    now: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<Resent, SupabaseError> {
    let arguments = json!({
        "p_call_id": Uuid::new_v4(), "p_user_id": user, "p_prices": prices, "p_failed_since": now - FAILURES_SINCE,
        "p_dry_run": dry_run, "p_now": now,
    });
    supabase.rpc("jobs_resend_mails", &arguments, deadline).await
}
