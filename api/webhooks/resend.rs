//! `POST /api/webhooks/resend`: bounces and complaints.

fn main() -> std::process::ExitCode {
    jobs::serve(jobs::Route::WebhooksResend)
}
