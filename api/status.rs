//! `/api/status`: how everything is, for the operator.

fn main() -> std::process::ExitCode {
    jobs::serve(jobs::Route::Status)
}
