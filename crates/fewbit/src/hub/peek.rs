//! Inspects a model of the hub before it is fetched: reads the headers of its files by range requests.
//!
//! The headers go to a temporary folder, into files that have the length of the real ones and nothing after the header
//! (sparse files, which take no room if the file system supports them). So all code that inspects a model without
//! reading its weights works on a model that was never fetched.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fewbit_format::GgufFile;

use super::choose::{RepoFile, Selected};
use super::client::Client;
use super::repo::small_bytes;
use super::{HfSettings, HfSource, HubError, Source};

/// How much is read first of a GGUF file. Headers have several megabytes because of the vocabulary.
const FIRST_BYTES: u64 = 1 << 20;
/// The most bytes of a header that are read.
const MAX_HEADER_BYTES: u64 = 128 << 20;

/// The headers of a model that was not fetched.
///
/// [`open`](crate::open) opens [`path`](Self::path) as if the model were there. Do not read its weights: they are
/// zeros. Dropping this value removes the files.
#[derive(Debug)]
pub struct Peek {
    _folder: tempfile::TempDir,
    path: PathBuf,
    /// Total size of the files of the model, in bytes.
    total_bytes: u64,
    fetched_bytes: u64,
    files: Vec<String>,
}

impl Peek {
    /// The path of the stand-in for the model: a GGUF file or a folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the download if the model were fetched, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The number of bytes fetched to inspect the model.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes
    }

    /// The paths of the model's files in its repo.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Reads the headers of the selected files.
    pub(super) fn new(
        settings: &HfSettings,
        repo: &str,
        commit: &str,
        selected: &Selected<'_>,
    ) -> Result<Self, HubError> {
        let temp = std::env::temp_dir();
        let folder = tempfile::tempdir().map_err(|error| HubError::io("create a folder in", &temp, error))?;
        let client = Client::new(settings)?;
        let mut peek = Self {
            path: selected.entry(folder.path()),
            total_bytes: selected.files.iter().filter_map(|file| file.bytes).sum(),
            fetched_bytes: 0,
            files: selected.files.iter().map(|file| file.path.clone()).collect(),
            _folder: folder,
        };
        let root = peek._folder.path().to_owned();
        let source = |file: &RepoFile| HfSource::with_settings(settings, repo, commit, &file.path);
        if selected.folder.is_none() {
            let parts = selected.files.iter().map(|file| Ok((source(file).location(), root.join(&file.path))));
            peek.gguf(&client, &parts.collect::<Result<Vec<_>, HubError>>()?)?;
            return Ok(peek);
        }
        for file in &selected.files {
            let path = root.join(&file.path);
            if file.path.ends_with(".safetensors") {
                peek.safetensors(&client, &source(file).location(), &path)?;
            } else if let Some(bytes) =
                file.bytes.filter(|_| !file.path.starts_with("tokenizer") && file.path != "vocab.json")
            {
                let contents = small_bytes(settings, &source(file), file, bytes)?;
                peek.fetched_bytes += bytes;
                put(&path, 0, &contents, bytes)?;
            }
        }
        Ok(peek)
    }

    /// Reads the header of a GGUF file, or of each of its parts: as many bytes as it takes to parse it.
    fn gguf(&mut self, client: &Client, parts: &[(String, PathBuf)]) -> Result<(), HubError> {
        let mut from = vec![0u64; parts.len()];
        let mut wanted = FIRST_BYTES;
        loop {
            let mut is_whole = true;
            for ((url, path), from) in parts.iter().zip(&mut from) {
                let (bytes, total, _) = match client.range(url, *from, wanted) {
                    // The end of a small file was reached.
                    Err(HubError::Status { status: 416, .. }) => continue,
                    other => other?,
                };
                if *from == 0 && !bytes.starts_with(b"GGUF") {
                    return Err(HubError::BadAnswer { url: url.clone(), reason: "not a GGUF file".to_owned() });
                }
                put(path, *from, &bytes, total)?;
                self.fetched_bytes += bytes.len() as u64;
                *from += bytes.len() as u64;
                is_whole &= *from == total;
            }
            // The zeros after the bytes read could look like the end of a header; so the header must end within those
            // bytes.
            let is_read = GgufFile::open(&self.path).is_ok_and(|file| file.header().data_offset <= from[0]);
            if is_read || is_whole || wanted >= MAX_HEADER_BYTES {
                // If the header is invalid, opening the file will report it.
                return Ok(());
            }
            wanted *= 4;
        }
    }

    /// The header of a safetensors file: its length in 8 bytes, then JSON.
    fn safetensors(&mut self, client: &Client, url: &str, path: &Path) -> Result<(), HubError> {
        let (mut bytes, total, place) = client.range(url, 0, FIRST_BYTES / 4)?;
        let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        let end = length.saturating_add(8).min(total);
        let here = bytes.len() as u64;
        if end > here {
            if length > MAX_HEADER_BYTES {
                let reason = format!("a header of {length} bytes");
                return Err(HubError::BadAnswer { url: url.to_owned(), reason });
            }
            bytes.extend(client.range(&place, here, end)?.0);
        }
        self.fetched_bytes += bytes.len() as u64;
        put(path, 0, &bytes, total)
    }
}

/// Writes bytes into a file that has `total` of them.
fn put(path: &Path, at: u64, bytes: &[u8], total: u64) -> Result<(), HubError> {
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
        file.set_len(total)?;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(bytes)
    };
    write().map_err(|error| HubError::io("write", path, error))
}
