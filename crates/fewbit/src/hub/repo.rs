//! Lists the files of a hub repo, and fetches them.

use std::fs;
use std::io::Write;
use std::path::Path;

use fewbit_format::NewFile;
use serde_json::Value;
use sha1::{Digest, Sha1};

use super::choose::{RepoFile, Selected};
use super::client::Client;
use super::hf::encoded;
use super::name::is_safe_path;
use super::snapshots::is_commit;
use super::{Event, HfSettings, HfSource, HubError, Pin, Progress, RepoName, Source, fetch, space};

/// The largest file that is not in LFS; hubs require LFS for larger ones.
const MAX_SMALL_BYTES: u64 = 64 << 20;

/// The files of a repo at a commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<RepoFile>,
}

/// Asks the hub for the commit of a revision, and for the files there.
pub(super) fn listing(settings: &HfSettings, name: &RepoName) -> Result<Listing, HubError> {
    let revision = encoded(&name.revision).replace('/', "%2F");
    let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", settings.endpoint, name.repo);
    let answer = match Client::new(settings)?.get(&url, None) {
        // Without a token, the hub does not tell a private repo from one that does not exist.
        Err(HubError::Status { status: 401 | 404, .. }) => return Err(HubError::NoSuchRepo { url }),
        Err(HubError::Status { status: 403, .. }) => return Err(HubError::Gated { url }),
        other => other?,
    };
    let bad = |reason: &str| HubError::BadAnswer { url: url.clone(), reason: reason.to_owned() };
    let value: Value = serde_json::from_slice(&answer).map_err(|_| bad("the answer is not JSON"))?;
    let commit = value.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha));
    let commit = commit.ok_or_else(|| bad("the answer names no commit"))?.to_owned();
    let siblings = value.get("siblings").and_then(Value::as_array).ok_or_else(|| bad("the answer lists no files"))?;
    let mut files = Vec::with_capacity(siblings.len());
    for sibling in siblings {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let path = text(sibling, "rfilename").ok_or_else(|| bad("the answer has a file without a name"))?;
        if path.split(['/', '\\']).any(|part| part == "..") || path.starts_with(['/', '\\']) {
            return Err(HubError::UnsafePath { repo: name.repo.clone(), path });
        }
        if !is_safe_path(&path) {
            // Not every file system supports such a name, and no file of a model has one.
            tracing::info!(repo = name.repo, path, "left out");
            continue;
        }
        let lfs = sibling.get("lfs").filter(|lfs| lfs.is_object());
        let bytes = |value: &Value| value.get("size").and_then(Value::as_u64);
        files.push(RepoFile {
            bytes: lfs.and_then(bytes).or_else(|| bytes(sibling)),
            sha256: lfs.and_then(|lfs| text(lfs, "sha256")),
            git_sha1: text(sibling, "blobId").filter(|_| lfs.is_none()),
            path,
        });
    }
    Ok(Listing { commit, files })
}

/// Fetches the files of a model to `folder`, with their paths in the repo.
pub(super) fn fetch(
    settings: &HfSettings,
    repo: &str,
    commit: &str,
    selected: &Selected<'_>,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    // Checks all files together, because a part of a model is useless.
    let missing = selected.files.iter().map(|file| missing_bytes(&folder.join(&file.path), file));
    space::check(folder, missing.fold(0, u64::saturating_add))?;
    for file in &selected.files {
        if progress.is_cancelled() {
            return Err(HubError::Cancelled);
        }
        let path = folder.join(&file.path);
        if is_here(&path, file) {
            continue;
        }
        let source = HfSource::with_settings(settings, repo, commit, &file.path);
        match (&file.sha256, file.bytes) {
            (Some(sha256), Some(bytes)) => {
                let pin = Pin::new(bytes, sha256);
                let pin = pin.map_err(|_| HubError::NoPin { location: source.location() })?;
                fetch::fetch_file(&path, &pin, &source, progress)?;
            }
            (None, Some(bytes)) if bytes <= MAX_SMALL_BYTES && file.git_sha1.is_some() => {
                small(settings, &source, file, bytes, &path)?;
            }
            // A server whose listings have no hashes still has them in the headers of each file.
            _ => {
                let pinned = source.pin()?.ok_or_else(|| HubError::NoPin { location: source.location() })?;
                fetch::fetch_file(&path, &pinned.pin, pinned.source.as_ref(), progress)?;
            }
        }
    }
    Ok(())
}

/// Bytes that fetching a file will write, as far as its size is known, less what earlier attempts left.
fn missing_bytes(path: &Path, file: &RepoFile) -> u64 {
    if is_here(path, file) {
        return 0;
    }
    let part = fs::metadata(fetch::part_path(path)).map_or(0, |meta| meta.len());
    file.bytes.unwrap_or(0).saturating_sub(part)
}

/// Whether a file is complete: it got its name only after it was checked.
pub(super) fn is_here(path: &Path, file: &RepoFile) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && file.bytes.is_none_or(|bytes| bytes == meta.len()))
}

/// Fetches a file that is not in LFS, and checks it against its git hash.
fn small(settings: &HfSettings, source: &HfSource, file: &RepoFile, bytes: u64, path: &Path) -> Result<(), HubError> {
    let contents = small_bytes(settings, source, file, bytes)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        fs::create_dir_all(folder)?;
        let mut file = NewFile::create(path)?;
        file.write_all(&contents)?;
        file.finish()
    };
    write().map_err(|error| HubError::io("write", path, error))
}

/// Fetches the contents of a small file, and checks them.
pub(super) fn small_bytes(
    settings: &HfSettings,
    source: &HfSource,
    file: &RepoFile,
    bytes: u64,
) -> Result<Vec<u8>, HubError> {
    let location = source.location();
    let contents = Client::new(settings)?.get(&location, Some(bytes.min(MAX_SMALL_BYTES)))?;
    let found_bytes = contents.len() as u64;
    if found_bytes != bytes {
        return Err(HubError::Size { location, expected_bytes: bytes, found_bytes });
    }
    if let Some(expected) = &file.git_sha1 {
        let mut hasher = Sha1::new();
        hasher.update(format!("blob {bytes}\0"));
        hasher.update(&contents);
        let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found != *expected {
            return Err(HubError::Hash { location, expected: expected.clone(), found });
        }
    }
    Ok(contents)
}

/// Reports that a repo is being asked.
pub(super) fn announce(settings: &HfSettings, name: &RepoName, progress: &dyn Progress) {
    let name = name.to_string();
    // The endpoint replaces the host at the beginning of the name.
    let path = name.strip_prefix("hf.co/").unwrap_or(&name);
    progress.event(&Event::Trying { source: "hf", location: &format!("{}/{path}", settings.endpoint) });
}
