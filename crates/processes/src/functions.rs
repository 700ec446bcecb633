//! Runs one function directly: the binary of a route as the platform starts it, without the Vercel CLI.

use std::{ffi::OsStr, fs, path::Path, process::ExitStatus, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    child::{Child, Command, Signal},
    ports,
};

/// This is longer than a function works after SIGTERM.
const TERMINATION: Duration = Duration::from_mins(5);

/// Represents a running function; it stops when this is dropped.
#[derive(Debug)]
pub struct Function {
    port: u16,
    child: Child,
    _logs: TempDir,
}

impl Function {
    /// Starts `binary` on a free port and waits until it listens. It sees `env` and nothing else of our
    /// environment but `PATH` and `HOME`.
    pub async fn start(binary: &Path, env: &[(impl AsRef<OsStr>, impl AsRef<OsStr>)]) -> Result<Self> {
        let mut failure = None;
        for _ in 0..ports::ATTEMPTS {
            let port = ports::free()?;
            let logs = tempfile::tempdir().context("cannot make a temporary directory")?;
            let log = logs.path().join("log");
            let mut command = Command::new(binary, &log)
                .env("VERCEL_DEV_PORT", port.to_string())
                .then_remove(logs.path())
                .stop_with(Signal::Kill);
            for (name, value) in env {
                command = command.env(name, value);
            }
            let mut child = command.start()?;
            let ready = format!("Dev server listening: {port}");
            let listens = || async { fs::read_to_string(&log).is_ok_and(|log| log.contains(&ready)) };
            match child.ready(listens).await {
                Ok(()) => return Ok(Self { port, child, _logs: logs }),
                // Another process was faster on the port, or it is a real fault: the last one tells.
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("the function was never started")?)
    }

    /// Returns `http://127.0.0.1:PORT`, without a slash at the end. Whatever the path, this function answers.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the process id of its parent, which watches over it.
    pub fn watchdog_id(&self) -> u32 {
        self.child.watchdog_id()
    }

    /// Stops it in the middle of whatever it does, without waiting until it is gone.
    pub fn stop(&mut self) {
        self.child.stop();
    }

    /// Stops it likewise, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        self.stop();
        self.child.ended(TERMINATION).await.context("the function survives SIGKILL")?;
        Ok(())
    }

    /// Asks it to stop, as the platform does, and waits until it has finished its work.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.child.signal(Signal::Term)?;
        self.child.ended(TERMINATION).await.with_context(|| self.child.failure("did not stop").to_string())
    }

    /// Returns what it has written so far, to either output: JSON lines, and those of the runtime.
    pub fn logs(&self) -> String {
        self.child.output()
    }
}
