//! The OpenAPI document: it has every endpoint, and its schemas accept what the server accepts.

use fewbit_serve::{Script, ScriptedBackend};
use serde_json::{Value, json};

use crate::Running;
use crate::client::{get, request, send};
use crate::support::endpoints;

fn server() -> Running {
    Running::with(ScriptedBackend::default().then_always(Script::words("Well, hello.")))
}

/// The operation of a path, in which an id can be at the place of `{id}`.
fn operation<'a>(document: &'a Value, method: &str, path: &str) -> &'a Value {
    let (folder, _) = path.rsplit_once('/').unwrap();
    let paths = &document["paths"];
    let found = paths.get(path).or_else(|| paths.get(format!("{folder}/{{id}}")));
    let operation = found.and_then(|of_path| of_path.get(method.to_lowercase()));
    operation.unwrap_or_else(|| panic!("{method} {path} is not in the document"))
}

/// Whether this part of the document accepts the value.
fn accepts(document: &Value, schema: &Value, value: &Value) -> bool {
    let mut whole = schema.clone();
    whole["components"] = document["components"].clone();
    jsonschema::validator_for(&whole).unwrap().is_valid(value)
}

#[test]
fn the_document_has_every_endpoint() {
    let server = server();
    let document = get(&server.address, "/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    for (method, path, body) in endpoints() {
        let operation = operation(&document, method, path);
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = send(&server.address, &request(method, path, &[], &text)).answer();
        assert_eq!(answer.status, 200, "{path}");
        if !body.is_null() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            assert!(accepts(&document, schema, &body), "{path}");
            assert!(!accepts(&document, schema, &json!({ "model": 3 })), "{path}");
        }
        if let Some(content) = operation["responses"]["200"]["content"].get("application/json") {
            assert!(accepts(&document, &content["schema"], &answer.json()), "{path} {answer:?}");
        }
    }
    let schema = &operation(&document, "GET", "/v1/models/none")["responses"]["4XX"]["content"]["application/json"];
    let missing = get(&server.address, "/v1/models/none");
    assert!(missing.status == 404 && accepts(&document, &schema["schema"], &missing.json()));
}

#[test]
fn the_document_accepts_what_the_server_accepts() {
    let server = server();
    let document = get(&server.address, "/openapi.json").json();
    let chat = |more: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("/v1/chat/completions", body)
    };
    let content =
        |content: Value| ("/v1/chat/completions", json!({ "messages": [{ "role": "developer", "content": content }] }));
    let prompt = |prompt: Value| ("/v1/completions", json!({ "prompt": prompt }));
    let turn = |content: Value| {
        ("/v1/messages", json!({ "messages": [{ "role": "user", "content": content }], "max_tokens": 4 }))
    };
    let input = |input: Value| ("/v1/responses", json!({ "input": input }));
    let mut n_accepted = 0;
    let cases = [
        chat(json!({ "stop": "a" })),
        chat(json!({ "stop": ["a", "b"] })),
        chat(json!({ "stop": null })),
        chat(json!({ "stop": 3 })),
        chat(json!({ "stop": ["a", 3] })),
        chat(json!({ "logit_bias": { "5": -1.5 } })),
        chat(json!({ "logit_bias": { "the": -1.5 } })),
        chat(json!({ "logit_bias": { "5": "x" } })),
        chat(json!({ "logit_bias": [] })),
        chat(json!({ "tool_choice": "none" })),
        chat(json!({ "tool_choice": "maybe" })),
        chat(json!({ "tool_choice": { "type": "function", "function": {} } })),
        chat(json!({ "tool_choice": { "name": "f" } })),
        chat(json!({ "n": 0.5 })),
        chat(json!({ "n": -1 })),
        chat(json!({ "max_tokens": 4_294_967_296_u64 })),
        chat(json!({ "temperature": "hot" })),
        chat(json!({ "response_format": { "type": "json_object" } })),
        chat(json!({ "response_format": { "type": "xml" } })),
        chat(json!({ "messages": ["Hi"] })),
        chat(json!({ "messages": [["user", "Hi"]] })),
        chat(json!({ "messages": [{ "role": "king", "content": "Hi" }] })),
        chat(
            json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "id": "c", "function": { "name": "f", "arguments": "{}" } }] }] }),
        ),
        chat(
            json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "id": "c", "function": { "name": "f" } }] }] }),
        ),
        content(json!([{ "type": "text", "text": "a" }, { "type": "refusal", "refusal": "b" }])),
        content(json!([{ "type": "text" }])),
        content(json!([{ "type": "image_url", "image_url": {} }])),
        content(json!(3)),
        prompt(json!("a")),
        prompt(json!([1, 2])),
        prompt(json!(["a", [1]])),
        prompt(json!([-1])),
        prompt(json!([["a"]])),
        prompt(json!(null)),
        turn(json!("Hi")),
        turn(json!([{ "type": "text", "text": "Hi" }])),
        turn(json!([{ "type": "tool_result", "tool_use_id": "t", "content": [{ "type": "text", "text": "Hi" }] }])),
        turn(json!([{ "type": "tool_result", "tool_use_id": "t", "content": [{ "type": "image" }] }])),
        turn(json!([["text", "Hi"]])),
        turn(json!(null)),
        ("/v1/messages", json!({ "messages": [{ "role": "user", "content": "Hi" }] })),
        ("/v1/messages", json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": null })),
        input(json!("Hi")),
        input(json!([{ "role": "user", "content": "Hi" }])),
        input(json!([{ "type": "message", "role": "user", "content": "Hi" }])),
        input(json!([{ "type": "function_call_output", "call_id": "c", "output": "x" }])),
        input(json!([{ "type": "item_reference", "id": "x" }])),
        input(json!([{ "content": "Hi" }])),
    ];
    for (path, body) in cases {
        let schema = &operation(&document, "POST", path)["requestBody"]["content"]["application/json"]["schema"];
        let status = send(&server.address, &request("POST", path, &[], &body.to_string())).answer().status;
        assert!([200, 400].contains(&status), "{status} {body}");
        assert_eq!(accepts(&document, schema, &body), status == 200, "{path} {body}");
        n_accepted += usize::from(status == 200);
    }
    assert_eq!(n_accepted, 19);
}
