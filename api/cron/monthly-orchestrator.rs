//! `GET /api/cron/monthly-orchestrator`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobs::serve(jobs::Route::MonthlyOrchestrator)
}
