//! The handler of cron and manual routes: it runs the route's tasks, leaves the call's row in `sync_logs`, and answers.

use serde_json::json;

use super::{answer::Answer, log, shape};
use crate::{
    orchestrator, retention,
    routes::Route,
    tasks::{Call, Context, Trigger, operator_digest},
};

/// Runs a route's tasks, leaves the call's row in `sync_logs`, answers.
pub(super) async fn answer(route: Route, context: &Context, call: &Call) -> Answer {
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
        retention::prune(context).await;
    }
    answer
}
