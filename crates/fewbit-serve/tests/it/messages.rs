//! Anthropic's Messages: the jobs that reach the backend, the answers (streamed and complete), and errors in
//! Anthropic's form.

use fewbit_serve::{
    BackendError, BackendErrorKind, CallDelta, EngineBackend, Finish, Form, Input, Piece, Script, ScriptedBackend,
    api::chat::{ChatMessage, Role, ToolChoice},
};
use serde_json::{Value, json};

use crate::client::post;
use crate::{Running, stories};

const PATH: &str = "/v1/messages";

fn ask(more: Value) -> Value {
    let mut body = json!({ "max_tokens": 9, "messages": [{ "role": "user", "content": "Hi" }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A script with reasoning, text and two calls.
fn rich() -> Script {
    let call = |index: usize, id: Option<&str>, name: Option<&str>, arguments: &str| {
        let (id, name) = (id.map(str::to_owned), name.map(str::to_owned));
        let calls = vec![CallDelta { index, id, name, arguments: arguments.to_owned() }];
        Piece { calls, ..Piece::default() }
    };
    Script::new()
        .begin(7)
        .piece(Piece { reasoning: "Hm. ".into(), ..Piece::default() })
        .text("Let ")
        .text("me see.")
        .piece(call(0, Some("a"), Some("f"), ""))
        .piece(call(0, None, None, "{\"x\":"))
        .piece(call(0, None, None, "1}"))
        .piece(call(1, Some("b"), Some("g"), "{}"))
        .end(Finish::ToolCalls)
}

/// The usage of that script, with all fields that Anthropic's form demands.
fn usage() -> Value {
    json!({
        "input_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 7,
        "cache_creation": null, "output_tokens_details": null, "server_tool_use": null, "service_tier": null,
        "inference_geo": null
    })
}

#[test]
fn answer_is_a_list_of_content_blocks() {
    let server = Running::with(ScriptedBackend::new([rich()]));
    let answer = post(&server.address, PATH, &ask(json!({})));
    assert!(answer.header("request-id").is_some_and(|id| id.starts_with("req_")));
    let mut answer = answer.json();
    assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
    answer["id"] = Value::Null;
    let want = json!({
        "id": null, "type": "message", "role": "assistant", "model": "scripted",
        "content": [
            { "type": "thinking", "thinking": "Hm. ", "signature": "" },
            { "type": "text", "text": "Let me see.", "citations": null },
            { "type": "tool_use", "id": "a", "name": "f", "input": { "x": 1 }, "caller": { "type": "direct" } },
            { "type": "tool_use", "id": "b", "name": "g", "input": {}, "caller": { "type": "direct" } }
        ],
        "stop_reason": "tool_use", "stop_sequence": null, "stop_details": null, "container": null, "usage": usage()
    });
    assert_eq!(answer, want);
}

#[test]
fn stream_starts_and_stops_content_blocks() {
    let server = Running::with(ScriptedBackend::new([rich(), Script::new().end(Finish::Length)]));
    let answer = post(&server.address, PATH, &ask(json!({ "stream": true })));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let events = answer.named_events();
    let head = &events[0];
    assert_eq!((&head["type"], &head["message"]["content"]), (&json!("message_start"), &json!([])));
    assert_eq!(head["message"]["usage"]["input_tokens"], 7);
    assert_eq!(head["message"]["stop_reason"], Value::Null);
    let start =
        |index: usize, block: Value| json!({ "type": "content_block_start", "index": index, "content_block": block });
    let delta = |index: usize, delta: Value| json!({ "type": "content_block_delta", "index": index, "delta": delta });
    let stop = |index: usize| json!({ "type": "content_block_stop", "index": index });
    let want = [
        start(0, json!({ "type": "thinking", "thinking": "", "signature": "" })),
        delta(0, json!({ "type": "thinking_delta", "thinking": "Hm. " })),
        delta(0, json!({ "type": "signature_delta", "signature": "" })),
        stop(0),
        start(1, json!({ "type": "text", "text": "", "citations": null })),
        delta(1, json!({ "type": "text_delta", "text": "Let " })),
        delta(1, json!({ "type": "text_delta", "text": "me see." })),
        stop(1),
        start(2, json!({ "type": "tool_use", "id": "a", "name": "f", "input": {}, "caller": { "type": "direct" } })),
        delta(2, json!({ "type": "input_json_delta", "partial_json": "{\"x\":" })),
        delta(2, json!({ "type": "input_json_delta", "partial_json": "1}" })),
        stop(2),
        start(3, json!({ "type": "tool_use", "id": "b", "name": "g", "input": {}, "caller": { "type": "direct" } })),
        delta(3, json!({ "type": "input_json_delta", "partial_json": "{}" })),
        stop(3),
        json!({ "type": "message_delta", "usage": usage(), "delta": {
            "stop_reason": "tool_use", "stop_sequence": null, "stop_details": null, "container": null
        } }),
        json!({ "type": "message_stop" }),
    ];
    assert_eq!(events[1..], want);
    // An empty answer has a beginning and an end as well.
    let events = post(&server.address, PATH, &ask(json!({ "stream": true }))).named_events();
    let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["message_start", "message_delta", "message_stop"]);
    assert_eq!(events[1]["delta"]["stop_reason"], "max_tokens");
}

#[test]
fn errors_have_the_anthropic_format() {
    use BackendErrorKind::{Busy, Internal, TooLong, Unavailable, UnknownModel};
    let backend = ScriptedBackend::default();
    let server = Running::with(backend.clone());
    for (kind, status, name) in [
        (TooLong, 400, "invalid_request_error"),
        (UnknownModel, 404, "not_found_error"),
        (Busy, 429, "rate_limit_error"),
        (Unavailable, 503, "overloaded_error"),
        (Internal, 500, "api_error"),
    ] {
        backend.push(Script::refuse(BackendError::new(kind, "no")));
        let answer = post(&server.address, PATH, &ask(json!({})));
        assert_eq!(answer.status, status);
        let id = answer.header("request-id").unwrap();
        let want = json!({ "type": "error", "error": { "type": name, "message": "no" }, "request_id": id });
        assert_eq!(answer.json(), want);
    }
    backend.push(Script::new().text("a").fail(BackendError::new(Unavailable, "no")));
    let events = post(&server.address, PATH, &ask(json!({ "stream": true }))).named_events();
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("overloaded_error")));
    for (body, field) in [
        (json!({ "messages": [{ "role": "user", "content": "Hi" }] }), "`max_tokens`"),
        (ask(json!({ "messages": [] })), "`messages`"),
        (ask(json!({ "messages": [{ "role": "user", "content": [{ "type": "image" }] }] })), "`messages[0].content`"),
        (ask(json!({ "tools": [{ "type": "bash_20250124", "name": "bash" }] })), "`tools[0].type`"),
        (ask(json!({ "tool_choice": { "type": "tool" } })), "`tool_choice.name`"),
        (ask(json!({ "stop_sequences": vec!["a"; 65] })), "`stop_sequences`"),
        (ask(json!({ "temperature": "hot" })), "`temperature`"),
        (ask(json!({ "thinking": { "type": "much" } })), "`thinking.type`"),
    ] {
        let answer = post(&server.address, PATH, &body);
        let (kind, _, _) = answer.error(400);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(kind == "invalid_request_error" && message.contains(field), "{message}");
    }
}

#[test]
fn every_request_field_reaches_the_backend() {
    let backend = ScriptedBackend::new([Script::words("x").clone(), Script::new().text("a").stop_at("END")]);
    let server = Running::with(backend.clone());
    let schema = json!({ "type": "object" });
    let body = ask(json!({
        "model": "scripted", "system": "Be brief.", "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 4,
        "stop_sequences": ["END"], "thinking": { "type": "enabled", "budget_tokens": 1024 }, "metadata": { "user_id": "u" },
        "tools": [{ "name": "f", "description": "d", "input_schema": schema }],
        "tool_choice": { "type": "any", "disable_parallel_tool_use": true }
    }));
    assert_eq!(post(&server.address, PATH, &body).status, 200);
    let job = backend.jobs().remove(0);
    assert_eq!((job.max_tokens, job.seed, job.logprobs), (Some(9), 4, None));
    assert_eq!(job.sampling.stop.as_ref().unwrap().0, ["END"]);
    assert_eq!((job.sampling.temperature, job.sampling.top_p, job.sampling.top_k), (Some(0.5), Some(0.9), Some(3)));
    let Input::Chat { messages, tools, choice, parallel, template_vars } = job.input else { panic!("no chat") };
    assert_eq!(messages, [ChatMessage::new(Role::System, "Be brief."), ChatMessage::new(Role::User, "Hi")]);
    let function = json!({ "name": "f", "parameters": schema, "description": "d" });
    assert_eq!(tools, [json!({ "type": "function", "function": function })]);
    assert_eq!((choice, parallel, &template_vars["enable_thinking"]), (ToolChoice::Required, false, &json!(true)));
    // An answer that was ended by a stop sequence tells which one it was.
    let format = json!({ "output_config": { "format": { "type": "json_schema", "schema": schema } } });
    let answer = post(&server.address, PATH, &ask(format)).json();
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("stop_sequence"), &json!("END")));
    let job = backend.jobs().remove(1);
    assert_eq!(job.form, Some((Form::JsonSchema(schema), "output_config.format.schema")));
}

#[test]
fn messages_and_chat_completions_give_the_same_answer() {
    let server = Running::with(EngineBackend::new([("stories", stories().clone())]).unwrap());
    let turns = json!([{ "role": "user", "content": "Once upon a time" }]);
    let chat = json!({ "messages": turns, "seed": 5, "max_tokens": 30, "temperature": 0.8 });
    let whole = post(&server.address, "/v1/chat/completions", &chat).json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let answer = post(&server.address, PATH, &chat).json();
    assert_eq!((&answer["content"][0]["text"], &answer["stop_reason"]), (&json!(text), &json!("max_tokens")));
    let counted = post(&server.address, "/v1/messages/count_tokens", &json!({ "messages": turns })).json();
    assert_eq!(counted, json!({ "input_tokens": whole["usage"]["prompt_tokens"] }));
    // Of these stop sequences, only the second occurs in the answer, and ends it.
    let words: Vec<&str> = text.split(' ').filter(|word| word.len() > 2).collect();
    let mut stopped = chat.clone();
    stopped["stop_sequences"] = json!(["zzz", words[3]]);
    stopped["stream"] = json!(true);
    let events = post(&server.address, PATH, &stopped).named_events();
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], counted["input_tokens"]);
    let delta = &events[events.len() - 2]["delta"];
    assert_eq!(
        *delta,
        json!({ "stop_reason": "stop_sequence", "stop_sequence": words[3], "stop_details": null, "container": null })
    );
}
