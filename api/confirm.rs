//! `/api/confirm`: the page on which users say whether typed and imported turnover is the same money.

fn main() -> std::process::ExitCode {
    jobs::serve(jobs::Route::Confirm)
}
