//! The whole stack: one PostgreSQL per process, and as many environments on it as there are tests.

use std::path::PathBuf;

use anyhow::Result;
use tokio::sync::OnceCell;

use crate::{gateway::Gateway, resend::Resend};
use processes::{
    database::{self, Database, Template},
    keys::Keys,
    npm,
    postgres::Cluster,
    postgrest::PostgRest,
};

/// Represents a PostgreSQL cluster with the templates in it. Nothing in here belongs to a runtime:
/// each test has its own.
#[derive(Debug)]
pub struct Stack {
    parts: PathBuf,
    cluster: Cluster,
}

impl Stack {
    /// Installs what is missing, and starts a cluster.
    pub async fn start() -> Result<Self> {
        let parts = tokio::task::spawn_blocking(|| npm::install(&npm::STACK)).await??;
        let cluster = Cluster::start(&parts).await?;
        database::make_templates(&cluster).await?;
        Ok(Self { parts, cluster })
    }

    /// The stack of this process, started by whoever asks first.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Stack> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Makes a database of one's own, with nothing in front of it.
    pub async fn database(&self, template: Template) -> Result<Database> {
        Database::create(&self.cluster, template).await
    }

    /// Makes a Supabase project of one's own: a migrated database, PostgREST and the gateway.
    pub async fn environment(&self) -> Result<Environment> {
        self.environment_from(Template::Migrated).await
    }

    /// Makes the same over a copy of another template, for instance the one without our migrations.
    pub async fn environment_from(&self, template: Template) -> Result<Environment> {
        self.environment_over(self.database(template).await?).await
    }

    /// Makes the same over a database that is there already.
    pub async fn environment_over(&self, db: Database) -> Result<Environment> {
        let keys = Keys::generate()?;
        let postgrest = PostgRest::start(&self.parts, &db, &keys, self.cluster.scratch()).await?;
        let gateway = Gateway::start(&keys, postgrest.port()).await?;
        Ok(Environment { db, postgrest, gateway })
    }

    /// Starts a Resend of one's own. It takes about a second to start, so only tests that look at
    /// mails ask for one; for others [`Resend::bare`] needs no stack.
    pub async fn resend(&self) -> Result<Resend> {
        Resend::start(&self.parts, self.cluster.scratch()).await
    }
}

/// Holds what one test has to itself. It lives on the runtime it was made on, and stops when it is
/// dropped.
pub struct Environment {
    pub db: Database,
    pub postgrest: PostgRest,
    pub gateway: Gateway,
}

impl Environment {
    /// Returns what the functions are to find in their environment to reach this project.
    pub fn env_vars(&self) -> Vec<(&'static str, String)> {
        vec![
            ("SUPABASE_URL", self.gateway.url()),
            ("SUPABASE_SECRET_KEY", self.gateway.keys().secret.clone()),
        ]
    }
}
