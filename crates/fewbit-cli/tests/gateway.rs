//! The commands around a server with a store: `prompts` and `replay`, and the same tokens by every way; faults.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fewbit::expert::format::{GgufFile, GgufWriter};
use serde_json::{Value, json};

mod faults;
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
    fn start(folder: &Path, command: Command) -> Self {
        Self::start_with_stderr(folder, command, Stdio::null())
    }

    fn start_with_stderr(folder: &Path, mut command: Command, stderr: Stdio) -> Self {
        let config = folder.join("fewbit.toml");
        let config = config.to_str().unwrap();
        let key_file = folder.join("key");
        if !key_file.exists() {
            let key = run(&["keys", "add", "ada", "--config", config, "--json"])["secret"].as_str().unwrap().to_owned();
            fs::write(&key_file, key).unwrap();
        }
        let key = fs::read_to_string(key_file).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
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

/// The stories model with a chat template.
fn with_template(folder: &Path) -> PathBuf {
    let file = GgufFile::open(STORIES.as_ref()).unwrap();
    let mut writer = GgufWriter::with_metadata(file.metadata().clone());
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant:{% endif %}";
    writer.set("tokenizer.chat_template", template);
    for tensor in file.tensors() {
        writer.tensor(&tensor.name, &tensor.shape, tensor.ty, file.tensor_bytes(tensor)).unwrap();
    }
    let path = folder.join("chat.gguf");
    writer.write_file(&path).unwrap();
    path
}

/// The bits of log probabilities that an answer or a completion has: only the same tokens with the same logits have the same.
fn bits(logprobs: impl Iterator<Item = f32>) -> Vec<u32> {
    logprobs.map(f32::to_bits).collect()
}

#[test]
fn the_same_tokens_by_the_api_the_library_and_replay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fewbit.toml");
    let config = path.to_str().unwrap();
    let chat_model = with_template(folder.path());
    let write = |more: &str| {
        let text = format!(
            "listen = \"127.0.0.1:0\"\nstore = \"store\"\n[[models]]\nname = \"small\"\nmodel = {STORIES:?}\n[[models]]\n\
             name = \"chat\"\nmodel = {chat_model:?}\n[[routes]]\nname = \"tales\"\nto = [{{ model = \"small\" }}]\n{more}"
        );
        fs::write(&path, text).unwrap();
    };
    write("[audit]\nkeep_text = \"exact\"");
    let server = Server::start(folder.path(), fewbit(&["serve", "--config", config]));
    let body = json!({
        "model": "tales", "prompt": "Once upon a time", "temperature": 0.9, "seed": 11, "max_tokens": 24, "logprobs": 0
    });
    let (_, answer, text) = server.ask("/v1/completions", &body);
    let by_api = answer["choices"][0]["text"].as_str().unwrap().to_owned();
    let number = |value: &Value| value.as_f64().unwrap() as f32;
    let logprobs = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    let bits_by_api = bits(logprobs.iter().map(number));
    // A chat: as an answer, and streamed.
    let mut chat = json!({
        "model": "chat", "temperature": 0.9, "seed": 12, "max_tokens": 24, "logprobs": true,
        "messages": [{ "role": "system", "content": "Be kind." }, { "role": "user", "content": "Once" }],
    });
    let (_, answer, chat_text) = server.ask("/v1/chat/completions", &chat);
    let said = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let bits_of_chat = bits(tokens.iter().map(|token| number(&token["logprob"])));
    chat["stream"] = true.into();
    let (status, _, streamed) = server.ask("/v1/chat/completions", &chat);
    let chunks = streamed.lines().filter_map(|line| line.strip_prefix("data: ")?.parse::<Value>().ok());
    let streamed_text: String =
        chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect();
    assert_eq!((status, &streamed_text), (200, &said));
    // Without a seed and with several answers: the log has the seeds that were drawn.
    let body_2 = json!({ "model": "small", "prompt": ["Once", "Lily"], "temperature": 1, "max_tokens": 12, "n": 2 });
    let (status, _, text_2) = server.ask("/v1/completions", &body_2);
    assert_eq!(status, 200);
    server.stop();
    let model = fewbit::Model::load(STORIES).unwrap();
    let mut options = fewbit::GenerateOptions::new();
    (options.temperature, options.max_tokens) = (Some(0.9), Some(24));
    let by_library = model.generate("Once upon a time").options(options.seed(11).logprobs(0)).run().unwrap();
    assert_eq!(by_library.text, by_api);
    assert_eq!(bits(by_library.logprobs.iter().map(|token| token.logprob.unwrap())), bits_by_api);
    let model = fewbit::Model::load(&chat_model).unwrap();
    let chat_by_library =
        model.generate("Once").templated().system("Be kind.").temperature(0.9).seed(12).max_tokens(24);
    let chat_by_library = chat_by_library.logprobs(0).run().unwrap();
    assert_eq!(chat_by_library.text, said);
    assert_eq!(bits(chat_by_library.logprobs.iter().map(|token| token.logprob.unwrap())), bits_of_chat);
    let all = run(&["replay", "--all", "--config", config, "--json"]);
    assert_eq!((&all["same"], &all["different"], &all["skipped"]), (&7.into(), &0.into(), &0.into()), "{all}");
    for text in [&chat_text, &streamed] {
        let one = run(&["replay", &id(text), "--config", config, "--json"]);
        assert_eq!((&one["same"], &one["answers"][0]["verdict"]), (&1.into(), &"same".into()), "{one}");
    }
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
