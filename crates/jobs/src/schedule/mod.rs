//! Decides when what is due. Pure functions of an instant: nothing here reads a clock or does I/O.
//!
//! [`Task::gate`] says which instants let a task run, and under which slot; [`crate::routes`] says which route asks
//! for which tasks. `tests/integration/deployment.rs` walks a year of every deployment file's crons against both.

mod due;
mod gate;
mod making_up;
mod month;
mod monthly_sync;
mod occurrence;
mod occurrences;
pub mod paris;
mod replay;
mod settings;
mod slot;
mod task;
#[cfg(test)]
mod tests;
mod window;

pub use self::due::{Decision, NotDue, Opening, gate, next_due};
pub use self::gate::Gate;
pub use self::making_up::{
    MONTH_MADE_UP, REMINDERS_MADE_UP, describe_making_up, made_up_until, occasion_to_make_up,
};
pub use self::month::{Month, ParseMonthError};
pub use self::monthly_sync::{
    FutureMonth, LAST_SECOND_CHANCE, MonthlySync, NoRecap, RECAP_WAITS_UNTIL, monthly_sync_month, recap_due,
    second_chances_end,
};
pub use self::occurrence::Occurrence;
pub use self::occurrences::{
    DAYS_AFTER_SIGN_UP, Missed, NoReplay, describe_rule, describe_time, find as find_occurrence, missed,
    occurrences, replay as replay_of,
};
pub use self::replay::{AtError, YEARS, parse_at};
pub use self::settings::{InvalidHour, Settings};
pub use self::slot::Slot;
pub use self::task::{Task, UnknownTask, Via};
pub use self::window::{DEFAULT_DAYS, Days, InvalidDays, MOST_DAYS, Window};
