//! Runs a real PostgreSQL server with a cluster of its own, gone when we are.
//!
//! It listens on a free port of 127.0.0.1 only, keeps its data in a temporary directory, and trades durability
//! for speed: nothing in it is meant to survive.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::{
    child::{Child, Command, Signal},
    npm, ports,
    unprivileged::{self, Runner},
};

/// The superuser has the name of Supabase's.
const SUPERUSER: &str = "postgres";

const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=300",
    "timezone=UTC",
    "log_timezone=UTC",
    // A crash may lose everything: there is nothing to lose.
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "wal_level=minimal",
    "max_wal_senders=0",
];

/// Represents a running server.
#[derive(Debug)]
pub struct Cluster {
    port: u16,
    password: String,
    scratch: PathBuf,
    server: Child,
}

impl Cluster {
    /// Makes a cluster with the npm set [`npm::STACK`] that is installed in `parts`, and starts its server.
    pub async fn start(parts: &Path) -> Result<Self> {
        let native = npm::postgres(parts);
        let (native, runner) = tokio::task::spawn_blocking(move || unprivileged::prepare(native)).await??;
        for _ in 0..ports::ATTEMPTS {
            let mut cluster = Self::spawn(&native, &runner)?;
            match cluster.ready().await {
                Ok(()) => return Ok(cluster),
                // Somebody else was faster on this port.
                Err(_) if cluster.server.log_tail().contains("could not bind") => {}
                Err(error) => return Err(error),
            }
        }
        bail!("PostgreSQL found no free port in {} attempts", ports::ATTEMPTS)
    }

    fn spawn(native: &Path, runner: &Runner) -> Result<Self> {
        let port = ports::free()?;
        let password = Uuid::new_v4().simple().to_string();
        let directory = runner.temporary_directory()?;
        let scratch = directory.path().to_owned();
        runner.write(&scratch.join("password"), &password)?;
        let server = Command::new("/bin/sh", scratch.join("postgres.log"))
            .args(["-c", include_str!("postgres.sh"), "postgres"])
            .args([native.as_os_str(), SUPERUSER.as_ref()])
            .args(["-p", &port.to_string()])
            .args(SETTINGS.iter().flat_map(|setting| ["-c", setting]))
            .user(runner.user())
            .directory(&scratch)
            .stop_with(Signal::Quit)
            .then_remove(&scratch)
            .start()?;
        // From here on the watchdog removes the directory, after the server.
        let _ = directory.keep();
        Ok(Self { port, password, scratch, server })
    }

    async fn ready(&mut self) -> Result<()> {
        let options = self.options("postgres");
        // The password is this cluster's own, so no other server can be taken for it.
        let answers = || async {
            match PgConnection::connect_with(&options).await {
                Ok(connection) => connection.close().await.is_ok(),
                Err(_) => false,
            }
        };
        self.server.ready(answers).await
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns where its data and its log are, and where other children may log; removed with the cluster.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Returns how to connect to one of its databases as the superuser.
    pub fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(SUPERUSER)
            .password(&self.password)
            .database(database)
    }

    /// Returns the address of one of its databases, for the superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// Opens one connection as the superuser, outside any pool.
    pub async fn connect(&self, database: &str) -> Result<PgConnection> {
        PgConnection::connect_with(&self.options(database))
            .await
            .with_context(|| format!("cannot connect to the database `{database}`"))
    }
}
