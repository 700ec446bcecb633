//! Everything that the Comptalyze functions share.

pub mod crypto;
pub mod deadline;
pub mod http;
pub mod money;
pub mod providers;
pub mod retry;
#[cfg(test)]
mod test_server;

/// The functions of a deployment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route {
    /// `GET /api/cron/daily-orchestrator`
    DailyOrchestrator,
    /// `GET /api/cron/monthly-orchestrator`
    MonthlyOrchestrator,
    /// `GET /api/cron/send-reminders`
    SendReminders,
    /// `GET /api/cron/daily-tasks`
    DailyTasks,
    /// `POST /api/cron/drain-queue`
    DrainQueue,
    /// `POST /api/manual/check-thresholds`
    CheckThresholds,
    /// `POST /api/manual/monthly-sync`
    MonthlySync,
    /// `POST /api/manual/sync-integrations`
    SyncIntegrations,
}

/// Serves one function until the platform stops it.
pub fn serve(route: Route) -> std::process::ExitCode {
    let _ = route;
    std::process::ExitCode::FAILURE
}
