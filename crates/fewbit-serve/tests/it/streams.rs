//! Streams event by event, and the same answers when they are not streamed.

use std::time::Duration;

use fewbit_api::common::Prompt;
use fewbit_serve::{
    Alternative, BackendError, BackendErrorKind, CallDelta, Finish, Form, Input, Piece, Script, ScriptedBackend, Token,
    VoidCall, api as fewbit_api,
};
use serde_json::{Value, json};

use crate::Running;
use crate::client::{post, request, send};

fn chat(more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn chat_stream_has_role_text_finish_reason_and_usage() {
    let backend = ScriptedBackend::new([Script::words("Well, hello."), Script::words("Well, hello.")]);
    let server = Running::with(backend);
    let body = chat(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let answer = post(&server.address, CHAT, &body);
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_")));
    let events = answer.events();
    let id = events[0]["id"].as_str().unwrap();
    assert!(id.starts_with("chatcmpl-"));
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    for chunk in chunks {
        let (object, model) = (&chunk["object"], &chunk["model"]);
        assert_eq!((object, model, &chunk["id"]), (&json!("chat.completion.chunk"), &json!("scripted"), &json!(id)));
    }
    let choice = |delta: Value, finish: Value| json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
    let want = [
        choice(json!({ "role": "assistant", "content": "" }), Value::Null),
        choice(json!({ "content": "Well, " }), Value::Null),
        choice(json!({ "content": "hello." }), Value::Null),
        choice(json!({}), json!("stop")),
        json!([]),
    ];
    assert_eq!(chunks.iter().map(|chunk| chunk["choices"].clone()).collect::<Vec<_>>(), want);
    let usage = json!({
        "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "prompt_tokens_details": { "cached_tokens": 0 }
    });
    let usages: Vec<_> = chunks.iter().map(|chunk| chunk["usage"].clone()).collect();
    assert_eq!(usages, [Value::Null, Value::Null, Value::Null, Value::Null, usage.clone()]);

    let whole = post(&server.address, CHAT, &chat(json!({}))).json();
    let message = json!({ "role": "assistant", "content": "Well, hello.", "refusal": null });
    let choices = json!([{ "index": 0, "message": message, "logprobs": null, "finish_reason": "stop" }]);
    assert_eq!((&whole["object"], &whole["choices"], &whole["usage"]), (&json!("chat.completion"), &choices, &usage));
}

#[test]
fn stream_has_no_usage_unless_requested() {
    let server = Running::with(ScriptedBackend::new([Script::words("Hello.")]));
    let events = post(&server.address, "/v1/completions", &json!({ "prompt": "Hi", "stream": true })).events();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none() && chunk["object"] == "text_completion"));
    let texts: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["text"].clone()).collect();
    assert_eq!(texts, ["Hello.", ""]);
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "stop");
}

fn call(index: usize, id: Option<&str>, name: Option<&str>, arguments: &str) -> Piece {
    let (id, name) = (id.map(str::to_owned), name.map(str::to_owned));
    let calls = vec![CallDelta { index, id, name, arguments: arguments.to_owned() }];
    Piece { calls, ..Piece::default() }
}

#[test]
fn tool_calls_and_reasoning_are_streamed_in_deltas() {
    let thought = Piece { reasoning: "Hm. ".to_owned(), ..Piece::default() };
    let script = Script::new()
        .piece(thought)
        .piece(call(0, Some("a"), Some("f"), ""))
        .piece(call(0, None, None, "{\"x\":"))
        .piece(call(0, None, None, "1}"))
        .piece(call(1, Some("b"), Some("g"), "{}"))
        .end(Finish::ToolCalls);
    let server = Running::with(ScriptedBackend::new([script.clone(), script]));
    let events = post(&server.address, CHAT, &chat(json!({ "stream": true }))).events();
    let deltas: Vec<_> = events[..7].iter().map(|event| event["choices"][0]["delta"].clone()).collect();
    let want = [
        json!({ "role": "assistant", "content": "" }),
        json!({ "reasoning_content": "Hm. " }),
        json!({ "tool_calls": [{ "index": 0, "id": "a", "type": "function", "function": { "name": "f", "arguments": "" } }] }),
        json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "{\"x\":" } }] }),
        json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "1}" } }] }),
        json!({ "tool_calls": [{ "index": 1, "id": "b", "type": "function", "function": { "name": "g", "arguments": "{}" } }] }),
        json!({}),
    ];
    assert_eq!(deltas, want);
    assert_eq!(events[6]["choices"][0]["finish_reason"], "tool_calls");

    let choice = post(&server.address, CHAT, &chat(json!({}))).json()["choices"][0].clone();
    let calls = json!([
        { "id": "a", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } },
        { "id": "b", "type": "function", "function": { "name": "g", "arguments": "{}" } }
    ]);
    let message = json!({
        "role": "assistant", "content": null, "refusal": null, "reasoning_content": "Hm. ", "tool_calls": calls
    });
    assert_eq!((&choice["message"], &choice["finish_reason"]), (&message, &json!("tool_calls")));
}

#[test]
fn malformed_tool_calls_are_not_returned_as_calls() {
    let void = |is_cut| {
        // A further part of the malformed call is dropped as well.
        let calls = call(0, None, None, "{").calls;
        let void = vec![VoidCall { index: 0, is_cut }];
        let piece = Piece { void, calls, text: "f(".to_owned(), ..Piece::default() };
        let finish = if is_cut { Finish::Length } else { Finish::Stop };
        Script::new().piece(call(0, Some("a"), Some("f"), "")).piece(piece).end(finish)
    };
    let server = Running::with(ScriptedBackend::new([void(false), void(false), void(true)]));
    let events = post(&server.address, CHAT, &chat(json!({ "stream": true }))).events();
    assert_eq!(events.last().unwrap()["error"]["code"], "invalid_tool_call");
    let message = post(&server.address, CHAT, &chat(json!({}))).json()["choices"][0]["message"].clone();
    assert_eq!(message, json!({ "role": "assistant", "content": "f(", "refusal": null }));
    // An answer that was cut off by the token limit ends like other answers.
    let events = post(&server.address, CHAT, &chat(json!({ "stream": true }))).events();
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[test]
fn several_choices_are_kept_apart() {
    let scripts = ["One two three.", "Four five."].map(Script::words);
    let backend = ScriptedBackend::new([scripts.clone(), scripts].concat());
    let server = Running::with(backend.clone());
    let options = json!({ "n": 2, "seed": -1, "stream": true, "stream_options": { "include_usage": true } });
    let events = post(&server.address, CHAT, &chat(options)).events();
    let mut texts = [String::new(), String::new()];
    for event in &events[..events.len() - 2] {
        let choice = &event["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    texts.sort();
    assert_eq!(texts, ["Four five.", "One two three."]);
    // There is one prompt, which counts once.
    let usage = &events[events.len() - 2]["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(1), &json!(5)));
    let seeds: Vec<u64> = backend.jobs().iter().map(|job| job.seed).collect();
    assert_eq!(seeds, [u64::MAX, 0]);

    let prompts = post(&server.address, "/v1/completions", &json!({ "prompt": ["a", [1, 2]], "seed": 5 })).json();
    assert_eq!(prompts["usage"]["prompt_tokens"], 2);
    assert_eq!(prompts["choices"][1]["index"], 1);
    let inputs: Vec<_> = backend.jobs()[2..].iter().map(|job| (job.seed, job.input.clone())).collect();
    let input = |prompt| (5, Input::Text { prompt, echo: false });
    assert_eq!(inputs, [input(Prompt::Text("a".into())), input(Prompt::Tokens(vec![1, 2]))]);
}

#[test]
fn stream_sends_keep_alives_and_errors() {
    let slow = Script::new()
        .wait(Duration::from_millis(200))
        .text("late")
        .fail(BackendError::new(BackendErrorKind::Internal, "it broke"));
    let server = Running::start(ScriptedBackend::new([slow, Script::new().text("a")]), |server| {
        server.keep_alive(Duration::from_millis(20))
    });
    let body = chat(json!({ "stream": true })).to_string();
    let answer = send(&server.address, &request("POST", CHAT, &[], &body)).answer();
    let before = answer.body.split("late").next().unwrap();
    assert!(before.matches(": keep-alive\n\n").count() >= 2, "{before}");
    let events = answer.events();
    assert_eq!(
        events.last().unwrap()["error"],
        json!({
            "message": "it broke", "type": "server_error", "param": null, "code": null
        })
    );
    // An answer that breaks off is an error as well.
    let events = post(&server.address, CHAT, &chat(json!({ "stream": true }))).events();
    assert_eq!(events.last().unwrap()["error"]["type"], "server_error");
}

#[test]
fn logprobs_have_chat_and_completion_formats() {
    let token = |text: &str, bytes: &[u8], logprob| Token {
        text: text.to_owned(),
        bytes: bytes.to_vec(),
        logprob,
        top: vec![Alternative { text: "é".into(), bytes: "é".into(), logprob: f32::NEG_INFINITY }],
    };
    let tokens = vec![token("<s>", b"", None), token("é", "é".as_bytes(), Some(-0.5)), token("b", b"b", Some(-1.0))];
    let script = || {
        Script::new().piece(Piece { text: "éb".into(), tokens: tokens.clone(), ..Piece::default() }).end(Finish::Stop)
    };
    let backend = ScriptedBackend::new([script(), script(), script()]);
    let server = Running::with(backend.clone());
    let legacy = json!({
        "tokens": ["<s>", "é", "b"], "token_logprobs": [null, -0.5, -1.0],
        "top_logprobs": [null, { "é": -9999.0 }, { "é": -9999.0 }], "text_offset": [0, 0, 1]
    });
    let body = json!({ "prompt": "x", "logprobs": 1, "echo": true });
    assert_eq!(post(&server.address, "/v1/completions", &body).json()["choices"][0]["logprobs"], legacy);
    let top = json!([{ "token": "é", "logprob": -9999.0, "bytes": [195, 169] }]);
    let body = chat(json!({ "logprobs": true, "top_logprobs": 1 }));
    let content = &post(&server.address, CHAT, &body).json()["choices"][0]["logprobs"]["content"];
    assert_eq!(content[1], json!({ "token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": top }));
    let body = chat(json!({ "logprobs": true, "stream": true }));
    let events = post(&server.address, CHAT, &body).events();
    assert_eq!(events[1]["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 3);
    assert_eq!(backend.jobs().iter().map(|job| job.logprobs).collect::<Vec<_>>(), [Some(1), Some(1), Some(0)]);
}

#[test]
fn every_request_field_reaches_the_backend() {
    let backend = ScriptedBackend::new([Script::words("x"), Script::words("x")]);
    let server = Running::with(backend.clone());
    let schema = json!({ "type": "integer" });
    let body = chat(json!({
        "model": "scripted", "temperature": 0.5, "top_k": 3, "repetition_penalty": 1.5, "logit_bias": { "3": -1 },
        "stop": ["a", "b"], "max_tokens": 7, "max_completion_tokens": 5, "chat_template_kwargs": { "k": true },
        "response_format": { "type": "json_schema", "json_schema": { "name": "n", "strict": true, "schema": schema } },
        "tools": [{ "type": "function", "function": { "name": "f" } }], "tool_choice": "none", "user": "u"
    }));
    assert_eq!(post(&server.address, CHAT, &body).status, 200);
    let job = backend.jobs().remove(0);
    assert_eq!((job.max_tokens, job.logprobs, job.model.as_str()), (Some(5), None, "scripted"));
    assert_eq!(job.form, Some((Form::JsonSchema(schema), "response_format.json_schema.schema")));
    let sampling = &job.sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.repeat_penalty), (Some(0.5), Some(3), Some(1.5)));
    assert_eq!(sampling.logit_bias.as_ref().unwrap().0, [(3, -1.0)]);
    assert_eq!(sampling.stop.as_ref().unwrap().0, ["a", "b"]);
    let Input::Chat { messages, tools, parallel, template_vars, .. } = job.input else { panic!("no chat") };
    assert_eq!((messages.len(), tools.len(), parallel, &template_vars["k"]), (1, 1, true, &json!(true)));
    assert_eq!(post(&server.address, "/v1/completions", &json!({ "prompt": "x" })).status, 200);
    assert_eq!(backend.jobs()[1].max_tokens, Some(16));
}
