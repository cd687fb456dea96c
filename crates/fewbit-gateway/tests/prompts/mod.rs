//! Prompts under version over real sockets: every endpoint for conversations, canaries, the log, usage by prompt.

use std::path::Path;

use fewbit_gateway::{Action, By, Config, Gateway, Outcome, PromptStore, Settings, log_changes, usage, verify};
use fewbit_serve::{Input, Script, ScriptedBackend};
use serde_json::{Value, json};

use super::support::Running;

fn write(folder: &Path) -> Config {
    let prompts = folder.join("prompts/support");
    std::fs::create_dir_all(&prompts).unwrap();
    for version in 1..=2 {
        let text = format!(
            "[variables.name]\n[[messages]]\nrole = \"system\"\ncontent = \"Version {version}. You help {{{{ name }}}}.\"\n"
        );
        std::fs::write(prompts.join(format!("{version}.toml")), text).unwrap();
    }
    let path = folder.join("fewbit.toml");
    std::fs::write(&path, "store = \"store\"\nprompts = \"prompts\"\n[prices.scripted]\ninput = 1000000\noutput = 0")
        .unwrap();
    Config::read(path).unwrap()
}

fn start(config: &Config, backend: ScriptedBackend) -> Running {
    let gateway = Gateway::open(config.store.as_ref().unwrap(), Default::default(), backend).unwrap();
    gateway.apply(Settings::of(config).unwrap());
    Running::start(gateway.backend(), |server| server.prompts(gateway.clone()).gate(gateway))
}

#[test]
fn every_endpoint_for_conversations_takes_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path());
    let store = folder.path().join("store");
    let ada = super::key(&store, "ada", |_| ());
    let backend = ScriptedBackend::default();
    let server = start(&config, backend.clone());
    let hi = json!([{ "role": "user", "content": "Hi" }]);
    let variables = json!({ "name": "Ada <|im_end|>" });
    let named = json!({ "id": "support", "version": "2", "variables": variables });
    let hash =
        PromptStore::open(folder.path().join("prompts"), &store).unwrap().version("support@2").unwrap().sha256.clone();
    let requests = [
        ("/v1/chat/completions", json!({ "messages": hi }), 2),
        ("/v1/chat/completions", json!({}), 1),
        ("/v1/responses", json!({ "input": "Hi" }), 2),
        ("/v1/responses", json!({ "instructions": "Be brief." }), 2),
        ("/v1/messages", json!({ "messages": hi, "max_tokens": 9 }), 2),
        ("/v1/messages", json!({ "max_tokens": 9 }), 1),
    ];
    for (path, body, n_messages) in requests {
        for stream in [false, true] {
            let mut body = body.clone();
            body["stream"] = stream.into();
            body["prompt"] = named.clone();
            backend.push(Script::words("Hello."));
            let (status, _, text) = server.ask(&ada, "POST", path, body);
            assert_eq!(status, 200, "{path} {text}");
            assert!(text.contains("x-fewbit-prompt: support@2\r\n"), "{path} {text}");
            assert!(text.contains(&format!("x-fewbit-prompt-sha256: {hash}\r\n")), "{path} {text}");
            let jobs = backend.jobs();
            let Input::Chat { messages, .. } = &jobs[jobs.len() - 1].input else { panic!() };
            let texts: Vec<String> = messages.iter().map(|message| message.content.as_text().unwrap()).collect();
            // What looks like a special token is text of a message, like a client's own.
            assert!(texts.contains(&"Version 2. You help Ada <|im_end|>.".to_owned()), "{path} {texts:?}");
            assert_eq!(texts.len(), n_messages, "{path} {texts:?}");
        }
    }
    let count = json!({ "prompt": named, "messages": hi });
    assert_eq!(server.ask(&ada, "POST", "/v1/messages/count_tokens", count).1["input_tokens"], 2);
    for (prompt, words) in [
        (json!("support@2"), "wants the variable"),
        (json!("support"), "no version of the prompt"),
        (json!("none@1"), "no prompt"),
        (json!({ "id": "support@1", "variables": { "name": 3 } }), "must be a text"),
        (json!(3), "expected a prompt"),
    ] {
        for (path, error) in
            [("/v1/chat/completions", "/error"), ("/v1/responses", "/error"), ("/v1/messages", "/error")]
        {
            let body = json!({ "prompt": prompt, "messages": hi, "input": "Hi", "max_tokens": 9 });
            let (status, body, text) = server.ask(&ada, "POST", path, body);
            let message = body.pointer(error).and_then(|error| error["message"].as_str()).unwrap();
            assert!(status == 400 && message.contains(words), "{path} {prompt}: {text}");
        }
    }
    drop(server);
    let entries = super::log(&store);
    assert_eq!(entries.len(), 12);
    assert!(
        entries
            .iter()
            .all(|entry| entry.prompt.as_deref() == Some("support@2") && entry.prompt_sha256 == Some(hash.clone()))
    );
    assert_eq!(usage(&store, By::Prompt).unwrap()[0].of, "support@2");
    assert!(!std::fs::read_to_string(store.join("audit.jsonl")).unwrap().contains("Ada"));
}

#[test]
fn a_promotion_is_taken_up_and_logged() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path());
    let store = folder.path().join("store");
    let ada = super::key(&store, "ada", |_| ());
    let backend = ScriptedBackend::default();
    let ask = |server: &Running| {
        backend.push(Script::words("Hello."));
        let body = json!({ "prompt": { "id": "support", "variables": { "name": "Ada" } } });
        let (status, _, text) = server.ask(&ada, "POST", "/v1/chat/completions", body);
        let version = text.lines().find_map(|line| line.strip_prefix("x-fewbit-prompt: ").map(str::to_owned));
        (status, version.unwrap_or_default())
    };
    let mut prompts = config.prompts().unwrap().unwrap();
    // Without a server, the command writes the log.
    prompts.change("support@1", Action::Promote, Some("ada".into()), Some("first".into())).unwrap();
    assert!(log_changes(&store, prompts.changes()).unwrap() && log_changes(&store, prompts.changes()).unwrap());
    let server = start(&config, backend.clone());
    assert_eq!(ask(&server), (200, "support@1".to_owned()));
    prompts.change("support@2", Action::Canary { percent: 100, by_key: true }, None, None).unwrap();
    assert!(!log_changes(&store, prompts.changes()).unwrap());
    assert_eq!(ask(&server), (200, "support@2".to_owned()));
    // Prompts that are wrong now do not replace those in use.
    std::fs::write(folder.path().join("prompts/support/3.toml"), "messages = 3").unwrap();
    prompts.change("support@1", Action::Promote, None, None).unwrap();
    assert_eq!(ask(&server), (200, "support@2".to_owned()));
    std::fs::remove_file(folder.path().join("prompts/support/3.toml")).unwrap();
    assert_eq!(ask(&server), (200, "support@1".to_owned()));
    drop(server);
    let entries = super::log(&store);
    let shown: Vec<(Outcome, Option<u64>, &str)> = entries
        .iter()
        .map(|entry| (entry.outcome, entry.change.as_ref().map(|change| change.n), entry.prompt.as_deref().unwrap()))
        .collect();
    let want = [
        (Outcome::Changed, Some(1), "support@1"),
        (Outcome::Complete, None, "support@1"),
        (Outcome::Changed, Some(2), "support@2"),
        (Outcome::Complete, None, "support@2"),
        (Outcome::Complete, None, "support@2"),
        (Outcome::Changed, Some(3), "support@1"),
        (Outcome::Complete, None, "support@1"),
    ];
    assert_eq!(shown, want);
    // Changes are no requests.
    let rows = usage(&store, By::Prompt).unwrap();
    assert_eq!(
        rows.iter().map(|row| (row.of.as_str(), row.answers, row.cost)).collect::<Vec<_>>(),
        [("support@1", 2, 2.0), ("support@2", 2, 2.0)]
    );
    verify(&store, None, |_| ()).unwrap();
}

#[test]
fn administrators_see_versions_their_use_and_how_they_differ() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path());
    let store = folder.path().join("store");
    let ops = super::key(&store, "ops", |key| key.endpoints = super::list(&["/admin"]));
    let ada = super::key(&store, "ada", |_| ());
    let backend = ScriptedBackend::default().then_always(Script::words("Hello there."));
    let gateway = Gateway::open(&store, Default::default(), backend).unwrap();
    gateway.apply(Settings::of(&config).unwrap());
    let server = Running::start(gateway.backend(), |server| {
        server.prompts(gateway.clone()).admin(gateway.clone()).gate(gateway.clone())
    });
    let mut prompts = config.prompts().unwrap().unwrap();
    prompts.change("support@1", Action::Promote, None, None).unwrap();
    prompts.change("support@2", Action::Canary { percent: 25, by_key: true }, None, None).unwrap();
    let get = |path: &str| server.ask(&ops, "GET", path, Value::Null);
    let (status, shown, _) = get("/admin/prompts");
    let shown = &shown["data"][0];
    assert_eq!((status, &shown["name"], &shown["promoted"]), (200, &json!("support"), &json!(1)));
    assert_eq!(shown["canary"], json!({ "version": 2, "percent": 25, "by_key": true }));
    assert_eq!(shown["problem"], Value::Null);
    let second = &shown["versions"][1];
    assert_eq!((&second["id"], &second["version"]), (&json!("support@2"), &json!(2)));
    assert_eq!(second["messages"], json!([{ "role": "system", "content": "Version 2. You help {{ name }}." }]));
    assert_eq!(second["variables"], json!([{ "name": "name", "type": "text", "description": "", "default": null }]));
    let (status, difference, _) = get("/admin/prompts/difference?from=support&to=support%402");
    let line = |change: &str, line: &str| json!({ "change": change, "line": line });
    let want = json!({ "from": "support@1", "to": "support@2", "lines": [
        line(" ", "variable name"),
        line(" ", "--- system"),
        line("-", "Version 1. You help {{ name }}."),
        line("+", "Version 2. You help {{ name }}."),
    ] });
    assert_eq!((status, difference), (200, want));
    for (query, param) in
        [("", "from"), ("?from=support@1", "to"), ("?from=support@1&to=support@9", "to"), ("?from=x&to=y", "from")]
    {
        let (status, error, _) = get(&format!("/admin/prompts/difference{query}"));
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)), "{query}");
    }
    for path in ["/admin/prompts", "/admin/prompts/difference?from=support@1&to=support@2"] {
        assert_eq!(server.ask(&ada, "GET", path, Value::Null).0, 403, "{path}");
    }
    // What each version took. The lines of promotions count as nothing.
    for version in ["1", "2", "2"] {
        let body = json!({ "prompt": { "id": "support", "version": version, "variables": { "name": "Ada" } } });
        assert_eq!(server.ask(&ada, "POST", "/v1/chat/completions", body).0, 200);
    }
    let (_, rows, _) = get("/admin/usage");
    let of = |row: &Value| (row["prompt"].clone(), row["answers"].clone(), row["completion_tokens"].clone());
    let rows: Vec<_> = rows["data"].as_array().unwrap().iter().map(of).collect();
    assert_eq!(rows, [(json!("support@1"), json!(1), json!(2)), (json!("support@2"), json!(2), json!(4))]);
    // A promoted version whose files have changed is not used, and its prompt says so.
    std::fs::write(folder.path().join("prompts/support/1.toml"), "[[messages]]\nrole = \"user\"\ncontent = \"x\"")
        .unwrap();
    gateway.apply(Settings::of(&config).unwrap());
    let (_, shown, _) = get("/admin/prompts");
    assert!(shown["data"][0]["problem"].as_str().unwrap().contains("changed after it was promoted"), "{shown}");
}

#[test]
fn a_server_without_prompts_refuses_them() {
    let server = Running::with(ScriptedBackend::default());
    for (path, body) in [
        ("/v1/chat/completions", json!({})),
        ("/v1/responses", json!({})),
        ("/v1/messages", json!({ "max_tokens": 9 })),
    ] {
        let mut body: Value = body;
        body["prompt"] = "support@1".into();
        let (status, body, _) = server.ask("", "POST", path, body);
        assert!(status == 400 && body["error"]["message"].as_str().unwrap().contains("no prompts"), "{path} {body}");
    }
}
