//! Tests children: their logs, and what is left of them.

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use processes::child::{Child, Command, Signal};

fn shell(directory: &Path, script: &str) -> Command {
    Command::new("/bin/sh", directory.join("log")).args(["-c", script]).directory(directory)
}

fn alive(process: &str) -> bool {
    let kill = std::process::Command::new("kill").args(["-0", process]).stderr(Stdio::null()).status();
    kill.is_ok_and(|status| status.success())
}

fn until(what: &str, happened: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        ensure!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Returns what the child wrote into the file `pid`, once it has.
fn process_id(directory: &Path) -> Result<String> {
    let file = directory.join("pid");
    until("the child writes its process id", || {
        fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))
    })?;
    Ok(fs::read_to_string(file)?.trim().into())
}

#[tokio::test]
async fn a_child_that_does_not_come_up_says_why() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut child = shell(directory.path(), "echo no such table >&2; exit 3").start()?;
    let error = child.ready(|| async { false }).await.err().context("it came up")?.to_string();
    assert!(error.contains("sh stopped while starting (exit status: 3)"), "{error}");
    assert!(error.ends_with("no such table"), "{error}");
    Ok(())
}

#[test]
fn a_child_goes_with_its_children_and_its_directory() -> Result<()> {
    for stop in [Signal::Term, Signal::Quit, Signal::Kill] {
        let directory = tempfile::tempdir()?;
        let scratch = directory.path().join("scratch");
        fs::create_dir(&scratch)?;
        let script = "sleep 1000 & echo $! > pid.new; mv pid.new pid; wait";
        let child: Child = shell(directory.path(), script).stop_with(stop).then_remove(&scratch).start()?;
        let grandchild = process_id(directory.path())?;
        assert!(alive(&grandchild));
        drop(child);
        until("the grandchild is gone", || !alive(&grandchild))?;
        assert!(!scratch.exists(), "{stop:?}");
    }
    Ok(())
}

#[test]
fn a_deaf_child_is_killed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let script = "trap '' TERM; echo $$ > pid.new; mv pid.new pid; while :; do sleep 1; done";
    let child = shell(directory.path(), script).start()?;
    let process = process_id(directory.path())?;
    drop(child);
    assert!(!alive(&process));
    Ok(())
}

#[test]
fn a_child_sees_only_what_it_is_given() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut child = shell(directory.path(), "env").env("GIVEN", "1").start()?;
    until("the child ends", || {
        fs::read_to_string(directory.path().join("log")).is_ok_and(|log| log.contains("GIVEN=1"))
    })?;
    child.wait()?;
    let log = fs::read_to_string(directory.path().join("log"))?;
    assert!(!log.contains("CARGO"), "{log}");
    Ok(())
}
