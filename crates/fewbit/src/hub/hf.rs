//! The source `hf`: a file in a Hugging Face repository.
//!
//! The transfer uses ranged GETs with `ureq`, straight into the `.part` file: one for the missing part of a small file;
//! several in parallel for a large one, whose answers are appended in order. So a `.part` file always has the beginning
//! of the file, and every later attempt can continue it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use ureq::http::header;

use super::client::{Client, check, parse_range, text};
use super::snapshots::{Snapshots, is_commit};
use super::{HfSettings, HubError, PartFile, Pin, Pinned, Source};

/// How many times a broken connection is resumed, as long as each attempt brings new bytes.
const MAX_RECONNECTS: u32 = 5;
const CONNECTIONS: usize = 4;
/// Each connection has one part in memory that waits for its turn, and one that is arriving.
const RANGE_BYTES: u64 = 8 << 20;

/// A file in a Hugging Face repository, or in a server with the same URLs.
#[derive(Debug, Clone)]
pub struct HfSource {
    settings: HfSettings,
    revision: String,
    repo: String,
    file: String,
    /// Where Hugging Face's own tools would have stored the file.
    shared: Option<PathBuf>,
    connections: usize,
    range_bytes: u64,
}

impl HfSource {
    /// The file `file` of `repo` at `revision`, on the server that `HF_ENDPOINT` names or else on
    /// huggingface.co, with the token in `HF_TOKEN` or the one that `hf auth login` stored.
    pub fn from_env(repo: &str, revision: &str, file: &str) -> Self {
        Self::with_settings(&HfSettings::from_env(), repo, revision, file)
    }

    /// The file on the server `endpoint`, without a token and without looking into the cache of
    /// other tools.
    pub fn new(endpoint: &str, repo: &str, revision: &str, file: &str) -> Self {
        Self::with_settings(&HfSettings::new(endpoint), repo, revision, file)
    }

    /// The file with these settings. It is copied from the cache of other tools if it is there.
    pub fn with_settings(settings: &HfSettings, repo: &str, revision: &str, file: &str) -> Self {
        let commit = |cache: &PathBuf| Some(Snapshots::new(cache).folder(repo, revision).join(file));
        Self {
            shared: settings.cache.as_ref().filter(|_| is_commit(revision)).and_then(commit),
            settings: settings.clone(),
            revision: revision.to_owned(),
            repo: repo.to_owned(),
            file: file.to_owned(),
            connections: CONNECTIONS,
            range_bytes: RANGE_BYTES,
        }
    }

    /// Fetches files larger than two parts over several connections in parallel. Default: `connections` is 4 (from 1 to
    /// 16), `range_bytes`, the size of a part, 8 MiB.
    pub fn parallel(mut self, connections: usize, range_bytes: u64) -> Self {
        self.connections = connections.clamp(1, 16);
        self.range_bytes = range_bytes.max(1);
        self
    }

    /// Asks the server about the file: it answers with a redirection to the bytes, whose headers have the commit, and
    /// for a large file its size and SHA-256.
    fn ask(&self) -> Result<Option<(Pin, String)>, HubError> {
        let url = self.location();
        let response = check(Client::without_redirects(&self.settings)?.send(true, &url, None)?, &url)?;
        let bytes = text(&response, "x-linked-size").and_then(|size| size.parse().ok());
        let tag = text(&response, "x-linked-etag");
        let sha256 = tag.as_deref().map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        let Some(pin) = bytes.zip(sha256).and_then(|(bytes, sha256)| Pin::new(bytes, sha256).ok()) else {
            return Ok(None);
        };
        let is_hash = |commit: &String| !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_hexdigit());
        let commit = text(&response, "x-repo-commit").filter(is_hash).unwrap_or_else(|| self.revision.clone());
        Ok(Some((pin, commit)))
    }

    /// Fetches the missing part with one GET.
    fn get(&self, client: &Client, url: &str, part: &mut PartFile<'_>) -> Result<(), HubError> {
        let network = |reason: String| HubError::Network { url: url.to_owned(), reason };
        let range = (!part.is_empty()).then(|| format!("bytes={}-", part.len()));
        let response = client.send(false, url, range.as_deref())?;
        let total = match response.status().as_u16() {
            200 => {
                part.restart()?;
                text(&response, header::CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok())
            }
            206 => {
                let range = text(&response, header::CONTENT_RANGE.as_str()).and_then(|text| parse_range(&text));
                let Some((start, total)) = range else {
                    return Err(network("a partial answer that does not say which part".into()));
                };
                if start != part.len() {
                    return Err(network("a part that was not asked for".into()));
                }
                total
            }
            // The server has no bytes at this position, so the bytes on disk belong to another file.
            416 => {
                part.restart()?;
                return Err(network("the server has no more bytes".into()));
            }
            status => {
                check(response, url)?;
                return Err(HubError::Status { url: url.to_owned(), status });
            }
        };
        if let Some(found_bytes) = total {
            self.check_size(url, part, found_bytes)?;
        }
        let mut reader = response.into_body().into_reader();
        part.append(&mut reader, url, &|error| network(error.to_string()))
    }

    fn check_size(&self, url: &str, part: &PartFile<'_>, found_bytes: u64) -> Result<(), HubError> {
        let expected_bytes = part.expected_bytes();
        if found_bytes == expected_bytes {
            return Ok(());
        }
        Err(HubError::Size { location: url.to_owned(), expected_bytes, found_bytes })
    }

    /// Fetches the missing part over several connections, and appends the pieces in order. Returns `false` if this
    /// server does not support it; nothing was appended then.
    fn get_parallel(&self, client: &Client, url: &str, part: &mut PartFile<'_>) -> Result<bool, HubError> {
        let total = part.expected_bytes();
        let first = part.len();
        let (bytes, found_bytes, place) = match client.range(url, first, first.saturating_add(self.range_bytes)) {
            Ok(range) => range,
            // A single connection may still work, and resumes if it breaks.
            Err(HubError::BadAnswer { .. } | HubError::Network { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        self.check_size(url, part, found_bytes)?;
        let mut append = |bytes: Vec<u8>| {
            part.append(&mut &bytes[..], url, &|error| HubError::Network {
                url: url.to_owned(),
                reason: error.to_string(),
            })
        };
        append(bytes)?;
        let starts = |worker: usize| {
            let step = self.range_bytes.saturating_mul(self.connections as u64);
            let first = first.saturating_add(self.range_bytes.saturating_mul(worker as u64 + 1));
            (0..).map_while(move |i: u64| first.checked_add(step.checked_mul(i)?)).take_while(move |&at| at < total)
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.connections)
                .map(|worker| {
                    let (sender, receiver) = sync_channel(1);
                    let place = &place;
                    scope.spawn(move || {
                        for at in starts(worker) {
                            let result =
                                self.part(client, url, place, at, at.saturating_add(self.range_bytes).min(total));
                            let is_end = result.is_err();
                            // The receiver is gone: stop.
                            if sender.send(result).is_err() || is_end {
                                break;
                            }
                        }
                    });
                    receiver
                })
                .collect();
            // Round by round, in the order of the file; the first worker without a piece marks the end of the file.
            for worker in workers.iter().cycle() {
                match worker.recv() {
                    Ok(bytes) => append(bytes?)?,
                    Err(_) => break,
                }
            }
            Ok(true)
        })
    }

    /// Fetches one piece from the redirected URL; when that URL expires, the server is asked for a new one.
    fn part(&self, client: &Client, url: &str, place: &str, from: u64, to: u64) -> Result<Vec<u8>, HubError> {
        let mut tries = 0;
        let mut address = place;
        loop {
            match client.range(address, from, to) {
                Ok((bytes, _, _)) => return Ok(bytes),
                Err(HubError::Status { status: 401 | 403 | 404 | 410, .. }) if address != url => address = url,
                Err(error @ (HubError::Network { .. } | HubError::Status { status: 500.., .. })) => {
                    tries += 1;
                    if tries > MAX_RECONNECTS {
                        return Err(error);
                    }
                    tracing::info!(%error, from, "connection broke: continuing");
                    address = url;
                    thread::sleep(Duration::from_millis(50 * u64::from(tries)));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A path, percent-encoded for a URL.
pub(super) fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

impl Source for HfSource {
    fn name(&self) -> &'static str {
        "hf"
    }

    fn location(&self) -> String {
        let revision = encoded(&self.revision).replace('/', "%2F");
        format!("{}/{}/resolve/{revision}/{}", self.settings.endpoint, self.repo, encoded(&self.file))
    }

    fn pin(&self) -> Result<Option<Pinned>, HubError> {
        let Some((pin, commit)) = self.ask()? else { return Ok(None) };
        // The branch may move on between the question and the download, so the commit is used.
        let source = Self::with_settings(&self.settings, &self.repo, &commit, &self.file);
        let source = source.parallel(self.connections, self.range_bytes);
        Ok(Some(Pinned { pin, source: Box::new(source) }))
    }

    fn fetch(&self, part: &mut PartFile<'_>) -> Result<(), HubError> {
        if let Some(path) = &self.shared
            && let Ok(mut file) = File::open(path)
            && file.metadata().is_ok_and(|meta| meta.len() == part.expected_bytes())
        {
            tracing::info!(path = %path.display(), "found in the Hugging Face cache");
            part.restart()?;
            return part.append(&mut file, &path.display().to_string(), &|error| HubError::io("read", path, error));
        }

        let url = self.location();
        let client = Client::new(&self.settings)?;
        let missing = part.expected_bytes().saturating_sub(part.len());
        if self.connections > 1
            && missing > self.range_bytes.saturating_mul(2)
            && self.get_parallel(&client, &url, part)?
        {
            return Ok(());
        }
        let mut reconnects = 0;
        loop {
            let before = part.len();
            let result = self.get(&client, &url, part);
            match result {
                Err(HubError::Network { reason, .. }) if part.len() > before && reconnects < MAX_RECONNECTS => {
                    reconnects += 1;
                    tracing::info!(%reason, at = part.len(), "connection broke: continuing");
                }
                other => return other,
            }
        }
    }
}
