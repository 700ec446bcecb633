//! Reads the arrows between modules off the sources: they make no circle at any level, and at the top they only point
//! down in the order of layers that `docs/ARCHITECTURE.md` shows.
//!
//! An arrow goes from a module to the one that defines what it uses: by `use`, by a path in its code, or, from a
//! folder's own file, by the name of a child. A re-export (`pub use`) is a door and no arrow, unless its own file uses
//! the name: it is followed to the definition. Circles are looked for among the children of each folder, each with all
//! that is below it, and the folder's own file. Unit tests and what only they use are left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Lists the modules that only unit tests use.
const FOR_TESTS: [&str; 6] = ["tests", "damage", "contrast", "test_server", "layers", "lib"];
/// Names the node of a folder's own file among its children.
const OWN: &str = "(own)";

type Module = Vec<String>;
/// Holds the arrows by folder, then from child to child.
type Arrows = BTreeMap<Module, BTreeSet<(String, String)>>;

struct Source {
    module: Module,
    /// Lists the private imports, and the paths in the code.
    uses: Vec<Vec<String>>,
    /// Names that this module passes on, and from where.
    doors: BTreeMap<String, Vec<String>>,
    code: String,
}

/// Returns the code without comments, unit tests and test modules.
fn deployed(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            match lines.next() {
                Some(module) if module.trim_end().ends_with('{') => break,
                _ => continue,
            }
        }
        code.push_str(line);
        code.push('\n');
    }
    code
}

/// Returns every path that a tree of imports names: `a::{b, c::{self, d as e}}`.
fn expand(prefix: &[String], tree: &str, all: &mut Vec<(Vec<String>, String)>) {
    let tree = tree.trim();
    if let Some((head, rest)) = tree.split_once('{') {
        let mut prefix = prefix.to_vec();
        prefix.extend(head.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned));
        let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
        let (mut depth, mut from) = (0, 0);
        for (at, letter) in inner.char_indices().chain([(inner.len(), ',')]) {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(&prefix, &inner[from..at], all);
                    from = at + 1;
                }
                _ => {}
            }
        }
    } else if !tree.is_empty() {
        let (path, name) = tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name)));
        let mut path: Vec<String> =
            prefix.iter().cloned().chain(path.split("::").map(|part| part.trim().to_owned())).collect();
        if path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let name = name.map(|name| name.trim().to_owned()).or_else(|| path.last().cloned());
        all.push((path, name.unwrap_or_default()));
    }
}

fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

/// Returns whether code uses this type, or calls this function, by its name alone.
fn is_named(code: &str, name: &str) -> bool {
    let is_type = name.starts_with(|letter: char| letter.is_ascii_uppercase());
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        let after = code[at + name.len()..].chars().next().unwrap_or(' ');
        let alone = !is_name(before) && ![':', '.'].contains(&before) && !is_name(after);
        alone && (is_type || after == '(')
    })
}

/// Returns the paths in code that begin with one of `heads`.
fn inline_paths(code: &str, heads: &[String]) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for head in heads {
        let begin = format!("{head}::");
        for (at, _) in code.match_indices(&begin) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if is_name(before) || before == ':' {
                continue;
            }
            let path = &code[at..];
            let end = path.find(|letter: char| !is_name(letter) && letter != ':').unwrap_or(path.len());
            all.push(path[..end].split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect());
        }
    }
    all
}

fn read(root: &Path) -> Vec<Source> {
    let (mut files, mut folders) = (Vec::<PathBuf>::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let mut sources = Vec::new();
    for file in files {
        let path = file.strip_prefix(root).unwrap().with_extension("");
        let mut module: Module = path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        if module.iter().any(|part| FOR_TESTS.contains(&part.as_str())) {
            continue;
        }
        let (mut uses, mut doors, mut code) = (Vec::new(), BTreeMap::new(), String::new());
        let text = deployed(&fs::read_to_string(&file).unwrap());
        for statement in text.split_inclusive(';') {
            let import = statement.rfind("use ").filter(|at| {
                let before = &statement[..*at];
                let line = before.rsplit('\n').next().unwrap_or_default().trim();
                line.is_empty() || line.starts_with("pub")
            });
            match import {
                Some(at) => {
                    let (before, tree) = statement.split_at(at);
                    let public = before.rsplit('\n').next().unwrap_or_default().contains("pub");
                    let mut all = Vec::new();
                    expand(&[], tree.trim_start_matches("use ").trim_end_matches(';'), &mut all);
                    for (path, name) in all {
                        if public {
                            doors.insert(name, path);
                        } else {
                            uses.push(path);
                        }
                    }
                    code.push_str(before);
                }
                None => code.push_str(statement),
            }
        }
        sources.push(Source { module, uses, doors, code });
    }
    sources
}

/// Returns the module that defines what `path`, written in `from`, names; `None` for other crates' and the language's.
fn definition(from: &[String], path: &[String], modules: &BTreeMap<Module, &Source>) -> Option<Module> {
    let mut parts = path.iter().peekable();
    let mut module: Module = match parts.peek().map(|part| part.as_str()) {
        Some("crate") => {
            parts.next();
            Vec::new()
        }
        Some("self") => {
            parts.next();
            from.to_vec()
        }
        Some("super") => {
            let mut module = from.to_vec();
            while parts.next_if(|part| *part == "super").is_some() {
                module.pop()?;
            }
            module
        }
        // A child, by its name alone.
        Some(head) if modules.contains_key(&[from, &[head.to_owned()]].concat()) => from.to_vec(),
        _ => return None,
    };
    for part in parts {
        let child = [module.as_slice(), std::slice::from_ref(part)].concat();
        if modules.contains_key(&child) {
            module = child;
        } else if let Some(door) = modules.get(&module).and_then(|source| source.doors.get(part)) {
            return definition(&module, door, modules).or(Some(module));
        } else {
            break;
        }
    }
    Some(module)
}

fn arrows(root: &Path) -> Arrows {
    let sources = read(root);
    let modules: BTreeMap<Module, &Source> =
        sources.iter().map(|source| (source.module.clone(), source)).collect();
    let mut arrows = Arrows::new();
    for source in &sources {
        let children =
            modules.keys().filter(|module| module.split_last().is_some_and(|(_, of)| *of == source.module));
        let mut heads: Vec<String> = children.filter_map(|child| child.last().cloned()).collect();
        heads.extend(["crate", "super", "self"].map(str::to_owned));
        let own_doors = source.doors.iter().filter(|(name, _)| is_named(&source.code, name));
        let own_doors = own_doors.map(|(_, path)| path.clone());
        let paths = source.uses.iter().cloned().chain(inline_paths(&source.code, &heads)).chain(own_doors);
        for path in paths {
            let Some(target) = definition(&source.module, &path, &modules) else { continue };
            if target == source.module {
                continue;
            }
            let common = source.module.iter().zip(&target).take_while(|(one, other)| one == other).count();
            let node = |module: &Module| module.get(common).cloned().unwrap_or_else(|| OWN.to_owned());
            arrows
                .entry(source.module[..common].to_vec())
                .or_default()
                .insert((node(&source.module), node(&target)));
        }
    }
    arrows
}

/// Returns the nodes that are reached from `node`.
fn reached<'a>(node: &'a str, arrows: &'a BTreeSet<(String, String)>) -> BTreeSet<&'a str> {
    let (mut all, mut open) = (BTreeSet::new(), vec![node]);
    while let Some(node) = open.pop() {
        for (_, to) in arrows.iter().filter(|(from, _)| from == node) {
            if all.insert(to.as_str()) {
                open.push(to);
            }
        }
    }
    all
}

/// Returns the arrows that are part of a circle.
fn in_circles(arrows: &BTreeSet<(String, String)>) -> Vec<String> {
    let circular = arrows.iter().filter(|(from, to)| reached(to, arrows).contains(from.as_str()));
    circular.map(|(from, to)| format!("{from} → {to}")).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns the layers as `docs/ARCHITECTURE.md` shows them, from the top to the ground.
fn layers() -> Vec<Vec<String>> {
    let document = fs::read_to_string(root().join("../../../docs/ARCHITECTURE.md")).unwrap();
    let (_, block) = document.split_once("```layers\n").expect("the layers of crates/jobs");
    let (block, _) = block.split_once("```").unwrap();
    block.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn modules_make_no_circle_at_any_level() {
    for (folder, arrows) in arrows(&root()) {
        assert_eq!(in_circles(&arrows), Vec::<String>::new(), "crate::{}", folder.join("::"));
    }
}

#[test]
fn every_arrow_points_down_in_the_documented_order() {
    let (layers, arrows) = (layers(), arrows(&root()));
    let level = |module: &str| layers.iter().position(|layer| layer.iter().any(|name| name == module));
    let top = &arrows[&Module::new()];
    assert!(top.len() > 60, "only {} arrows", top.len());
    for (from, to) in top {
        let (above, below) = (level(from), level(to));
        assert!(above.is_some() && below.is_some(), "{from} → {to}: a layer is missing in ARCHITECTURE.md");
        assert!(above < below, "{from} → {to} points upwards, or sideways");
    }
    let named: BTreeSet<&String> = layers.iter().flatten().collect();
    let there: BTreeSet<String> =
        read(&root()).into_iter().filter_map(|source| source.module.first().cloned()).collect();
    assert_eq!(named, there.iter().collect::<BTreeSet<_>>(), "the layers name every module and nothing else");
}

#[test]
fn paths_are_read_and_followed() {
    let mut all = Vec::new();
    expand(&[], "crate::{a, b::{self, C as D}}", &mut all);
    let all: Vec<(String, &str)> = all.iter().map(|(path, name)| (path.join("::"), name.as_str())).collect();
    let expected = [("crate::a", "a"), ("crate::b", "b"), ("crate::b::C", "D")];
    assert_eq!(all, expected.map(|(path, name)| (path.to_owned(), name)));
    let found = inline_paths("x(crate::a::b(super::C)), std::self::d", &["crate".into(), "super".into()]);
    assert_eq!(found, [vec!["crate", "a", "b"], vec!["super", "C"]]);
    let one = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    let circle = BTreeSet::from([one("a", "b"), one("b", "c"), one("c", "b")]);
    assert_eq!(in_circles(&circle), ["b → c", "c → b"]);
}
