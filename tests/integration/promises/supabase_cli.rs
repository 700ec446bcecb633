//! The real Supabase CLI applies `supabase/migrations`, the way `supabase/README.md` says it: to an empty project, and
//! to one with the application's tables and rows.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use processes::{
    database::{Database, Template, apply, migrations},
    npm,
};
use stand_ins::Stack;

use super::migrations::{COUNTS, ROWS, assert_same, database, schema};

/// Runs what the command of the README prints; `project` holds the `supabase` directory.
async fn push(project: &Path, database: &Database) -> Result<String> {
    let parts = tokio::task::spawn_blocking(|| npm::install(&npm::SUPABASE)).await??;
    let mut command = Command::new(npm::supabase(&parts));
    command
        .args(["db", "push", "--yes", &format!("--remote={}", database.url())])
        .current_dir(project)
        // Nothing of the developer's own: no project that is linked, no token, no file of settings.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").context("there is no PATH")?)
        .env("HOME", project)
        .env("SUPABASE_TELEMETRY_DISABLED", "1")
        .env("PGSSLMODE", "disable")
        .stdin(Stdio::null());
    let output =
        tokio::task::spawn_blocking(move || command.output()).await?.context("the CLI does not start")?;
    let printed =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "supabase db push: {}\n{printed}", output.status);
    Ok(printed)
}

#[tokio::test]
async fn the_supabase_cli_applies_the_migrations_once() -> Result<()> {
    let files = migrations()?;
    let expected = schema(database(Template::Migrated).await?.pool()).await?;
    for (what, template, rows) in
        [("an empty project", Template::Platform, ""), ("the application's", Template::Application, ROWS)]
    {
        let database = database(template).await?;
        // A copy, since the CLI notes things beside the migrations. It goes with the cluster.
        let project = Stack::shared().await?.cluster().scratch().join(format!("cli-{}", database.name()));
        fs::create_dir_all(project.join("supabase/migrations"))?;
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("supabase/config.toml");
        fs::copy(config, project.join("supabase/config.toml"))?;
        for file in &files {
            fs::write(project.join("supabase/migrations").join(&file.name), &file.sql)?;
        }
        apply(database.pool(), "rows", rows).await?;
        let counted = if rows.is_empty() { "select ''" } else { COUNTS };
        let before: String = sqlx::query_scalar(counted).fetch_one(database.pool()).await?;

        let first = push(&project, &database).await?;
        for file in &files {
            assert!(first.contains(&format!("Applying migration {}", file.name)), "{what}: {first}");
        }
        let second = push(&project, &database).await?;
        assert!(second.contains("up to date") && !second.contains("Applying"), "{what}: {second}");

        assert_same(what, &expected, &schema(database.pool()).await?);
        let after: String = sqlx::query_scalar(counted).fetch_one(database.pool()).await?;
        assert_eq!(after, before, "{what}");
        let history = "select version || '_' || name || '.sql' from supabase_migrations.schema_migrations order by version";
        let history: Vec<String> = sqlx::query_scalar(history).fetch_all(database.pool()).await?;
        assert_eq!(history, files.iter().map(|file| file.name.clone()).collect::<Vec<_>>(), "{what}");
    }
    Ok(())
}
