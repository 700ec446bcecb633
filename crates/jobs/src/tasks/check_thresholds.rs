//! Alerts about ceilings and thresholds, once a week for a cron and whenever an operator or the application asks.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    call::Call,
    context::Context,
    drain::{Scope, work_until_settled},
    due::due_slot,
    outcome::{RunSummary, TaskError, TaskOutcome},
    thresholds::{Subjects, find, plan},
};
use crate::{
    failure::{Failure, cut},
    schedule::{Slot, Task},
};

/// An answer names so many activities at most.
const NAMED_ACTIVITIES: usize = 10;

/// Runs the task, which is due once a week for a cron, always for an operator.
pub async fn run(context: &Context, call: &Call) -> TaskOutcome {
    check(context, call).await.into()
}

async fn check(context: &Context, call: &Call) -> Result<TaskOutcome, TaskError> {
    let slot = match due_slot(Task::CheckThresholds, call, context.tuning.schedule) {
        Ok(slot) => slot,
        Err(not_due) => return Ok(TaskOutcome::NotDue { note: not_due.note() }),
    };
    if let Err(faults) = &context.mailer {
        return Err(TaskError::Configuration(faults.clone()));
    }
    let subjects = Subjects::of(call.user_id);
    if call.dry_run {
        let found = find(context, subjects, call.at, None).await?;
        let mut plan = found.outline();
        plan["candidates"] = json!(found.candidates);
        return Ok(TaskOutcome::DryRun { plan });
    }
    let run_id = Uuid::new_v4();
    let found = find(context, subjects, call.at, Some(run_id)).await?;
    let planned = plan(
        context,
        &found,
        &json!({
            "p_run_id": run_id, "p_append": false,
            "p_task": Task::CheckThresholds.as_str(), "p_slot": slot.as_ref().map(Slot::as_str),
            "p_trigger": call.trigger_name(), "p_route": call.route, "p_as_of": call.at,
            "p_parameters": call.parameters(), "p_now": context.now,
        }),
    )
    .await?;
    let joined = planned.joined_note(slot.as_ref());
    let Some(run_id) = planned.run_id else {
        return Ok(TaskOutcome::Ran(Box::new(RunSummary::empty(joined))));
    };
    planned.log(Task::CheckThresholds);
    // The application calls this after each entry, and must not wait for others' mails.
    let without_news = call.user_id.is_some() && planned.plan["items"] == 0;
    let scope = if without_news { Scope::Nothing } else { Scope::Mails(call.route) };
    let round = work_until_settled(context, run_id, scope).await?;
    let mut summary = RunSummary::new(run_id, joined, round);
    summary.notices.extend(unknown_activities(&planned.plan));
    summary.notices.extend(left_out(&planned.plan));
    summary.outline = planned.plan;
    Ok(TaskOutcome::Ran(Box::new(summary)))
}

/// Reports users whose books cannot be read: their thresholds are not checked until they mend them.
fn left_out(plan: &Value) -> Option<Failure> {
    let flaws = plan["left_out"].as_object().filter(|flaws| !flaws.is_empty())?;
    let users: u64 = flaws.values().filter_map(Value::as_u64).sum();
    let who = if users == 1 { "1 utilisateur" } else { &format!("{users} utilisateurs") };
    Some(Failure {
        code: "unreadable_books".into(),
        message: format!(
            "Les saisies de {who} sont illisibles : leurs seuils ne sont pas vérifiés. La page d’état les nomme."
        ),
    })
}

/// Reports activities that no ceiling is known for: their turnover counts in the total only.
fn unknown_activities(plan: &Value) -> Option<Failure> {
    let activities = plan["unknown_activities"].as_object().filter(|activities| !activities.is_empty())?;
    // Users write them: cut, and JSON-escaped like every answer.
    let mut named: Vec<String> =
        activities.keys().take(NAMED_ACTIVITIES).map(|name| format!("« {} »", cut(name, 40))).collect();
    let others = activities.len().saturating_sub(NAMED_ACTIVITIES);
    if plan["more_activities"] == true {
        named.push("et beaucoup d’autres".to_owned());
    } else if others > 0 {
        named.push(format!("et {others} de plus"));
    }
    Some(Failure {
        code: "unknown_activity".into(),
        message: format!(
            "Des activités sont inconnues ({}) : leur chiffre d’affaires n’est compté que dans le total.",
            named.join(", ")
        ),
    })
}
