//! A server with the URLs of the Hugging Face Hub, and of the store that it redirects to: for the tests of models
//! named by their repo.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha1::Digest;

/// The commit of `main`.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const REPO: &str = "org/repo";
/// The path prefix of redirection targets, which the hub's own addresses do not have.
const STORE: &str = "/store/";

/// The faults of the server.
#[derive(Default)]
pub(crate) struct Faults {
    /// Status codes with which the first requests are rejected, with `retry-after: 0`.
    pub(crate) busy: Mutex<Vec<u16>>,
    /// Every answer of the hub is this status, with this `x-error-code`.
    pub(crate) refuse: Mutex<Option<(u16, &'static str)>>,
    /// Number of connections to the store that are cut in the middle of an answer, except those at the start of a file.
    pub(crate) cut: AtomicUsize,
    /// Whether the store ignores ranges.
    pub(crate) no_ranges: Mutex<bool>,
    /// Bytes that the store sends instead of those that the hub described.
    pub(crate) other: Mutex<Option<Vec<u8>>>,
    /// Delay of the store's answers.
    pub(crate) delay_ms: AtomicUsize,
}

/// A received request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) range: Option<(u64, Option<u64>)>,
    pub(crate) token: Option<String>,
}

pub(crate) struct HubServer {
    pub(crate) url: String,
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) most_at_once: Arc<AtomicUsize>,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    faults: Arc<Faults>,
    at_once: AtomicUsize,
    most_at_once: Arc<AtomicUsize>,
    /// On a different host, which must not receive the token for the hub.
    store: String,
}

impl HubServer {
    /// Serves one repo with these files; those of more than `LFS_BYTES` bytes are in LFS.
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self {
            url: format!("http://127.0.0.1:{port}"),
            asked: Arc::default(),
            faults: Arc::default(),
            most_at_once: Arc::default(),
        };
        let state = Arc::new(State {
            files: files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect(),
            asked: Arc::clone(&server.asked),
            faults: Arc::clone(&server.faults),
            at_once: AtomicUsize::new(0),
            most_at_once: Arc::clone(&server.most_at_once),
            store: format!("http://localhost:{port}"),
        });
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let state = Arc::clone(&state);
                // A client may hang up on an answer it does not like.
                thread::spawn(move || drop(state.serve(stream)));
            }
        });
        server
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.path.clone()).collect()
    }

    /// Number of bytes requested from the store, by ranges that specify their ends.
    pub(crate) fn bytes_asked(&self) -> u64 {
        let ranges = self.asked.lock().unwrap().clone();
        let ranges = ranges.iter().filter(|asked| asked.path.starts_with(STORE)).filter_map(|asked| asked.range);
        ranges.map(|(from, to)| to.map_or(u64::MAX / 8, |to| to + 1) - from).sum()
    }
}

/// Larger files are in LFS.
pub(crate) const LFS_BYTES: usize = 4096;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn git_sha1(bytes: &[u8]) -> String {
    let mut hasher = sha1::Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

impl State {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        // Connections are kept, as real clients keep them.
        loop {
            let Some((is_head, asked)) = request(&mut reader)? else { return Ok(()) };
            self.asked.lock().unwrap().push(asked.clone());
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(now, Ordering::SeqCst);
            let result = self.answer(&mut stream, is_head, &asked);
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            if !result? {
                return Ok(());
            }
        }
    }

    /// Returns whether the connection stays open.
    fn answer(&self, stream: &mut TcpStream, is_head: bool, asked: &Asked) -> std::io::Result<bool> {
        let empty = |stream: &mut TcpStream, status: u16, more: &str| {
            write!(stream, "HTTP/1.1 {status} X\r\n{more}content-length: 0\r\n\r\n").map(|()| true)
        };
        if let Some(path) = asked.path.strip_prefix(STORE) {
            return self.store(stream, path, asked);
        }
        if let Some(status) = self.faults.busy.lock().unwrap().pop() {
            return empty(stream, status, "retry-after: 0\r\n");
        }
        if let Some((status, code)) = *self.faults.refuse.lock().unwrap() {
            return empty(stream, status, &format!("x-error-code: {code}\r\n"));
        }
        let api = format!("/api/models/{REPO}/revision/");
        if let Some(revision) = asked.path.strip_prefix(&api) {
            let revision = revision.split('?').next().unwrap_or_default();
            if !["main", COMMIT, "refs%2Fpr%2F1"].contains(&revision) {
                return empty(stream, 404, "x-error-code: RevisionNotFound\r\n");
            }
            let siblings = self.files.iter().map(|(path, bytes)| {
                let mut file = serde_json::json!({ "rfilename": path, "size": bytes.len() });
                if bytes.len() > LFS_BYTES {
                    file["lfs"] =
                        serde_json::json!({ "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134 });
                    file["blobId"] = "0000000000000000000000000000000000000000".into();
                } else {
                    file["blobId"] = git_sha1(bytes).into();
                }
                file
            });
            let siblings: Vec<_> = siblings.collect();
            let body =
                serde_json::json!({ "id": REPO, "sha": COMMIT, "gated": false, "siblings": siblings }).to_string();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
            return Ok(true);
        }
        let resolve = format!("/{REPO}/resolve/{COMMIT}/");
        let path = asked.path.strip_prefix(&resolve).map(|path| path.replace("%20", " "));
        let Some((path, bytes)) = path.and_then(|path| self.files.get_key_value(&path)) else {
            return empty(stream, 404, "x-error-code: RepoNotFound\r\n");
        };
        let about = format!("x-repo-commit: {COMMIT}\r\netag: \"{}\"\r\n", git_sha1(bytes));
        if bytes.len() > LFS_BYTES {
            let linked = format!("x-linked-size: {}\r\nx-linked-etag: \"{}\"\r\n", bytes.len(), sha256(bytes));
            let to = format!("location: {}{STORE}{}?sign=1\r\n", self.store, path.replace(' ', "%20"));
            return empty(stream, 302, &(about + &linked + &to));
        }
        write!(stream, "HTTP/1.1 200 OK\r\n{about}content-length: {}\r\n\r\n", bytes.len())?;
        if !is_head {
            stream.write_all(bytes)?;
        }
        Ok(true)
    }

    fn store(&self, stream: &mut TcpStream, path: &str, asked: &Asked) -> std::io::Result<bool> {
        thread::sleep(Duration::from_millis(self.faults.delay_ms.load(Ordering::SeqCst) as u64));
        let path = path.split('?').next().unwrap_or_default().replace("%20", " ");
        let other = self.faults.other.lock().unwrap().clone();
        let bytes = other.as_deref().unwrap_or(&self.files[&path]);
        let range = asked.range.filter(|_| !*self.faults.no_ranges.lock().unwrap());
        let body = match range {
            Some((from, to)) => {
                let end = to.map_or(bytes.len(), |to| bytes.len().min(to as usize + 1));
                let from = from as usize;
                if from >= bytes.len() {
                    write!(stream, "HTTP/1.1 416 X\r\ncontent-length: 0\r\n\r\n")?;
                    return Ok(true);
                }
                let part = format!("content-range: bytes {from}-{}/{}", end - 1, bytes.len());
                write!(stream, "HTTP/1.1 206 X\r\n{part}\r\ncontent-length: {}\r\n\r\n", end - from)?;
                &bytes[from..end]
            }
            None => {
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len())?;
                bytes
            }
        };
        let is_later = asked.range.is_some_and(|(from, _)| from > 0);
        if is_later && self.faults.cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            stream.write_all(&body[..body.len() / 2])?;
            return Ok(false);
        }
        stream.write_all(body)?;
        Ok(true)
    }
}

fn request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<(bool, Asked)>> {
    let mut asked = Asked { path: String::new(), range: None, token: None };
    let mut method = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some((method == "HEAD", asked)));
        }
        if method.is_empty() {
            let mut words = line.split(' ');
            method = words.next().unwrap_or_default().to_owned();
            asked.path = words.next().unwrap_or_default().to_owned();
        } else if let Some((name, value)) = line.split_once(": ") {
            match &*name.to_ascii_lowercase() {
                "authorization" => asked.token = value.strip_prefix("Bearer ").map(str::to_owned),
                "range" => {
                    let (from, to) = value.trim_start_matches("bytes=").split_once('-').unwrap_or_default();
                    asked.range = from.parse().ok().map(|from| (from, to.parse().ok()));
                }
                _ => {}
            }
        }
    }
}
