//! Databases as the jobs find them, one per test.
//!
//! Each cluster holds two templates. `application` is a Supabase project with the web application's tables, the
//! way it was before this project; `migrated` has our migrations on top. A test's database is a copy of one of
//! them, which takes a fraction of a second.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use sqlx::{
    AssertSqlSafe, Connection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

use crate::postgres::Cluster;

const PLATFORM: &str = include_str!("../sql/00_platform.sql");
/// Names the first migration: on an empty project it makes the application's tables as production has them.
const APPLICATION: &str =
    include_str!("../../../supabase/migrations/20261122000000_application_baseline.sql");

/// Says what a database is a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// It is a new Supabase project: the platform and pgmq, no table of anybody's.
    Platform,
    /// It is the platform, pgmq and the application's tables: what our migrations are applied to.
    Application,
    /// It is the same with our migrations.
    Migrated,
}

impl Template {
    fn name(self) -> &'static str {
        match self {
            Self::Platform => "template_platform",
            Self::Application => "template_application",
            Self::Migrated => "template_migrated",
        }
    }
}

/// Represents one file of SQL.
#[derive(Clone, Debug)]
pub struct SqlFile {
    /// Is its name, without the directory.
    pub name: String,
    pub sql: String,
}

/// Returns our migrations, in the order in which Supabase applies them.
pub fn migrations() -> Result<Vec<SqlFile>> {
    sql_files("migrations")
}

/// Returns the state that the migrations lead to, a file per subject in the order of loading.
pub fn schemas() -> Result<Vec<SqlFile>> {
    sql_files("schemas")
}

fn sql_files(folder: &str) -> Result<Vec<SqlFile>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../supabase").join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot read {}", directory.display()))?;
    files.retain(|file| file.extension().is_some_and(|e| e == "sql"));
    files.sort();
    let read = |file: PathBuf| {
        let sql = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(SqlFile { name, sql })
    };
    files.into_iter().map(read).collect()
}

/// Makes both templates; once per cluster.
pub async fn make_templates(cluster: &Cluster) -> Result<()> {
    let [platform, application, migrated] =
        [Template::Platform, Template::Application, Template::Migrated].map(Template::name);
    let mut server = cluster.connect("postgres").await?;
    run(&mut server, &format!("create database {platform} is_template true")).await?;
    let pool = pool(cluster.options(platform));
    apply(&pool, "00_platform.sql", PLATFORM).await?;
    // An extension on Supabase, plain SQL here.
    pgmq::install::install_sql_from_embedded(&pool).await.context("cannot install pgmq")?;
    pool.close().await;

    run(&mut server, &format!("create database {application} template {platform} is_template true")).await?;
    let pool = self::pool(cluster.options(application));
    apply(&pool, "application_baseline.sql", APPLICATION).await?;
    pool.close().await;

    run(&mut server, &format!("create database {migrated} template {application} is_template true")).await?;
    let pool = self::pool(cluster.options(migrated));
    for migration in migrations()? {
        apply(&pool, &migration.name, &migration.sql).await?;
    }
    pool.close().await;
    server.close().await.context("cannot close a connection")
}

/// Runs a file of SQL as one transaction.
pub async fn apply(pool: &PgPool, name: &str, sql: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.with_context(|| format!("cannot apply {name}"))?;
    Ok(())
}

async fn run(connection: &mut sqlx::PgConnection, sql: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .with_context(|| format!("cannot run `{sql}`"))?;
    Ok(())
}

fn pool(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(10)
        .acquire_timeout(Duration::from_secs(30))
        .connect_lazy_with(options)
}

/// Represents a database of one's own. It stays until its cluster goes.
#[derive(Clone, Debug)]
pub struct Database {
    name: String,
    url: String,
    port: u16,
    pool: PgPool,
}

impl Database {
    /// Copies a template. The pool belongs to the runtime that this is called on.
    pub async fn create(cluster: &Cluster, template: Template) -> Result<Self> {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut server = cluster.connect("postgres").await?;
        run(&mut server, &format!("create database {name} template {}", template.name())).await?;
        server.close().await.context("cannot close a connection")?;
        Ok(Self { url: cluster.url(&name), port: cluster.port(), pool: pool(cluster.options(&name)), name })
    }

    /// Copies this database, which nothing else may be connected to. It is no good for anything but copies from
    /// then on.
    pub async fn copy(&self, cluster: &Cluster) -> Result<Self> {
        self.pool.close().await;
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut server = cluster.connect("postgres").await?;
        // By file: a database of a gigabyte would go through the log otherwise.
        let create = format!("create database {name} template {} strategy file_copy", self.name);
        run(&mut server, &create).await?;
        server.close().await.context("cannot close a connection")?;
        Ok(Self { url: cluster.url(&name), port: cluster.port(), pool: pool(cluster.options(&name)), name })
    }

    /// Removes it, with whatever is connected.
    pub async fn remove(self, cluster: &Cluster) -> Result<()> {
        self.pool.close().await;
        let mut server = cluster.connect("postgres").await?;
        run(&mut server, &format!("drop database {} with (force)", self.name)).await?;
        server.close().await.context("cannot close a connection")
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connections as the superuser, whom no policy and no grant stops.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Returns its address as the superuser, for `psql` and the like.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns its address as the role that PostgREST connects as.
    pub fn authenticator_url(&self) -> String {
        format!("postgres://authenticator:authenticator@127.0.0.1:{}/{}", self.port, self.name)
    }
}
