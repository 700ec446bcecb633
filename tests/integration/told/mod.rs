//! Told in time: the monitor's pings, the operator's digest, and users whose connection has to be made again.

mod digest;
mod outage;
mod pings;
mod reconnect;

use anyhow::Result;
use serde_json::json;
use stand_ins::{
    faults::{Fault, Rule},
    resend::Resend,
};

/// Starts a server that answers whatever comes, and remembers it. What it is for does not matter
/// here.
async fn monitor() -> Result<Resend> {
    let monitor = Resend::bare().await?;
    monitor.faults().add(Rule::on("", Fault::Answer { status: 200, headers: Vec::new(), body: "OK".into() }));
    Ok(monitor)
}

/// Returns what a monitor was told, one "path: body" each.
fn heard(monitor: &Resend) -> Vec<String> {
    let seen = monitor.faults().seen();
    seen.iter().map(|seen| format!("{} {}: {}", seen.method, seen.target, seen.body)).collect()
}

/// Answers as a database function does that took longer than its `statement_timeout`.
pub(crate) fn timed_out() -> Fault {
    Fault::json(500, &json!({"code": "57014", "message": "canceling statement due to statement timeout"}))
}
