//! `POST /api/manual/check-thresholds`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobs::serve(jobs::Route::CheckThresholds)
}
