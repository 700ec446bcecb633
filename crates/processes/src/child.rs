//! Runs child processes that never outlive us.
//!
//! A test that panics, a `kill -9`, a closed terminal: the servers of the stack must go with the process that
//! started them. Each child runs under a small shell watchdog that reads from a pipe only we can write to, and
//! that takes the child down when the pipe closes. The parent-death signal of Linux would not do: it fires when
//! the *thread* that spawned the child ends, and macOS has none.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, PipeWriter, Read, Seek, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

const WATCHDOG: &str = include_str!("watchdog.sh");

/// Says how long a child may take to come up; generous, because developers' machines are busy.
const START_DEADLINE: Duration = Duration::from_mins(1);
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Says how a child is asked to stop. It is killed when it has not done so after five seconds.
#[derive(Clone, Copy, Debug, Default)]
pub enum Signal {
    /// The signal is `SIGTERM`, the polite one.
    #[default]
    Term,
    /// The signals are `SIGTERM` and `SIGQUIT`: what PostgreSQL calls an immediate shutdown. The
    /// second one alone would be ignored by a shell that prepares something first, as is the rule
    /// for what a shell runs in the background.
    Quit,
    /// The signal is `SIGKILL`, for servers that have nothing to tidy up.
    Kill,
}

impl Signal {
    fn names(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Quit => "TERM QUIT",
            Self::Kill => "KILL",
        }
    }
}

/// Represents a user that a child runs as, where we are root and the child refuses to be.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// Represents a child about to be started: what, how, and what is tidied up after it.
#[derive(Debug)]
pub struct Command {
    program: OsString,
    log: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    keep_env: bool,
    user: Option<User>,
    directory: Option<PathBuf>,
    stop: Signal,
    remove: Option<PathBuf>,
}

impl Command {
    /// Runs `program`, with its output in the file `log`. It sees `PATH` and `HOME` of our environment, and
    /// what [`env`](Self::env) adds.
    pub fn new(program: impl AsRef<OsStr>, log: impl Into<PathBuf>) -> Self {
        Self {
            program: program.as_ref().into(),
            log: log.into(),
            args: Vec::new(),
            envs: Vec::new(),
            keep_env: false,
            user: None,
            directory: None,
            stop: Signal::default(),
            remove: None,
        }
    }

    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// The child sees our whole environment, not only `PATH` and `HOME`.
    #[must_use]
    pub fn keep_env(mut self) -> Self {
        self.keep_env = true;
        self
    }

    #[must_use]
    pub fn user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    #[must_use]
    pub fn stop_with(mut self, signal: Signal) -> Self {
        self.stop = signal;
        self
    }

    /// Removes this directory once the child is gone, even when we went first.
    #[must_use]
    pub fn then_remove(mut self, directory: impl Into<PathBuf>) -> Self {
        self.remove = Some(directory.into());
        self
    }

    /// Starts the child.
    pub fn start(self) -> Result<Child> {
        let name =
            Path::new(&self.program).file_name().unwrap_or(&self.program).to_string_lossy().into_owned();
        let (theirs, ours) = io::pipe().context("cannot make a pipe")?;
        let log = File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        // Ours, so that what the child wrote can still be read once its directory is removed.
        let written = File::open(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let mut watchdog = process::Command::new("/bin/sh");
        watchdog
            .args(["-c", WATCHDOG, "watchdog", self.stop.names()])
            .arg(self.remove.as_deref().unwrap_or(Path::new("")))
            .arg(&self.program)
            .args(&self.args)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            // Its own group: Ctrl-C in the terminal reaches us, and we stop the children in order.
            .process_group(0);
        if !self.keep_env {
            watchdog.env_clear();
            for name in ["PATH", "HOME"] {
                watchdog.envs(std::env::var_os(name).map(|value| (name, value)));
            }
        }
        watchdog.envs(self.envs);
        if let Some(user) = self.user {
            watchdog.uid(user.uid).gid(user.gid);
        }
        if let Some(directory) = self.directory {
            watchdog.current_dir(directory);
        }
        let watchdog = watchdog.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Child { name, log: self.log, written, watchdog, lifeline: Some(ours) })
    }
}

/// Represents a running child. Dropping it stops it and waits until it is gone.
#[derive(Debug)]
pub struct Child {
    name: String,
    log: PathBuf,
    written: File,
    watchdog: process::Child,
    /// Keeps the child alive: the pipe is closed by [`Drop`], or by the system when we die.
    lifeline: Option<PipeWriter>,
}

impl Child {
    /// Returns how the child ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.watchdog.try_wait().ok().flatten()
    }

    /// Stops the child, without waiting until it is gone.
    pub fn stop(&mut self) {
        drop(self.lifeline.take());
    }

    /// Returns the process id of what watches over the child: its parent.
    pub fn watchdog_id(&self) -> u32 {
        self.watchdog.id()
    }

    /// Sends the child a signal; it goes on living if it likes to.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let lifeline = self.lifeline.as_mut().context("the child is being stopped")?;
        writeln!(lifeline, "{}", signal.names()).with_context(|| format!("{} is gone", self.name))
    }

    /// Returns where the child writes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits for the child to end by itself. Blocks.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.watchdog.wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Returns what the child has written so far, also when it and its directory are gone.
    pub fn output(&self) -> String {
        let (mut output, mut written) = (Vec::new(), &self.written);
        let read = written.rewind().and_then(|()| written.read_to_end(&mut output));
        read.map(|_| String::from_utf8_lossy(&output).into_owned()).unwrap_or_default()
    }

    /// Returns the last lines that the child wrote.
    pub fn log_tail(&self) -> String {
        let log = self.output();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Returns an error that says what went wrong and what the child wrote last.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let tail = self.log_tail();
        let tail = if tail.is_empty() { "(it wrote nothing)" } else { &tail };
        anyhow!("{} {what}; its log ends with:\n{tail}", self.name)
    }

    /// Waits until the child has ended by itself or by a [`signal`](Self::signal); `None` when it is still there
    /// after `patience`.
    pub async fn ended(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks `ready` every few milliseconds until it answers yes; fails when the child ends first, or takes
    /// longer than a minute.
    pub async fn ready<F: Future<Output = bool>>(&mut self, mut ready: impl FnMut() -> F) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            // Something else may listen on the port for now, and never answer.
            if tokio::time::timeout(ANSWER_DEADLINE, ready()).await.unwrap_or(false) {
                return Ok(());
            }
            if let Some(status) = self.exited() {
                return Err(self.failure(&format!("stopped while starting ({status})")));
            }
            if Instant::now() > deadline {
                return Err(self.failure("did not come up"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop();
        // The watchdog kills after five seconds, so this ends.
        let _ = self.watchdog.wait();
    }
}
