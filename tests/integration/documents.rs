//! The documents keep their promises: the README is short, links lead somewhere, and what a document names exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A document's short paths begin there, beside its own folder.
const BEGINNINGS: [&str; 6] = [
    "",
    "crates/jobs/src",
    "tests/integration",
    "supabase/migrations",
    "supabase/schemas",
    ".github/workflows",
];

/// Names of others, which only the documents use.
const FOREIGN: [&str; 2] = ["ROUTER_EXTERNAL_TARGET_ERROR", "headless_chrome"];

/// These documents are about what others say and do: they are full of such names.
const OF_OTHERS: [&str; 3] = ["docs/field-reports.md", "docs/law.md", "docs/refusals.md"];

/// Others make or own these: build products, the platform's files.
const ELSEWHERE: [&str; 3] = ["target/", ".vercel/", "node_modules/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns a path from the root, as it is printed.
fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Returns every file of the repository that somebody wrote.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", "node_modules", ".git", ".vercel"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted))
}

fn documents() -> Vec<PathBuf> {
    files().into_iter().filter(|path| has_extension(path, &["md"])).collect()
}

/// Returns what a document may speak of: everything but documents, and this file, which names
/// things as examples.
fn sources() -> Vec<(PathBuf, String)> {
    const EXTENSIONS: [&str; 12] =
        ["rs", "sql", "toml", "yml", "sh", "mjs", "js", "json", "html", "txt", "graphql", "example"];
    files()
        .into_iter()
        .filter(|path| has_extension(path, &EXTENSIONS) && !path.ends_with("tests/integration/documents.rs"))
        .map(|path| {
            let text = read(&path);
            (path, text)
        })
        .collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// Returns the lines outside fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// Returns what stands between single backticks.
fn code_spans(text: &str) -> Vec<&str> {
    prose(text).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// Returns the targets of `[text](target)`, `[label]: target` and `src="target"`.
fn links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    for line in prose(text) {
        if let Some((_, target)) = line.strip_prefix('[').and_then(|line| line.split_once("]: ")) {
            links.push(target.trim());
        }
        links.extend(line.split("](").skip(1).filter_map(|rest| rest.split(')').next()));
        links.extend(line.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next()));
    }
    links
}

/// Returns a heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

/// `a{b,c}d` is `abd` and `acd`.
fn alternatives(path: &str) -> Vec<String> {
    let braces = path.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?)));
    let Some((head, (inner, tail))) = braces else { return vec![path.to_owned()] };
    inner.split(',').flat_map(|part| alternatives(&format!("{head}{}{tail}", part.trim()))).collect()
}

/// Says whether a path leads to something. Behind a `*` anything will do, as long as its folder has
/// a file.
fn leads_somewhere(document: &Path, path: &str) -> bool {
    let fixed = path.split('*').next().unwrap_or_default().trim_end_matches('/');
    let own = document.parent().unwrap();
    own.join(fixed).exists() || BEGINNINGS.iter().any(|begin| root().join(begin).join(fixed).exists())
}

/// Says whether a span is a path of this repository, as far as one can tell: with a slash and
/// nothing that a path has not, or with the ending of a file.
fn is_path(span: &str) -> bool {
    let plain = span.chars().all(|c| c.is_alphanumeric() || "/._-*{},".contains(c));
    let file = Path::new(span);
    let named = has_extension(file, &["rs", "md", "sql", "sh", "yml", "mjs", "toml"]);
    plain && !span.starts_with('/') && (span.contains('/') || (named && !span.starts_with('.')))
}

/// Says whether a word is `snake_case`, `SHOUTING_CASE` or `CamelCase`: nobody writes such a word
/// who does not mean a name.
fn is_name(word: &str) -> bool {
    let letters = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let snake = word.contains('_') && !word.starts_with('_') && !word.ends_with('_');
    let humps = word.chars().filter(char::is_ascii_uppercase).count();
    let camel = word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.contains(|c: char| c.is_ascii_lowercase())
        && humps > 1;
    letters && (snake || camel)
}

#[test]
fn the_readme_is_short() {
    let readme = read(&root().join("README.md"));
    assert!(readme.lines().count() <= 120, "README.md has {} lines", readme.lines().count());
    for line in readme.lines() {
        assert!(line.chars().count() <= 400, "too long for README.md: {line}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let mut astray = Vec::new();
    for document in documents() {
        let text = read(&document);
        for link in
            links(&text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
        {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let reached =
                target.exists() && (fragment.is_empty() || anchors(&read(&target)).contains(fragment));
            if !reached {
                astray.push(format!("{}: {link}", name(&document)));
            }
        }
    }
    assert!(astray.is_empty(), "links that lead nowhere:\n{}", astray.join("\n"));
}

#[test]
fn every_path_that_a_document_names_is_there() {
    let mut missing = Vec::new();
    for document in documents() {
        for span in code_spans(&read(&document)).into_iter().filter(|span| is_path(span)) {
            let elsewhere = ELSEWHERE.iter().any(|folder| span.starts_with(folder));
            let there = || alternatives(span).iter().all(|path| leads_somewhere(&document, path));
            if !elsewhere && !there() {
                missing.push(format!("{}: {span}", name(&document)));
            }
        }
    }
    assert!(missing.is_empty(), "paths that are not in the repository:\n{}", missing.join("\n"));
}

/// The code map has a row for each module of the library, and only for those, beside whole folders.
#[test]
fn the_code_map_has_every_module() {
    let map = read(&root().join("docs/ARCHITECTURE.md"));
    let (_, map) = map.split_once("\n## Code map\n").expect("the code map");
    let (map, _) = map.split_once("\n## ").expect("its end");
    let first_cells = map.lines().filter_map(|row| row.strip_prefix("| ")?.split(" | ").next());
    let named = first_cells.flat_map(code_spans).filter(|span| !span.contains('*'));
    let module = |span: &str| span.trim_start_matches("crates/jobs/src/").trim_end_matches(".rs").to_owned();
    let named: BTreeSet<String> = named.map(module).filter(|span| !span.contains('/')).collect();
    let library = read(&root().join("crates/jobs/src/lib.rs")).replace("#[cfg(test)]\nmod ", "");
    let declared = library.lines().map(|line| line.trim_start_matches("pub "));
    let declared =
        declared.filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).map(str::to_owned);
    assert_eq!(named, declared.collect());
}

#[test]
fn every_route_that_a_document_names_is_served() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = read(&document);
        let foreign = |word: &&str| {
            word.contains("://") && !["comptalyze", "YOUR", "VOTRE"].iter().any(|own| word.contains(own))
        };
        for word in text.split_whitespace().filter(|word| !foreign(word)) {
            for rest in word.split("/api/").skip(1) {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "/-".contains(c)));
                let path = rest[..end.unwrap_or(rest.len())].trim_end_matches('/');
                let here = root().join("api").join(path);
                if !here.exists() && !here.with_extension("rs").exists() {
                    missing.push(format!("{}: /api/{path}", name(&document)));
                }
            }
        }
    }
    assert!(missing.is_empty(), "routes that no function serves:\n{}", missing.join("\n"));
}

#[test]
fn every_name_in_a_document_is_one_of_the_code() {
    let sources = sources();
    let known: BTreeSet<&str> = sources.iter().flat_map(|(_, text)| words(text)).collect();
    let mut unknown = BTreeSet::new();
    for document in documents().into_iter().filter(|path| !OF_OTHERS.contains(&name(path).as_str())) {
        for span in code_spans(&read(&document)) {
            let example =
                is_path(span) || ["https://", "…", "<", "YOUR_"].iter().any(|part| span.contains(part));
            let named = words(span).filter(|word| !example && is_name(word));
            let named = named.filter(|word| !known.contains(word) && !FOREIGN.contains(word));
            unknown.extend(named.map(|word| format!("{}: {word} in `{span}`", name(&document))));
        }
    }
    assert!(unknown.is_empty(), "names that the code does not know:\n{}", Vec::from_iter(unknown).join("\n"));
}

/// `module::item`: a file of that module, one that contains it or one with a type of that name, has the item.
#[test]
fn every_item_that_a_document_names_is_where_it_says() {
    let sources = sources();
    let belongs = |path: &Path, text: &str, module: &str| {
        let defines = || {
            ["mod", "struct", "enum", "trait"].iter().any(|kind| text.contains(&format!("{kind} {module}")))
        };
        let parts = name(path);
        parts.split('/').any(|part| part == module || part == format!("{module}.rs")) || defines()
    };
    let mut missing = BTreeSet::new();
    for document in documents() {
        for span in code_spans(&read(&document)) {
            let path: String =
                span.chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)).collect();
            let Some((modules, item)) = path.rsplit_once("::") else { continue };
            let found = sources.iter().any(|(path, text)| {
                modules.split("::").all(|module| belongs(path, text, module))
                    && words(text).any(|word| word == item)
            });
            if !found {
                missing.insert(format!("{}: {span}", name(&document)));
            }
        }
    }
    assert!(missing.is_empty(), "items that are not there:\n{}", Vec::from_iter(missing).join("\n"));
}

/// Returns a text as one reads it: strings that continue in the next line, escaped quotes, and any
/// space is a space.
fn as_read(text: &str) -> String {
    let text: String = text.split("\\\n").map(str::trim_start).collect();
    [("\\\"", "\""), ("''", "'"), ("\\u{a0}", " "), ("\\u{202f}", " "), ("\u{a0}", " "), ("\u{202f}", " ")]
        .iter()
        .fold(text, |text, (written, read)| text.replace(written, read))
}

/// Returns what a message says around its placeholders.
fn fragments(message: &str) -> impl Iterator<Item = &str> {
    let fragments = message.split(['{', '}']).step_by(2).map(|text| text.trim_matches([' ', ':', '.']));
    fragments.filter(|text| text.len() > 8)
}

/// Each message that the runbook explains is one that the product can say, placeholders aside.
#[test]
fn every_message_of_the_runbook_is_said_somewhere() {
    let runbook = as_read(&read(&root().join("docs/RUNBOOK.fr.md")));
    let (_, messages) = runbook.split_once("\n## Messages d’erreur\n").expect("the messages' section");
    let said = as_read(&sources().into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("\n"));
    let mut unsaid = Vec::new();
    for span in code_spans(messages).into_iter().filter(|span| span.split(' ').count() > 3) {
        unsaid.extend(
            fragments(span).filter(|part| !said.contains(part)).map(|part| format!("{part} in: {span}")),
        );
    }
    assert!(unsaid.is_empty(), "messages that nothing says:\n{}", unsaid.join("\n"));
}

/// The runbook explains each message about the configuration.
#[test]
fn the_runbook_has_every_message_about_the_configuration() {
    let runbook = as_read(&read(&root().join("docs/RUNBOOK.fr.md")));
    let (mut found, mut unexplained) = (0, Vec::new());
    for (path, text) in sources() {
        if !name(&path).starts_with("crates/jobs/src/config/") {
            continue;
        }
        let text = as_read(text.split("#[cfg(test)]").next().unwrap_or_default());
        for call in text.split("faults.add(").skip(1) {
            let message = call.split('"').nth(1).unwrap_or_default();
            found += 1;
            unexplained.extend(fragments(message).filter(|part| !runbook.contains(part)).map(str::to_owned));
        }
    }
    assert!(found > 10, "only {found} messages: are they written in another way now?");
    assert!(unexplained.is_empty(), "messages without a line in the runbook:\n{}", unexplained.join("\n"));
}

/// The runbook says what to do about each code that an answer, a log row or the status page may show.
#[test]
fn the_runbook_has_every_code_of_a_problem() {
    let runbook = read(&root().join("docs/RUNBOOK.fr.md"));
    let mut codes = BTreeSet::new();
    for (path, text) in sources() {
        if !name(&path).starts_with("crates/jobs/src/") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: String = code.lines().map(str::trim_start).collect();
        for before in ["code: \"", "failure(\"", "fault(\"", "last(\""] {
            let ends = code.split(before).skip(1).filter_map(|rest| rest.split('"').next());
            let named = ends.filter(|code| code.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            codes.extend(named.map(str::to_owned));
        }
    }
    assert!(codes.len() > 10, "only {codes:?}: are they written in another way now?");
    let unexplained: Vec<_> = codes.iter().filter(|code| !runbook.contains(&format!("`{code}`"))).collect();
    assert!(unexplained.is_empty(), "codes without a line in the runbook: {unexplained:?}");
}

/// No document has a reference that only those could follow who were there.
#[test]
fn nothing_refers_to_what_is_not_in_the_repository() {
    let private = ["DESIGN §", "(facts"];
    let texts = documents().into_iter().map(|path| {
        let text = read(&path);
        (path, text)
    });
    for (path, text) in texts.chain(sources()) {
        let comment = |line: &str| ["//", "--", "#"].iter().any(|begin| line.trim_start().starts_with(begin));
        for line in text.lines().filter(|line| has_extension(&path, &["md"]) || comment(line)) {
            let named = private.iter().find(|reference| line.contains(*reference));
            assert_eq!(named, None, "{}: {line}", name(&path));
        }
    }
}
