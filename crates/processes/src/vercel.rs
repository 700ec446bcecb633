//! Serves the functions behind the real `vercel dev --local`.
//!
//! It runs in a scratch project, not in the checkout: there it would read `.env` and `.env.local`, whose values
//! win over the environment it is given and may well be production's, and it refuses a linked `.vercel`. The
//! scratch project holds what the platform is told (`vercel.json`, `api`, `public`); cargo works in the checkout,
//! through a small script in front of it on the `PATH`, so that nothing is compiled twice and a change to the code
//! is served with the next request.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    child::{Child, Command, Signal},
    ports,
};

/// Cargo must see these as the developer's own cargo does, or it compiles everything anew; and `JOB_*`, which tunes
/// the functions.
const PASSED_ON: &[&str] = &[
    "RUST",
    "CARGO_TARGET_",
    "CARGO_BUILD_",
    "CARGO_PROFILE_",
    "CC",
    "CXX",
    "CFLAGS",
    "LD",
    "TMPDIR",
    "JOB_",
];

/// These are variables that `cargo run` adds to our environment. Build scripts that watch these
/// would run anew, and their crates and all that depend on them be compiled anew.
const CARGOS_OWN: &[&str] =
    &["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];

fn begins_with(name: &OsStr, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.to_string_lossy().starts_with(prefix))
}

/// Returns the repository.
pub fn checkout() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    path.canonicalize().with_context(|| format!("the checkout is not at {} any more", path.display()))
}

/// Returns the cargo that built us, or the one on the `PATH`.
fn cargo() -> Result<PathBuf> {
    let named = env::var_os("CARGO").map(PathBuf::from).filter(|path| path.is_absolute());
    let found = || {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).map(|directory| directory.join("cargo")).find(|path| path.is_file())
    };
    named.or_else(found).context("cargo is not on the PATH")
}

/// Builds every function as `vercel dev` does at its first request, with cargo's progress on the terminal.
pub async fn build(checkout: &Path) -> Result<()> {
    cargo_build(checkout, &["--bins"]).await
}

/// Builds these functions as they are deployed: optimised, into `target/release`.
pub async fn build_release(checkout: &Path, binaries: &[&str]) -> Result<()> {
    let named = binaries.iter().flat_map(|name| ["--bin", name]);
    cargo_build(checkout, &["--release"].into_iter().chain(named).collect::<Vec<_>>()).await
}

async fn cargo_build(checkout: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = tokio::process::Command::new(cargo()?);
    for (name, _) in env::vars_os().filter(|(name, _)| begins_with(name, CARGOS_OWN)) {
        command.env_remove(name);
    }
    let status = command
        // All packages' binaries: cargo unifies features over what is selected, and `--bin NAME` selects as much.
        .arg("build")
        .args(arguments)
        .current_dir(checkout)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .context("cannot run cargo")?;
    ensure!(status.success(), "the functions cannot be built ({status})");
    Ok(())
}

/// Represents a running `vercel dev --local`; it stops when this is dropped, with the functions it has started.
#[derive(Debug)]
pub struct Dev {
    port: u16,
    child: Child,
    _scratch: TempDir,
}

impl Dev {
    /// Serves the functions of `checkout` with the npm set `Vercel` that is installed in `parts`. They see `env` of
    /// the address at which they are.
    pub async fn start(
        parts: &Path,
        checkout: &Path,
        env: impl Fn(String) -> Vec<(&'static str, String)>,
    ) -> Result<Self> {
        let mut failure = None;
        for _ in 0..ports::ATTEMPTS {
            let port = ports::free()?;
            let scratch = tempfile::Builder::new().prefix("local-stack-vercel-").tempdir()?;
            let project = prepare(scratch.path(), checkout)?;
            let log = scratch.path().join("log");
            let mut command = Command::new("node", &log)
                .args([parts.join("node_modules/vercel/dist/vc.js")])
                .args(["dev", "--local", "--listen", &format!("127.0.0.1:{port}")])
                .directory(project)
                .then_remove(scratch.path())
                .stop_with(Signal::Kill);
            for (name, value) in surroundings(scratch.path())? {
                command = command.env(name, value);
            }
            for (name, value) in env(format!("http://127.0.0.1:{port}")) {
                command = command.env(name, value);
            }
            let mut child = command.start()?;
            let ready = format!("Ready! Available at http://127.0.0.1:{port}");
            let serves = || async { fs::read_to_string(&log).is_ok_and(|log| log.contains(&ready)) };
            match child.ready(serves).await {
                Ok(()) => return Ok(Self { port, child, _scratch: scratch }),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("vercel dev was never started")?)
    }

    /// Returns `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns where it and the functions write.
    pub fn log(&self) -> &Path {
        self.child.log()
    }

    /// Returns the last lines they have written.
    pub fn log_tail(&self) -> String {
        self.child.log_tail()
    }
}

/// Makes the scratch project, and the scripts that stand before cargo and rustup.
fn prepare(scratch: &Path, checkout: &Path) -> Result<PathBuf> {
    let project = scratch.join("project");
    fs::create_dir(&project)?;
    for directory in ["api", "public"] {
        copy(&checkout.join(directory), &project.join(directory))?;
    }
    fs::copy(checkout.join("vercel.json"), project.join("vercel.json")).context("no vercel.json")?;
    // Read by the builder to learn which binary belongs to which file.
    symlink(checkout.join("Cargo.toml"), project.join("Cargo.toml"))?;

    let scripts = scratch.join("bin");
    fs::create_dir(&scripts)?;
    fs::create_dir(scratch.join("home"))?;
    let script = |name: &str, text: String| -> Result<()> {
        let path = scripts.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    };
    let manifest = project.join("Cargo.toml");
    script(
        "cargo",
        format!(
            "[ \"$1\" = locate-project ] && exec echo '{{\"root\":\"{}\"}}'\ncd '{}' && exec '{}' \"$@\"",
            manifest.display(),
            checkout.display(),
            cargo()?.display()
        ),
    )?;
    // Without one, the CLI would download rustup and install Rust.
    script("rustup", "exit 0".into())?;
    Ok(project)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Returns the environment that is not the functions' own.
fn surroundings(scratch: &Path) -> Result<Vec<(OsString, OsString)>> {
    let home = PathBuf::from(env::var_os("HOME").unwrap_or_default());
    let or_home =
        |name: &str, directory: &str| env::var_os(name).unwrap_or_else(|| home.join(directory).into());
    let mut path = vec![scratch.join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let mut surroundings: Vec<(OsString, OsString)> =
        env::vars_os().filter(|(name, _)| begins_with(name, PASSED_ON)).collect();
    surroundings.extend([
        ("CARGO_HOME".into(), or_home("CARGO_HOME", ".cargo")),
        ("RUSTUP_HOME".into(), or_home("RUSTUP_HOME", ".rustup")),
        // The CLI keeps its configuration there, and looks there first for cargo.
        ("HOME".into(), scratch.join("home").into()),
        ("PATH".into(), env::join_paths(path).context("the PATH holds a `:`")?),
        ("VERCEL_TELEMETRY_DISABLED".into(), "1".into()),
        ("NO_UPDATE_NOTIFIER".into(), "1".into()),
    ]);
    Ok(surroundings)
}
