//! Calls the database through PostgREST: every access is one of our own RPC functions, and each may be repeated.
//!
//! `postgrest` builds the request; it goes out over the one shared client ([`crate::http`]). The crate's own
//! is replaced by one that cannot send (`crates/postgrest-request`).

mod error;
mod settings;

use std::time::Duration;

use secrecy::ExposeSecret;
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};

pub use self::{
    error::{ApiError, SupabaseError},
    settings::{SupabaseConfig, SupabaseKey},
};
use crate::{deadline::Deadline, http, retry::RetryPolicy};

/// Names every function that this version calls: the migrations are applied where all of them exist.
pub const FUNCTIONS: [&str; 56] = [
    "integration_context",
    "integration_outages",
    "integration_prove",
    "integration_refresh_begin",
    "integration_refresh_end",
    "integration_refresh_store",
    "integration_settle",
    "jobs_claim",
    "jobs_close_runs",
    "jobs_confirm_books",
    "jobs_confirmations",
    "jobs_find_user",
    "jobs_give_back",
    "jobs_heartbeat",
    "jobs_hold_chain",
    "jobs_hold_turns",
    "jobs_lanes",
    "jobs_learn_pace",
    "jobs_lease_turns",
    "jobs_leave_account_out",
    "jobs_lift_suppression",
    "jobs_log",
    "jobs_note_alerts",
    "jobs_plan_alerts",
    "jobs_plan_digest",
    "jobs_plan_mails",
    "jobs_plan_sync",
    "jobs_prune",
    "jobs_reconcile",
    "jobs_release",
    "jobs_report",
    "jobs_resend_mails",
    "jobs_retake_months",
    "jobs_retry",
    "jobs_run_waits",
    "jobs_session_epoch",
    "jobs_sign_in",
    "jobs_sign_out",
    "jobs_signed_in",
    "jobs_slot_missed",
    "jobs_status",
    "jobs_troubles",
    "jobs_user",
    "jobs_user_exists",
    "jobs_user_receipts",
    "mail_claim",
    "mail_extend",
    "mail_feedback",
    "mail_give_back",
    "mail_keep_objections",
    "mail_seal",
    "mail_settle",
    "mail_split",
    "mail_unsubscribe",
    "threshold_books",
    "threshold_details",
];

/// Our functions set their own `statement_timeout` of at most 28 s: wait a little longer than they work.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(32);

/// Represents a connection to the project's Data API. Clones share the connection pool.
#[derive(Clone)]
pub struct Supabase {
    http: reqwest::Client,
    rest: postgrest::Postgrest,
    /// A legacy key is the token that PostgREST judges; of the other kind the gateway makes one.
    brings_token: bool,
}

impl Supabase {
    /// Creates a client that has sent nothing yet.
    ///
    /// # Errors
    /// When the key cannot be an HTTP header.
    pub fn new(http: reqwest::Client, config: &SupabaseConfig) -> Result<Self, SupabaseError> {
        let key = config.key.secret().expose_secret();
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SupabaseError::BadKey);
        }
        let mut rest =
            postgrest::Postgrest::new(format!("{}/rest/v1", config.url)).insert_header("apikey", key);
        if let SupabaseKey::LegacyJwt(_) = config.key {
            rest = rest.insert_header("Authorization", format!("Bearer {key}"));
        }
        let brings_token = matches!(config.key, SupabaseKey::LegacyJwt(_));
        Ok(Self { http, rest, brings_token })
    }

    /// Calls one of our functions, repeating it while that can help: each of them is safe to repeat.
    ///
    /// # Errors
    /// The last try's, classified.
    pub async fn rpc<T: DeserializeOwned>(
        &self,
        function: &'static str,
        arguments: &impl Serialize,
        deadline: &Deadline,
    ) -> Result<T, SupabaseError> {
        let arguments =
            serde_json::to_string(arguments).map_err(|error| SupabaseError::Encoding(error.to_string()))?;
        let body = RetryPolicy::DATABASE
            .run(deadline, || self.call(function, &arguments, deadline))
            .await
            .inspect_err(|error| tracing::warn!(function, %error, "database call failed"))?;
        // A function that returns nothing answers 204 with an empty body.
        let body = if body.is_empty() { b"null".as_slice() } else { &body };
        serde_json::from_slice(body).map_err(|error| match serde_json::from_slice::<IgnoredAny>(body) {
            Ok(_) => SupabaseError::shape(function, &error),
            // No JSON at all: a page of somebody else's, with a 200.
            Err(_) => SupabaseError::NotPostgrest { status: 200 },
        })
    }

    async fn call(
        &self,
        function: &'static str,
        arguments: &str,
        deadline: &Deadline,
    ) -> Result<Vec<u8>, SupabaseError> {
        let timeout = deadline.request_timeout(REQUEST_TIMEOUT).ok_or(SupabaseError::OutOfTime)?;
        let request = self.request(function, arguments)?;
        let answer = http::fetch(request, timeout).await.map_err(SupabaseError::Network)?;
        if answer.status.is_success() {
            Ok(answer.body)
        } else {
            let status = answer.status.as_u16();
            Err(SupabaseError::from_answer(function, status, &answer.body, self.brings_token))
        }
    }

    /// Returns the builder's finished request, moved to the shared client. The builder is not given the body: it would
    /// copy it, and a settlement may be a megabyte.
    fn request(&self, function: &str, arguments: &str) -> Result<reqwest::RequestBuilder, SupabaseError> {
        let built = self
            .rest
            .rpc(function, "")
            .build()
            .build()
            .map_err(|_| SupabaseError::Encoding("the request cannot be built".into()))?;
        let request = self.http.post(built.url().as_str()).headers(built.headers().clone());
        Ok(request.body(arguments.to_owned()))
    }
}
