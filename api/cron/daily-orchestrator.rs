//! `GET /api/cron/daily-orchestrator`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobs::serve(jobs::Route::DailyOrchestrator)
}
