//! `GET /api/cron/daily-tasks`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobs::serve(jobs::Route::DailyTasks)
}
