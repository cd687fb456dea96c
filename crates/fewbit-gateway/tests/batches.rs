//! Batches of a server with keys: each line is checked, limited and logged as a request of the key that created it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use fewbit_gateway::{Entry, Gateway, Key, KeyStore, Outcome, Prices, verify};
use fewbit_serve::{BackendError, BackendErrorKind, FileLimits, Files, Script, ScriptedBackend};
use serde_json::{Value, json};

#[path = "../../fewbit-serve/tests/support/mod.rs"]
mod support;

use support::Running;

fn start(store: &Path, backend: ScriptedBackend) -> Running {
    let gateway = Gateway::open(store, Prices::new(), backend).unwrap();
    let mut limits = FileLimits::default();
    limits.jobs = 1;
    let files = Files::open(store.join("files"), limits).unwrap();
    Running::start(gateway.backend(), |server| server.gate(gateway).files(files))
}

fn key(store: &Path, name: &str, change: impl FnOnce(&mut Key)) -> String {
    let mut scope = Key::default();
    change(&mut scope);
    KeyStore::open(store).unwrap().add(name, scope).unwrap().secret
}

fn log(store: &Path) -> Vec<Entry> {
    let mut all = Vec::new();
    verify(store, None, |entry| all.push(entry.clone())).unwrap();
    all
}

fn ask(server: &Running, key: &str, method: &str, path: &str, kind: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(&server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let n = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nx-api-key: {key}");
    write!(socket, "{head}\r\nContent-Type: {kind}\r\nContent-Length: {n}\r\n\r\n{body}").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn get(server: &Running, key: &str, path: &str) -> Value {
    let (status, body) = ask(server, key, "GET", path, "text/plain", "");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Begins a batch of `n` lines. Returns its id.
fn begin(server: &Running, key: &str, n: usize) -> String {
    let line = |i: usize| {
        let mut body = json!({ "prompt": "a private question", "max_tokens": 9 });
        if i == 0 {
            body["metadata"] = json!({ "feature": "of-the-line" });
        }
        json!({ "custom_id": i.to_string(), "url": "/v1/completions", "body": body }).to_string() + "\n"
    };
    let part = |head: &str, data: &str| format!("--B\r\nContent-Disposition: form-data; {head}\r\n\r\n{data}\r\n");
    let lines: String = (0..n).map(line).collect();
    let form = part("name=purpose", "batch") + &part("name=file; filename=x", &lines) + "--B--";
    let (status, body) = ask(server, key, "POST", "/v1/files", "multipart/form-data; boundary=B", &form);
    assert_eq!(status, 200, "{body}");
    let file: Value = serde_json::from_str(&body).unwrap();
    let batch = json!({
        "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h",
        "metadata": { "feature": "of-the-batch" },
    });
    let (status, body) = ask(server, key, "POST", "/v1/batches", "application/json", &batch.to_string());
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["id"].as_str().unwrap().to_owned()
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end(server: &Running, key: &str, id: &str) -> Value {
    let path = format!("/v1/batches/{id}");
    wait_until("the batch is over", || get(server, key, &path)["completed_at"].is_u64());
    get(server, key, &path)
}

#[test]
fn each_line_is_a_request_of_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let ada = key(store, "ada", |_| ());
    let paths = ["/v1/files", "/v1/batches"].map(str::to_owned).to_vec();
    let narrow = key(store, "narrow", |key| key.endpoints = Some(paths));
    let other_model = key(store, "other-model", |key| key.models = Some(vec!["other".to_owned()]));
    let backend = ScriptedBackend::new((0..3).map(|_| Script::words("A secret answer.")));
    let server = start(store, backend.clone());
    let batch = end(&server, &ada, &begin(&server, &ada, 3));
    assert_eq!(batch["request_counts"], json!({ "total": 3, "completed": 3, "failed": 0 }));
    let entries = log(store);
    assert_eq!(entries.len(), 3);
    assert!(entries.iter().all(|entry| {
        (entry.key.as_deref(), &*entry.endpoint, entry.outcome, entry.completion_tokens)
            == (Some("ada"), "/v1/completions", Outcome::Complete, 3)
    }));
    let features: Vec<_> = entries.iter().map(|entry| entry.feature.as_deref().unwrap()).collect();
    assert_eq!(features, ["of-the-line", "of-the-batch", "of-the-batch"]);
    // What a key may not do by itself, its batches may not either.
    for (key, status) in [(&narrow, 403), (&other_model, 400)] {
        let batch = end(&server, key, &begin(&server, key, 2));
        assert_eq!(batch["request_counts"], json!({ "total": 2, "completed": 0, "failed": 2 }));
        let path = format!("/v1/files/{}/content", batch["error_file_id"].as_str().unwrap());
        let (_, errors) = ask(&server, key, "GET", &path, "text/plain", "");
        assert_eq!(errors.matches(&format!("\"status_code\":{status}")).count(), 2, "{errors}");
        // And what belongs to another key is not there.
        assert_eq!(ask(&server, &ada, "GET", &path, "text/plain", "").0, 404);
    }
    assert_eq!(backend.jobs().len(), 3);
    let text = std::fs::read_to_string(store.join("audit.jsonl")).unwrap();
    assert!(!text.contains("private") && !text.contains("secret"));
}

#[test]
fn the_batches_of_a_revoked_key_stop() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let ada = key(store, "ada", |_| ());
    let busy = || Script::refuse(BackendError::new(BackendErrorKind::Busy, "no"));
    let backend = ScriptedBackend::new([Script::words("yes"), busy(), Script::words("no")]);
    let server = start(store, backend.clone());
    let id = begin(&server, &ada, 3);
    wait_until("the second line is asked", || backend.jobs().len() >= 2);
    KeyStore::open(store).unwrap().revoke("ada").unwrap();
    let path = store.join("files").join(format!("{id}.json"));
    let stored = || serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap();
    wait_until("it has failed", || stored()["status"] == "failed");
    assert_eq!((&stored()["errors"]["data"][0]["code"], backend.jobs().len()), (&json!("invalid_api_key"), 2));
    // What was answered before is kept.
    assert!(stored()["output_file_id"].is_string() && stored()["error_file_id"].is_null());
}

#[test]
fn a_batch_waits_for_what_its_key_may_do_a_minute() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    // Uploading and creating take two of three requests.
    let slow = key(store, "slow", |key| key.requests_per_minute = Some(3));
    let backend = ScriptedBackend::new((0..2).map(|_| Script::words("yes")));
    let server = start(store, backend.clone());
    begin(&server, &slow, 2);
    wait_until("a line is answered", || backend.jobs().len() == 1);
    let (status, _) = ask(&server, &slow, "GET", "/v1/batches", "text/plain", "");
    assert_eq!((status, backend.jobs().len()), (429, 1));
}
