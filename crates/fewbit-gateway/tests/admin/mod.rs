//! What administrators see over HTTP, and what other keys see of themselves.

use std::io::Read;
use std::time::Duration;

use fewbit_gateway::{By, Gateway, Price, Prices, usage};
use fewbit_serve::{BackendError, BackendErrorKind, Finish, Script, ScriptedBackend};
use serde_json::{Value, json};

use super::support::Running;
use super::{key, list};

fn start(store: &std::path::Path, backend: ScriptedBackend) -> Running {
    let price = Price { input: 1e6, cached_input: 0.0, output: 1e6 };
    let gateway = Gateway::open(store, Prices::from([("scripted".to_owned(), price)]), backend).unwrap();
    Running::start(gateway.backend(), |server| server.admin(gateway.clone()).gate(gateway))
}

/// A script that says a word and then nothing for an hour.
fn long() -> Script {
    Script::new().begin(5).text("Well, ").wait(Duration::from_secs(3600)).end(Finish::Stop)
}

#[test]
fn requests_in_progress_are_shown_and_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let ops = key(store, "ops", |key| key.endpoints = list(&["/admin", "/v1"]));
    let [ada, bob] = ["ada", "bob"].map(|name| key(store, name, |_| ()));
    let backend = ScriptedBackend::default().then_always(long());
    let server = start(store, backend.clone());
    let body = json!({ "stream": true, "messages": [{ "role": "user", "content": "Hi" }] });
    let open = |key: &str| {
        let mut socket = server.open(key, "POST", "/v1/chat/completions", &body);
        let mut seen = String::new();
        while !seen.contains("Well, ") {
            let mut bytes = [0; 1000];
            let n = socket.read(&mut bytes).unwrap();
            seen += std::str::from_utf8(&bytes[..n]).unwrap();
        }
        socket
    };
    let mut of_ada = open(&ada);
    let _of_bob = open(&bob);
    let shown = |key: &str, path: &str| {
        let (status, body, _) = server.ask(key, "GET", path, Value::Null);
        (status, body["data"].as_array().cloned().unwrap_or_default())
    };
    for (path, method) in [("/admin/requests", "GET"), ("/admin/requests/x", "DELETE"), ("/admin/usage", "GET")] {
        assert_eq!(server.ask(&ada, method, path, Value::Null).0, 403, "{path}");
    }
    let (_, all) = shown(&ops, "/admin/requests");
    assert_eq!(all.iter().map(|request| request["key"].clone()).collect::<Vec<_>>(), ["ada", "bob"]);
    let (_, own) = shown(&ada, "/v1/requests");
    assert_eq!(own.len(), 1);
    let one = &own[0];
    assert_eq!((&one["id"], &one["state"]), (&all[0]["id"], &json!("generating")));
    assert_eq!((&one["prompt_tokens"], &one["completion_tokens"]), (&json!(5), &json!(1)));
    // A key cannot cancel requests of others.
    let id = one["id"].as_str().unwrap();
    assert_eq!(server.ask(&bob, "DELETE", &format!("/v1/requests/{id}"), Value::Null).0, 404);
    assert_eq!(backend.running(), 2);
    let (status, cancelled, _) = server.ask(&ops, "DELETE", &format!("/admin/requests/{id}"), Value::Null);
    assert_eq!((status, cancelled), (200, json!({ "id": id, "cancelled": true })));
    let mut rest = String::new();
    of_ada.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"code\":\"cancelled\"") && !rest.contains("[DONE]"), "{rest}");
    let id = all[1]["id"].as_str().unwrap();
    assert_eq!(server.ask(&bob, "DELETE", &format!("/v1/requests/{id}"), Value::Null).0, 200);
    while backend.running() > 0 || !shown(&ops, "/admin/requests").1.is_empty() {
        std::thread::sleep(Duration::from_millis(2));
    }
    // An answer that is not streamed has a status of its own, which clients do not try again after.
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| server.chat(&ada, json!({})));
        loop {
            let (_, own) = shown(&ada, "/v1/requests");
            if let Some(id) = own.first().and_then(|one| one["id"].as_str()) {
                assert_eq!(server.ask(&ada, "DELETE", &format!("/v1/requests/{id}"), Value::Null).0, 200);
                break asked.join().unwrap();
            }
        }
    });
    assert_eq!((asked.0, &asked.1["error"]["code"]), (499, &json!("cancelled")));
}

#[test]
fn usage_and_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let ops = key(store, "ops", |key| key.endpoints = list(&["/admin"]));
    let [ada, bob] = ["ada", "bob"].map(|name| key(store, name, |_| ()));
    let server = start(store, ScriptedBackend::default().then_always(Script::words("A secret answer.")));
    for key in [&ada, &ada, &bob] {
        assert_eq!(server.chat(key, json!({})).0, 200);
    }
    let (status, usage, _) = server.ask(&ops, "GET", "/admin/usage", Value::Null);
    assert_eq!(status, 200);
    let rows = usage["data"].as_array().unwrap();
    // A prompt token and three generated tokens, for 1 each.
    let of = |row: &Value| (row["key"].clone(), row["answers"].clone(), row["cost"].clone());
    assert_eq!(
        rows.iter().map(of).collect::<Vec<_>>(),
        [("ada".into(), 2.into(), 8.0.into()), ("bob".into(), 1.into(), 4.0.into())]
    );
    assert_eq!((rows[0]["model"].as_str(), rows[0]["day"].as_str().map(str::len)), (Some("scripted"), Some(10)));
    let (_, own, _) = server.ask(&bob, "GET", "/v1/usage", Value::Null);
    assert_eq!(own["data"], json!([rows[1]]));

    let (_, state, _) = server.ask(&ops, "GET", "/admin/audit", Value::Null);
    assert_eq!((&state["lines"], &state["is_complete"]), (&json!(3), &json!(true)));
    let verify = || server.ask(&ops, "POST", "/admin/audit/verify", Value::Null).1;
    assert_eq!((&verify()["is_intact"], &verify()["hash"]), (&json!(true), &state["hash"]));
    let path = store.join("audit.jsonl");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replacen("\"completion_tokens\":3", "\"completion_tokens\":2", 1)).unwrap();
    assert!(verify()["problem"].as_str().unwrap().starts_with("line 2 "), "{}", verify());
    // Lines taken away at the end show as well, because the server knows its head.
    std::fs::write(&path, good.lines().next().unwrap().to_owned() + "\n").unwrap();
    assert_eq!((&verify()["is_intact"], &verify()["hash"]), (&json!(false), &Value::Null));
    assert_eq!(server.ask(&ada, "GET", "/admin/audit", Value::Null).0, 403);
}

#[test]
fn usage_is_by_prompt_and_feature_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let ops = key(store, "ops", |key| key.endpoints = list(&["/admin"]));
    let ada = key(store, "ada", |_| ());
    let backend = ScriptedBackend::default().then_always(Script::words("A secret answer."));
    let server = start(store, backend.clone());
    for feature in ["search", "mail", "search"] {
        assert_eq!(server.chat(&ada, json!({ "metadata": { "feature": feature } })).0, 200);
    }
    assert_eq!(server.chat(&ada, json!({})).0, 200);
    backend.push(Script::new().begin(1).fail(BackendError::new(BackendErrorKind::Internal, "broken")));
    assert_eq!(server.chat(&ada, json!({ "metadata": { "feature": "mail" } })).0, 500);
    let (_, rows, _) = server.ask(&ops, "GET", "/admin/usage", Value::Null);
    let of = |row: &Value| {
        (
            row["feature"].clone(),
            row["prompt"].clone(),
            row["answers"].clone(),
            row["failed"].clone(),
            row["cost"].clone(),
        )
    };
    let rows: Vec<_> = rows["data"].as_array().unwrap().iter().map(of).collect();
    let row = |feature: Value, answers: u32, failed: u32, cost: f64| {
        (feature, Value::Null, answers.into(), failed.into(), cost.into())
    };
    assert_eq!(rows, [row(Value::Null, 1, 0, 4.0), row("mail".into(), 2, 1, 5.0), row("search".into(), 2, 0, 8.0)]);
    drop(server);
    let rows = usage(store, By::Feature).unwrap();
    let shown: Vec<_> = rows.iter().map(|row| (row.of.as_str(), row.answers, row.cost)).collect();
    assert_eq!(shown, [("-", 1, 4.0), ("mail", 2, 5.0), ("search", 2, 8.0)]);
    let entries = super::log(store);
    assert_eq!(entries.iter().filter(|entry| entry.feature.as_deref() == Some("mail")).count(), 2);
}
