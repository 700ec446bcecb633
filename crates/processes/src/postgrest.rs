//! Runs a real PostgREST over one database, configured as Supabase configures it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};

use crate::{
    child::{Child, Command, Signal},
    database::Database,
    keys::Keys,
    npm, ports,
    proxy::Upstream,
};

/// Says how many rows a reading request gets at most, without being told.
pub const MAX_ROWS: u32 = 1000;

/// Represents a running server.
#[derive(Debug)]
pub struct PostgRest {
    settings: Settings,
    port: u16,
    admin_port: u16,
    /// Is `None` only between the stop and the start of a restart.
    server: Option<Child>,
}

#[derive(Debug)]
struct Settings {
    binary: PathBuf,
    database_url: String,
    keys: Keys,
    log: PathBuf,
}

impl PostgRest {
    /// Starts a server over `database`, with the npm set [`npm::STACK`] that is installed in `parts`; it logs into
    /// the directory `logs`.
    pub async fn start(parts: &Path, database: &Database, keys: &Keys, logs: &Path) -> Result<Self> {
        let settings = Settings {
            binary: npm::postgrest(parts),
            database_url: database.authenticator_url(),
            keys: keys.clone(),
            log: logs.join(format!("postgrest-{}.log", database.name())),
        };
        let mut failure = None;
        for _ in 0..ports::ATTEMPTS {
            let (port, admin_port) = (ports::free()?, ports::free()?);
            let mut server = settings.spawn(port, admin_port)?;
            match settings.ready(&mut server, port, admin_port).await {
                Ok(()) => return Ok(Self { settings, port, admin_port, server: Some(server) }),
                // Another process was faster on one of the ports, or it is a real fault: the last one tells.
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => bail!("PostgREST was never started"),
        }
    }

    /// Returns `http://127.0.0.1:PORT`, without a slash at the end; the gateway is in front of it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it in the middle of whatever it does. Requests fail until [`resume`](Self::resume).
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts it again where it was.
    pub async fn resume(&mut self) -> Result<()> {
        self.kill();
        let mut server = self.settings.spawn(self.port, self.admin_port)?;
        self.settings.ready(&mut server, self.port, self.admin_port).await?;
        self.server = Some(server);
        Ok(())
    }
}

impl Settings {
    fn spawn(&self, port: u16, admin_port: u16) -> Result<Child> {
        Command::new(&self.binary, &self.log)
            .env("PGRST_DB_URI", &self.database_url)
            .env("PGRST_DB_SCHEMAS", "public")
            .env("PGRST_DB_ANON_ROLE", "anon")
            .env("PGRST_DB_MAX_ROWS", MAX_ROWS.to_string())
            .env("PGRST_DB_POOL", "20")
            .env("PGRST_JWT_SECRET", &self.keys.jwt_secret)
            .env("PGRST_SERVER_HOST", "127.0.0.1")
            .env("PGRST_SERVER_PORT", port.to_string())
            .env("PGRST_ADMIN_SERVER_PORT", admin_port.to_string())
            .env("PGRST_LOG_LEVEL", "warn")
            .stop_with(Signal::Kill)
            .start()
    }

    /// Waits until the schema is loaded, and until it is our server that answers: on a port taken by somebody
    /// else in the meantime, the token would not be good.
    async fn ready(&self, server: &mut Child, port: u16, admin_port: u16) -> Result<()> {
        let admin = Upstream::new(admin_port);
        let api = Upstream::new(port);
        server
            .ready(|| async {
                let loaded = answers(&admin, "/ready", None).await == Some(StatusCode::OK);
                loaded && answers(&api, "/", Some(&self.keys.anon)).await == Some(StatusCode::OK)
            })
            .await
    }
}

/// Returns the status that a server answers with, if it answers.
async fn answers(server: &Upstream, path: &str, token: Option<&str>) -> Option<StatusCode> {
    let mut request = Request::head(path);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Body::empty()).ok()?;
    Some(server.send(request).await.ok()?.status())
}
