//! The program among others: models of a hub, outputs that are no files, signals, texts from other systems.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

#[path = "../../../tests/it/hub_server.rs"]
#[allow(dead_code)]
mod hub_server;

use hub_server::HubServer;

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/stories260K-f32.gguf");

/// A program whose models and caches are all in `home`.
fn fewbit(home: &TempDir, endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewbit"));
    command.args(args).stdin(Stdio::null()).env("FEWBIT_THREADS", "1").env("HOME", home.path());
    command.env("FEWBIT_HOME", home.path().join("fewbit")).env("HF_ENDPOINT", endpoint);
    for name in [
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "XDG_CACHE_HOME",
        "OLLAMA_MODELS",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    command
}

const NOWHERE: &str = "http://127.0.0.1:9";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_model_of_the_hub_is_run_looked_at_and_listed() {
    let stories = fs::read(STORIES).unwrap();
    let server = HubServer::new(&[("s.Q4_K_M.gguf", &stories), ("s.Q8_0.gguf", b"GGUF")]);
    let home = TempDir::new().unwrap();
    let run = |args: &[&str]| fewbit(&home, &server.url, args).output().unwrap();

    let look = json(&run(&["inspect", "org/repo:Q4_K_M", "--json"]));
    assert_eq!(look["path"], Value::Null);
    assert_eq!(look["remote"]["bytes"], stories.len());
    assert_eq!(look["remote"]["files"][0], "s.Q4_K_M.gguf");
    assert!(
        look["memory"]["total_bytes"].as_u64() > Some(0) && look["tensors"].as_array().is_some_and(|t| t.len() > 10)
    );
    assert!(!home.path().join("fewbit").exists(), "nothing was fetched");
    let shown = text(&run(&["inspect", "org/repo:Q4_K_M"]).stdout);
    assert!(shown.starts_with("not fetched: ") && shown.contains("org/repo:Q4_K_M: GGUF version 3"), "{shown}");

    let args = ["run", "org/repo:Q4_K_M", "Once upon a time", "--raw", "--temp", "0", "-n", "18"];
    let output = run(&args);
    assert_eq!(
        text(&output.stdout),
        ", there was a little girl named Lily. She loved to play out\n",
        "{}",
        text(&output.stderr)
    );
    assert!(text(&output.stderr).contains("fetching from hf"), "{}", text(&output.stderr));
    let again = fewbit(&home, NOWHERE, &args).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!((again.stdout, text(&again.stderr)), (output.stdout, String::new()));

    let pulled = json(&run(&["pull", "hf.co/org/repo/s.Q4_K_M.gguf", "--json"]));
    assert_eq!((&pulled["bytes"], &pulled["verified_by"]), (&stories.len().into(), &"hub".into()));
    let listed = json(&run(&["list", "--all", "--json"]));
    assert_eq!(listed["found"][0]["name"], "hf.co/org/repo/s.Q4_K_M.gguf");
    assert_eq!(listed["found"][0]["path"], pulled["path"]);
    let name = listed["found"][0]["name"].as_str().unwrap();
    assert_eq!(json(&run(&["inspect", name, "--json"]))["path"], pulled["path"]);
    assert!(text(&run(&["list", "--all"]).stdout).contains("hf.co/org/repo/s.Q4_K_M.gguf"));

    let output = run(&["run", "org/repo:Q2_K", "x"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let said = text(&output.stderr);
    assert!(said.contains("Q2_K") && said.contains("s.Q8_0.gguf"), "{said}");
}

#[test]
fn models_of_other_programs_are_run_by_the_names_that_are_shown() {
    let home = TempDir::new().unwrap();
    let studio = home.path().join(".lmstudio/models/pub/repo");
    fs::create_dir_all(&studio).unwrap();
    fs::copy(STORIES, studio.join("s.gguf")).unwrap();
    let list = fewbit(&home, NOWHERE, &["list", "--all", "--json"]).output().unwrap();
    let name = json(&list)["found"][0]["name"].as_str().unwrap().to_owned();
    assert_eq!(name, "lmstudio:pub/repo/s.gguf");
    let output =
        fewbit(&home, NOWHERE, &["run", &name, "Once upon a time", "--raw", "--temp", "0", "-n", "4", "--json"]);
    assert!(json(&{ output }.output().unwrap())["text"].as_str().unwrap().starts_with(", there was"));
    let output = fewbit(&home, NOWHERE, &["run", "ollama:none", "x"]).output().unwrap();
    assert!(text(&output.stderr).contains("list --all"), "{}", text(&output.stderr));
}

#[test]
fn offline_nothing_is_asked_for() {
    let server = HubServer::new(&[("s.gguf", b"GGUF")]);
    for (name, value) in [("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "yes")] {
        for args in [&["pull", "smollm2-360m-instruct"][..], &["run", "org/repo", "x"], &["inspect", "org/repo"]] {
            let home = TempDir::new().unwrap();
            let output = fewbit(&home, &server.url, args).env(name, value).output().unwrap();
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("HF_HUB_OFFLINE") && said.lines().count() == 1, "{said}");
        }
    }
    assert!(server.paths().is_empty());
}

#[test]
fn a_prompt_with_a_hyphen_and_a_mark_of_the_encoding() {
    let home = TempDir::new().unwrap();
    let ids = |args: &[&str], input: &[u8]| {
        let args = [&["run", STORIES, "--raw", "-n", "1", "--json"], args].concat();
        let mut child = fewbit(&home, NOWHERE, &args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
        json(&child.wait_with_output().unwrap())["prompt_token_ids"].clone()
    };
    assert_eq!(ids(&["- item one"], b""), ids(&["-"], b"- item one"));
    assert_eq!(ids(&["-"], "\u{feff}Once".as_bytes()), ids(&["Once"], b""));
    assert_eq!(ids(&["-"], b"\xff\xfeO\0n\0c\0e\0"), ids(&["Once"], b""));
    assert_eq!(ids(&["Once", "--system", "- Be brief"], b""), ids(&["- Be brief\n\nOnce"], b""));
    let wrong = fewbit(&home, NOWHERE, &["run", STORIES, "x", "--mx-tokens", "5"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("--max-tokens"));
}

#[cfg(unix)]
#[test]
fn outputs_that_are_no_files_are_written_through() {
    let home = TempDir::new().unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let quantize = |out: &str| fewbit(&home, NOWHERE, &["quantize", STORIES, out, "--type", "Q8_0"]);
    assert!(quantize(&at("plain.gguf")).status().unwrap().success());
    let expected = fs::read(at("plain.gguf")).unwrap();

    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let (pipe, sender) = (at("pipe"), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        fs::File::open(pipe).unwrap().read_to_end(&mut bytes).unwrap();
        sender.0.send(bytes).unwrap();
    });
    assert!(quantize(&at("pipe")).status().unwrap().success());
    assert!(!fs::metadata(at("pipe")).unwrap().is_file(), "the pipe is still one");
    assert!(sender.1.recv().unwrap() == expected, "other bytes through a pipe");

    std::os::unix::fs::symlink("target.gguf", at("link.gguf")).unwrap();
    assert!(quantize(&at("link.gguf")).status().unwrap().success());
    assert!(Path::new(&at("link.gguf")).is_symlink());
    assert!(fs::read(at("target.gguf")).unwrap() == expected, "other bytes through a link");

    let output = quantize("/dev/stdout").output().unwrap();
    assert!(output.status.success() && output.stdout == expected, "nothing but the file: {}", text(&output.stderr));
    assert!(text(&output.stderr).contains("bits per weight"));
    let full = quantize("/dev/full").output().unwrap();
    assert_eq!(full.status.code(), Some(1), "{}", text(&full.stderr));
}

/// A server is reached through the proxy of the environment, unless it is among those that are not.
#[test]
fn proxies_are_heeded() {
    let stories = fs::read(STORIES).unwrap();
    let server = HubServer::new(&[("s.gguf", &stories)]);
    let behind = server.url.trim_start_matches("http://").to_owned();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let (sender, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (behind, sender) = (behind.clone(), sender.clone());
            std::thread::spawn(move || tunnel(stream, &behind, &sender));
        }
    });
    let home = TempDir::new().unwrap();
    // A host that only the proxy knows.
    let pull = |name: &str, value: &str| {
        let mut command = fewbit(&home, "http://hub.invalid", &["pull", "org/repo"]);
        command.env(name, value).env_remove("NO_PROXY").env_remove("no_proxy");
        command
    };
    for name in ["HTTP_PROXY", "ALL_PROXY"] {
        while asked.try_recv().is_ok() {}
        let output = pull(name, &proxy).output().unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert_eq!(asked.recv().unwrap(), "CONNECT hub.invalid:80");
    }
    while asked.try_recv().is_ok() {}
    assert!(!pull("HTTPS_PROXY", &proxy).output().unwrap().status.success());
    assert!(!pull("HTTP_PROXY", &proxy).env("NO_PROXY", "hub.invalid").output().unwrap().status.success());
    assert!(asked.try_recv().is_err(), "a proxy for others");
}

/// One connection of a proxy that leads to `behind`, whatever it was asked for.
fn tunnel(mut stream: std::net::TcpStream, behind: &str, asked: &std::sync::mpsc::Sender<String>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
    let line = text(&head).lines().next().unwrap_or_default().replace(" HTTP/1.1", "");
    let _ = asked.send(line);
    let mut server = std::net::TcpStream::connect(behind).unwrap();
    std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let (mut from, mut to) = (server.try_clone().unwrap(), stream.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    let _ = std::io::copy(&mut stream, &mut server);
}

/// Signals while something is fetched: what is there stays, the rest is tidied up, and the status says which.
#[cfg(unix)]
#[test]
fn signals_end_the_program_in_an_orderly_way() {
    let stories = fs::read(STORIES).unwrap();
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130)] {
        let server = HubServer::new(&[("s.gguf", &stories)]);
        server.faults.delay_ms.store(1500, std::sync::atomic::Ordering::SeqCst);
        let home = TempDir::new().unwrap();
        let child = fewbit(&home, &server.url, &["pull", "org/repo"]).stderr(Stdio::piped()).spawn().unwrap();
        // Once the store is asked, the download has begun.
        while !server.paths().iter().any(|path| path.starts_with("/store/")) {
            std::thread::yield_now();
        }
        kill(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{signal}: {}", text(&output.stderr));
        let folder = home.path().join("fewbit/hub/models--org--repo/snapshots").join(hub_server::COMMIT);
        assert!(!folder.join("s.gguf").exists() && folder.join("s.gguf.part").exists());
    }
}

/// A signal while a file is written into a pipe that nobody reads on: the program ends, and leaves nothing.
#[cfg(unix)]
#[test]
fn a_signal_leaves_no_half_file() {
    let home = TempDir::new().unwrap();
    let text_file = home.path().join("text");
    fs::write(&text_file, "Once upon a time there was a little girl. ".repeat(3000)).unwrap();
    let out = home.path().join("out.imatrix.gguf");
    let args = ["imatrix", STORIES, "-f", text_file.to_str().unwrap(), "-o", out.to_str().unwrap(), "-v"];
    let mut child = fewbit(&home, NOWHERE, &args).stderr(Stdio::piped()).spawn().unwrap();
    // It says that the model is loaded; then it computes for a while.
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("loaded") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0, "ended too early");
    }
    kill(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert_eq!(left, ["text"]);
}

#[cfg(unix)]
fn kill(child: &std::process::Child, signal: &str) {
    assert!(Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap().success());
}
