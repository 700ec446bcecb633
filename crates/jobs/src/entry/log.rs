//! What a call leaves behind: JSON lines on stdout, which the platform keeps for an hour, and one row of
//! `sync_logs`, which stays 90 days.
//!
//! Never logged: secrets, tokens, query strings, bodies, full addresses.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::tasks::Context;

/// Sends `tracing` to stdout, one JSON object a line.
pub(super) fn start() {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_target(false)
        .with_max_level(tracing::Level::INFO)
        .with_writer(std::io::stdout)
        .init();
    // The default hook prints several lines to stderr; one JSON line can be searched.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "panic");
    }));
}

/// Writes one line for each request.
pub(super) fn request(route: &str, method: &str, status: u16, took: Duration) {
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    if status >= 500 {
        tracing::error!(route, method, status, duration_ms, "request");
    } else {
        tracing::info!(route, method, status, duration_ms, "request");
    }
}

/// Writes one row of `sync_logs` for a call that was let in. Says whether it was written; what kept
/// it from being written is in the lines on stdout.
pub(super) async fn call(
    context: &Context,
    route: &str,
    sync_type: &str,
    status: &str,
    records: u64,
    error: Option<&str>,
    details: &Value,
) -> bool {
    let mut metadata = json!({"route": route});
    if let (Some(metadata), Some(details)) = (metadata.as_object_mut(), details.as_object()) {
        metadata.extend(details.clone());
    }
    let arguments = json!({
        "p_id": Uuid::new_v4(), "p_sync_type": sync_type, "p_status": status,
        "p_records": i32::try_from(records).unwrap_or(i32::MAX), "p_error": error, "p_metadata": metadata,
        "p_now": context.instant(),
    });
    context.supabase.rpc::<()>("jobs_log", &arguments, &context.deadline).await.is_ok()
}

/// Returns an answer without its list of users: the items keep those.
pub(super) fn without_results(body: &str) -> Value {
    let mut answer: Value = serde_json::from_str(body).unwrap_or(Value::Null);
    if let Some(fields) = answer.as_object_mut()
        && fields.get("results").is_some_and(Value::is_array)
    {
        fields.remove("results");
    }
    answer
}
