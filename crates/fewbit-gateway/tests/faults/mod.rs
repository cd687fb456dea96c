//! Faults and load: whatever clients, other servers and the disk do, every answer has its line, the log verifies, usage
//! is what the log says, and nothing private is in any file or error.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use fewbit_gateway::{By, Entry, Gateway, Outcome, Prices, usage, verify};
use fewbit_serve::{Backend, Finish, Script, ScriptedBackend};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Running, endpoints};

/// Checks what must hold after every fault. Returns the lines of the log.
fn check(store: &Path, secrets: &[&str]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let head = verify(store, None, |entry| entries.push(entry.clone())).unwrap();
    assert_eq!(head.n, entries.len() as u64);
    for (by, n) in [(By::Key, "key"), (By::Model, "model"), (By::Day, "day")] {
        let rows = usage(store, by).unwrap();
        let sum = |of: fn(&fewbit_gateway::Row) -> u64| rows.iter().map(of).sum::<u64>();
        assert_eq!(sum(|row| row.answers + row.refused), head.n, "{n}");
        assert_eq!(
            sum(|row| row.completion_tokens),
            entries.iter().map(|entry| entry.completion_tokens).sum::<u64>(),
            "{n}"
        );
        assert_eq!(sum(|row| row.prompt_tokens), entries.iter().map(|entry| entry.prompt_tokens).sum::<u64>(), "{n}");
    }
    for file in std::fs::read_dir(store).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(secrets.iter().all(|secret| !text.contains(secret)), "{text}");
    }
    entries
}

fn start(store: &Path, backend: impl Backend) -> Running {
    let gateway = Gateway::open(store, Prices::new(), backend).unwrap();
    Running::start(gateway.backend(), |server| server.gate(gateway).body_limit(1 << 20))
}

#[test]
fn no_endpoint_answers_without_the_right_key() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let all = super::key(store, "all", |_| ());
    let revoked = super::key(store, "revoked", |_| ());
    let narrow = super::key(store, "narrow", |key| key.endpoints = super::list(&["/v1/none"]));
    fewbit_gateway::KeyStore::open(store).unwrap().revoke("revoked").unwrap();
    let backend = ScriptedBackend::default();
    let server = start(store, backend.clone());
    let mut endpoints = endpoints();
    endpoints.extend([
        ("GET", "/v1/responses/resp_1", Value::Null),
        ("DELETE", "/v1/responses/resp_1", Value::Null),
        ("POST", "/admin/reload", Value::Null),
        ("GET", "/v1/files/../../etc/passwd", Value::Null),
        ("POST", "/none", json!({})),
    ]);
    for (method, path, body) in endpoints {
        let almost = format!("{}{}", &all[..all.len() - 1], if all.ends_with('0') { '1' } else { '0' });
        for (key, want) in [("", 401), ("wrong", 401), (&revoked, 401), (&almost, 401), (&narrow, 403)] {
            let (status, _, text) = server.ask(key, method, path, body.clone());
            assert_eq!(status, want, "{method} {path} {key:?}: {text}");
            assert!(!text.contains(&all) && !text.contains(&revoked) && !text.contains(&narrow), "{path}: {text}");
        }
    }
    // Without a scope that names it, a key with every right may not administer the server either.
    assert_eq!(server.ask(&all, "POST", "/admin/reload", Value::Null).0, 403);
    assert!(backend.jobs().is_empty());
    drop(server);
    check(store, &[&all, &revoked, &narrow]);
}

/// Sends bytes, and returns what comes back before the server closes the connection.
fn raw(server: &Running, bytes: &[u8], is_whole: bool) -> String {
    let mut socket = TcpStream::connect(&server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // A server that has seen enough may close the connection while it is being written to.
    let _ = socket.write_all(bytes);
    if !is_whole {
        let _ = socket.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn hostile_requests_are_refused_and_the_server_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let ada = super::key(store, "ada", |_| ());
    let backend = ScriptedBackend::default();
    let server = start(store, backend.clone());
    let post = |headers: &str, body: &[u8]| {
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nx-api-key: {ada}\r\n{headers}\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let sized = |body: &[u8]| post(&format!("Content-Length: {}\r\n", body.len()), body);
    let deep = |open: &str, n: usize| format!("{{\"messages\": {}", open.repeat(n)).into_bytes();
    let chat =
        |content: &str| format!("{{\"messages\": [{{\"role\": \"user\", \"content\": {content}}}]}}").into_bytes();
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("nothing", Vec::new(), &[]),
        ("noise", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), &[400]),
        ("no version", b"GET /health\r\n\r\n".to_vec(), &[400]),
        ("a header without an end", b"GET /health HTTP/1.1\r\nHost: local".to_vec(), &[400]),
        ("a line break in a header", b"GET /health HTTP/1.1\r\nHost: a\nx\r\n\r\n".to_vec(), &[400]),
        (
            "too many headers",
            [b"GET /health HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(5000), b"\r\n".to_vec()].concat(),
            &[400, 431],
        ),
        ("a length that is none", post("Content-Length: -1\r\n", b""), &[400]),
        ("two lengths", post("Content-Length: 1\r\nContent-Length: 2\r\n", b"{}"), &[400]),
        ("a length and chunks", post("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), &[400]),
        ("a chunk that is none", post("Transfer-Encoding: chunked\r\n", b"zz\r\n"), &[400]),
        ("half a body", post("Content-Length: 100\r\n", b"{\"messages\""), &[400]),
        ("a body that is too large", sized(&[b' '; (1 << 20) + 1]), &[413]),
        ("a body that claims to be huge", post("Content-Length: 99999999999\r\n", b"{}"), &[400, 413]),
        ("deep lists", sized(&deep("[", 100_000)), &[400]),
        ("deep objects", sized(&deep("{\"a\":", 100_000)), &[400]),
        (
            "bytes that are not UTF-8",
            sized(&chat("\"\u{1}\"").into_iter().map(|byte| if byte == 1 { 0xff } else { byte }).collect::<Vec<_>>()),
            &[400],
        ),
        ("half of a pair", sized(&chat("\"\\ud800\"")), &[400]),
        ("a number that is too large", sized(b"{\"messages\": [], \"max_tokens\": 1e999}"), &[400]),
        ("the same field twice", sized(b"{\"messages\": 1, \"messages\": []}"), &[400]),
        ("no JSON", sized(b"ada@example.org"), &[400]),
    ];
    for (what, bytes, want) in cases {
        // Whoever breaks off need not get an answer.
        let is_whole =
            !["nothing", "noise", "half", "a header without", "a chunk", "huge"].iter().any(|of| what.contains(of));
        let answer = raw(&server, &bytes, is_whole || what == "half of a pair");
        let status: Option<u16> = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let is_right = status.map_or(!is_whole, |status| want.contains(&status));
        assert!(is_right, "{what}: {answer}");
        assert!(!answer.contains(&ada) && !answer.contains("ada@example.org"), "{what}: {answer}");
        assert!(
            raw(&server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", true)
                .contains(" 200 "),
            "{what}"
        );
    }
    assert!(backend.jobs().is_empty());
    // A request that is as it should be, after all of these.
    backend.push(Script::words("Fine."));
    assert!(raw(&server, &sized(&chat("\"ada@example.org\"")), true).contains("Fine."));
    drop(server);
    let entries = check(store, &[&ada, "example.org"]);
    assert_eq!(entries.iter().map(|entry| entry.outcome).collect::<Vec<_>>(), [Outcome::Complete]);
}

#[test]
fn connections_that_do_nothing_keep_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let ada = super::key(store, "ada", |_| ());
    // An answer of 64 MiB, which does not fit into the buffers of a connection.
    let long = (0..1024).fold(Script::new(), |script, _| script.text(&"x".repeat(1 << 16))).end(Finish::Stop);
    let backend = ScriptedBackend::new([long.clone(), long]);
    let server = start(store, backend.clone());
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    let halves: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut socket = TcpStream::connect(&server.address).unwrap();
            socket.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le").unwrap();
            socket
        })
        .collect();
    let body = json!({ "stream": true, "messages": [{ "role": "user", "content": "a private question" }] });
    let slow: Vec<TcpStream> = (0..2).map(|_| server.open(&ada, "POST", "/v1/chat/completions", &body)).collect();
    super::wait_until(|| backend.running() == 2);
    backend.push(Script::words("A secret answer."));
    assert_eq!(server.chat(&ada, json!({})).0, 200);
    // One of the slow readers reads at last, the other goes away.
    let mut slow = slow.into_iter();
    drop(slow.next());
    let mut all = Vec::new();
    slow.next().unwrap().read_to_end(&mut all).unwrap();
    assert!(all.len() > 1 << 26);
    super::wait_until(|| super::log(store).len() == 3);
    drop((silent, halves));
    drop(server);
    let mut outcomes: Vec<_> =
        check(store, &[&ada, "private", "secret"]).iter().map(|entry| format!("{:?}", entry.outcome)).collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["Cancelled", "Complete", "Complete"]);
}

/// How many connections ask at once, and how many streams of them are open at the same time.
const CONNECTIONS: usize = 1000;
const STREAMS: usize = 64;

#[test]
fn a_thousand_connections_are_answered_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    // Some of the requests of this key come too soon.
    let some = super::key(store, "some", |key| key.requests_per_minute = Some(100));
    let all = super::key(store, "all", |_| ());
    let stream = || {
        (0..20)
            .fold(Script::new().begin(3), |script, _| script.text("word ").wait(Duration::from_millis(1)))
            .end(Finish::Stop)
    };
    let backend = ScriptedBackend::new((0..CONNECTIONS + STREAMS).map(|_| stream()));
    let server = start(store, backend);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (complete, refused) = runtime.block_on(async {
        let ask = |key: &str, is_streamed: bool| {
            let body =
                json!({ "stream": is_streamed, "messages": [{ "role": "user", "content": "a private question" }] })
                    .to_string();
            let head = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nx-api-key: {key}\r\n"
            );
            let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
            let address = server.address.clone();
            tokio::spawn(async move {
                let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
                socket.write_all(request.as_bytes()).await.unwrap();
                let mut answer = String::new();
                socket.read_to_string(&mut answer).await.unwrap();
                let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
                match status {
                    200 => assert!(
                        if is_streamed { answer.contains("[DONE]") } else { answer.contains("word word") },
                        "{answer}"
                    ),
                    429 => assert!(answer.to_ascii_lowercase().contains("retry-after: "), "{answer}"),
                    503 => {}
                    other => panic!("{other}: {answer}"),
                }
                status
            })
        };
        let tasks: Vec<_> = (0..CONNECTIONS + STREAMS)
            .map(|i| ask(if i % 4 == 0 { &some } else { &all }, i < STREAMS || i % 2 == 0))
            .collect();
        let (mut complete, mut refused) = (0, 0);
        for task in tasks {
            match task.await.unwrap() {
                200 => complete += 1,
                _ => refused += 1,
            }
        }
        (complete, refused)
    });
    drop(server);
    // None is lost: each has its status, and each that was begun has its line.
    assert_eq!(complete + refused, CONNECTIONS + STREAMS);
    let n_some = (CONNECTIONS + STREAMS) / 4;
    assert!(complete >= CONNECTIONS + STREAMS - n_some && (1..=n_some).contains(&refused), "{complete} {refused}");
    let entries = check(store, &[&some, &all, "private", "word"]);
    assert_eq!(entries.len(), complete);
    assert!(entries.iter().all(|entry| entry.outcome == Outcome::Complete && entry.completion_tokens == 20));
}
