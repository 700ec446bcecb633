//! The local stack by hand: `cargo stack up`.

use anyhow::{Result, bail};
use local_stack::Stack;

const USAGE: &str = "\
Usage: local-stack COMMAND

Commands:
  up    start PostgreSQL, PostgREST, the gateway and Resend, until Ctrl-C";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["up"] => up().await,
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [] => bail!("which command?\n\n{USAGE}"),
        [command, ..] => bail!("`{command}` is not a command, or takes no arguments\n\n{USAGE}"),
    }
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
