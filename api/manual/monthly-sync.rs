//! `POST /api/manual/monthly-sync`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobs::serve(jobs::Route::MonthlySync)
}
