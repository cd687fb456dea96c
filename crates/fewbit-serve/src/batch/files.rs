//! The folder of uploaded files and batches.
//!
//! ```text
//! files/
//!   lock                  locked by the server that uses the folder
//!   file-ID.json          what a file is, and which key it belongs to
//!   file-ID.data          what is in it
//!   upload-ID             an upload in progress; removed at the next start
//!   batch_ID.json         a batch, and which key it belongs to
//!   batch_ID.out, .err    its answers so far
//! ```
//!
//! JSON files are replaced atomically. A file is only seen by the key that it belongs to. Names of files on disk are made
//! of random ids, never of what clients send.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use fewbit_api::batches::{Batch, BatchStatus};
use fewbit_api::files::FileObject;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::run::Running;
use crate::error::{ApiError, ServeError};
use crate::server::random_id;

/// The most files of all keys together.
const MAX_FILES: usize = 100_000;
/// The longest name of a file, in characters.
const MAX_NAME: usize = 255;

/// Limits of uploaded files and of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileLimits {
    /// The largest file that can be uploaded, in bytes. The default is 100 MiB.
    pub file_bytes: u64,
    /// What the files of one key may have together, in bytes. The default is 1 GiB.
    pub key_bytes: u64,
    /// What all files may have together, in bytes. The default is 10 GiB.
    pub total_bytes: u64,
    /// The most lines of a batch. The default is 50,000.
    pub lines: u64,
    /// How many lines are answered at the same time, of all batches together. The default is 32.
    pub jobs: usize,
    /// How long a batch may take. The default is 24 hours.
    pub window: Duration,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self {
            file_bytes: 100 << 20,
            key_bytes: 1 << 30,
            total_bytes: 10 << 30,
            lines: 50_000,
            jobs: 32,
            window: Duration::from_secs(24 * 3600),
        }
    }
}

/// The files and batches of a server. A clone is another handle.
#[derive(Clone)]
pub struct Files {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("folder", &self.shared.folder).finish_non_exhaustive()
    }
}

pub(crate) struct Shared {
    pub(crate) folder: PathBuf,
    pub(crate) limits: FileLimits,
    index: Mutex<Index>,
    pub(crate) running: Running,
    _lock: File,
}

/// The name of a key; `None` if there are no keys.
pub(crate) type Owner = Option<String>;

/// A stored thing with the key that it belongs to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Owned<T> {
    pub(crate) key: Owner,
    pub(crate) created_ms: u64,
    #[serde(flatten)]
    pub(crate) it: T,
}

/// A batch with what is not shown of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoredBatch {
    #[serde(flatten)]
    pub(crate) batch: Batch,
    /// The seed of requests that have none.
    pub(crate) seed: i64,
    /// The feature of requests that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) feature: Option<String>,
    /// The ids that the files of its answers will have.
    pub(crate) output_id: String,
    pub(crate) error_id: String,
    /// The status that it will have when its answers are kept as files.
    pub(crate) ends_as: Option<BatchStatus>,
}

#[derive(Default)]
struct Index {
    files: BTreeMap<String, Owned<FileObject>>,
    batches: BTreeMap<String, Owned<StoredBatch>>,
    /// The bytes of each key's files, uploads in progress included.
    used: HashMap<Owner, u64>,
    total: u64,
}

impl Index {
    fn add(&mut self, key: &Owner, bytes: u64) {
        *self.used.entry(key.clone()).or_default() += bytes;
        self.total += bytes;
    }

    fn subtract(&mut self, key: &Owner, bytes: u64) {
        if let Some(used) = self.used.get_mut(key) {
            *used = used.saturating_sub(bytes);
        }
        self.total = self.total.saturating_sub(bytes);
    }
}

/// An upload in progress. Dropping it removes what was written.
pub(crate) struct Upload {
    files: Files,
    key: Owner,
    id: String,
    path: PathBuf,
    file: File,
    bytes: u64,
    is_kept: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.is_kept {
            self.files.lock().subtract(&self.key, self.bytes);
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn folder_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServeError {
    let path = path.to_owned();
    move |error| ServeError::Files { what, path, error }
}

/// A failure of the disk. Its text has file names, so it is only logged.
pub(crate) fn disk(error: &io::Error) -> ApiError {
    tracing::error!(%error, "the folder of files cannot be read or written");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "the disk of the server is full").code("storage_full")
        }
        _ => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the server cannot read or write its files"),
    }
}

pub(crate) fn now_ms() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

impl Files {
    /// Opens a folder, or creates it. Batches that were not finished go on when the server runs.
    ///
    /// # Errors
    /// If the folder cannot be read or written, or another server uses it.
    pub fn open(folder: impl Into<PathBuf>, limits: FileLimits) -> Result<Self, ServeError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(folder_error("make", &folder))?;
        let lock_path = folder.join("lock");
        let lock = private().create(true).open(&lock_path).map_err(folder_error("open", &lock_path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => ServeError::FilesInUse { path: folder.clone() },
            TryLockError::Error(error) => folder_error("lock", &lock_path)(error),
        })?;
        let index = read(&folder).map_err(folder_error("read", &folder))?;
        let running = Running::new(limits.jobs);
        Ok(Self { shared: Arc::new(Shared { folder, limits, index: Mutex::new(index), running, _lock: lock }) })
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.shared.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limits(&self) -> FileLimits {
        self.shared.limits
    }

    fn data_path(&self, id: &str) -> PathBuf {
        self.shared.folder.join(format!("{id}.data"))
    }

    /// Begins an upload.
    pub(crate) fn upload(&self, key: &Owner) -> Result<Upload, ApiError> {
        if self.lock().files.len() >= MAX_FILES {
            let message = format!("the server has {MAX_FILES} files already: delete some");
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).code("too_many_files"));
        }
        let id = random_id("file-");
        let path = self.shared.folder.join(format!("upload-{id}"));
        let file = private().create_new(true).open(&path).map_err(|error| disk(&error))?;
        Ok(Upload { files: self.clone(), key: key.clone(), id, path, file, bytes: 0, is_kept: false })
    }

    /// All files of a key, oldest first.
    pub(crate) fn files(&self, key: &Owner) -> Vec<FileObject> {
        let index = self.lock();
        let mut all: Vec<_> = index.files.values().filter(|file| file.key == *key).collect();
        all.sort_by_key(|file| file.created_ms);
        all.into_iter().map(|file| file.it.clone()).collect()
    }

    pub(crate) fn file(&self, key: &Owner, id: &str) -> Result<FileObject, ApiError> {
        let index = self.lock();
        let file = index.files.get(id).filter(|file| file.key == *key);
        file.map(|file| file.it.clone()).ok_or_else(|| unknown("file", id))
    }

    /// The path of a file's content.
    pub(crate) fn content(&self, key: &Owner, id: &str) -> Result<PathBuf, ApiError> {
        self.file(key, id).map(|file| self.data_path(&file.id))
    }

    pub(crate) fn delete(&self, key: &Owner, id: &str) -> Result<(), ApiError> {
        self.file(key, id)?;
        let mut index = self.lock();
        let is_read = |batch: &&Owned<StoredBatch>| batch.it.batch.input_file_id == id && !is_over(&batch.it.batch);
        if let Some(batch) = index.batches.values().find(is_read) {
            let message =
                format!("the file {id:?} is being read by the batch {:?}: cancel it first", batch.it.batch.id);
            return Err(ApiError::new(StatusCode::CONFLICT, message).code("file_in_use"));
        }
        let json = self.shared.folder.join(format!("{id}.json"));
        fs::remove_file(json).map_err(|error| disk(&error))?;
        if let Some(file) = index.files.remove(id) {
            index.subtract(&file.key, file.it.bytes);
        }
        // Content without its JSON file is removed at the next start.
        let _ = fs::remove_file(self.data_path(id));
        Ok(())
    }

    /// Keeps what a batch has written as a file, if there is anything. Can be repeated after an interruption.
    pub(crate) fn adopt(&self, key: &Owner, part: &Path, id: &str, filename: String) -> io::Result<Option<String>> {
        if self.lock().files.contains_key(id) {
            return Ok(Some(id.to_owned()));
        }
        let data = self.data_path(id);
        match fs::metadata(part) {
            Ok(meta) if meta.len() == 0 => {
                fs::remove_file(part)?;
                return Ok(None);
            }
            Ok(_) => fs::rename(part, &data)?,
            // It was moved before.
            Err(error) if error.kind() == io::ErrorKind::NotFound && data.exists() => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let bytes = fs::metadata(&data)?.len();
        self.keep(key, id, filename, "batch_output", bytes)?;
        self.lock().add(key, bytes);
        Ok(Some(id.to_owned()))
    }

    fn keep(
        &self,
        key: &Owner,
        id: &str,
        filename: String,
        purpose: &'static str,
        bytes: u64,
    ) -> io::Result<FileObject> {
        let created_ms = now_ms();
        let object = FileObject {
            id: id.to_owned(),
            object: "file".into(),
            bytes,
            created_at: created_ms / 1000,
            filename,
            purpose: purpose.into(),
            status: "processed".into(),
        };
        let owned = Owned { key: key.clone(), created_ms, it: object.clone() };
        self.write(id, &owned)?;
        self.lock().files.insert(id.to_owned(), owned);
        Ok(object)
    }

    /// All batches of a key, oldest first.
    pub(crate) fn batches(&self, key: &Owner) -> Vec<Batch> {
        let index = self.lock();
        let mut all: Vec<_> = index.batches.values().filter(|batch| batch.key == *key).collect();
        all.sort_by_key(|batch| batch.created_ms);
        all.into_iter().map(|batch| batch.it.batch.clone()).collect()
    }

    pub(crate) fn batch(&self, key: &Owner, id: &str) -> Result<Batch, ApiError> {
        let index = self.lock();
        let batch = index.batches.get(id).filter(|batch| batch.key == *key);
        batch.map(|batch| batch.it.batch.clone()).ok_or_else(|| unknown("batch", id))
    }

    pub(crate) fn stored(&self, id: &str) -> Option<Owned<StoredBatch>> {
        self.lock().batches.get(id).cloned()
    }

    /// The ids of the batches that are not over.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        let index = self.lock();
        let mut all: Vec<_> = index.batches.values().filter(|batch| !is_over(&batch.it.batch)).collect();
        all.sort_by_key(|batch| batch.created_ms);
        all.into_iter().map(|batch| batch.it.batch.id.clone()).collect()
    }

    pub(crate) fn add_batch(&self, batch: Owned<StoredBatch>) -> io::Result<()> {
        let id = batch.it.batch.id.clone();
        self.write(&id, &batch)?;
        self.lock().batches.insert(id, batch);
        Ok(())
    }

    /// Changes a batch. If `is_kept`, the change is written to disk before it is seen.
    pub(crate) fn change<R>(
        &self,
        id: &str,
        is_kept: bool,
        change: impl FnOnce(&mut StoredBatch) -> R,
    ) -> io::Result<R> {
        let mut index = self.lock();
        let Some(known) = index.batches.get_mut(id) else { return Err(io::ErrorKind::NotFound.into()) };
        let mut changed = known.clone();
        let result = change(&mut changed.it);
        if is_kept {
            self.write(id, &changed)?;
        }
        *known = changed;
        Ok(result)
    }

    /// Replaces a JSON file.
    fn write(&self, id: &str, value: &impl Serialize) -> io::Result<()> {
        let path = self.shared.folder.join(format!("{id}.json"));
        let new = self.shared.folder.join(format!("{id}.json.new"));
        let bytes = serde_json::to_vec(value)?;
        private().create(true).truncate(true).open(&new).and_then(|mut file| file.write_all(&bytes))?;
        fs::rename(new, path)
    }
}

impl Upload {
    /// Appends to the file.
    pub(crate) fn write(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        let n = piece.len() as u64;
        let limits = self.files.limits();
        let too_large = |message: String, code| Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code(code));
        if self.bytes + n > limits.file_bytes {
            let message = format!("the file has more than {} bytes: cut it up", limits.file_bytes);
            return too_large(message, "file_too_large");
        }
        {
            let mut index = self.files.lock();
            let used = index.used.get(&self.key).copied().unwrap_or(0);
            if used + n > limits.key_bytes {
                let message = format!(
                    "the files of this key would have more than {} bytes together: delete some that are not needed",
                    limits.key_bytes
                );
                return too_large(message, "file_quota_exceeded");
            }
            if index.total + n > limits.total_bytes {
                let message = format!("all files would have more than {} bytes together", limits.total_bytes);
                return Err(ApiError::new(StatusCode::INSUFFICIENT_STORAGE, message).code("storage_full"));
            }
            index.add(&self.key, n);
        }
        self.bytes += n;
        self.file.write_all(piece).map_err(|error| disk(&error))
    }

    /// Keeps the file.
    pub(crate) fn finish(mut self, filename: &str) -> Result<FileObject, ApiError> {
        let filename = filename.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
        let data = self.files.data_path(&self.id);
        fs::rename(&self.path, &data).map_err(|error| disk(&error))?;
        self.path = data;
        let kept = self.files.keep(&self.key, &self.id, filename, "batch", self.bytes).map_err(|error| disk(&error))?;
        self.is_kept = true;
        Ok(kept)
    }
}

pub(crate) fn is_over(batch: &Batch) -> bool {
    use BatchStatus::{Cancelled, Completed, Expired, Failed};
    matches!(batch.status, Completed | Failed | Expired | Cancelled)
}

pub(crate) fn unknown(what: &str, id: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {what} {id:?} of this key"))
}

/// Options for files that only their owner can read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Reads what is in a folder, and removes what an interrupted server left.
fn read(folder: &Path) -> io::Result<Index> {
    let mut index = Index::default();
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<io::Result<_>>()?;
    let ids = |start: &'static str, end: &'static str| {
        names.iter().filter_map(move |name| name.strip_suffix(end).filter(|id| id.starts_with(start)))
    };
    for id in ids("batch_", ".json") {
        index.batches.insert(id.to_owned(), json(&folder.join(format!("{id}.json")))?);
    }
    for id in ids("file-", ".json") {
        let file: Owned<FileObject> = json(&folder.join(format!("{id}.json")))?;
        index.add(&file.key.clone(), file.it.bytes);
        index.files.insert(id.to_owned(), file);
    }
    let is_awaited = |id: &str| {
        let mut unfinished = index.batches.values().filter(|batch| !is_over(&batch.it.batch));
        unfinished.any(|batch| batch.it.output_id == id || batch.it.error_id == id)
    };
    let orphans = ids("file-", ".data").filter(|id| !index.files.contains_key(*id) && !is_awaited(id));
    let mut left: Vec<String> = orphans.map(|id| format!("{id}.data")).collect();
    left.extend(names.iter().filter(|name| name.starts_with("upload-") || name.ends_with(".json.new")).cloned());
    for name in left {
        fs::remove_file(folder.join(name))?;
    }
    Ok(index)
}

fn json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let text = fs::read(path)?;
    serde_json::from_slice(&text).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} is not what a server wrote: {error}", path.display()))
    })
}
