//! The audit log: one line for each answer or refusal, and each line contains the SHA-256 of the line before it.
//!
//! ```text
//! {"n":1,"prev":"000...","time_ms":...,"request":"req_...","key":"ada",...}
//! {"n":2,"prev":SHA-256 of the line above, without its line break,...}
//! ```
//!
//! Changing, removing or inserting a line breaks the chain from there on. Lines missing at the end, or a log that was
//! rewritten as a whole, are detected by comparing with a [`Head`] that was noted elsewhere. The log contains no text
//! of requests or answers.
//!
//! If a server is killed while it writes a line, the log ends with a partial line without a line break; the next server
//! removes it. Only one process writes at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::GatewayError;
use crate::hex;
use crate::prompts::Change;

const FILE: &str = "audit.jsonl";
const LOCK: &str = "audit.lock";
/// The `prev` of the first line.
const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Limit on the bytes of a line. The server never writes a line that long.
const MAX_LINE: u64 = 1 << 16;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The line number, from 1.
    pub n: u64,
    /// The SHA-256 of the line before, in hexadecimal.
    pub prev: String,
    /// When the answer ended, in milliseconds since 1970.
    pub time_ms: u64,
    /// The request id, as it was sent to the client.
    pub request: String,
    /// The name of the key.
    pub key: Option<String>,
    /// The path of the endpoint.
    pub endpoint: String,
    /// The feature of the client's program that the request was for, if the client said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature: Option<String>,
    /// The model or route that the request named.
    pub model: String,
    /// The route target that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Whether that target was a fallback, because the target chosen first failed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fallback: bool,
    /// The prompt of the server that the request named, such as `support@3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The hash of that prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_sha256: Option<String>,
    /// A change of which version of a prompt is used. Such a line is not about an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// The seed of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The hash of the request, as the gateway got it from its endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_sha256: Option<String>,
    /// The hash of the answer, if it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_sha256: Option<String>,
    /// The hash of the kept text, if texts are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_sha256: Option<String>,
    /// How many texts of the request were masked before it left this server.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub masked: u64,
    /// How the answer ended.
    pub outcome: Outcome,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// How many of them were found in the cache.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub completion_tokens: u64,
    /// Whether the token counts are estimates, because the exact ones were not known (such as when an upstream reports
    /// no usage).
    #[serde(default, skip_serializing_if = "is_false")]
    pub estimated: bool,
    /// The cost, in the currency of the prices.
    pub cost: f64,
    /// The duration of the request in milliseconds.
    pub elapsed_ms: u64,
    /// The call of a tool that the line is about. Such a line counts neither as an answer nor as refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<ToolUse>,
}

/// A call of a tool that the gateway runs, or its result. A line with the call is written before it is run, and one with
/// the result before the model gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolUse {
    /// The tool, as `SERVER__TOOL`.
    pub name: String,
    /// What the line is about.
    pub step: ToolStep,
    /// Whether the call may be run, and why.
    pub permission: Permission,
    /// The name of the key of who decided about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The SHA-256 of the arguments or the result, in hexadecimal.
    pub sha256: String,
    /// The bytes of the arguments or the result.
    pub bytes: u64,
}

/// What a line with a [`ToolUse`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolStep {
    /// The call, with the hash of its arguments.
    Call,
    /// The result.
    Result,
}

/// Whether a call may be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Permission {
    /// The tool needs no approval.
    NotNeeded,
    /// A person approved the call.
    Approved,
    /// A person denied the call, or the key may not have the tool called.
    Denied,
    /// Nobody decided in time, or too many calls were waiting.
    Expired,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The answer is complete.
    Complete,
    /// No answer was begun.
    Refused,
    /// The engine or an upstream failed, before or after the answer began.
    Failed,
    /// This is not an answer, but a change of which version of a prompt is used.
    Changed,
    /// The client disconnected, before or after the answer began. The token counts include what was generated until then,
    /// as far as it is known.
    Cancelled,
}

impl Entry {
    /// An entry with nothing in it but its time and its outcome.
    pub(crate) fn empty(time_ms: u64, outcome: Outcome) -> Self {
        Self {
            n: 0,
            prev: String::new(),
            time_ms,
            request: String::new(),
            key: None,
            endpoint: String::new(),
            feature: None,
            model: String::new(),
            backend: None,
            fallback: false,
            prompt: None,
            prompt_sha256: None,
            change: None,
            seed: None,
            request_sha256: None,
            output_sha256: None,
            text_sha256: None,
            masked: 0,
            outcome,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            estimated: false,
            cost: 0.0,
            elapsed_ms: 0,
            tool: None,
        }
    }

    /// Whether the line is about an answer or a refusal, which usage consists of, and not about a tool or a prompt.
    pub fn is_of_answer(&self) -> bool {
        self.tool.is_none() && self.outcome != Outcome::Changed
    }

    /// The line of a change.
    pub(crate) fn of_change(change: &Change) -> Self {
        Self {
            endpoint: "fewbit prompts".to_owned(),
            prompt: Some(format!("{}@{}", change.prompt, change.version)),
            prompt_sha256: Some(change.sha256.clone()),
            change: Some(change.clone()),
            ..Self::empty(change.time_ms, Outcome::Changed)
        }
    }
}

/// Writes those of these changes of prompts into the log of a store that are not in it yet. Returns false if a server is
/// using the store: then the server does it.
///
/// # Errors
/// If the log cannot be read or written, or was changed.
pub fn log_changes(store: impl AsRef<Path>, changes: &[Change]) -> Result<bool, GatewayError> {
    let mut logged = 0;
    let opened = Audit::open(store, |entry| logged = entry.change.as_ref().map_or(logged, |change| change.n));
    let mut audit = match opened {
        Err(GatewayError::Locked { .. }) => return Ok(false),
        other => other?,
    };
    for change in changes.iter().filter(|change| change.n > logged) {
        audit.append(Entry::of_change(change))?;
    }
    Ok(true)
}

/// The last line of a log at some time. A noted head proves that no line up to it was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Head {
    /// The number of the last line.
    pub n: u64,
    /// The SHA-256 of the last line, in hexadecimal.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self { n: 0, hash: START.to_owned() }
    }
}

/// A log that is open for writing.
#[derive(Debug)]
pub struct Audit {
    file: File,
    path: PathBuf,
    head: Head,
    /// The size of all complete lines, in bytes.
    n_bytes: u64,
    /// Whether the file ends with a partial line, which is removed before the next line is written.
    is_torn: bool,
    /// Keeps `audit.lock` locked.
    _lock: File,
}

impl Audit {
    /// Opens the log of this store for appending. Verifies every line, and passes its entry to `each`.
    ///
    /// # Errors
    /// If another process has the log open for writing, it cannot be read, or a line was changed after it was written.
    pub fn open(store: impl AsRef<Path>, each: impl FnMut(&Entry)) -> Result<Self, GatewayError> {
        let store = store.as_ref();
        fs::create_dir_all(store).map_err(GatewayError::file("make", store))?;
        let lock_path = store.join(LOCK);
        let options = |path: &Path| private().read(true).append(true).create(true).open(path);
        let lock = options(&lock_path).map_err(GatewayError::file("open", &lock_path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => GatewayError::Locked { path: lock_path.clone() },
            TryLockError::Error(error) => GatewayError::file("lock", &lock_path)(error),
        })?;
        let path = store.join(FILE);
        let file = options(&path).map_err(GatewayError::file("open", &path))?;
        let (head, n_bytes) = read(&path, None, each)?;
        let has_bytes = file.metadata().map_err(GatewayError::file("read", &path))?.len();
        if has_bytes > n_bytes {
            tracing::warn!(bytes = has_bytes - n_bytes, "the log ends in the middle of a line, which is taken away");
        }
        Ok(Self { file, path, head, n_bytes, is_torn: has_bytes > n_bytes, _lock: lock })
    }

    /// Appends an entry. Its `n` and `prev` are set here.
    ///
    /// # Errors
    /// If the line cannot be written completely. A part that was written is then removed, at the latest before the next
    /// line.
    pub fn append(&mut self, mut entry: Entry) -> Result<(), GatewayError> {
        entry.n = self.head.n + 1;
        entry.prev = self.head.hash.clone();
        let failed = || GatewayError::file("write", &self.path);
        let mut line = serde_json::to_vec(&entry).map_err(|error| failed()(error.into()))?;
        let hash = hex(&Sha256::digest(&line));
        line.push(b'\n');
        if self.is_torn {
            self.file.set_len(self.n_bytes).map_err(failed())?;
            self.is_torn = false;
        }
        if let Err(error) = self.file.write_all(&line) {
            self.is_torn = self.file.set_len(self.n_bytes).is_err();
            return Err(failed()(error));
        }
        self.n_bytes += line.len() as u64;
        self.head = Head { n: entry.n, hash };
        Ok(())
    }

    /// The head of the log.
    pub fn head(&self) -> &Head {
        &self.head
    }
}

/// Verifies the log of a store line by line, and that it contains the `noted` head, if there is one. Each entry is
/// passed to `each`. A server may be writing the log meanwhile: an incomplete last line is ignored.
///
/// # Errors
/// If the log cannot be read, a line was changed after it was written, or the log does not contain the noted head.
pub fn verify(store: impl AsRef<Path>, noted: Option<&Head>, each: impl FnMut(&Entry)) -> Result<Head, GatewayError> {
    read(&store.as_ref().join(FILE), noted, each).map(|(head, _)| head)
}

fn read(path: &Path, noted: Option<&Head>, mut each: impl FnMut(&Entry)) -> Result<(Head, u64), GatewayError> {
    let file = File::open(path).map_err(GatewayError::file("read", path))?;
    let mut reader = BufReader::new(file);
    let (mut head, mut n_bytes) = (Head::default(), 0);
    let mut is_there = noted.is_none_or(|noted| *noted == head);
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(GatewayError::file("read", path))?;
        let broken = |what| GatewayError::Broken { path: path.to_owned(), line: head.n + 1, what };
        if line.last() != Some(&b'\n') {
            if line.len() as u64 == MAX_LINE {
                return Err(broken("is longer than any that is written"));
            }
            break;
        }
        n_bytes += line.len() as u64;
        line.pop();
        let entry: Entry = serde_json::from_slice(&line).map_err(|_| broken("is not a line of a log"))?;
        if entry.n != head.n + 1 {
            return Err(broken("does not have the next number"));
        }
        if entry.prev != head.hash {
            return Err(broken("does not hold the hash of the line before"));
        }
        each(&entry);
        head = Head { n: entry.n, hash: hex(&Sha256::digest(&line)) };
        is_there |= noted == Some(&head);
    }
    match noted {
        Some(noted) if !is_there => {
            Err(GatewayError::OtherHead { path: path.to_owned(), line: noted.n, hash: noted.hash.clone() })
        }
        _ => Ok((head, n_bytes)),
    }
}

/// Options that create files only their owner can read.
pub(crate) fn private() -> OpenOptions {
    #[allow(unused_mut, reason = "changed on Unix only")]
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn entry(key: &str, time_ms: u64, completion_tokens: u64) -> Entry {
        Entry {
            n: 0,
            prev: String::new(),
            time_ms,
            request: "req_1".into(),
            key: Some(key.into()),
            endpoint: "/v1/messages".into(),
            feature: None,
            model: "m".into(),
            backend: None,
            fallback: false,
            prompt: None,
            prompt_sha256: None,
            change: None,
            seed: None,
            request_sha256: None,
            output_sha256: None,
            text_sha256: None,
            masked: 0,
            outcome: Outcome::Complete,
            prompt_tokens: 3,
            cached_tokens: 1,
            completion_tokens,
            estimated: false,
            cost: 0.5,
            elapsed_ms: 7,
            tool: None,
        }
    }

    /// A store whose log has five lines, and the log's head.
    fn five() -> (tempfile::TempDir, Head) {
        let folder = tempfile::tempdir().unwrap();
        let mut audit = Audit::open(folder.path(), |_| ()).unwrap();
        (0..5).for_each(|i| audit.append(entry("ada", i, i)).unwrap());
        let head = audit.head().clone();
        (folder, head)
    }

    #[test]
    fn written_log_verifies_and_can_be_continued() {
        let (folder, head) = five();
        let mut tokens = Vec::new();
        assert_eq!(verify(folder.path(), Some(&head), |entry| tokens.push(entry.completion_tokens)).unwrap(), head);
        assert_eq!(tokens, [0, 1, 2, 3, 4]);
        let mut audit = Audit::open(folder.path(), |_| ()).unwrap();
        assert!(matches!(Audit::open(folder.path(), |_| ()), Err(GatewayError::Locked { .. })));
        audit.append(entry("bob", 9, 9)).unwrap();
        // A head that was noted earlier is still part of the log.
        assert_eq!(verify(folder.path(), Some(&head), |_| ()).unwrap().n, 6);
        assert!(verify(folder.path(), Some(&Head::default()), |_| ()).is_ok());
    }

    #[test]
    fn any_change_to_the_log_is_detected() {
        let (folder, head) = five();
        let path = folder.path().join(FILE);
        let good = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = good.lines().collect();
        let with = |lines: &[&str]| {
            fs::write(&path, lines.join("\n") + "\n").unwrap();
            verify(folder.path(), Some(&head), |_| ())
        };
        let changed = lines[2].replace("\"completion_tokens\":2", "\"completion_tokens\":1");
        assert!(matches!(
            with(&[lines[0], lines[1], &changed, lines[3], lines[4]]),
            Err(GatewayError::Broken { line: 4, .. })
        ));
        assert!(matches!(with(&[lines[0], lines[2], lines[3], lines[4]]), Err(GatewayError::Broken { line: 2, .. })));
        assert!(matches!(
            with(&[lines[1], lines[0], lines[2], lines[3], lines[4]]),
            Err(GatewayError::Broken { line: 1, .. })
        ));
        assert!(matches!(with(&[lines[0], "{}", lines[2]]), Err(GatewayError::Broken { line: 2, .. })));
        assert!(matches!(with(&lines[..4]), Err(GatewayError::OtherHead { line: 5, .. })));
        let last = lines[4].replace("\"completion_tokens\":4", "\"completion_tokens\":0");
        assert!(matches!(with(&[&lines[..4], &[&last[..]]].concat()), Err(GatewayError::OtherHead { line: 5, .. })));
        assert!(with(&lines).is_ok());
        // A server does not append to a broken log.
        fs::write(&path, [lines[0], &changed, ""].join("\n")).unwrap();
        assert!(matches!(Audit::open(folder.path(), |_| ()), Err(GatewayError::Broken { line: 2, .. })));
        fs::write(&path, "x".repeat(1 << 17)).unwrap();
        assert!(matches!(verify(folder.path(), None, |_| ()), Err(GatewayError::Broken { line: 1, .. })));
    }

    #[test]
    fn truncated_last_line_is_removed() {
        let (folder, head) = five();
        let path = folder.path().join(FILE);
        for cut in [1, 10, 200] {
            let good = fs::read(&path).unwrap();
            let mut bytes = good.clone();
            let next = bytes[..cut].to_vec();
            bytes.extend(next);
            fs::write(&path, &bytes).unwrap();
            let seen = verify(folder.path(), Some(&head), |_| ()).unwrap();
            let mut audit = Audit::open(folder.path(), |_| ()).unwrap();
            assert_eq!(*audit.head(), seen);
            audit.append(entry("ada", 9, 9)).unwrap();
            let after = fs::read(&path).unwrap();
            assert!(after.starts_with(&good) && after.ends_with(b"}\n"));
            assert_eq!(verify(folder.path(), Some(&head), |_| ()).unwrap().n, seen.n + 1);
        }
    }
}
