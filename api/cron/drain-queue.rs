//! `POST /api/cron/drain-queue`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobs::serve(jobs::Route::DrainQueue)
}
