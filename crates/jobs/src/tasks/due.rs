//! Decides whether a call is to run a task, and under which slot. Every task and the monitor's pings decide by it.

use serde_json::json;

use super::{
    call::{Call, Trigger},
    context::Context,
};
use crate::{
    schedule::{
        Decision, Month, MonthlySync, NotDue, Occurrence, Settings, Slot, Task, gate, monthly_sync_month,
        occasion_to_make_up,
    },
    supabase::SupabaseError,
};

/// Returns the slot that this call claims, if any, or when the task will be due. A cron is bound to the task's gate; an
/// operator is not, and claims nothing.
pub fn due_slot(task: Task, call: &Call, settings: Settings) -> Result<Option<Slot>, Box<NotDue>> {
    if task == Task::MonthlySync {
        // `force` and `month` open it on other days, also for a cron.
        month_of(call)?;
    }
    match (call.trigger, gate(task, call.via, call.at, settings)) {
        (Trigger::Cron, Decision::Due { slot }) => Ok(Some(slot).filter(|_| call.claims_slot())),
        (Trigger::Cron, Decision::NotDue(not_due)) if task != Task::MonthlySync => Err(Box::new(not_due)),
        (Trigger::Manual, _) | (Trigger::Cron, Decision::NotDue(_)) => Ok(None),
    }
}

/// Says under which slot a call runs a task, and which missed occasion it makes up thereby.
pub(super) struct Occasion {
    pub(super) slot: Option<Slot>,
    pub(super) made_up: Option<Occurrence>,
}

/// Returns the occasion that this call is for: the gate's, or one that was missed and that a cron still makes up.
pub(super) async fn occasion(
    task: Task,
    context: &Context,
    call: &Call,
) -> Result<Result<Occasion, Box<NotDue>>, SupabaseError> {
    match due_slot(task, call, context.tuning.schedule) {
        Ok(slot) => Ok(Ok(Occasion { slot, made_up: None })),
        Err(not_due) => Ok(match missed_occasion(task, context, call).await? {
            Some(missed) => {
                let slot = Some(missed.slot.clone()).filter(|_| call.claims_slot());
                Ok(Occasion { slot, made_up: Some(missed) })
            }
            None => Err(not_due),
        }),
    }
}

/// Returns the occasion that nobody took and whose window is still open. A replay means its own instant; one user's run
/// is nobody's occasion.
async fn missed_occasion(
    task: Task,
    context: &Context,
    call: &Call,
) -> Result<Option<Occurrence>, SupabaseError> {
    let asks_for_itself = call.replay || call.force || call.month.is_some() || call.user_id.is_some();
    if call.trigger != Trigger::Cron || asks_for_itself {
        return Ok(None);
    }
    let Some(occasion) = occasion_to_make_up(task, call.at) else { return Ok(None) };
    let arguments = json!({"p_task": task.as_str(), "p_slot": occasion.slot, "p_opens": occasion.opens});
    let missed: bool = context.supabase.rpc("jobs_slot_missed", &arguments, &context.deadline).await?;
    Ok(missed.then_some(occasion))
}

/// Returns which month a call of the monthly sync means, or when it will be due. `entry` refuses a future month before.
pub fn month_of(call: &Call) -> Result<Month, Box<NotDue>> {
    match monthly_sync_month(call.at, call.force, call.month) {
        Ok(MonthlySync::Run(month)) => Ok(month),
        Ok(MonthlySync::NotDue(not_due)) => Err(Box::new(not_due)),
        Err(future) => Ok(future.current),
    }
}
