//! The handler of cron and manual routes: it runs the route's tasks, leaves the call's row in `sync_logs`, and answers.

use serde_json::json;
use uuid::Uuid;

use super::{answer::Answer, log, shape};
use crate::{
    orchestrator, retention,
    routes::Route,
    tasks::{Call, Context, Trigger, operator_digest},
};

/// Answers whoever asks for a user that does not exist: an id that was mistyped must not look like a success.
const NOBODY: &str = "Aucun utilisateur n’a cet identifiant (user_id) : rien n’a été lancé.";

/// Runs a route's tasks, leaves the call's row in `sync_logs`, answers.
pub(super) async fn answer(route: Route, context: &Context, call: &Call) -> Answer {
    if let Some(user_id) = call.user_id
        && let Err(refusal) = must_exist(context, user_id).await
    {
        let complaint = refusal.complaint();
        log::call(context, route.path(), call.log_type(), "error", 0, complaint, &json!({"at": call.at}))
            .await;
        return refusal;
    }
    let outcomes = orchestrator::run(context, call, route.tasks()).await;
    let answer = shape::answer(route, call, &outcomes);
    let verdict = shape::verdict(&outcomes);
    let metadata = json!({
        "at": call.at, "http_status": answer.status(),
        "answer": log::without_results(answer.body()),
    });
    let written = log::call(
        context,
        route.path(),
        call.log_type(),
        verdict.status,
        verdict.records,
        verdict.error.as_deref(),
        &metadata,
    )
    .await;
    operator_digest::tell(context, call).await;
    if written && call.trigger == Trigger::Cron && !call.dry_run {
        keep_to_retention(route, context, call).await;
    }
    answer
}

/// Deletes what is old. Where that fails, a row of its own says so: the call's work was done, and its row is written before,
/// so that no kill takes it away.
async fn keep_to_retention(route: Route, context: &Context, call: &Call) {
    let Err(failure) = retention::prune(context).await else { return };
    let metadata = json!({"at": call.at, "part": failure.code});
    log::call(context, route.path(), call.log_type(), "error", 0, Some(failure.said()), &metadata).await;
}

/// Refuses a user who does not exist. Who exists, but has nothing to work on, is served.
async fn must_exist(context: &Context, user_id: Uuid) -> Result<(), Answer> {
    let arguments = json!({"p_user_id": user_id});
    match context.supabase.rpc("jobs_user_exists", &arguments, &context.deadline).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Answer::error(404, NOBODY)),
        Err(error) => {
            let status = if error.is_configuration() { 500 } else { 503 };
            Err(Answer::error(status, &error.user_message()))
        }
    }
}
