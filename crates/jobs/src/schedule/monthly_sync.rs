//! Which month does a call of the monthly sync mean?

use chrono::{DateTime, Utc};

use super::{Decision, Month, NotDue, Settings, Task, Via, gate, paris};

/// What the monthly sync is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MonthlySync {
    /// Sync this month.
    Run(Month),
    /// Not the last day, and nobody insisted.
    NotDue(NotDue),
}

/// `month=` names a month that has not begun.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{} n’a pas encore commencé : le mois demandé va au plus jusqu’à {}", month.french(), current.french())]
pub struct FutureMonth {
    /// The month asked for.
    pub month: Month,
    /// The last one that can be.
    pub current: Month,
}

/// - `month`: that month, on any day, if it has begun;
/// - else, on a month's last day: that month, with or without `force`;
/// - else, with `force`: the last completed month;
/// - else nothing.
pub fn monthly_sync_month(
    at: DateTime<Utc>,
    force: bool,
    month: Option<Month>,
) -> Result<MonthlySync, FutureMonth> {
    let current = paris::month(at);
    if let Some(month) = month {
        return if month > current {
            Err(FutureMonth { month, current })
        } else {
            Ok(MonthlySync::Run(month))
        };
    }
    Ok(match gate(Task::MonthlySync, Via::ManualRoute, at, Settings::default()) {
        Decision::Due { .. } => MonthlySync::Run(current),
        Decision::NotDue(_) if force => MonthlySync::Run(current.previous()),
        Decision::NotDue(not_due) => MonthlySync::NotDue(not_due),
    })
}
