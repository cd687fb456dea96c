//! Masking over real sockets: for every endpoint, the other server never sees what is private, and the client gets it
//! back.

use std::path::Path;

use fewbit_gateway::{Config, Gateway, Live};
use fewbit_serve::{Backend, BackendError, BackendErrorKind, CallDelta, Finish, Input, Piece, Script, ScriptedBackend};
use serde_json::{Value, json};

use super::support::Running;

const MAIL: &str = "ada@example.org";
const CARD: &str = "4111 1111 1111 1111";
const STAFF: &str = "E-4711";

/// A server with a store, whose route `near` has its target on this other server.
fn near(folder: &Path, far: &Running, masking: &str) -> Running {
    let path = folder.join("fewbit.toml");
    let text = format!(
        "store = \"store\"\n[[upstreams]]\nname = \"far\"\nurl = \"http://{}/v1\"\n[[routes]]\nname = \"near\"\n\
         to = [{{ upstream = \"far\", model = \"scripted\" }}]\n{masking}",
        far.address
    );
    std::fs::write(&path, text).unwrap();
    let config = Config::read(&path).unwrap();
    let live = Live::new(&path, config, None, Vec::new()).unwrap();
    let gateway = Gateway::open(folder.join("store"), Default::default(), live.backend()).unwrap();
    Running::start(gateway.backend(), |server| server.gate(gateway))
}

const MASKING: &str = "[masking]\n[[masking.patterns]]\nname = \"staff\"\nregex = 'E-\\d{4}'\n";

/// What the other server answers: with the placeholders, which are divided between pieces.
fn answer(has_call: bool) -> Script {
    let call = |arguments: &str, is_first: bool| CallDelta {
        index: 0,
        id: is_first.then(|| "call_1".to_owned()),
        name: is_first.then(|| "send".to_owned()),
        arguments: arguments.to_owned(),
    };
    let calls = |delta| Piece { calls: vec![delta], ..Piece::default() };
    let thought = |text: &str| Piece { reasoning: text.to_owned(), ..Piece::default() };
    let said = Script::new()
        .piece(thought("It is [STA"))
        .piece(thought("FF_1]."))
        .text("Dear [EMAIL")
        .text("_1], you paid with [")
        .text("CARD_1].");
    if !has_call {
        return said.end(Finish::Stop);
    }
    said.piece(calls(call("{\"to\":\"[EMAIL_", true))).piece(calls(call("1]\"}", false))).end(Finish::ToolCalls)
}

/// Requests of every endpoint that have something private at every place of text.
fn requests() -> Vec<(&'static str, Value)> {
    let said = format!("I am {MAIL}, {STAFF}, and pay with {CARD}.");
    let schema = json!({ "type": "object", "properties": { "to": { "type": "string", "default": MAIL } } });
    let call = json!({ "id": "c1", "type": "function",
        "function": { "name": "send", "arguments": json!({ "to": MAIL }).to_string() } });
    let chat = json!([
        { "role": "system", "content": format!("You talk with {MAIL}.") },
        { "role": "user", "content": [{ "type": "text", "text": &said[..8] }, { "type": "text", "text": &said[8..] }] },
        { "role": "assistant", "content": null, "reasoning_content": STAFF, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "c1", "content": format!("sent to {MAIL}") },
    ]);
    let turns = json!([
        { "role": "user", "content": said },
        { "role": "assistant", "content": [{ "type": "thinking", "thinking": STAFF, "signature": "" },
            { "type": "tool_use", "id": "c1", "name": "send", "input": { "to": MAIL } }] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "c1", "content": format!("sent to {MAIL}") }] },
    ]);
    let items = json!([
        { "role": "user", "content": said },
        { "type": "reasoning", "summary": [], "content": [{ "type": "reasoning_text", "text": STAFF }] },
        { "type": "function_call", "call_id": "c1", "name": "send", "arguments": json!({ "to": MAIL }).to_string() },
        { "type": "function_call_output", "call_id": "c1", "output": format!("sent to {MAIL}") },
    ]);
    let tool = json!({ "name": "send", "description": format!("as {MAIL}"), "parameters": schema });
    let mut own = tool.clone();
    own["type"] = "function".into();
    vec![
        (
            "/v1/chat/completions",
            json!({ "messages": chat, "stop": [format!("bye {MAIL}")], "tools": [{ "type": "function", "function": tool }],
                "chat_template_kwargs": { "user": MAIL } }),
        ),
        ("/v1/completions", json!({ "prompt": said, "stop": MAIL })),
        (
            "/v1/messages",
            json!({ "messages": turns, "max_tokens": 9, "system": format!("You talk with {MAIL}."), "stop_sequences": [MAIL],
                "tools": [{ "name": "send", "description": format!("as {MAIL}"), "input_schema": schema }] }),
        ),
        ("/v1/responses", json!({ "input": items, "instructions": format!("You talk with {MAIL}."), "tools": [own] })),
    ]
}

#[test]
fn other_servers_never_see_what_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let ada = super::key(&folder.path().join("store"), "ada", |_| ());
    let backend = ScriptedBackend::default();
    let far = Running::with(backend.clone());
    let near = near(folder.path(), &far, MASKING);
    let is_private = |text: &str| [MAIL, "example.org", CARD, "4111", STAFF].iter().any(|part| text.contains(part));
    let mut n = 0;
    for (path, body) in requests() {
        for stream in [false, true] {
            let mut body = body.clone();
            body["stream"] = stream.into();
            let is_call = path != "/v1/completions";
            backend.push(answer(is_call));
            let (status, _, text) = near.ask(&ada, "POST", path, body);
            assert_eq!(status, 200, "{path} {text}");
            n += 1;
            let jobs = backend.jobs();
            assert_eq!(jobs.len(), n);
            // Not the request's name and seed, whose random digits may be those of a card.
            let seen = format!("{:?} {:?}", jobs[n - 1].input, jobs[n - 1].sampling);
            assert!(!is_private(&seen), "{path}: {seen}");
            assert!(
                seen.contains("[EMAIL_1]") && seen.contains("[CARD_1]") && seen.contains("[STAFF_1]"),
                "{path}: {seen}"
            );
            // The client gets all of it back, whatever the form of the answer.
            let shown = text.split_once("\r\n\r\n").unwrap().1;
            assert!(!shown.contains("[EMAIL") && !shown.contains("_1]"), "{path}: {shown}");
            for part in [MAIL, CARD].into_iter().chain(is_call.then_some(STAFF)) {
                assert!(shown.contains(part), "{path} {part}: {shown}");
            }
            let call = [
                "{\\\"to\\\":\\\"ada@example.org\\\"}",
                "\"input\":{\"to\":\"ada@example.org\"}",
                "ada@example.org\\\"}",
            ];
            assert!(!is_call || call.iter().any(|call| shown.contains(call)), "{path}: {shown}");
        }
    }
    // The parts of the conversation are still at their places.
    let jobs = backend.jobs();
    let Input::Chat { messages, .. } = &jobs[0].input else { panic!() };
    assert_eq!(messages[1].content.as_text().unwrap(), "I am [EMAIL_1], [STAFF_1], and pay with [CARD_1].");
    assert_eq!(messages[2].tool_calls.as_ref().unwrap()[0].function.arguments, r#"{"to":"[EMAIL_1]"}"#);
    // Vectors are those of the masked text: the scripted backend's are its length.
    let (status, body, _) = near.ask(&ada, "POST", "/v1/embeddings", json!({ "input": [MAIL, format!("{MAIL}!")] }));
    let vector = |i: usize| body["data"][i]["embedding"][0].as_f64().unwrap() as usize;
    assert_eq!((status, vector(0), vector(1)), (200, "[EMAIL_1]".len(), "[EMAIL_1]!".len()));
    // What cannot be searched is refused. Nothing of it is sent.
    for (path, body) in [
        ("/v1/completions", json!({ "prompt": [97, 100, 97] })),
        ("/v1/embeddings", json!({ "input": [[97, 100, 97]] })),
    ] {
        let (status, body, _) = near.ask(&ada, "POST", path, body);
        assert_eq!((status, body["error"]["message"].as_str().unwrap().contains("token ids")), (400, true), "{path}");
    }
    for path in ["/tokenize", "/v1/messages/count_tokens"] {
        let body = json!({ "content": MAIL, "messages": [{ "role": "user", "content": MAIL }] });
        assert_eq!(near.ask(&ada, "POST", path, body).0, 400, "{path}");
    }
    assert_eq!(backend.jobs().len(), n);
    drop(near);
    // Neither the log nor any other file has it, and the log tells how much was masked.
    let entries = super::log(&folder.path().join("store"));
    let masked: Vec<u64> = entries.iter().map(|entry| entry.masked).collect();
    assert_eq!(masked, [3, 3, 3, 3, 3, 3, 3, 3, 2, 0, 0]);
    // Hashes, ids, seeds and times have four of a card's digits by chance: they are searched for in the rest of a line.
    let is_random =
        |name: &str| name.ends_with("sha256") || ["prev", "request", "seed", "time_ms", "elapsed_ms"].contains(&name);
    for mut entry in entries.iter().map(|entry| serde_json::to_value(entry).unwrap()) {
        entry.as_object_mut().unwrap().retain(|name, _| !is_random(name));
        assert!(!is_private(&entry.to_string()), "{entry}");
    }
    for file in std::fs::read_dir(folder.path().join("store")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(
            [MAIL, "example.org", "4111 1111", "41111111", STAFF].iter().all(|part| !text.contains(part)),
            "{text}"
        );
    }
}

#[test]
fn errors_are_put_back_for_the_client_only() {
    let folder = tempfile::tempdir().unwrap();
    let ada = super::key(&folder.path().join("store"), "ada", |_| ());
    let backend = ScriptedBackend::default();
    let far = Running::with(backend.clone());
    let near = near(folder.path(), &far, MASKING);
    backend.push(Script::refuse(BackendError::new(BackendErrorKind::Invalid, "[EMAIL_1] is not allowed")));
    let (status, body, _) = near.chat(&ada, json!({ "messages": [{ "role": "user", "content": MAIL }] }));
    assert_eq!(status, 400);
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.ends_with("ada@example.org is not allowed"), "{message}");
}

#[test]
fn the_models_of_this_server_see_all_unless_the_configuration_says_otherwise() {
    for (more, want) in
        [("", MAIL), ("where = [\"local\"]", "[EMAIL_1]"), ("kinds = [\"card\"]\nwhere = [\"local\"]", MAIL)]
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fewbit.toml");
        std::fs::write(
            &path,
            format!("[[routes]]\nname = \"near\"\nto = [{{ model = \"scripted\" }}]\n[masking]\n{more}"),
        )
        .unwrap();
        let backend = ScriptedBackend::new([answer(false), answer(false)]);
        let local = std::sync::Arc::new(backend.clone()) as std::sync::Arc<dyn Backend>;
        let config = Config::read(&path).unwrap();
        let live = Live::new(&path, config, Some(local), vec!["scripted".to_owned()]).unwrap();
        let server = Running::with(live.backend());
        for model in ["near", "scripted"] {
            let (status, body, _) =
                server.chat("", json!({ "model": model, "messages": [{ "role": "user", "content": MAIL }] }));
            let text = body["choices"][0]["message"]["content"].as_str().unwrap();
            assert_eq!((status, text.contains(MAIL)), (200, want != MAIL), "{text}");
            let count = json!({ "model": model, "content": MAIL });
            let (_, body, _) = server.ask("", "POST", "/tokenize", count);
            assert_eq!(body["count"], want.len());
        }
        for job in backend.jobs() {
            let Input::Chat { messages, .. } = &job.input else { panic!() };
            assert_eq!(messages[0].content.as_text().unwrap(), want);
        }
    }
}
