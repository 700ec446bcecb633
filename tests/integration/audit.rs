//! What can be read off the sources and the lock file: where secrets are compared, what the dependencies are.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Returns the sources of what is deployed, without their unit tests, which stand at the end: path
/// and lines.
fn deployed() -> Result<Vec<(String, Vec<String>)>> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("crates/jobs/src"), root().join("api")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let rust = path.extension().is_some_and(|extension| extension == "rs");
            if path.is_dir() {
                folders.push(path);
            } else if rust && !["tests.rs", "test_server.rs", "damage.rs"].contains(&name.as_str()) {
                let text = fs::read_to_string(&path)?;
                let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
                let lines =
                    lines.map(|line| line.split("//").next().unwrap_or_default().to_owned()).collect();
                files.push((path.strip_prefix(root())?.display().to_string(), lines));
            }
        }
    }
    ensure!(files.len() > 80, "only {} files", files.len());
    Ok(files)
}

/// Returns all Rust files below a folder: path and lines.
fn sources(folder: &str) -> Result<Vec<(String, Vec<String>)>> {
    let (mut files, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let lines = fs::read_to_string(&path)?.lines().map(str::to_owned).collect();
                files.push((path.strip_prefix(root())?.display().to_string(), lines));
            }
        }
    }
    Ok(files)
}

/// Nobody else asks the machine or the database what time it is. Tests have their world's clock, so
/// that they say the same on every day; only leases, which nobody plays, go by the database's own
/// time.
#[test]
fn no_test_asks_the_machine_for_the_date() -> Result<()> {
    let clocks = [
        ["Utc::", "now("].concat(),
        ["Local::", "now("].concat(),
        ["SystemTime::", "now("].concat(),
        ["clock_", "timestamp("].concat(),
        ["statement_", "timestamp("].concat(),
        ["transaction_", "timestamp("].concat(),
        ["current_", "date"].concat(),
        ["current_", "timestamp"].concat(),
        ["local", "timestamp"].concat(),
    ];
    // SQL's, not a method or a path of ours; what is deployed has no SQL.
    let call = ["now", "()"].concat();
    let sql = |path: &str, line: &str| {
        let of_rust = |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || ":._".contains(c));
        path.contains("tests/") && line.match_indices(&call).any(|(at, _)| !of_rust(&line[..at]))
    };
    let mut found = BTreeSet::new();
    for folder in ["tests", "crates/jobs/src", "crates/processes", "crates/stand-ins", "crates/local-stack"] {
        for (path, lines) in sources(folder)? {
            for line in lines.iter().map(|line| line.trim()).filter(|line| !line.starts_with("//")) {
                if sql(&path, line) || clocks.iter().any(|clock| line.contains(clock.as_str())) {
                    found.insert((path.clone(), line.to_owned()));
                }
            }
        }
    }
    let allowed = [
        // Leases: whether a chain is held, whether a message shows.
        ("tests/integration/chaos/chain/mod.rs", "held_until > CLOCK"),
        ("tests/integration/promises/long_lists.rs", "vt <= CLOCK"),
        // The one clock of what is deployed, and that of the stand-ins where nobody sets it.
        ("crates/stand-ins/src/clock.rs", "unwrap_or_else(Utc::NOW"),
        // The developer's tools begin now; a webhook is signed at the moment of its request.
        ("crates/local-stack/src/main.rs", "run(false, Utc::NOW(), at)"),
        ("crates/local-stack/src/main.rs", "run(true, Utc::NOW(), at)"),
        ("crates/local-stack/src/main.rs", "bench::run(rest, Utc::NOW())"),
        ("crates/local-stack/src/bench/routes.rs", "let NOW = chrono::Utc::NOW().timestamp();"),
        ("crates/jobs/src/entry/app.rs", "self.config.clock.unwrap_or_else(Utc::NOW"),
    ];
    let unexpected: Vec<&(String, String)> = found
        .iter()
        .filter(|(path, line)| {
            let line = line.replace(&clocks[3], "CLOCK").replace("now", "NOW");
            !allowed.iter().any(|(file, text)| path == file && line.contains(text))
        })
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    Ok(())
}

/// Returns the files in which a line looks so.
fn places(looks: impl Fn(&str) -> bool) -> Result<BTreeSet<String>> {
    let files = deployed()?.into_iter();
    Ok(files.filter(|(_, lines)| lines.iter().any(|line| looks(line))).map(|(path, _)| path).collect())
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

/// One function hashes both sides and compares in constant time. Whoever compares a secret elsewhere, or with `==`,
/// finds this test.
#[test]
fn secrets_are_compared_in_one_place() -> Result<()> {
    let constant_time = places(|line| line.contains("ct_eq") || line.contains("subtle::"))?;
    assert_eq!(constant_time, set(&["crates/jobs/src/crypto/secret.rs"]));
    let callers = places(|line| line.contains("secret::matches(") || line.contains("secret::matches;"))?;
    assert_eq!(
        callers,
        set(&[
            "crates/jobs/src/entry/request.rs",
            "crates/jobs/src/entry/status/mod.rs",
            "crates/jobs/src/entry/status/sign_in.rs",
        ]),
        "the bearer and the sign-in form; nothing else lets anybody in"
    );
    let compared = places(|line| {
        let comparison = line.contains("==") || line.contains("!=") || line.contains(".eq(");
        let secret = ["expose_secret", "cron_secret", "webhook_secret", "api_key"];
        comparison && secret.iter().any(|name| line.contains(name))
    })?;
    assert_eq!(compared, set(&[]));
    // Signatures are compared by the HMAC itself, in constant time.
    let signatures = places(|line| line.contains("verify_slice("))?;
    let signing = ["crypto/svix.rs", "email/links.rs", "entry/status/session.rs"];
    assert_eq!(signatures, signing.iter().map(|path| format!("crates/jobs/src/{path}")).collect());
    let finalized = places(|line| line.contains("finalize()") && line.contains("=="))?;
    assert_eq!(finalized, set(&[]));
    Ok(())
}

/// These places open a secret, and for these reasons: into a header or a form of its own service,
/// to derive a key, or to have the addresses hashed where they are, in the database, with a key that does nothing else.
#[test]
fn secrets_are_opened_in_few_places() -> Result<()> {
    let opened = places(|line| {
        let opens = line.contains("expose_secret()") || line.contains("expose_secret_mut()");
        opens || line.contains("ExposeSecret::expose_secret")
    })?;
    let expected = [
        "chain.rs",
        "crypto/keys.rs",
        "crypto/secret.rs",
        "crypto/svix.rs",
        "crypto/tokens.rs",
        "email/links.rs",
        "email/objections.rs",
        "email/sender.rs",
        "entry/status/session.rs",
        "operations/health.rs",
        "providers/shopify/client.rs",
        "providers/stripe/client.rs",
        "supabase/mod.rs",
    ];
    assert_eq!(opened, expected.iter().map(|path| format!("crates/jobs/src/{path}")).collect());
    let logged = places(|line| line.contains("expose_secret") && line.contains("tracing::"))?;
    assert_eq!(logged, set(&[]));
    Ok(())
}

/// There is one HTTP client, which follows no redirect and takes no proxy from the environment; one
/// reader of the environment; no SQL from text of ours.
#[test]
fn what_exists_once_exists_once() -> Result<()> {
    let clients = places(|line| line.contains("Client::builder") || line.contains("Client::new()"))?;
    assert_eq!(clients, set(&["crates/jobs/src/http.rs"]));
    let environment = places(|line| line.contains("env::var"))?;
    assert_eq!(environment, set(&["crates/jobs/src/config/mod.rs"]));
    let unescaped = places(|line| line.contains("|safe") || line.contains("escape = \"none\""))?;
    assert_eq!(unescaped, set(&[]));
    Ok(())
}

/// Templates escape by their extension; whoever switches that off finds this test.
#[test]
fn no_template_lets_html_through() -> Result<()> {
    let mut templates = 0;
    for folder in ["email/templates", "entry/templates"] {
        for entry in fs::read_dir(root().join("crates/jobs/src").join(folder))? {
            let path = entry?.path();
            let text = fs::read_to_string(&path)?;
            templates += 1;
            if path.extension().is_some_and(|extension| extension == "html") {
                let through =
                    text.contains("|safe") || text.contains("| safe") || text.contains("autoescape");
                assert!(!through, "{}", path.display());
            }
        }
    }
    ensure!(templates > 10, "only {templates} templates");
    Ok(())
}

/// All of these may be shipped in a closed product.
const LICENCES: [&str; 15] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PostgreSQL",
    "Unicode-3.0",
    "Zlib",
];

/// Tells whether an SPDX expression can be met by them: every `AND` needs one of its `OR`s.
fn allowed(expression: &str) -> bool {
    // "A/B" is how OR was written once.
    let expression = expression.replace('/', " OR ");
    let term = |term: &str| LICENCES.contains(&term.trim().trim_matches(['(', ')']).trim());
    // Without mixed nesting, which `AND` of parenthesised `OR`s is as well.
    if expression.contains('(') || !expression.contains(" OR ") {
        expression.split(" AND ").all(|part| part.split(" OR ").any(term))
    } else {
        expression.split(" OR ").any(|part| part.split(" AND ").all(term))
    }
}

#[test]
fn expressions_are_understood() {
    for (expression, good) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT AND GPL-3.0", false),
        ("Apache-2.0 AND ISC", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(GPL-2.0 OR LGPL-2.1) AND MIT", false),
        ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
        ("", false),
    ] {
        assert_eq!(allowed(expression), good, "{expression}");
    }
}

/// Every crate comes from the registry, under a licence that we can keep.
#[test]
fn dependencies_are_the_registrys_and_freely_licensed() -> Result<()> {
    let rustc = Command::new("rustc").arg("-vV").output()?;
    let rustc = String::from_utf8(rustc.stdout)?;
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).context("host")?;
    // What this test was built of is here: nothing has to be fetched.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", host]);
    let output = cargo.current_dir(root()).output()?;
    let (metadata, complaint) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{complaint}");
    let metadata: Value = serde_json::from_slice(metadata)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    ensure!(packages.len() > 100, "only {} packages", packages.len());
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let ours = package["source"].is_null();
        let source = package["source"].as_str().unwrap_or("path");
        let registry = source == "registry+https://github.com/rust-lang/crates.io-index";
        assert!(ours || registry, "{name} is from {source}");
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        assert!(!ours || Path::new(manifest).starts_with(root()), "{name} is from {manifest}");
        let licence = match (package["license"].as_str(), package["license_file"].as_str()) {
            (Some(expression), _) => expression.to_owned(),
            // No expression, but a text that says what it is.
            (None, Some(file)) => {
                let text =
                    fs::read_to_string(Path::new(manifest).with_file_name(file)).context(name.to_owned())?;
                text.trim_start().strip_prefix("MIT License\n").map(|_| "MIT".to_owned()).unwrap_or_default()
            }
            (None, None) => String::new(),
        };
        assert!(allowed(&licence), "{name}: {licence:?}");
    }
    Ok(())
}
