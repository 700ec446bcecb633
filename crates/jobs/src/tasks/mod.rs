//! This folder has the tasks, one file each, and below them what they share.
//!
//! A task decides with pure functions whether it is due (`due`), writes its work down (plan), works the queue
//! (`drain`) and reports from the items, whoever drained them. It reads no clock and no environment. From the ground
//! up: `call`, `outcome` and `context` are data; `planned` and `round` are what the database and a round of draining
//! answer; `thresholds` finds and plans alerts; `drain` works; `second_chance` takes failed months up again; `sync` and
//! `mails` are the middle of the tasks that read
//! integrations or only send mails.

mod call;
pub mod check_thresholds;
mod context;
mod drain;
mod due;
mod mails;
pub mod marketing_day3;
pub mod monthly_reminders;
pub mod monthly_sync;
pub mod operator_digest;
mod outcome;
mod planned;
mod round;
mod second_chance;
mod sync;
pub mod sync_integrations;
mod thresholds;

pub use self::{
    call::{Call, Trigger},
    context::Context,
    drain::drain_until_nothing_waits,
    due::{due_slot, month_of},
    outcome::{RunSummary, TaskError, TaskOutcome},
    round::Round,
};
