//! A server with a gateway over real sockets: which requests are admitted, what is counted, what is logged.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fewbit_gateway::{By, Entry, Gateway, Head, Key, KeyStore, Outcome, Price, Prices, usage, verify};
use fewbit_serve::{BackendError, BackendErrorKind, Finish, Script, ScriptedBackend};
use serde_json::{Value, json};

mod admin;
mod faults;
mod masking;
mod prompts;
mod replay;
mod routes;
#[path = "../../fewbit-serve/tests/support/mod.rs"]
mod support;
mod tools;

use support::{Running, endpoints};

/// A server with this store, where each generated token costs 0.1.
fn start(store: &Path, backend: ScriptedBackend) -> Running {
    let price = Price { input: 1e6, cached_input: 0.0, output: 1e5 };
    let gateway = Gateway::open(store, Prices::from([("scripted".to_owned(), price)]), backend).unwrap();
    Running::start(gateway.backend(), |server| server.gate(gateway))
}

impl Running {
    fn open(&self, key: &str, method: &str, path: &str, body: &Value) -> TcpStream {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let n = body.len();
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nx-api-key: {key}\r\nContent-Length: {n}\r\n\r\n{body}"
        )
        .unwrap();
        socket
    }

    /// The status, and the body if it is JSON.
    fn ask(&self, key: &str, method: &str, path: &str, body: Value) -> (u16, Value, String) {
        let mut text = String::new();
        self.open(key, method, path, &body).read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        (status, serde_json::from_str(body).unwrap_or_default(), text)
    }

    fn chat(&self, key: &str, more: Value) -> (u16, Value, String) {
        let mut body = json!({ "messages": [{ "role": "user", "content": "a private question" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.ask(key, "POST", "/v1/chat/completions", body)
    }
}

fn list(names: &[&str]) -> Option<Vec<String>> {
    Some(names.iter().map(|&name| name.to_owned()).collect())
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

/// Waits for what must come at last.
fn wait_until(holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(5));
    }
}

fn words(n: usize) -> ScriptedBackend {
    ScriptedBackend::new((0..n).map(|_| Script::words("A secret answer.")))
}

#[test]
fn every_endpoint_rejects_unauthorized_keys() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let all = key(store, "all", |_| ());
    let revoked = key(store, "revoked", |_| ());
    let other_endpoint = key(store, "endpoint", |key| key.endpoints = list(&["/v1/other"]));
    let other_model = key(store, "model", |key| key.models = list(&["other"]));
    KeyStore::open(store).unwrap().revoke("revoked").unwrap();
    let backend = ScriptedBackend::default();
    let server = start(store, backend.clone());
    for (method, path, body) in endpoints() {
        for wrong in ["", "wrong", &revoked, &all[..all.len() - 1], &format!("{all}0")] {
            assert_eq!(server.ask(wrong, method, path, body.clone()).0, 401, "{path} {wrong:?}");
        }
        assert_eq!(server.ask(&other_endpoint, method, path, body.clone()).0, 403, "{path}");
        // A model that a key may not use is treated as nonexistent.
        let (status, models, text) = server.ask(&other_model, method, path, body.clone());
        match path {
            "/v1/models" => assert_eq!(models["data"], json!([])),
            "/metrics" => assert_eq!(status, 200),
            _ => {
                assert!([400, 404].contains(&status) && !text.contains("name one of scripted"), "{path} {text}");
                let mut named = body.clone();
                if named.is_object() {
                    named["model"] = "scripted".into();
                    assert_eq!(server.ask(&other_model, method, path, named).0, 404, "{path}");
                }
            }
        }
        assert!(backend.jobs().is_empty());
    }
    for (method, path, body) in endpoints() {
        backend.push(Script::words("x"));
        assert_eq!(server.ask(&all, method, path, body).0, 200, "{path}");
    }
}

#[test]
fn tool_scopes_are_enforced() {
    let folder = tempfile::tempdir().unwrap();
    let some = key(folder.path(), "some", |key| key.tools = list(&["f"]));
    let server = start(folder.path(), words(1));
    let tool = |name: &str| json!({ "tools": [{ "type": "function", "function": { "name": name } }] });
    let (status, body, _) = server.chat(&some, tool("g"));
    assert_eq!((status, &body["error"]["param"]), (403, &json!("tools[0]")));
    assert_eq!(server.chat(&some, tool("f")).0, 200);
    assert_eq!(
        log(folder.path()).iter().map(|entry| entry.outcome).collect::<Vec<_>>(),
        [Outcome::Refused, Outcome::Complete]
    );
}

#[test]
fn limits_are_enforced_and_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let few = key(store, "few", |key| key.requests_per_minute = Some(2));
    let short = key(store, "short", |key| key.tokens_per_day = Some(10));
    // An answer costs 1 for its prompt token and 0.3 for its three generated tokens.
    let cheap = key(store, "cheap", |key| key.cost_per_day = Some(2.0));
    {
        let server = start(store, words(9));
        assert_eq!([server.chat(&few, json!({})).0, server.chat(&few, json!({})).0], [200, 200]);
        let (status, body, text) = server.chat(&few, json!({}));
        assert_eq!((status, &body["error"]["code"]), (429, &json!("rate_limit_exceeded")));
        assert!(text.to_ascii_lowercase().contains("retry-after: "), "{text}");
        assert_eq!(server.chat(&short, json!({ "max_tokens": 11 })).0, 429);
        assert_eq!(server.chat(&short, json!({ "max_tokens": 10 })).0, 200);
        assert_eq!(server.chat(&short, json!({ "max_tokens": 7 })).0, 429);
        assert_eq!(server.chat(&cheap, json!({})).0, 200);
        assert_eq!(server.chat(&cheap, json!({})).0, 200);
        let (status, body, _) = server.chat(&cheap, json!({}));
        assert_eq!((status, &body["error"]["code"]), (429, &json!("insufficient_quota")));
    }
    // The next server knows what was used before.
    let server = start(store, words(9));
    assert_eq!(server.chat(&short, json!({ "max_tokens": 7 })).0, 429);
    assert_eq!(server.chat(&short, json!({ "max_tokens": 6 })).0, 200);
    assert_eq!(server.chat(&cheap, json!({})).0, 429);
    drop(server);
    let rows = usage(store, By::Key).unwrap();
    let of = |name: &str| rows.iter().find(|row| row.of == name).unwrap();
    assert_eq!((of("cheap").answers, of("cheap").refused, of("cheap").completion_tokens), (2, 2, 6));
    assert!((of("cheap").cost - 2.6).abs() < 1e-9);
    assert_eq!((of("short").answers, of("short").refused), (2, 3));
}

#[test]
fn every_outcome_is_logged_without_text() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let ada = key(store, "ada", |_| ());
    let broken = BackendError::new(BackendErrorKind::Internal, "it broke");
    let backend = ScriptedBackend::new([
        Script::words("A secret answer."),
        Script::refuse(BackendError::new(BackendErrorKind::Busy, "no")),
        Script::new().begin(5).text("A ").fail(broken),
        Script::new().begin(7).text("A ").text("secret ").wait(Duration::from_secs(3600)).end(Finish::Stop),
    ]);
    let server = start(store, backend);
    let (_, _, text) = server.chat(&ada, json!({}));
    assert_eq!(server.chat(&ada, json!({})).0, 429);
    assert_eq!(server.chat(&ada, json!({})).0, 500);
    let body = json!({ "stream": true, "messages": [{ "role": "user", "content": "a private question" }] });
    let mut socket = server.open(&ada, "POST", "/v1/chat/completions", &body);
    let mut seen = String::new();
    while !seen.contains("secret ") {
        let mut bytes = [0; 1000];
        let n = socket.read(&mut bytes).unwrap();
        seen += std::str::from_utf8(&bytes[..n]).unwrap();
    }
    drop(socket);
    let start = Instant::now();
    while log(store).len() < 4 {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(5));
    }
    let entries = log(store);
    let outcomes: Vec<_> =
        entries.iter().map(|entry| (entry.outcome, entry.prompt_tokens, entry.completion_tokens)).collect();
    let want =
        [(Outcome::Complete, 1, 3), (Outcome::Refused, 0, 0), (Outcome::Failed, 5, 1), (Outcome::Cancelled, 7, 2)];
    assert_eq!(outcomes, want);
    assert!(text.contains(&entries[0].request));
    assert!(
        entries.iter().all(|entry| entry.key.as_deref() == Some("ada") && entry.endpoint == "/v1/chat/completions")
    );
    for file in std::fs::read_dir(store).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("private") && !text.contains("secret") && !text.contains(&ada));
    }
}

#[test]
fn revoked_keys_and_broken_key_files_are_rejected_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let server = start(store, words(9));
    let ada = key(store, "ada", |_| ());
    assert_eq!(server.chat(&ada, json!({})).0, 200);
    let path = store.join("keys.json");
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, "{").unwrap();
    assert_eq!(server.chat(&ada, json!({})).0, 503);
    std::fs::write(&path, &good).unwrap();
    assert_eq!(server.chat(&ada, json!({})).0, 200);
    KeyStore::open(store).unwrap().revoke("ada").unwrap();
    assert_eq!(server.chat(&ada, json!({})).0, 401);
}

#[test]
fn shared_stores_and_broken_logs_prevent_startup() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let ada = key(store, "ada", |_| ());
    let open =
        || Gateway::open(store, Prices::new(), ScriptedBackend::default()).map(drop).map_err(|error| error.to_string());
    {
        let server = start(store, words(2));
        assert!(open().unwrap_err().contains("another server"));
        assert_eq!([server.chat(&ada, json!({})).0, server.chat(&ada, json!({})).0], [200, 200]);
    }
    open().unwrap();
    let path = store.join("audit.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"completion_tokens\":3", "\"completion_tokens\":2", 1)).unwrap();
    assert!(open().unwrap_err().contains("line 2"));
    assert!(verify(store, Some(&Head::default()), |_| ()).is_err());
}
