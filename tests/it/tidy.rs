//! Checks of the repository itself: whether it has the structure that its documents promise.
//!
//! These are rules that no compiler flag checks: which crate may depend on which, where unsafe code may be, that the
//! commands in README are those that CI runs. Rules for external dependencies are in `dependencies.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// The crates of the workspace that each crate may use. Every crate must be in this table, so a new one has to be
/// added.
const LAYERS: &[(&str, &[&str])] = &[
    ("fewbit-quant", &[]),
    ("fewbit-format", &["fewbit-quant"]),
    ("fewbit-kernels", &["fewbit-quant"]),
    ("fewbit-tokenizer", &["fewbit-format"]),
    ("fewbit-checkpoint", &["fewbit-format", "fewbit-quant"]),
    ("fewbit-model", &["fewbit-checkpoint", "fewbit-format", "fewbit-kernels", "fewbit-quant"]),
    ("fewbit-gpu", &["fewbit-kernels", "fewbit-model", "fewbit-quant"]),
    ("fewbit", &["fewbit-format", "fewbit-gpu", "fewbit-kernels", "fewbit-model", "fewbit-quant", "fewbit-tokenizer"]),
    ("fewbit-api", &[]),
    ("fewbit-serve", &["fewbit", "fewbit-api"]),
    ("fewbit-gateway", &["fewbit-serve"]),
    ("fewbit-cli", &["fewbit", "fewbit-gateway", "fewbit-serve"]),
    ("fewbit-candle", &["fewbit-format", "fewbit-kernels", "fewbit-quant"]),
    ("fewbit-oracle", &[]),
    ("xtask", &[]),
];

const MAX_LINES: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files of the repository with this extension, except in hidden folders and build output.
fn files(extension: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let entry = entry.expect("a readable entry");
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().expect("a type");
            let skip = name.to_string_lossy().starts_with('.') || name == "target";
            if kind.is_dir() && !skip {
                walk(&path, extension, found);
            } else if kind.is_file() && path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), extension, &mut found);
    assert!(!found.is_empty(), "no .{extension} file under {}", root().display());
    found
}

/// Fails with one line per finding.
fn assert_no_findings(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

/// A package of the workspace.
struct Package {
    name: String,
    folder: PathBuf,
    manifest: Table,
}

impl Package {
    fn read(folder: PathBuf) -> Self {
        let manifest: Table = read(&folder.join("Cargo.toml")).parse().expect("valid TOML");
        let name = manifest["package"]["name"].as_str().expect("a name").to_owned();
        Self { name, folder, manifest }
    }

    /// The keys of the dependency tables called `kind`, including those for single platforms.
    fn dependencies(&self, kind: &str) -> BTreeSet<String> {
        let platforms = self.manifest.get("target").and_then(Value::as_table);
        let tables = platforms.into_iter().flat_map(|t| t.values()).filter_map(Value::as_table);
        tables
            .chain([&self.manifest])
            .filter_map(|table| table.get(kind)?.as_table())
            .flat_map(|table| table.keys().cloned())
            .collect()
    }

    /// The root source file of the crate.
    fn crate_root(&self) -> PathBuf {
        let stated = self.manifest.get("lib").and_then(|lib| lib.get("path")).and_then(Value::as_str);
        let candidates = stated.into_iter().chain(["src/lib.rs", "src/main.rs"]);
        let mut paths = candidates.map(|path| self.folder.join(path));
        paths.find(|path| path.is_file()).unwrap_or_else(|| panic!("{} has no crate root", self.name))
    }
}

fn packages() -> Vec<Package> {
    let facade = Package::read(root().to_owned());
    let members = facade.manifest["workspace"]["members"].as_array().expect("a list").clone();
    let members = members.iter().map(|member| Package::read(root().join(member.as_str().expect("a path"))));
    let mut all: Vec<_> = members.collect();
    all.push(facade);
    all
}

#[test]
fn every_file_begins_with_module_docs() {
    let silent: Vec<_> = files("rs")
        .into_iter()
        .filter(|path| !read(path).starts_with("//!"))
        .map(|path| path.display().to_string())
        .collect();
    assert_no_findings("these files do not open with `//!`", &silent);
}

#[test]
fn code_has_no_unfinished_markers() {
    // In two parts, so that this file is not among the findings.
    let marks = [("todo", "!"), ("unimplemented", "!"), ("dbg", "!"), ("#[ign", "ore")].map(|(a, b)| format!("{a}{b}"));
    let mut findings = Vec::new();
    for path in files("rs") {
        for (i, line) in read(&path).lines().enumerate() {
            if let Some(mark) = marks.iter().find(|mark| line.contains(mark.as_str())) {
                findings.push(format!("{}:{}: {mark}", path.display(), i + 1));
            }
        }
    }
    assert_no_findings("unfinished code", &findings);
}

#[test]
fn no_file_is_longer_than_the_limit() {
    let long: Vec<_> = files("rs")
        .into_iter()
        .map(|path| (read(&path).lines().count(), path))
        .filter(|(n_lines, _)| *n_lines > MAX_LINES)
        .map(|(n_lines, path)| format!("{}: {n_lines} lines", path.display()))
        .collect();
    assert_no_findings("files of more than 800 lines: look for the second subject in them", &long);
}

#[test]
fn crates_depend_downward_only() {
    let layers: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let mut findings = Vec::new();
    for package in packages() {
        let Some(allowed) = layers.get(package.name.as_str()) else {
            findings.push(format!("{} is not in the table of layers", package.name));
            continue;
        };
        let used = package.dependencies("dependencies").into_iter().chain(package.dependencies("build-dependencies"));
        let ours = used.filter(|name| layers.contains_key(name.as_str()));
        let wrong = ours.filter(|name| !allowed.contains(&name.as_str()));
        findings.extend(wrong.map(|name| format!("{} -> {name}", package.name)));
    }
    assert_no_findings("dependencies against the direction", &findings);
}

#[test]
fn only_serve_and_hub_depend_on_http() {
    let allowed = ["fewbit-serve", "fewbit"];
    let mut users = Vec::new();
    for package in packages().iter().filter(|package| !allowed.contains(&package.name.as_str())) {
        let http = ["axum", "hyper", "hyper-util", "http-body-util", "ureq"];
        let used = package.dependencies("dependencies").into_iter().filter(|name| http.contains(&name.as_str()));
        users.extend(used.map(|name| format!("{} -> {name}", package.name)));
    }
    assert_no_findings("HTTP belongs into fewbit-serve, and into the feature `hub`", &users);
}

#[test]
fn only_candle_and_oracle_crates_depend_on_candle() {
    let mut users = Vec::new();
    let own = ["fewbit-candle", "fewbit-oracle"];
    for package in packages().iter().filter(|package| !own.contains(&package.name.as_str())) {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let candle = package.dependencies(kind).into_iter().filter(|name| name.starts_with("candle"));
            users.extend(candle.map(|name| format!("{}: {kind}: {name}", package.name)));
        }
    }
    assert_no_findings("candle belongs into fewbit-candle and into the tests of fewbit-oracle", &users);
}

#[test]
fn unsafe_code_is_only_where_it_is_allowed() {
    let mut findings = Vec::new();
    for package in packages() {
        let wanted = match package.name.as_str() {
            "fewbit-kernels" => continue,
            "fewbit-format" | "fewbit-gpu" => "#![deny(unsafe_code)]",
            _ => "#![forbid(unsafe_code)]",
        };
        let path = package.crate_root();
        if !read(&path).lines().any(|line| line == wanted) {
            findings.push(format!("{}: no {wanted}", path.display()));
        }
    }
    // `deny` lets a module allow it again: a few do.
    let folders = ["crates/fewbit-format/src", "crates/fewbit-gpu/src"].map(|folder| root().join(folder));
    let allow = ["allow(unsafe", "_code)"].concat();
    for path in files("rs").into_iter().filter(|path| folders.iter().any(|folder| path.starts_with(folder))) {
        if read(&path).contains(&allow)
            && !["mmap.rs", "libcuda.rs", "gpu.rs", "memory.rs", "lib.rs"].iter().any(|name| path.ends_with(name))
        {
            findings.push(format!("{}: allows unsafe code", path.display()));
        }
    }
    assert_no_findings("unsafe code", &findings);
}

/// The lines of the first `n` blocks of commands in a Markdown text.
fn commands(markdown: &str, n: usize) -> Vec<Vec<String>> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, Vec<String>)> = None;
    for line in markdown.lines() {
        let trimmed = line.trim();
        match (trimmed.strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                let language = language.split_whitespace().next().unwrap_or_default();
                open = Some((["sh", "bash", "shell", "console"].contains(&language), Vec::new()));
            }
            (Some(_), Some(_)) => {
                let (is_shell, lines) = open.take().expect("just matched");
                if is_shell {
                    blocks.push(lines);
                }
            }
            (None, Some((_, lines))) => {
                let command = trimmed.strip_prefix("$ ").unwrap_or(trimmed);
                if !command.is_empty() && !command.starts_with('#') {
                    lines.push(command.to_owned());
                }
            }
            (None, None) => {}
        }
    }
    blocks.truncate(n);
    blocks
}

#[test]
fn ci_runs_the_commands_of_readme() {
    let readme = read(&root().join("README.md"));
    let ci = read(&root().join(".ci/run"));
    let blocks = commands(&readme, 2);
    let lines: Vec<_> = blocks.into_iter().flatten().collect();
    assert!(lines.len() >= 2, "README.md shows no two commands in blocks marked `sh`: {lines:?}");
    let is_run = |command: &String| {
        ci.lines()
            .any(|line| line.trim() == *command || line.trim().strip_prefix("run ").is_some_and(|l| l == *command))
    };
    let missing: Vec<_> = lines.into_iter().filter(|command| !is_run(command)).collect();
    assert_no_findings("commands of README.md that .ci/run does not run", &missing);
}

#[test]
fn commands_are_found_in_markdown() {
    let text =
        "# x\n```sh\n$ a b\n# note\n\nc\n```\ntext\n```rust\nfn f() {}\n```\n  ```console\n  d\n  ```\n```sh\ne\n```\n";
    assert_eq!(commands(text, 2), [vec!["a b".to_owned(), "c".to_owned()], vec!["d".to_owned()]]);
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn alternatives(path: &str) -> Vec<String> {
    match path.split_once('{').and_then(|(start, rest)| Some((start, rest.split_once('}')?))) {
        Some((start, (list, end))) => list.split(',').map(|part| format!("{start}{part}{end}")).collect(),
        None => vec![path.to_owned()],
    }
}

#[test]
fn files_named_in_documents_exist() {
    // A path is written from the root, from `crates/`, or from a crate or its sources where the text is about that.
    let mut bases = vec![root().to_owned(), root().join("crates")];
    for package in packages() {
        let sources = package.crate_root().parent().expect("a folder").to_owned();
        bases.extend([package.folder, sources]);
    }
    let is_path = |text: &str| {
        let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_./-{},".contains(c));
        let is_file = [".rs", ".md", ".py", ".toml", "/"].iter().any(|end| text.ends_with(end));
        text.contains('/') && is_plain && is_file && !text.contains("NAME") && !text.starts_with('/')
    };
    let mut findings = Vec::new();
    let mut n_paths = 0;
    for document in files("md") {
        let text = read(&document);
        let mut bases = bases.clone();
        bases.extend(document.parent().map(Path::to_owned));
        let quoted = text.split('`').skip(1).step_by(2).filter(|text| is_path(text)).map(str::to_owned);
        let linked = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let linked = linked.filter(|link| !link.is_empty() && !link.contains(':')).map(str::to_owned);
        for path in quoted.chain(linked).flat_map(|path| alternatives(&path)) {
            n_paths += 1;
            if !bases.iter().any(|base| base.join(&path).exists()) {
                findings.push(format!("{}: {path}", document.display()));
            }
        }
    }
    assert!(n_paths > 100, "only {n_paths} paths found");
    assert_no_findings("documents name files that are not there", &findings);
}
