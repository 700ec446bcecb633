//! Runs the local stack by hand: `cargo stack demo`, `cargo stack up`, `cargo stack mails` and so on.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use local_stack::{bench, demo, mails, status_page};
use stand_ins::Stack;

const USAGE: &str = "\
Usage: cargo stack COMMAND

Commands:
  demo [--once] [--at INSTANT]
                 the whole product with users in it: calls the crons and the manual routes through `vercel dev`,
                 shows answers and changes, and stays up until Ctrl-C; with --once it stops after the round, with
                 exit code 1 when an answer was not what it must be; with --at (2026-12-31T23:30:00Z) on another day
  doctor URL     looks at a deployment from outside; with CRON_SECRET in the environment also as its operator
  up             PostgreSQL, PostgREST, the gateway and Resend, until Ctrl-C
  mails [FOLDER] every mail in its variants as HTML, text and pictures, in FOLDER or target/mails; pictures need
                 Chromium on the PATH or in the variable CHROME. Prints a year of one user's mails in order, which
                 story.txt there has whole
  status-page [FOLDER] [--at INSTANT]
                 pictures of the status page, in FOLDER or target/status; needs Chromium too. The page is always
                 of the same instant, so that only a change of the page changes a picture; --at chooses another
  bench [WORKLOAD…] [--runs N] [--json FILE]
                 how fast the functions are, as they are deployed; to be run optimised, too:
                 cargo run --release --bin local-stack -- bench
                 Workloads: w1 w1p w2 w3 w4-10k w4-100k w4-300k w5 routes; all of them without one";

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let at = if matches!(arguments.first().map(String::as_str), Some("demo" | "status-page")) {
        take_at(&mut arguments)?
    } else {
        None
    };
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["demo"] => demo::run(false, Utc::now(), at).await.map(code),
        ["demo", "--once"] => demo::run(true, Utc::now(), at).await.map(code),
        ["mails"] => {
            mails::write(Path::new("target/mails"), mails::browser().as_deref()).map(|()| ExitCode::SUCCESS)
        }
        ["mails", folder] if !folder.starts_with('-') => {
            mails::write(Path::new(folder), mails::browser().as_deref()).map(|()| ExitCode::SUCCESS)
        }
        ["doctor", address] => doctor(address).await.map(code),
        ["status-page"] => {
            status_page::write(Path::new("target/status"), at).await.map(|()| ExitCode::SUCCESS)
        }
        ["status-page", folder] if !folder.starts_with('-') => {
            status_page::write(Path::new(folder), at).await.map(|()| ExitCode::SUCCESS)
        }
        ["bench", ref rest @ ..] => bench::run(rest, Utc::now()).await.map(|()| ExitCode::SUCCESS),
        ["up"] => up().await.map(|()| ExitCode::SUCCESS),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        [] => bail!("which command?\n\n{USAGE}"),
        [command, ..] => bail!("`{command}` is not a command, or takes no such arguments\n\n{USAGE}"),
    }
}

/// Takes the option `--at` and its instant out of the arguments.
fn take_at(arguments: &mut Vec<String>) -> Result<Option<DateTime<Utc>>> {
    let Some(place) = arguments.iter().position(|argument| argument == "--at") else { return Ok(None) };
    let instant = arguments.get(place + 1).context("--at takes an instant, such as 2026-12-31T23:30:00Z")?;
    let at = instant.parse().with_context(|| format!("`{instant}` is no instant as RFC 3339 writes it"))?;
    arguments.drain(place..=place + 1);
    Ok(Some(at))
}

/// The secret never comes as an argument, which other users of the machine could read.
async fn doctor(address: &str) -> Result<bool> {
    let secret = std::env::var("CRON_SECRET").ok().filter(|secret| !secret.trim().is_empty());
    local_stack::doctor::run(address, secret.as_deref()).await
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Starts everything, says where it is, and waits for Ctrl-C.
async fn up() -> Result<()> {
    let stack = Stack::start().await?;
    let (environment, resend) = tokio::try_join!(stack.environment(), stack.resend())?;
    println!("DATABASE_URL={}", environment.db.url());
    for (name, value) in environment.env_vars().into_iter().chain(resend.env_vars()) {
        println!("{name}={value}");
    }
    println!("RESEND_INBOX={}", resend.inbox_url());
    println!("SCRATCH={}", stack.cluster().scratch().display());
    println!("# Ready. Ctrl-C stops everything.");
    tokio::signal::ctrl_c().await?;
    Ok(())
}
