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
        self.prepare(function, &[], arguments)?.call(deadline).await
    }

    /// Writes a call out, so that its arguments need not be kept until it has succeeded.
    ///
    /// Where the arguments are large, `names` names them all: they go into the address, and PostgREST hands the body on
    /// as it is. Otherwise it reads the body to learn them, which takes several times its space
    /// (<https://github.com/PostgREST/postgrest/pull/1241>).
    pub fn prepare(
        &self,
        function: &'static str,
        names: &[&str],
        arguments: &impl Serialize,
    ) -> Result<PreparedCall, SupabaseError> {
        let arguments =
            serde_json::to_string(arguments).map_err(|error| SupabaseError::Encoding(error.to_string()))?;
        let request = self.request(function, names)?.body(arguments);
        Ok(PreparedCall { function, request, brings_token: self.brings_token })
    }

    /// Returns the builder's finished request, moved to the shared client. The builder is not given the body: it would
    /// copy it, and a settlement may be a megabyte.
    fn request(&self, function: &str, names: &[&str]) -> Result<reqwest::RequestBuilder, SupabaseError> {
        let built = self.rest.rpc(function, "").build().build().map_err(|_| cannot_be_built())?;
        let request = self.http.post(built.url().as_str()).headers(built.headers().clone());
        Ok(if names.is_empty() { request } else { request.query(&[("columns", names.join(","))]) })
    }
}

/// Represents a call with its arguments written out. Each try shares them.
pub struct PreparedCall {
    function: &'static str,
    request: reqwest::RequestBuilder,
    brings_token: bool,
}

impl PreparedCall {
    /// Sends it, repeating it while that can help.
    ///
    /// # Errors
    /// The last try's, classified.
    pub async fn call<T: DeserializeOwned>(self, deadline: &Deadline) -> Result<T, SupabaseError> {
        let function = self.function;
        let body = RetryPolicy::DATABASE
            .run(deadline, || self.once(deadline))
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

    async fn once(&self, deadline: &Deadline) -> Result<Vec<u8>, SupabaseError> {
        let timeout = deadline.request_timeout(REQUEST_TIMEOUT).ok_or(SupabaseError::OutOfTime)?;
        let request = self.request.try_clone().ok_or_else(cannot_be_built)?;
        let answer = http::fetch(request, timeout).await.map_err(SupabaseError::Network)?;
        if answer.status.is_success() {
            Ok(answer.body)
        } else {
            let status = answer.status.as_u16();
            Err(SupabaseError::from_answer(self.function, status, &answer.body, self.brings_token))
        }
    }
}

fn cannot_be_built() -> SupabaseError {
    SupabaseError::Encoding("the request cannot be built".into())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::*;
    use crate::test_server::{Reply, TestServer};

    #[tokio::test]
    async fn large_arguments_are_named_in_the_address() {
        let server = TestServer::start([Reply::new(200).json(&json!(1)), Reply::new(204)]).await;
        let config = SupabaseConfig { url: server.url(""), key: SupabaseKey::Secret("sb_secret_x".into()) };
        let supabase = Supabase::new(http::client().unwrap(), &config).unwrap();
        let end = Instant::now() + Duration::from_mins(1);
        let deadline = Deadline::new(end, end);
        let arguments = json!({"a": [1, 2], "b": "é"});

        let call = supabase.prepare("large", &["a", "b"], &arguments).unwrap();
        assert_eq!(call.call::<u32>(&deadline).await.unwrap(), 1);
        assert_eq!(supabase.rpc::<Value>("small", &arguments, &deadline).await.unwrap(), Value::Null);

        let [large, small] = server.requests().try_into().unwrap();
        assert_eq!((large.path.as_str(), large.method.as_str()), ("/rest/v1/rpc/large", "POST"));
        assert_eq!(large.query, [("columns".to_owned(), "a,b".to_owned())]);
        assert_eq!((small.path.as_str(), small.query.len()), ("/rest/v1/rpc/small", 0));
        for asked in [large, small] {
            assert_eq!(asked.json(), arguments);
            assert_eq!(asked.header("apikey"), Some("sb_secret_x"));
            assert_eq!(asked.header("content-type"), Some("application/json"));
        }
    }
}
