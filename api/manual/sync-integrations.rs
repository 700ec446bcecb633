//! `POST /api/manual/sync-integrations`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobs::serve(jobs::Route::SyncIntegrations)
}
