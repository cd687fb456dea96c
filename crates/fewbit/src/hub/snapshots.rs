//! Folders with the files of repos: the cache of Hugging Face's tools, and fewbit's own with the same layout.
//!
//! ```text
//! models--<owner>--<name>/
//!   refs/<revision>             the commit that a branch or tag was at when it was last asked for
//!   snapshots/<commit>/<path>   the files; in Hugging Face's cache links to blobs/<hash>
//!   listings/<commit>.json      fewbit's own only: what else there is in the repo at this commit
//! ```
//!
//! A file has its final name only when it is complete: both tools write it elsewhere and rename it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::choose::RepoFile;
use super::name::is_safe_path;

/// How deep the folders of a repo are searched for files.
const MAX_DEPTH: usize = 4;

/// A folder with this layout.
#[derive(Debug, Clone)]
pub(super) struct Snapshots {
    root: PathBuf,
}

impl Snapshots {
    pub(super) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn repo(&self, repo: &str) -> PathBuf {
        self.root.join(format!("models--{}", repo.replace('/', "--")))
    }

    /// The commit of a revision, as of the last time the hub was asked.
    pub(super) fn commit(&self, repo: &str, revision: &str) -> Option<String> {
        let folder = self.repo(repo);
        let known = fs::read_to_string(folder.join("refs").join(revision)).ok();
        let known = known.map(|commit| commit.trim().to_owned()).filter(|commit| is_commit(commit));
        known.or_else(|| {
            let is_here = is_commit(revision) && folder.join("snapshots").join(revision).is_dir();
            is_here.then(|| revision.to_owned())
        })
    }

    /// The folder with the files of a commit.
    pub(super) fn folder(&self, repo: &str, commit: &str) -> PathBuf {
        self.repo(repo).join("snapshots").join(commit)
    }

    /// The files of a commit that are on this computer.
    pub(super) fn files(&self, repo: &str, commit: &str) -> Vec<RepoFile> {
        let folder = self.folder(repo, commit);
        let mut files = Vec::new();
        walk(&folder, MAX_DEPTH, &mut |path, bytes| {
            let inside = path.strip_prefix(&folder).ok()?.to_str()?.replace('\\', "/");
            if !inside.ends_with(".part") && !inside.ends_with(".lock") {
                files.push(RepoFile { bytes: Some(bytes), ..RepoFile::new(inside) });
            }
            Some(())
        });
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// The files of a commit, as the hub listed them.
    pub(super) fn listing(&self, repo: &str, commit: &str) -> Option<Vec<RepoFile>> {
        let text = fs::read_to_string(self.listing_path(repo, commit)).ok()?;
        let value: Value = serde_json::from_str(&text).ok()?;
        let file = |value: &Value| {
            let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
            Some(RepoFile {
                path: text("path").filter(|path| is_safe_path(path))?,
                bytes: value.get("bytes").and_then(Value::as_u64),
                sha256: text("sha256"),
                git_sha1: text("git_sha1"),
            })
        };
        value.as_array()?.iter().map(file).collect()
    }

    fn listing_path(&self, repo: &str, commit: &str) -> PathBuf {
        self.repo(repo).join("listings").join(format!("{commit}.json"))
    }

    /// Records the files of a commit, and that a revision is at this commit.
    #[cfg(feature = "hub")]
    pub(super) fn note(&self, repo: &str, revision: &str, commit: &str, files: &[RepoFile]) -> std::io::Result<()> {
        let list = files.iter().map(
            |f| serde_json::json!({ "path": f.path, "bytes": f.bytes, "sha256": f.sha256, "git_sha1": f.git_sha1 }),
        );
        write(&self.listing_path(repo, commit), &Value::Array(list.collect()).to_string())?;
        if is_commit(revision) { Ok(()) } else { write(&self.repo(repo).join("refs").join(revision), commit) }
    }

    /// All repos with files on this computer: their names and commits.
    pub(super) fn repos(&self) -> Vec<(String, Vec<String>)> {
        let names = |folder: &Path| -> Vec<String> {
            let items = fs::read_dir(folder).into_iter().flatten().flatten();
            let mut names: Vec<String> = items.filter_map(|item| item.file_name().into_string().ok()).collect();
            names.sort();
            names
        };
        let of_folder = |folder: String| {
            let repo = folder.strip_prefix("models--")?.replacen("--", "/", 1);
            let commits = names(&self.root.join(&folder).join("snapshots"));
            Some((repo, commits.into_iter().filter(|commit| is_commit(commit)).collect()))
        };
        names(&self.root).into_iter().filter_map(of_folder).collect()
    }
}

/// Writes a file and renames it, so that other processes never read a part of it.
#[cfg(feature = "hub")]
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let mut file = fewbit_format::NewFile::create(path)?;
    file.write_all(text.as_bytes())?;
    file.finish()
}

/// Whether a text is the hash of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    (40..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Finds the files in a folder and its subfolders; follows links to files, but not to folders.
pub(super) fn walk(folder: &Path, depth: usize, found: &mut dyn FnMut(&Path, u64) -> Option<()>) {
    for item in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = item.path();
        let is_folder = item.file_type().is_ok_and(|ty| ty.is_dir());
        if is_folder && depth > 0 {
            walk(&path, depth - 1, found);
        } else if let Ok(meta) = fs::metadata(&path)
            && meta.is_file()
        {
            found(&path, meta.len());
        }
    }
}
