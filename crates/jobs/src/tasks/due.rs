//! Decides whether a call is to run a task, and under which slot. Every task and the monitor's pings decide by it.

use super::call::{Call, Trigger};
use crate::schedule::{Decision, Month, MonthlySync, NotDue, Settings, Slot, Task, gate, monthly_sync_month};

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

/// Returns which month a call of the monthly sync means, or when it will be due. `entry` refuses a future month before.
pub fn month_of(call: &Call) -> Result<Month, Box<NotDue>> {
    match monthly_sync_month(call.at, call.force, call.month) {
        Ok(MonthlySync::Run(month)) => Ok(month),
        Ok(MonthlySync::NotDue(not_due)) => Err(Box::new(not_due)),
        Err(future) => Ok(future.current),
    }
}
