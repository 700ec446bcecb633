//! `/api/unsubscribe`: the page behind a mail's link, and the one click of a mail program.

fn main() -> std::process::ExitCode {
    jobs::serve(jobs::Route::Unsubscribe)
}
