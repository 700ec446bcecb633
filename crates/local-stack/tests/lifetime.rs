//! Nothing of the stack outlives the process that started it, however that process ends.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::TcpStream,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use processes::npm;

const BINARY: &str = env!("CARGO_BIN_EXE_local-stack");

/// Represents a `local-stack up` that has printed where everything is.
struct Up {
    child: Child,
    printed: BTreeMap<String, String>,
}

impl Up {
    fn start(mut command: Command) -> Result<Self> {
        // Not while a first installation is under way: other users cannot do it.
        npm::install(&npm::STACK)?;
        let mut child = command.arg("up").stdout(Stdio::piped()).spawn().context("cannot run local-stack")?;
        let mut printed = BTreeMap::new();
        for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
            let line = line?;
            if line.starts_with("# Ready") {
                return Ok(Self { child, printed });
            }
            if let Some((name, value)) = line.split_once('=') {
                printed.insert(name.into(), value.into());
            }
        }
        anyhow::bail!("local-stack stopped: {}", child.wait()?)
    }

    /// Returns the ports of PostgreSQL, the gateway, the mail proxy and the emulator.
    fn ports(&self) -> Result<Vec<u16>> {
        ["DATABASE_URL", "SUPABASE_URL", "RESEND_BASE_URL", "RESEND_INBOX"]
            .iter()
            .map(|name| {
                let url = reqwest::Url::parse(&self.printed[*name])?;
                url.port().context("no port")
            })
            .collect()
    }

    fn scratch(&self) -> PathBuf {
        self.printed["SCRATCH"].clone().into()
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let sent = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status()?;
        ensure!(sent.success(), "cannot send {signal}");
        Ok(())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listening(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

fn until(what: &str, mut happened: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        ensure!(Instant::now() < deadline, "not within 20 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Starts it, ends it with `signal`, and waits until nothing is left of it.
fn check(command: Command, signal: &str) -> Result<()> {
    let mut up = Up::start(command)?;
    let (ports, scratch) = (up.ports()?, up.scratch());
    let postmaster = std::fs::read_to_string(scratch.join("data/postmaster.pid"))?;
    let postmaster = postmaster.lines().next().context("no process id")?.to_owned();
    assert!(ports.iter().all(|port| listening(*port)), "{ports:?}");
    assert!(alive(&postmaster)?);

    up.signal(signal)?;
    up.child.wait()?;
    until("every port is closed", || !ports.iter().any(|port| listening(*port)))?;
    until("the data is removed", || !scratch.exists())?;
    until("PostgreSQL is gone", || alive(&postmaster).is_ok_and(|alive| !alive))
}

fn alive(process: &str) -> Result<bool> {
    Ok(Command::new("kill").args(["-0", process]).stderr(Stdio::null()).status()?.success())
}

#[test]
fn nothing_survives_sigkill() -> Result<()> {
    check(Command::new(BINARY), "KILL")
}

#[test]
fn ctrl_c_stops_everything() -> Result<()> {
    check(Command::new(BINARY), "INT")
}

/// Where this test runs as root, it also looks at what an ordinary user gets. PostgreSQL runs as that user
/// directly then, instead of as `nobody`.
#[test]
fn an_ordinary_user_can_run_it() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    if std::fs::metadata(scratch.path())?.uid() != 0 {
        // Every other test is this one.
        return Ok(());
    }
    let nobody = |program: &Path| {
        let mut command = Command::new(program);
        command.uid(65534).gid(65534).current_dir("/").env("HOME", "/nonexistent");
        command
    };
    let reachable = nobody(Path::new(BINARY)).arg("help").stdout(Stdio::null()).status();
    if !reachable.is_ok_and(|status| status.success()) {
        eprintln!("the checkout is closed to other users: not tried");
        return Ok(());
    }
    check(nobody(Path::new(BINARY)), "KILL")
}
