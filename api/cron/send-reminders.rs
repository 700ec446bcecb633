//! `GET /api/cron/send-reminders`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobs::serve(jobs::Route::SendReminders)
}
