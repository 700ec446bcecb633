//! Tests `vercel dev` over a small checkout, whose one function prints what it sees.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use processes::{npm, vercel::Dev};

mod support;

const MANIFEST: &str = r#"
[package]
name = "probe"
edition = "2024"

[workspace]

[[bin]]
name = "look-around"
path = "api/look/around.rs"
"#;

/// Answers every request with its process id and two variables.
const FUNCTION: &str = r#"
use std::{env, io::{Read, Write}, net::TcpListener, process};
fn main() {
    let port = env::var("VERCEL_DEV_PORT").unwrap();
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    println!("Dev server listening: {port}");
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let see = |name: &str| env::var(name).unwrap_or_default();
        let body = format!("{} {}{}", process::id(), see("COLOUR"), see("CARGO_PKG_NAME"));
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    }
}
"#;

fn checkout(at: &Path) -> Result<()> {
    fs::create_dir_all(at.join("api/look"))?;
    fs::create_dir_all(at.join("public"))?;
    fs::create_dir_all(at.join(".vercel"))?;
    for (name, text) in [
        ("Cargo.toml", MANIFEST),
        ("api/look/around.rs", FUNCTION),
        ("public/index.html", "hello"),
        ("vercel.json", r#"{"framework": null}"#),
        // What a developer who deploys from here has.
        (".env", "COLOUR=production"),
        (".env.local", "COLOUR=production"),
        (".vercel/project.json", r#"{"projectId": "prj_theirs", "orgId": "team_theirs"}"#),
    ] {
        fs::write(at.join(name), text)?;
    }
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort_unstable();
    Ok(names)
}

#[tokio::test]
async fn functions_see_what_they_are_given_and_the_checkout_stays_as_it_is() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // Cargo's and the CLI's outputs show the canonical path.
    let root = directory.path().canonicalize()?;
    checkout(&root)?;
    let parts = tokio::task::spawn_blocking(|| npm::install(&npm::VERCEL)).await??;
    let dev = Dev::start(&parts, &root, |_| vec![("COLOUR", "blue".into())]).await?;
    let scratch = dev.log().parent().context("no scratch directory")?.to_owned();

    let client = support::http_client();
    let answer = client.get(format!("{}/api/look/around", dev.url())).send().await?.text().await?;
    let (process, seen) = answer.split_once(' ').with_context(|| answer.clone())?;
    assert_eq!(seen, "blue");
    let page = client.get(dev.url()).send().await?.text().await?;
    assert_eq!(page, "hello");

    let mut expected = vec![".env", ".env.local", ".vercel", "Cargo.lock", "Cargo.toml", "api", "public"];
    expected.extend(["target", "vercel.json"]);
    assert_eq!(names(&root)?, expected);
    assert_eq!(names(&root.join(".vercel"))?, ["project.json"]);

    drop(dev);
    assert!(!scratch.exists());
    for _ in 0..100 {
        if !Path::new(&format!("/proc/{process}")).exists() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(!cfg!(target_os = "linux"), "the function outlives vercel dev");
    Ok(())
}
