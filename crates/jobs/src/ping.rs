//! Tells a monitor that a task has begun, gone well or failed (the healthchecks.io protocol: `POST` to the ping
//! address, `/start`, `/fail`, the reason as the body). The monitor raises the alarm when it hears nothing, which is
//! what we could not do ourselves.
//!
//! Best effort: a monitor that does not answer changes nothing for the task.

use std::{collections::BTreeMap, time::Duration};

use url::Url;

use crate::{deadline::Deadline, http, schedule::Task};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Monitors keep more of a body than this.
const LONGEST_REASON: usize = 2_000;

/// Represents the address of each task's monitor; a task without one is not watched.
pub type Monitors = BTreeMap<Task, Url>;

/// Represents the state of a task that a monitor is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal {
    Start,
    Success,
    Fail,
}

/// Sends one signal.
pub async fn ping(client: &reqwest::Client, address: &Url, signal: Signal, words: &str, deadline: &Deadline) {
    let Some(timeout) = deadline.request_timeout(TIMEOUT) else { return };
    let words: String = words.chars().take(LONGEST_REASON).collect();
    let request =
        client.post(at(address, signal)).header("content-type", "text/plain; charset=utf-8").body(words);
    // The address is a secret of its own: whoever has it can silence the alarm.
    match http::fetch(request, timeout).await {
        Ok(answer) if answer.status.is_success() => {}
        Ok(answer) => tracing::warn!(status = answer.status.as_u16(), ?signal, "the monitor refuses a ping"),
        Err(error) => tracing::warn!(%error, ?signal, "the monitor does not answer"),
    }
}

fn at(address: &Url, signal: Signal) -> Url {
    let mut url = address.clone();
    let suffix = match signal {
        Signal::Start => "/start",
        Signal::Success => "",
        Signal::Fail => "/fail",
    };
    let path = format!("{}{suffix}", url.path().trim_end_matches('/'));
    url.set_path(&path);
    url
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::test_server::{Reply, TestServer};

    #[tokio::test]
    async fn each_signal_has_its_address_and_its_reason() {
        let server = TestServer::start([Reply::new(200), Reply::new(200), Reply::new(500)]).await;
        let (client, end) = (http::client().unwrap(), Instant::now() + Duration::from_mins(1));
        let deadline = Deadline::new(end, end);
        let address: Url = server.url("/5f0c0e52/").parse().unwrap();
        ping(&client, &address, Signal::Start, "", &deadline).await;
        ping(&client, &address, Signal::Success, "12", &deadline).await;
        ping(&client, &address, Signal::Fail, &"é".repeat(5_000), &deadline).await;
        let asked: Vec<_> = server.requests().into_iter().map(|asked| (asked.path, asked.body)).collect();
        let asked: Vec<_> = asked.iter().map(|(path, body)| (path.as_str(), body.chars().count())).collect();
        assert_eq!(asked, [("/5f0c0e52/start", 0), ("/5f0c0e52", 2), ("/5f0c0e52/fail", LONGEST_REASON)]);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_monitor_that_is_not_there() {
        let end = Instant::now() + Duration::from_mins(1);
        let address = "http://127.0.0.1:9/x".parse().unwrap();
        ping(&http::client().unwrap(), &address, Signal::Success, "", &Deadline::new(end, end)).await;
    }
}
