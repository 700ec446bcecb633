//! Runs a node script of ours on packages of others: JSON in, JSON out.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, ensure};
use processes::npm::{self, Set};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, process::Command};

/// Installs `packages`, once per version of their lock file, runs `script` with their directory as its argument and
/// `input` as its input, and reads what it prints.
pub(crate) async fn run<T: DeserializeOwned>(
    packages: Set,
    script: &Path,
    input: &Value,
) -> anyhow::Result<T> {
    let directory = tokio::task::spawn_blocking(move || npm::install(&packages)).await??;
    let mut node = Command::new("node")
        .arg(script)
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("node does not start; Node 20 or later is needed")?;
    let mut stdin = node.stdin.take().context("node has no input")?;
    let text = input.to_string();
    let (written, output) = tokio::join!(
        async move {
            stdin.write_all(text.as_bytes()).await?;
            stdin.shutdown().await
        },
        node.wait_with_output()
    );
    let output = output?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    written?;
    serde_json::from_slice(&output.stdout).context("the script prints what was asked for")
}
