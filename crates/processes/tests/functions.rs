//! Tests a function's life, tried on a script that stands for one.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use anyhow::Result;
use processes::functions::Function;
use tempfile::TempDir;

/// Writes an executable shell script; the directory must outlive it.
fn script(text: &str) -> Result<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("function");
    fs::write(&path, format!("#!/bin/sh\n{text}"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((directory, path))
}

const NO_ENV: &[(&str, &str)] = &[];
const LISTEN: &str = "echo \"Dev server listening: $VERCEL_DEV_PORT\"\n";

fn alive(pid: &str) -> Result<bool> {
    let mut kill = std::process::Command::new("kill");
    Ok(kill.args(["-0", pid]).stderr(std::process::Stdio::null()).status()?.success())
}

#[tokio::test]
async fn it_is_told_its_port_and_environment_and_keeps_its_output() -> Result<()> {
    let (_directory, path) = script(&format!("echo \"$COLOUR $CARGO_PKG_NAME\" >&2\n{LISTEN}exec sleep 60"))?;
    let function = Function::start(&path, &[("COLOUR", "blue")]).await?;
    let port = function.url().rsplit(':').next().map(str::to_owned).unwrap_or_default();
    assert_eq!(function.logs(), format!("blue \nDev server listening: {port}\n"));
    Ok(())
}

#[tokio::test]
async fn termination_lets_it_finish() -> Result<()> {
    let (_directory, path) =
        script(&format!("trap 'echo finished; exit 3' TERM\n{LISTEN}while :; do sleep 0.05; done"))?;
    let mut function = Function::start(&path, NO_ENV).await?;
    assert_eq!(function.terminate().await?.code(), Some(3));
    assert!(function.logs().ends_with("finished\n"), "{}", function.logs());
    Ok(())
}

#[tokio::test]
async fn killing_and_dropping_leave_nothing_behind() -> Result<()> {
    let (_directory, path) = script(&format!("trap '' TERM\nsleep 61 &\necho $! $$\n{LISTEN}wait"))?;
    for drop_it in [false, true] {
        let mut function = Function::start(&path, NO_ENV).await?;
        let pids: Vec<String> = function.logs().split_whitespace().take(2).map(str::to_owned).collect();
        assert!(alive(&pids[0])? && alive(&pids[1])?);
        if !drop_it {
            function.kill().await?;
        }
        drop(function);
        assert!(!alive(&pids[1])?, "dropped: {drop_it}");
        // Nobody's child any more: whoever collects those takes a moment.
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if !alive(&pids[0])? {
                break;
            }
        }
        assert!(!alive(&pids[0])?, "dropped: {drop_it}");
    }
    Ok(())
}

#[tokio::test]
async fn one_that_does_not_start_says_why() -> Result<()> {
    let (_directory, path) = script("echo 'no configuration' >&2; exit 1")?;
    let error = Function::start(&path, NO_ENV).await.expect_err("it stops at once");
    assert!(error.to_string().contains("no configuration"), "{error:#}");
    Ok(())
}
