//! Runs PostgreSQL when we are root, which it refuses to be.
//!
//! Then it runs as `nobody`. That user must reach the binaries, and a checkout can lie under a home directory
//! that is closed to others: in that case they are copied once to where everybody may read them.

use std::{
    fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::child::User;

/// Says who runs PostgreSQL: ourselves, or `nobody` where we are root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runner(Option<User>);

impl Runner {
    pub(crate) fn user(self) -> Option<User> {
        self.0
    }

    /// Makes a fresh temporary directory that belongs to the runner.
    pub(crate) fn temporary_directory(self) -> Result<TempDir> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("local-stack-");
        // `TMPDIR` may be private to us, /tmp never is.
        let directory = if self.0.is_some() { builder.tempdir_in("/tmp") } else { builder.tempdir() }
            .context("cannot make a temporary directory")?;
        self.own(directory.path())?;
        Ok(directory)
    }

    /// Writes a file that belongs to the runner.
    pub(crate) fn write(self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        self.own(path)
    }

    fn own(self, path: &Path) -> Result<()> {
        let Some(user) = self.0 else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
            .with_context(|| format!("cannot give {} away", path.display()))
    }
}

/// Returns who is to run the binaries in `native`, and where that user finds them.
pub(crate) fn prepare(native: PathBuf) -> Result<(PathBuf, Runner)> {
    let probe = tempfile::tempdir().context("cannot make a temporary directory")?;
    if fs::metadata(probe.path())?.uid() != 0 {
        return Ok((native, Runner(None)));
    }
    let user = User { uid: id("-u")?, gid: id("-g")? };
    let native = if runs_as(user, &native)? { native } else { public_copy(&native)? };
    Ok((native, Runner(Some(user))))
}

/// Returns a number of the user `nobody`, which is negative on macOS.
fn id(which: &str) -> Result<u32> {
    let output = Command::new("id").args([which, "nobody"]).output().context("cannot run `id`")?;
    let number = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let number = number
        .parse::<i32>()
        .map(i32::cast_unsigned)
        .or_else(|_| number.parse::<u32>())
        .context("there is no user `nobody` to run PostgreSQL as (it refuses to run as root)")?;
    ensure!(number != 0, "the user `nobody` is root here");
    Ok(number)
}

/// Returns whether this user may run the binaries where they are.
fn runs_as(user: User, native: &Path) -> Result<bool> {
    let tried = Command::new(native.join("bin/postgres"))
        .arg("--version")
        .uid(user.uid)
        .gid(user.gid)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match tried {
        Ok(status) => Ok(status.success()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error).context("cannot run PostgreSQL"),
    }
}

/// Makes a copy under /var/tmp that belongs to root, and that only root can change.
fn public_copy(native: &Path) -> Result<PathBuf> {
    // The directory of the npm set carries the hash of the versions.
    let set = native
        .ancestors()
        .find(|a| a.join("node_modules").is_dir())
        .and_then(Path::file_name)
        .context("PostgreSQL does not lie in an npm set")?;
    let copy = Path::new("/var/tmp").join(format!("local-stack-postgres-{}", set.to_string_lossy()));
    if !copy.exists() {
        let fresh = tempfile::Builder::new().prefix("local-stack-postgres-").tempdir_in("/var/tmp")?;
        let copied = Command::new("cp")
            .args(["-R".as_ref(), native.as_os_str(), fresh.path().join("native").as_os_str()])
            .status()
            .context("cannot run `cp`")?;
        ensure!(copied.success(), "cannot copy {} to /var/tmp", native.display());
        let opened = Command::new("chmod")
            .args(["-R".as_ref(), "u=rwX,go=rX".as_ref(), fresh.path().as_os_str()])
            .status()
            .context("cannot run `chmod`")?;
        ensure!(opened.success(), "cannot open {} to others", fresh.path().display());
        match fs::rename(fresh.path(), &copy) {
            Ok(()) => drop(fresh.keep()),
            // Another process was faster: its copy is looked at below like any other.
            Err(_) if copy.exists() => {}
            Err(error) => return Err(error).with_context(|| format!("cannot make {}", copy.display())),
        }
    }
    // Everybody can write to /var/tmp, so somebody else may have been there first.
    let found = fs::symlink_metadata(&copy)?;
    ensure!(
        found.is_dir() && found.uid() == 0 && found.permissions().mode() & 0o022 == 0,
        "{} was not made by root: remove it",
        copy.display()
    );
    Ok(copy.join("native"))
}
