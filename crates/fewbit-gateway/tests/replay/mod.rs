//! Replay: what is kept, for how long, and by whom it can be read; which requests can be given again.

use std::path::Path;

use fewbit_gateway::{
    Config, Entry, Gateway, NoReplay, Settings, Which, answer_again, chosen, given_request, kept_request, local_model,
};
use fewbit_serve::{CallDelta, Finish, Piece, Script, ScriptedBackend};
use serde_json::{Value, json};
use std::sync::Arc;

use super::support::Running;

fn config(folder: &Path, more: &str) -> Config {
    let path = folder.join("fewbit.toml");
    std::fs::write(&path, format!("store = \"store\"\n{more}")).unwrap();
    Config::read(path).unwrap()
}

fn start(config: &Config, backend: ScriptedBackend) -> Running {
    let gateway = Gateway::open(config.store.as_ref().unwrap(), Default::default(), backend).unwrap();
    gateway.apply(Settings::of(config).unwrap());
    Running::start(gateway.backend(), |server| server.gate(gateway))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn script() -> Script {
    let call = CallDelta { index: 0, id: Some("call_1".into()), name: Some("f".into()), arguments: "{}".into() };
    Script::new()
        .text("Dear ")
        .text("ada@example.org")
        .piece(Piece { calls: vec![call], ..Piece::default() })
        .end(Finish::ToolCalls)
}

fn chat(n: u32) -> Value {
    json!({ "messages": [{ "role": "user", "content": "I am ada@example.org" }], "n": n, "temperature": 0.5 })
}

/// Replays a line of the log with this backend.
fn replayed(config: &Config, entry: &Entry, job: fewbit_serve::Job, script: Script) -> bool {
    let backend = config.local_backend(Some(Arc::new(ScriptedBackend::new([script])))).unwrap();
    let answer = runtime().block_on(answer_again(&backend, job, entry)).unwrap();
    entry.output_sha256.as_deref() == Some(&answer.sha256())
}

#[test]
fn a_kept_request_gives_its_answer_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "[audit]\nkeep_text = \"exact\"");
    let store = folder.path().join("store");
    let ada = super::key(&store, "ada", |_| ());
    let backend = ScriptedBackend::new([script(), script(), Script::words("One."), Script::new().text("cut")]);
    let server = start(&config, backend.clone());
    let (_, _, text) = server.ask(&ada, "POST", "/v1/chat/completions", chat(2));
    assert_eq!(server.ask(&ada, "POST", "/v1/completions", json!({ "prompt": "Once", "seed": 5 })).0, 200);
    assert_eq!(server.ask(&ada, "POST", "/v1/completions", json!({ "prompt": "Once" })).0, 500);
    drop(server);
    let all = chosen(&store, &Which::All).unwrap();
    assert_eq!(all.len(), 3);
    let id = text.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap().to_owned();
    assert_eq!(chosen(&store, &Which::Request(id)).unwrap(), all[..2]);
    assert_eq!(chosen(&store, &Which::Last(1)).unwrap(), all[2..]);
    let mut seen = Vec::new();
    for (entry, script) in all.iter().zip([script(), script(), Script::words("One.")]) {
        let job = kept_request(&store, entry).unwrap();
        assert!(replayed(&config, entry, job.clone(), script));
        assert!(!replayed(&config, entry, job.clone(), Script::words("Two.")));
        seen.push(fewbit_serve::Job { caller: Default::default(), ..job });
    }
    // What is given again is what was given, seeds included.
    let mut jobs: Vec<_> =
        backend.jobs().into_iter().take(3).map(|job| fewbit_serve::Job { caller: Default::default(), ..job }).collect();
    jobs.sort_by_key(|job| job.to_json().to_string());
    seen.sort_by_key(|job| job.to_json().to_string());
    assert_eq!(seen, jobs);
    // An answer that broke off is kept, but cannot be compared.
    let entries = super::log(&store);
    assert!(entries[3].text_sha256.is_some());
    assert_eq!(local_model(&entries[3]), Err(NoReplay::Incomplete));
    let texts: Vec<_> = std::fs::read_dir(store.join("texts")).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(texts.len(), 1);
    assert_eq!(std::fs::read_to_string(&texts[0]).unwrap().lines().count(), 4);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&texts[0]).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // A text that was changed is not the one that the log proves.
    let changed = std::fs::read_to_string(&texts[0]).unwrap().replace("Once", "Twice");
    std::fs::write(&texts[0], changed).unwrap();
    assert_eq!(kept_request(&store, &all[2]).map(|_| ()), Err(NoReplay::NotKept));
}

#[test]
fn without_kept_texts_the_client_gives_the_request() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let store = folder.path().join("store");
    let ada = super::key(&store, "ada", |_| ());
    let server = start(&config, ScriptedBackend::new([script(), script()]));
    assert_eq!(server.ask(&ada, "POST", "/v1/chat/completions", chat(2)).0, 200);
    drop(server);
    assert!(!store.join("texts").exists());
    let all = chosen(&store, &Which::All).unwrap();
    assert_ne!(all[0].seed, all[1].seed);
    let given =
        |body: Value, entry: &Entry| runtime().block_on(given_request(body.to_string().into_bytes(), entry, None));
    for entry in &all {
        assert_eq!(kept_request(&store, entry).map(|_| ()), Err(NoReplay::NotKept));
        assert!(replayed(&config, entry, given(chat(2), entry).unwrap(), script()));
        for (body, words) in [
            (
                chat(1)
                    .as_object()
                    .map(|_| json!({ "messages": [{ "role": "user", "content": "I am bob" }] }))
                    .unwrap(),
                "hash differs",
            ),
            (json!({ "messages": [] }), "`messages` is empty"),
            (json!([]), "not an object"),
        ] {
            let error = given(body, entry).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}

#[test]
fn masked_texts_are_kept_for_some_days_only() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "[audit]\nkeep_text = \"masked\"\nkeep_days = 2");
    let store = folder.path().join("store");
    let ada = super::key(&store, "ada", |_| ());
    std::fs::create_dir_all(store.join("texts")).unwrap();
    std::fs::write(store.join("texts/2020-01-01.jsonl"), "{}\n").unwrap();
    std::fs::write(store.join("texts/notes.txt"), "mine").unwrap();
    let server = start(&config, ScriptedBackend::new([script(), Script::words("One.")]));
    assert_eq!(server.ask(&ada, "POST", "/v1/chat/completions", chat(1)).0, 200);
    // A seed is not private, even if it has the digits of a card.
    let seed = 4_111_111_111_111_111_u64;
    assert_eq!(server.ask(&ada, "POST", "/v1/completions", json!({ "prompt": "Once", "seed": seed })).0, 200);
    drop(server);
    assert!(!store.join("texts/2020-01-01.jsonl").exists() && store.join("texts/notes.txt").exists());
    let all = chosen(&store, &Which::All).unwrap();
    // The request and the answer have the same address.
    assert_eq!(kept_request(&store, &all[0]).map(|_| ()), Err(NoReplay::Masked { n: 1 }));
    assert!(replayed(&config, &all[1], kept_request(&store, &all[1]).unwrap(), Script::words("One.")));
    for file in std::fs::read_dir(store.join("texts")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("ada@example.org"), "{text}");
        assert!(text.contains("I am [EMAIL_1]") && text.contains("Dear [EMAIL_1]") || text == "mine", "{text}");
    }
}
