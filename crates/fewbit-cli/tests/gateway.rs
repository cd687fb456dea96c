//! The commands around a server with a store: `prompts` and `replay`, and the same tokens by every way.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

mod support;

use support::{STORIES, fewbit};

fn run(args: &[&str]) -> Value {
    let output = fewbit(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn fails(args: &[&str]) -> String {
    let output = fewbit(args).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A server with a store in this folder, and its only key.
struct Server {
    child: Child,
    address: String,
    key: String,
}

impl Server {
    fn start(folder: &Path, mut command: Command) -> Self {
        let config = folder.join("fewbit.toml");
        let config = config.to_str().unwrap();
        let key_file = folder.join("key");
        if !key_file.exists() {
            let key = run(&["keys", "add", "ada", "--config", config, "--json"])["secret"].as_str().unwrap().to_owned();
            fs::write(&key_file, key).unwrap();
        }
        let key = fs::read_to_string(key_file).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.trim_end().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Self { child, address, key }
    }

    fn ask(&self, path: &str, body: &Value) -> (u16, Value, String) {
        let (body, key) = (body.to_string(), &self.key);
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let n = body.len();
        write!(socket, "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nx-api-key: {key}\r\nContent-Length: {n}\r\n\r\n{body}").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap_or_default(), text)
    }

    fn stop(mut self) {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

fn id(text: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap().to_owned()
}

#[test]
fn the_same_tokens_by_the_api_the_library_and_replay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fewbit.toml");
    let config = path.to_str().unwrap();
    let write = |more: &str| {
        let text = format!(
            "listen = \"127.0.0.1:0\"\nstore = \"store\"\n[[models]]\nname = \"small\"\nmodel = {STORIES:?}\n[[routes]]\n\
             name = \"tales\"\nto = [{{ model = \"small\" }}]\n{more}"
        );
        fs::write(&path, text).unwrap();
    };
    write("[audit]\nkeep_text = \"exact\"");
    let server = Server::start(folder.path(), fewbit(&["serve", "--config", config]));
    let body =
        json!({ "model": "tales", "prompt": "Once upon a time", "temperature": 0.9, "seed": 11, "max_tokens": 24 });
    let (_, answer, text) = server.ask("/v1/completions", &body);
    let by_api = answer["choices"][0]["text"].as_str().unwrap().to_owned();
    // Without a seed and with several answers: the log has the seeds that were drawn.
    let body_2 = json!({ "model": "small", "prompt": ["Once", "Lily"], "temperature": 1, "max_tokens": 12, "n": 2 });
    let (status, _, text_2) = server.ask("/v1/completions", &body_2);
    assert_eq!(status, 200);
    server.stop();
    let model = fewbit::Model::load(STORIES).unwrap();
    let mut options = fewbit::GenerateOptions::new();
    (options.temperature, options.max_tokens) = (Some(0.9), Some(24));
    let by_library = model.generate("Once upon a time").options(options.seed(11)).run().unwrap();
    assert_eq!(by_library.text, by_api);
    let all = run(&["replay", "--all", "--config", config, "--json"]);
    assert_eq!((&all["same"], &all["different"], &all["skipped"]), (&5.into(), &0.into(), &0.into()), "{all}");
    let one = run(&["replay", &id(&text), "--config", config, "--json"]);
    assert_eq!((&one["same"], &one["answers"][0]["verdict"]), (&1.into(), &"same".into()));
    assert_eq!(one["answers"][0]["logged"], one["answers"][0]["replayed"]);
    assert_eq!(run(&["replay", "--last", "2", "--config", config, "--json"])["same"], 2);
    // The client's request instead of the kept one.
    fs::remove_dir_all(folder.path().join("store/texts")).unwrap();
    assert!(fails(&["replay", &id(&text_2), "--config", config]).contains("nothing could be replayed"));
    let given = folder.path().join("body.json");
    fs::write(&given, body_2.to_string()).unwrap();
    let given = given.to_str().unwrap();
    let again = run(&["replay", &id(&text_2), "--config", config, "--request", given, "--json"]);
    assert_eq!((&again["same"], &again["skipped"]), (&4.into(), &0.into()), "{again}");
    assert!(
        fails(&["replay", &id(&text), "--config", config, "--request", given]).contains("nothing could be replayed")
    );
    assert!(fails(&["replay", "req_none", "--config", config]).contains("no request \"req_none\""));
}

#[test]
fn prompts_are_shown_checked_and_promoted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fewbit.toml");
    let config = path.to_str().unwrap();
    fs::write(
        &path,
        format!(
            "listen = \"127.0.0.1:0\"\nstore = \"store\"\nprompts = \"prompts\"\n[[models]]\nmodel = {STORIES:?}\n"
        ),
    )
    .unwrap();
    fs::create_dir_all(folder.path().join("prompts/tale")).unwrap();
    for (version, words) in [(1, "Once upon a time"), (2, "Once, long ago,")] {
        let text = format!(
            "[variables.name]\n[[messages]]\nrole = \"user\"\ncontent = \"\"\"{words}\nthere was {{{{ name }}}}.\"\"\"\n"
        );
        fs::write(folder.path().join(format!("prompts/tale/{version}.toml")), text).unwrap();
    }
    let run = |args: &[&str]| run(&[&["prompts", "--config", config, "--json"], args].concat());
    assert_eq!(run(&["check"]), json!({ "prompts": 1, "versions": 2 }));
    let listed = run(&["list"]);
    assert_eq!((&listed["prompts"][0]["name"], &listed["prompts"][0]["promoted"]), (&"tale".into(), &Value::Null));
    let shown = run(&["show", "tale@2", "--var", "name=Lily"]);
    assert_eq!(shown["messages"], json!([{ "role": "user", "content": "Once, long ago,\nthere was Lily." }]));
    let promoted = run(&["promote", "tale@1", "--note", "the first"]);
    assert_eq!(
        (&promoted["logged"], &promoted["sha256"]),
        (&true.into(), &listed["prompts"][0]["versions"][0]["sha256"])
    );
    run(&["canary", "tale@2", "--percent", "10"]);
    let listed = run(&["list"]);
    let (promoted, canary) = (&listed["prompts"][0]["promoted"], &listed["prompts"][0]["canary"]);
    assert_eq!((promoted, canary), (&1.into(), &json!({ "version": 2, "percent": 10, "by_key": false })));
    let changes = run(&["history", "tale"]);
    assert_eq!(
        (&changes["changes"][0]["note"], &changes["changes"][1]["action"]),
        (&"the first".into(), &"canary".into())
    );
    let lines = run(&["diff", "tale", "tale@2"]);
    let want = json!([
        { "change": " ", "line": "variable name" },
        { "change": " ", "line": "--- user" },
        { "change": "-", "line": "Once upon a time" },
        { "change": "+", "line": "Once, long ago," },
        { "change": " ", "line": "there was {{ name }}." },
    ]);
    assert_eq!(lines["lines"], want);
    let verified = self::run(&["audit", "verify", "--config", config, "--json"]);
    assert_eq!(verified["lines"], 2);
    for (args, words) in [
        (&["show", "tale@7"][..], "has no version"),
        (&["promote", "tale"][..], "names no version"),
        (&["show", "tale", "--var", "nam=x"][..], "has no variable"),
    ] {
        let said = fails(&[&["prompts", "--config", config], args].concat());
        assert!(said.contains(words), "{said}");
    }
    // A promoted version must stay as it is, and a file that is wrong has its line.
    fs::write(folder.path().join("prompts/tale/1.toml"), "[[messages]]\nrole = \"user\"\ncontent = \"x\"").unwrap();
    assert!(fails(&["prompts", "--config", config, "check"]).contains("changed after it was promoted"));
    fs::write(folder.path().join("prompts/tale/1.toml"), "[[messages]]\nrole = \"user\"\ncontent = \"{{ x }}\"")
        .unwrap();
    let said = fails(&["serve", "--config", config]);
    assert!(said.contains("1.toml, line 3") && said.contains("[variables.x]"), "{said}");
}

#[test]
fn a_full_disk_lets_nobody_in_and_loses_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fewbit.toml");
    let config = path.to_str().unwrap();
    fs::write(
        &path,
        format!("listen = \"127.0.0.1:0\"\nstore = \"store\"\n[[models]]\nname = \"m\"\nmodel = {STORIES:?}\n"),
    )
    .unwrap();
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
