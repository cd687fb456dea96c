//! Faults of the program and its disk: it is killed, the disk is full, another process has the store.
//!
//! After each, the log verifies, usage is what the log says, and no key and nothing private is in any file.
//!
//! | fault | where it is tested |
//! | --- | --- |
//! | kill -9 under load; the disk is full; two processes on one store | here |
//! | slow readers, half-open connections, silent ones, 1,000 at once | `fewbit-gateway/tests/faults` |
//! | malformed HTTP, bodies that are too large, deep JSON | `fewbit-gateway/tests/faults` |
//! | other servers that hang, lie or break off | `fewbit-gateway/tests/routes` |
//! | MCP servers that do so | `fewbit-gateway/tests/tools` |
//! | a new configuration with errors | `serve.rs` here, `fewbit-gateway/tests/routes` |
//! | a log or keys that were changed | `fewbit-gateway/tests/gateway.rs` |
//! | a batch that is killed | `serve.rs` here, `fewbit-serve/tests/it/batches.rs` |

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fewbit_serve::{Finish, Input, Script, ScriptedBackend};
use serde_json::{Value, json};

use super::support::{STORIES, fewbit};
use super::{Server, fails, id, run};

/// What must not be in any file.
const PRIVATE: &str = "ada.lovelace@example.org";

/// Checks what must hold after every fault. Returns the lines of the log.
fn check(folder: &Path, secrets: &[&str]) -> Vec<Value> {
    let config = folder.join("fewbit.toml");
    let config = config.to_str().unwrap();
    let verified = run(&["audit", "verify", "--config", config, "--json"]);
    let log = fs::read_to_string(folder.join("store/audit.jsonl")).unwrap();
    let lines: Vec<Value> = log
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(verified["lines"], lines.len());
    for by in ["key", "model", "backend", "prompt", "feature", "day"] {
        let usage = run(&["usage", "--config", config, "--json", "--by", by]);
        let rows = usage["rows"].as_array().unwrap();
        let used = |of: &str| rows.iter().map(|row| row[of].as_f64().unwrap()).sum::<f64>();
        let logged = |of: &str| lines.iter().map(|line| line[of].as_f64().unwrap()).sum::<f64>();
        assert_eq!(used("answers") + used("refused"), lines.len() as f64, "{by}");
        for of in ["prompt_tokens", "completion_tokens", "cost"] {
            assert_eq!(used(of), logged(of), "{of} by {by}");
        }
    }
    let mut folders = vec![folder.join("store")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            assert!(secrets.iter().all(|secret| !text.contains(secret)), "{}", path.display());
        }
    }
    let said = fs::read_to_string(folder.join("stderr")).unwrap_or_default();
    assert!(secrets.iter().all(|secret| !said.contains(secret)), "{said}");
    lines
}

/// Writes a configuration of one model, `m`.
fn write_config(path: &Path) {
    let model = format!("[[models]]\nname = \"m\"\nmodel = {STORIES:?}\n");
    fs::write(path, format!("listen = \"127.0.0.1:0\"\nstore = \"store\"\n{model}")).unwrap();
}

/// Starts a server of scripts in this process, for the program to ask. It ends with the process.
fn scripted(backend: ScriptedBackend) -> String {
    let (tell, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let bound = fewbit_serve::Server::new(backend).bind("127.0.0.1:0").await.unwrap();
            tell.send(bound.local_addr().to_string()).unwrap();
            bound.run(std::future::pending()).await
        })
    });
    address.recv().unwrap()
}

/// How many requests there are, how many clients send them, and after how many answers the server is killed.
const REQUESTS: usize = 1000;
const CLIENTS: usize = 16;
const KILLS: [usize; 3] = [150, 450, 700];

#[test]
fn a_kill_in_the_middle_of_a_thousand_requests_loses_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fewbit.toml");
    let config = path.to_str().unwrap();
    let answer = ["Dear ", "[EMAIL_1]", ", ", "it ", "is ", "so."];
    let script =
        answer.iter().fold(Script::new().begin(3), |script, word| script.text(word).wait(Duration::from_millis(1)));
    let backend = ScriptedBackend::default().then_always(script.end(Finish::Stop));
    let upstream = scripted(backend.clone());
    let text = format!(
        "listen = \"127.0.0.1:0\"\nstore = \"store\"\n[[upstreams]]\nname = \"far\"\nurl = \"http://{upstream}/v1\"\n\
         [[routes]]\nname = \"chat\"\nto = [{{ upstream = \"far\", model = \"scripted\" }}]\n\
         [prices.chat]\ninput = 1000000\noutput = 1000000\n[masking]\n[audit]\nkeep_text = \"masked\"\n"
    );
    fs::write(&path, text).unwrap();
    let stderr = File::create(folder.path().join("stderr")).unwrap();
    let start = || {
        let command = fewbit(&["serve", "--config", config, "-v"]);
        Server::start_with_stderr(folder.path(), command, stderr.try_clone().unwrap().into())
    };
    // The requests that were sent, and the ids of those whose answers came whole.
    let (next, whole) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let body = |i: usize| {
        let message = json!({ "role": "user", "content": format!("I am {PRIVATE}, for the {i}th time.") });
        json!({ "messages": [message], "stream": i.is_multiple_of(2), "metadata": { "feature": format!("f{}", i % 3) } })
    };
    let mut key = String::new();
    for kill in KILLS.into_iter().map(Some).chain([None]) {
        let mut server = start();
        key.clone_from(&server.key);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let (next, whole, body) = (&next, &whole, &body);
                    let (address, key) = (server.address.clone(), server.key.clone());
                    scope.spawn(move || {
                        // Until all are sent, or the server is gone in the middle of one.
                        while next.load(Ordering::SeqCst) < REQUESTS {
                            let Ok(mut socket) = TcpStream::connect(&address) else { break };
                            let i = next.fetch_add(1, Ordering::SeqCst);
                            if i >= REQUESTS {
                                break;
                            }
                            let body = body(i).to_string();
                            let head = format!("Host: localhost\r\nConnection: close\r\nx-api-key: {key}");
                            let n = body.len();
                            let request = format!(
                                "POST /v1/chat/completions HTTP/1.1\r\n{head}\r\nContent-Length: {n}\r\n\r\n{body}"
                            );
                            let mut answer = String::new();
                            let read =
                                socket.write_all(request.as_bytes()).and_then(|()| socket.read_to_string(&mut answer));
                            let end = if i.is_multiple_of(2) { "data: [DONE]\n\n\r\n0\r\n\r\n" } else { "}" };
                            if read.is_err() || !answer.ends_with(end) {
                                break;
                            }
                            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(PRIVATE), "{answer}");
                            whole.lock().unwrap().push(id(&answer));
                        }
                    })
                })
                .collect();
            let Some(kill) = kill else { return };
            while whole.lock().unwrap().len() < kill {
                assert!(!clients.iter().all(|client| client.is_finished()), "the clients are done before");
                std::thread::sleep(Duration::from_millis(1));
            }
            server.child.kill().unwrap();
            server.child.wait().unwrap();
        });
        if kill.is_none() {
            server.stop();
        }
        let lines = check(folder.path(), &[&key, PRIVATE]);
        // A client that got its answer whole finds it in the log, once.
        for id in whole.lock().unwrap().iter() {
            let of = lines.iter().filter(|line| line["request"] == id.as_str());
            assert_eq!(of.map(|line| line["outcome"].clone()).collect::<Vec<_>>(), ["complete"], "{id}");
        }
        if kill.is_some() {
            // As if it had been killed in the middle of a line: this is taken away, and the log goes on after the line
            // before it.
            let mut log = OpenOptions::new().append(true).open(folder.path().join("store/audit.jsonl")).unwrap();
            log.write_all(b"{\"n\":1000000,\"prev\":\"0").unwrap();
            assert_eq!(check(folder.path(), &[&key, PRIVATE]).len(), lines.len());
        }
    }
    assert_eq!(next.into_inner().min(REQUESTS), REQUESTS);
    let n_lost = REQUESTS - whole.into_inner().unwrap().len();
    assert!(n_lost <= KILLS.len() * CLIENTS, "{n_lost} of {REQUESTS} were not answered");
    let lines = check(folder.path(), &[&key, PRIVATE]);
    assert!((REQUESTS - n_lost..=REQUESTS).contains(&lines.len()), "{} lines", lines.len());
    assert!(lines.iter().all(|line| line["masked"] == 1 && line["backend"] == "far/scripted"));
    // The other server never saw it either.
    for job in backend.jobs() {
        let Input::Chat { messages, .. } = &job.input else { panic!() };
        assert!(!messages[0].content.as_text().unwrap().contains(PRIVATE));
    }
}

#[test]
fn a_store_has_one_server_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fewbit.toml");
    let config = path.to_str().unwrap();
    write_config(&path);
    let server = Server::start(folder.path(), fewbit(&["serve", "--config", config]));
    let body = json!({ "model": "m", "prompt": "Once", "max_tokens": 2 });
    assert_eq!(server.ask("/v1/completions", &body).0, 200);
    for _ in 0..3 {
        let said = fails(&["serve", "--config", config]);
        assert!(said.contains("audit.lock") && said.lines().count() == 1, "{said}");
    }
    // Commands work next to it, and the first one has noticed nothing.
    let bob = run(&["keys", "add", "bob", "--config", config, "--json"])["secret"].as_str().unwrap().to_owned();
    assert_eq!(server.ask("/v1/completions", &body).0, 200);
    let key = server.key.clone();
    let lines = check(folder.path(), &[&key, &bob]);
    assert_eq!(lines.len(), 2);
    server.stop();
    // A process that is killed keeps nobody out.
    let mut killed = Server::start(folder.path(), fewbit(&["serve", "--config", config]));
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    let server = Server::start(folder.path(), fewbit(&["serve", "--config", config]));
    assert_eq!(server.ask("/v1/completions", &body).0, 200);
    server.stop();
    assert_eq!(check(folder.path(), &[&key, &bob]).len(), 3);
}

#[test]
fn a_full_disk_lets_nobody_in_and_loses_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fewbit.toml");
    let config = path.to_str().unwrap();
    write_config(&path);
    let body = json!({ "model": "m", "prompt": "Once", "max_tokens": 2 });
    let log = folder.path().join("store/audit.jsonl");
    // No file may have more than 4 KiB: a write beyond that fails like one to a full disk.
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "trap '' XFSZ; ulimit -f 8; exec \"$0\" serve --config \"$1\"",
        env!("CARGO_BIN_EXE_fewbit"),
        config,
    ]);
    command.env("FEWBIT_THREADS", "1").env("FEWBIT_HOME", "/nonexistent/fewbit");
    let server = Server::start(folder.path(), command);
    let statuses: Vec<u16> = (0..30).map(|_| server.ask("/v1/completions", &body).0).collect();
    let n_answered = statuses.iter().take_while(|status| **status == 200).count();
    assert!(
        (2..25).contains(&n_answered) && statuses[n_answered..].iter().all(|status| *status == 503),
        "{statuses:?}"
    );
    let lines = |log: &Path| fs::read_to_string(log).unwrap().lines().count();
    // Each answer that a client got whole has its line, and there is no part of a line.
    assert_eq!(lines(&log), n_answered);
    assert!(fs::read_to_string(&log).unwrap().ends_with("}\n"));
    server.stop();
    assert_eq!(run(&["audit", "verify", "--config", config, "--json"])["lines"], n_answered);
    // With room again, it goes on.
    let server = Server::start(folder.path(), fewbit(&["serve", "--config", config]));
    assert_eq!(server.ask("/v1/completions", &body).0, 200);
    server.stop();
    let verified = run(&["audit", "verify", "--config", config, "--json"]);
    let usage = run(&["usage", "--config", config, "--json"])["rows"][0].clone();
    assert_eq!((&verified["lines"], &usage["answers"]), (&(n_answered + 1).into(), &(n_answered + 1).into()));
}
