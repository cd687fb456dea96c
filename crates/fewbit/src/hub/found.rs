//! Models that other programs have fetched: the caches of Hugging Face's tools, LM Studio and Ollama.
//!
//! ```text
//! $HF_HUB_CACHE/models--*/snapshots/*/*.gguf       org/repo:TYPE, or hf.co/org/repo/file.gguf
//! ~/.lmstudio/models/<publisher>/<repo>/*.gguf     lmstudio:publisher/repo/file.gguf
//! ~/.ollama/models/manifests/<host>/<name>/<tag>   ollama:name:tag
//! ```
//!
//! They are read where they lie; nothing is written there.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::choose::choose;
use super::snapshots::{Snapshots, walk};
use super::{Choice, HubError, RepoName};

const OLLAMA: &str = "ollama:";
const LM_STUDIO: &str = "lmstudio:";
/// The registry and the owner that Ollama's names leave out.
const OLLAMA_HOST: &str = "registry.ollama.ai";
const OLLAMA_OWNER: &str = "library";

/// A model on this computer, stored by fewbit or another program.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// The name to load it by.
    pub name: String,
    /// Path of the file or folder.
    pub path: PathBuf,
    /// Size of its files, in bytes.
    pub bytes: u64,
    /// The program whose cache it is in: `fewbit`, `Hugging Face`, `LM Studio` or `Ollama`.
    pub place: &'static str,
}

/// The folders where other programs keep models.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    lm_studio: Vec<PathBuf>,
    ollama: Vec<PathBuf>,
}

impl Places {
    pub(super) fn from_env() -> Self {
        let set = env::var_os("OLLAMA_MODELS").filter(|path| !path.is_empty()).map(PathBuf::from);
        Self::of_home(env::home_dir().as_deref(), set)
    }

    fn of_home(home: Option<&Path>, ollama: Option<PathBuf>) -> Self {
        let at = |path: &str| home.map(|home| home.join(path));
        // As a system service on Linux, Ollama has its own home folder.
        let service = cfg!(target_os = "linux").then(|| PathBuf::from("/usr/share/ollama/.ollama/models"));
        let usual = || at(".ollama/models").into_iter().chain(service).collect();
        Self {
            lm_studio: [".lmstudio/models", ".cache/lm-studio/models"].into_iter().filter_map(at).collect(),
            ollama: ollama.map_or_else(usual, |path| vec![path]),
        }
    }

    /// The file of a model whose name has the prefix of another program; `None` for other names.
    pub(super) fn find(&self, name: &str) -> Option<Result<PathBuf, HubError>> {
        let (place, bare) = match (name.strip_prefix(OLLAMA), name.strip_prefix(LM_STUDIO)) {
            (Some(bare), _) => ("Ollama", bare),
            (_, Some(bare)) => ("LM Studio", bare),
            _ => return None,
        };
        // The tag follows the last colon; the port of a host has a colon too.
        let has_tag = bare.rsplit('/').next().is_some_and(|last| last.contains(':'));
        let full = if has_tag || place != "Ollama" { name.to_owned() } else { format!("{name}:latest") };
        let found = self.all().into_iter().find(|found| found.name == full).map(|found| found.path);
        Some(found.ok_or_else(|| HubError::NotInPlace { place, name: bare.to_owned() }))
    }

    /// All models of other programs, by name.
    pub(super) fn all(&self) -> Vec<Found> {
        let mut all: Vec<Found> = self.lm_studio.iter().flat_map(|root| lm_studio(root)).collect();
        all.extend(self.ollama.iter().flat_map(|root| ollama(root)));
        all
    }
}

fn lm_studio(root: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    walk(root, 4, &mut |path, bytes| {
        let inside = path.strip_prefix(root).ok()?.to_str()?.replace('\\', "/");
        let lower = inside.to_ascii_lowercase();
        // For a split model, only the first part is listed.
        let is_later = lower.contains("-of-") && !lower.contains("-00001-of-");
        if lower.ends_with(".gguf") && !lower.contains("mmproj") && !is_later {
            let name = format!("{LM_STUDIO}{inside}");
            found.push(Found { name, path: path.to_owned(), bytes, place: "LM Studio" });
        }
        Some(())
    });
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn ollama(root: &Path) -> Vec<Found> {
    let manifests = root.join("manifests");
    let mut found = Vec::new();
    walk(&manifests, 5, &mut |path, _| {
        let inside = path.strip_prefix(&manifests).ok()?.to_str()?.replace('\\', "/");
        let (model, tag) = inside.rsplit_once('/')?;
        let model = model.strip_prefix(OLLAMA_HOST).and_then(|rest| rest.strip_prefix('/')).unwrap_or(model);
        let model = model.strip_prefix(OLLAMA_OWNER).and_then(|rest| rest.strip_prefix('/')).unwrap_or(model);
        let manifest: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let layers = manifest.get("layers")?.as_array()?;
        let is_model = |layer: &&Value| {
            layer.get("mediaType").and_then(Value::as_str) == Some("application/vnd.ollama.image.model")
        };
        let digest = layers.iter().find(is_model)?.get("digest")?.as_str()?;
        let hash = digest.strip_prefix("sha256:").filter(|hash| hash.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let blob = root.join("blobs").join(format!("sha256-{hash}"));
        let bytes = fs::metadata(&blob).ok()?.len();
        found.push(Found { name: format!("{OLLAMA}{model}:{tag}"), path: blob, bytes, place: "Ollama" });
        Some(())
    });
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The models of a folder of snapshots: each GGUF file (of a split one the first part), and folders of safetensors.
pub(super) fn in_snapshots(snapshots: &Snapshots, place: &'static str) -> Vec<Found> {
    let mut all = Vec::new();
    for (repo, commits) in snapshots.repos() {
        let current = snapshots.commit(&repo, "main");
        for commit in commits {
            let revision = if current.as_deref() == Some(&*commit) { "main" } else { &*commit };
            let folder = snapshots.folder(&repo, &commit);
            let files = snapshots.files(&repo, &commit);
            let name = |choice| RepoName { repo: repo.clone(), revision: revision.to_owned(), choice };
            let mut add = |name: RepoName, path: PathBuf, bytes| {
                all.push(Found { name: name.to_string(), path, bytes, place });
            };
            for file in files.iter().filter(|file| file.path.to_ascii_lowercase().ends_with(".gguf")) {
                let name = name(Choice::File(file.path.clone()));
                match choose(&name, &files) {
                    // The first part of a model that is whole, and no projector.
                    Ok(selected)
                        if selected.files[0].path == file.path
                            && !["mmproj", "imatrix"].iter().any(|part| file.path.contains(part)) =>
                    {
                        let bytes = selected.files.iter().filter_map(|file| file.bytes).sum();
                        add(name, folder.join(&file.path), bytes);
                    }
                    _ => {}
                }
            }
            if let Ok(selected) = choose(&name(Choice::Default), &files)
                && selected.folder.is_some()
            {
                let bytes = selected.files.iter().filter_map(|file| file.bytes).sum();
                add(name(Choice::Default), folder, bytes);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn models_of_other_programs_are_found_by_their_listed_names() {
        let home = tempfile::tempdir().unwrap();
        let at = |path: &str| home.path().join(path);
        put(at(".lmstudio/models/pub/repo/m.Q4_K_M.gguf"), "12345");
        put(at(".lmstudio/models/pub/repo/mmproj-m.gguf"), "1");
        put(at(".cache/lm-studio/models/old/repo/big-00001-of-00002.gguf"), "1");
        put(at(".cache/lm-studio/models/old/repo/big-00002-of-00002.gguf"), "1");
        let manifest = |digest: &str| {
            format!(
                r#"{{ "schemaVersion": 2, "config": {{ "digest": "sha256:00" }}, "layers": [
                    {{ "mediaType": "application/vnd.ollama.image.template", "digest": "sha256:aa", "size": 1 }},
                    {{ "mediaType": "application/vnd.ollama.image.model", "digest": "{digest}", "size": 3 }} ] }}"#
            )
        };
        let ollama = |path: &str, digest: &str| put(at(&format!(".ollama/models/manifests/{path}")), &manifest(digest));
        ollama("registry.ollama.ai/library/llama3.2/1b", "sha256:abc1");
        ollama("registry.ollama.ai/library/llama3.2/latest", "sha256:abc1");
        ollama("registry.ollama.ai/me/own/v1", "sha256:abc1");
        ollama("hf.co/org/repo/Q4_K_M", "sha256:abc1");
        ollama("registry.ollama.ai/library/gone/latest", "sha256:dddd");
        ollama("registry.ollama.ai/library/evil/latest", "sha256:../../../../etc/passwd");
        put(at(".ollama/models/manifests/registry.ollama.ai/library/broken/latest"), "{");
        put(at(".ollama/models/blobs/sha256-abc1"), "abc");

        let places = Places::of_home(Some(home.path()), Some(at(".ollama/models")));
        let names: Vec<_> = places.all().into_iter().map(|found| (found.name, found.bytes)).collect();
        let expected = [
            ("lmstudio:pub/repo/m.Q4_K_M.gguf", 5),
            ("lmstudio:old/repo/big-00001-of-00002.gguf", 1),
            ("ollama:hf.co/org/repo:Q4_K_M", 3),
            ("ollama:llama3.2:1b", 3),
            ("ollama:llama3.2:latest", 3),
            ("ollama:me/own:v1", 3),
        ];
        assert_eq!(names, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
        for found in places.all() {
            assert_eq!(places.find(&found.name).unwrap().unwrap(), found.path);
        }
        assert_eq!(places.find("ollama:llama3.2").unwrap().unwrap(), at(".ollama/models/blobs/sha256-abc1"));
        assert!(matches!(places.find("ollama:nosuch"), Some(Err(HubError::NotInPlace { .. }))));
        assert!(places.find("llama3.2:1b").is_none());
        assert!(Places::of_home(None, None).lm_studio.is_empty());
    }
}
