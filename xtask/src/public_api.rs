//! The public API as the compiler sees it: `docs/public-api.txt`, which shows in a review how a change affects it.
//!
//! It is generated from rustdoc's JSON, whose format changes with the compiler, so this needs the version that the
//! workspace specifies as `rust-version`. The crate that reads it requires a feature, which this command enables for
//! itself.
//!
//! Everything in the listing of the last release (the newest tag `v*`) that is no longer there must be named in the
//! changelog's section of unreleased changes.

use anyhow::Result;

#[cfg(not(feature = "public-api"))]
pub(crate) fn run(write: bool) -> Result<()> {
    let mut all = vec!["run", "--quiet", "--package", "xtask", "--features", "public-api", "--", "public-api"];
    all.extend(write.then_some("--write"));
    crate::shell::run(&crate::shell::cargo(), &all)
}

#[cfg(feature = "public-api")]
pub(crate) fn run(write: bool) -> Result<()> {
    listing::run(write)
}

#[cfg(feature = "public-api")]
mod listing {
    use std::collections::HashSet;
    use std::fmt::Write;
    use std::fs;
    use std::process::Command;

    use anyhow::{Context, Result, bail};

    use crate::shell;

    /// The public crates: `fewbit`, and those that it re-exports.
    const CRATES: [&str; 6] =
        ["fewbit", "fewbit-checkpoint", "fewbit-format", "fewbit-model", "fewbit-quant", "fewbit-tokenizer"];

    /// Compares the API with the committed listing, or writes the listing.
    pub(super) fn run(write: bool) -> Result<()> {
        let path = shell::root().join("docs/public-api.txt");
        let mut text = String::from("The public API, written by `cargo xtask public-api --write`.\n");
        for name in CRATES {
            write!(text, "\n# {name}\n\n{}", list(name)?)?;
        }
        if write {
            return fs::write(&path, text).with_context(|| path.display().to_string());
        }
        let known = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let without = |all: &str, other: &str| {
            let other: HashSet<&str> = other.lines().collect();
            all.lines().filter(|line| !other.contains(line)).map(str::to_owned).collect::<Vec<_>>()
        };
        let (gone, new) = (without(&known, &text), without(&text, &known));
        gone.iter().for_each(|line| println!("- {line}"));
        new.iter().for_each(|line| println!("+ {line}"));
        if gone.len() + new.len() > 0 {
            bail!("the public API has changed: if that is meant, run `cargo xtask public-api --write`");
        }
        println!("the public API is what docs/public-api.txt says");
        breaking_changes_are_told(&text)
    }

    /// Fails if an item of the last release is removed or changed, and the changelog does not name it.
    fn breaking_changes_are_told(now: &str) -> Result<()> {
        let git = |args: &[&str]| -> Result<Option<String>> {
            let output = shell::command("git").current_dir(shell::root()).args(args).output().context("git")?;
            Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
        };
        let Some(tag) = git(&["describe", "--tags", "--abbrev=0", "--match", "v*"])? else {
            println!("no release yet: nothing to break");
            return Ok(());
        };
        let tag = tag.trim();
        let then = git(&["show", &format!("{tag}:docs/public-api.txt")])?
            .with_context(|| format!("{tag} has no docs/public-api.txt"))?;
        let changelog = fs::read_to_string(shell::root().join("CHANGELOG.md")).context("CHANGELOG.md")?;
        let unreleased = changelog.split("\n## ").find(|part| part.starts_with("Unreleased")).unwrap_or_default();
        let untold = super::untold(&then, now, unreleased);
        untold.iter().for_each(|line| println!("- {line}"));
        if !untold.is_empty() {
            bail!("changed since {tag}, and not named under Unreleased in CHANGELOG.md");
        }
        println!("CHANGELOG.md names each breaking change since {tag}");
        Ok(())
    }

    /// The items of a crate with all its features, one per line; derived and automatic implementations are left out.
    fn list(name: &str) -> Result<String> {
        let json = shell::root().join("target").join("doc").join(format!("{}.json", name.replace('-', "_")));
        let mut command = shell::command(shell::cargo());
        command
            .current_dir(shell::root())
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", shell::root().join("target"));
        command.args(["rustdoc", "--quiet", "--lib", "--all-features", "--package", name, "--"]);
        command.args(["-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"]);
        if !command.status().context("cargo cannot be started")?.success() {
            bail!("rustdoc failed for {name}");
        }
        let api = public_api::Builder::from_rustdoc_json(&json)
            .omit_blanket_impls(true)
            .omit_auto_trait_impls(true)
            .omit_auto_derived_impls(true)
            .build()
            .with_context(|| format!("{}: written by another version of Rust?", json.display()))?;
        let mut text = String::new();
        for item in api.items() {
            writeln!(text, "{item}")?;
        }
        Ok(text)
    }
}

/// The lines of `then` that are not in `now` and whose item `changelog` does not name. Naming a removed type covers its
/// members.
#[cfg(any(test, feature = "public-api"))]
fn untold<'a>(then: &'a str, now: &str, changelog: &str) -> Vec<&'a str> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let words: std::collections::HashSet<&str> = changelog.split(|c| !is_name(c)).collect();
    let kept: std::collections::HashSet<&str> = now.lines().collect();
    let gone = then.lines().filter(|line| line.contains("::") && !kept.contains(line));
    gone.filter(|line| {
        let path = line.split(' ').find(|word| word.contains("::")).unwrap_or_default();
        let end = path.find(|c| !is_name(c) && c != ':').unwrap_or(path.len());
        let (parent, name) = path[..end].trim_end_matches(':').rsplit_once("::").unwrap_or_default();
        let is_told = |path: &str| path.rsplit("::").next().is_some_and(|name| words.contains(name));
        !(is_told(name) || is_told(parent) && !now.contains(parent))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn removed_items_must_be_in_the_changelog() {
        let then =
            "pub fn fewbit::Generate::regex(self, &str) -> Self\npub struct fewbit::Old\npub fn fewbit::Old::new()";
        let untold = |changelog| super::untold(then, "", changelog).len();
        assert_eq!((untold(""), untold("`.regex(x)` went"), untold("`Old` and `regex` went")), (3, 2, 0));
        // Naming a type that still exists does not cover its methods.
        assert_eq!(super::untold(then, "pub struct fewbit::Generate", "Generate, Old").len(), 1);
        assert!(super::untold(then, then, "").is_empty());
    }
}
