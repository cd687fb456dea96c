//! No type of a dependency is part of the public API, so that a dependency can be changed without a new major version.
//! Exceptions are Serde's traits and values, schemars' `JsonSchema` and futures' `Stream`.
//!
//! This test reads the sources, which is enough to find what each file imports from a dependency, and whether a public
//! signature names it. `cargo xtask public-api` lists the API as the compiler sees it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Crates that may be named, in addition to the standard library and our own crates.
const ALLOWED: [&str; 4] = ["futures_core", "schemars", "serde", "serde_json"];

/// Crates that only generate implementations.
const MACROS: [&str; 1] = ["thiserror"];

/// The crates whose items are public: `fewbit` re-exports the others.
const CRATES: [&str; 6] = [
    "",
    "crates/fewbit-checkpoint",
    "crates/fewbit-format",
    "crates/fewbit-model",
    "crates/fewbit-quant",
    "crates/fewbit-tokenizer",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Dependencies of a crate that must not be visible, as they are written in code.
fn hidden(folder: &Path) -> BTreeSet<String> {
    let manifest: Table = fs::read_to_string(folder.join("Cargo.toml")).unwrap().parse().unwrap();
    let names = manifest.get("dependencies").and_then(Value::as_table).into_iter().flat_map(Table::keys);
    let names = names.map(|name| name.replace('-', "_"));
    let shows = |name: &String| ALLOWED.iter().chain(&MACROS).any(|known| known == name) || name.starts_with("fewbit");
    names.filter(|name| !shows(name)).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The words of a piece of code; paths joined by `::` are split.
fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The names that the file imports from these crates, including the crates' own names.
fn imports(code: &str, crates: &BTreeSet<String>) -> BTreeSet<String> {
    let mut names = crates.clone();
    for statement in code.split("use ").skip(1) {
        let statement = statement.split(';').next().unwrap_or_default();
        if words(statement).next().is_some_and(|first| crates.contains(first)) {
            // Modules come with it, which do no harm: `de` is not a type.
            names.extend(words(statement).filter(|word| word.starts_with(char::is_uppercase)).map(str::to_owned));
        }
    }
    names
}

/// The public signatures of a file: functions up to their bodies, fields, and enums and traits as a whole.
fn signatures(code: &str) -> Vec<String> {
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut found: Vec<String> = Vec::new();
    let mut open: Option<&str> = None;
    for line in code.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with("//") || trimmed.starts_with("#[") {
            continue;
        }
        if open.is_none() {
            let is_block = ["pub enum ", "pub trait "].iter().any(|start| line.starts_with(start));
            let is_conversion = ["impl From<", "impl TryFrom<"].iter().any(|start| line.starts_with(start));
            if !trimmed.starts_with("pub ") && !is_conversion {
                continue;
            }
            found.push(String::new());
            open = Some(if is_block { "}" } else { "" });
        }
        let last = found.last_mut().expect("one is open");
        *last += line;
        last.push('\n');
        let ends = match open {
            Some("}") => line.starts_with('}'),
            _ => [";", "{", "}", ","].iter().any(|end| trimmed.ends_with(end)) && balanced(last),
        };
        if ends {
            open = None;
        }
    }
    found
}

/// Whether round brackets are closed, so that a comma is not one between arguments.
fn balanced(code: &str) -> bool {
    code.matches('(').count() == code.matches(')').count()
}

#[test]
fn public_signatures_do_not_name_dependencies() {
    let mut findings = Vec::new();
    let mut n_signatures = 0;
    for name in CRATES {
        let folder = root().join(name);
        let (hidden, mut files) = (hidden(&folder), Vec::new());
        sources(&folder.join(if name.is_empty() { "crates/fewbit/src" } else { "src" }), &mut files);
        for file in files {
            let code = fs::read_to_string(&file).unwrap();
            let foreign = imports(&code, &hidden);
            for signature in signatures(&code) {
                n_signatures += 1;
                let named = words(&signature).find(|word| foreign.contains(*word));
                findings.extend(named.map(|word| format!("{}: {word} in {}", file.display(), signature.trim())));
            }
        }
    }
    assert!(n_signatures > 500, "only {n_signatures} public signatures found");
    assert!(findings.is_empty(), "types of dependencies in public signatures:\n  {}", findings.join("\n  "));
}

#[test]
fn public_signatures_are_found_in_code() {
    let code = "use memmap2::{Mmap, MmapOptions as Options};\nuse std::io;\n/// Mmap\npub struct A {\n    pub map: Mmap,\n    \
                other: Options,\n}\npub fn f(\n    a: Options,\n    b: u8,\n) -> io::Result<()> {\n    let Mmap = 1;\n}\n\
                pub enum E {\n    V { inner: memmap2::Advice },\n}\npub(crate) fn g(map: &Mmap) {}\nimpl From<Mmap> for A {\n}\n\
                #[cfg(test)]\nmod tests {\n    pub fn h(map: Mmap) {}\n}\n";
    let foreign = imports(code, &BTreeSet::from(["memmap2".to_owned()]));
    assert_eq!(foreign, ["Mmap", "MmapOptions", "Options", "memmap2"].map(str::to_owned).into());
    let bad = |signature: &String| words(signature).any(|word| foreign.contains(word));
    let found: Vec<_> =
        signatures(code).into_iter().map(|s| (bad(&s), s.split_whitespace().nth(1).unwrap().to_owned())).collect();
    let want = [(false, "struct"), (true, "map:"), (true, "fn"), (true, "enum"), (true, "From<Mmap>")];
    let want = want.map(|(bad, name)| (bad, name.to_owned()));
    assert_eq!(found, want);
}
