//! OpenAI's Responses: input and output items, streamed events, and stored answers from which requests continue.

use fewbit_serve::api::chat::{ChatMessage, Role, ToolCall, ToolChoice};
use fewbit_serve::{
    BackendError, BackendErrorKind, CallDelta, EngineBackend, Finish, Form, Input, Piece, Script, ScriptedBackend,
};
use serde_json::{Value, json};

use crate::client::{get, post, request, send};
use crate::{Running, stories};

const PATH: &str = "/v1/responses";

/// A script with reasoning, text and a call.
fn rich() -> Script {
    let call = |id: Option<&str>, name: Option<&str>, arguments: &str| {
        let (id, name) = (id.map(str::to_owned), name.map(str::to_owned));
        let calls = vec![CallDelta { index: 0, id, name, arguments: arguments.to_owned() }];
        Piece { calls, ..Piece::default() }
    };
    Script::new()
        .begin(7)
        .piece(Piece { reasoning: "Hm. ".into(), ..Piece::default() })
        .text("Let ")
        .text("me see.")
        .piece(call(Some("c1"), Some("f"), ""))
        .piece(call(None, None, "{\"x\":"))
        .piece(call(None, None, "1}"))
        .end(Finish::ToolCalls)
}

/// Removes the ids, which are random.
fn without_ids(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.remove("id");
        fields.remove("item_id");
        fields.values_mut().for_each(|field| *field = without_ids(field.take()));
    }
    if let Value::Array(items) = &mut value {
        items.iter_mut().for_each(|item| *item = without_ids(item.take()));
    }
    value
}

fn output() -> Value {
    json!([
        { "type": "reasoning", "summary": [], "content": [{ "type": "reasoning_text", "text": "Hm. " }], "status": "completed" },
        { "type": "message", "role": "assistant", "status": "completed",
          "content": [{ "type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": [] }] },
        { "type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"x\":1}", "status": "completed" }
    ])
}

#[test]
fn answer_is_a_list_of_output_items() {
    let server = Running::with(ScriptedBackend::new([rich(), Script::new().text("a").end(Finish::Length)]));
    let answer = post(&server.address, PATH, &json!({ "input": "Hi", "metadata": { "k": "v" } })).json();
    assert_eq!(without_ids(answer["output"].clone()), output());
    assert_eq!((&answer["object"], &answer["status"]), (&json!("response"), &json!("completed")));
    assert_eq!((&answer["metadata"], &answer["error"]), (&json!({ "k": "v" }), &Value::Null));
    assert_eq!(
        answer["usage"],
        json!({
            "input_tokens": 1, "input_tokens_details": { "cached_tokens": 0 },
            "output_tokens": 6, "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": 7
        })
    );
    let cut = post(&server.address, PATH, &json!({ "input": "Hi", "max_output_tokens": 1 })).json();
    assert_eq!((&cut["status"], &cut["output"][0]["status"]), (&json!("incomplete"), &json!("incomplete")));
    assert_eq!(cut["incomplete_details"], json!({ "reason": "max_output_tokens" }));
}

#[test]
fn stream_sends_every_event_of_each_item() {
    let server = Running::with(ScriptedBackend::new([rich()]));
    let events = post(&server.address, PATH, &json!({ "input": "Hi", "stream": true })).named_events();
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
    }
    let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let want = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(types, want);
    assert_eq!(events[0]["response"]["status"], "in_progress");
    let done = events.iter().filter(|event| event["type"] == "response.output_item.done");
    let items: Vec<_> = done.map(|event| event["item"].clone()).collect();
    assert_eq!(events[20]["response"]["output"], json!(items));
    assert_eq!(without_ids(json!(items)), output());
    // The id and the index of an item are the same in all its events.
    for (i, event) in events.iter().enumerate().skip(2).take(18) {
        let index = [7, 14].iter().filter(|&&end| i > end).count();
        assert_eq!(event["output_index"], index, "{event}");
        let id = event.get("item_id").unwrap_or(&event["item"]["id"]);
        assert_eq!(*id, items[index]["id"], "{event}");
    }
    let added = &events[15]["item"];
    assert_eq!(
        (&added["name"], &added["arguments"], &added["status"]),
        (&json!("f"), &json!(""), &json!("in_progress"))
    );
}

#[test]
fn previous_response_id_continues_the_conversation() {
    let backend = ScriptedBackend::new([rich(), Script::words("It is 3."), Script::words("So."), Script::words("No.")]);
    let server = Running::with(backend.clone());
    let first = post(&server.address, PATH, &json!({ "input": "Hi", "instructions": "Be brief." })).json();
    let result = json!([{ "type": "function_call_output", "call_id": "c1", "output": "3" }]);
    let second = json!({ "input": result, "previous_response_id": first["id"], "stream": true });
    let events = post(&server.address, PATH, &second).named_events();
    let second = events.last().unwrap()["response"].clone();
    assert_eq!(second["previous_response_id"], first["id"]);
    let third = json!({ "input": "So?", "previous_response_id": second["id"], "store": false });
    let third = post(&server.address, PATH, &third).json();
    let mut called = ChatMessage::new(Role::Assistant, "Let me see.");
    called.reasoning_content = Some("Hm. ".into());
    called.tool_calls = Some(vec![ToolCall::new("c1", "f", "{\"x\":1}")]);
    let mut gave = ChatMessage::new(Role::Tool, "3");
    gave.tool_call_id = Some("c1".into());
    let want = [
        ChatMessage::new(Role::User, "Hi"),
        called,
        gave,
        ChatMessage::new(Role::Assistant, "It is 3."),
        ChatMessage::new(Role::User, "So?"),
    ];
    let of = |job: usize| match backend.jobs().swap_remove(job).input {
        Input::Chat { messages, .. } => messages,
        Input::Text { .. } => panic!("no chat"),
    };
    assert_eq!(of(0)[0], ChatMessage::new(Role::System, "Be brief."));
    // Instructions apply to one answer only.
    assert_eq!(of(2), want);

    let path = |of: &Value| format!("{PATH}/{}", of["id"].as_str().unwrap());
    assert_eq!(get(&server.address, &path(&second)).json(), second);
    assert_eq!(get(&server.address, &path(&third)).status, 404);
    let delete = send(&server.address, &request("DELETE", &path(&first), &[], "")).answer().json();
    assert_eq!(delete, json!({ "id": first["id"], "object": "response", "deleted": true }));
    assert_eq!(get(&server.address, &path(&first)).status, 404);
    let gone = json!({ "input": "So?", "previous_response_id": first["id"] });
    assert_eq!(post(&server.address, PATH, &gone).error(400).2.as_deref(), Some("previous_response_not_found"));
    assert_eq!(backend.jobs().len(), 3);
}

#[test]
fn failed_responses_send_an_error_and_are_not_stored() {
    let broken = Script::new().text("a").fail(BackendError::new(BackendErrorKind::Internal, "it broke"));
    let server = Running::with(ScriptedBackend::new([broken]));
    let events = post(&server.address, PATH, &json!({ "input": "Hi", "stream": true })).named_events();
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["message"], &last["code"]),
        (&json!("error"), &json!("it broke"), &json!("server_error"))
    );
    assert_eq!(get(&server.address, &format!("{PATH}/{}", events[0]["response"]["id"].as_str().unwrap())).status, 404);
}

#[test]
fn every_request_field_reaches_the_backend() {
    let backend = ScriptedBackend::new([Script::words("x"), Script::words("x")]);
    let server = Running::with(backend.clone());
    let parameters = json!({ "type": "object" });
    let body = json!({
        "model": "scripted", "input": "Hi", "temperature": 0.5, "top_p": 0.9, "seed": 4, "max_output_tokens": 5,
        "tools": [{ "type": "function", "name": "f", "parameters": parameters, "strict": true }],
        "tool_choice": { "type": "function", "name": "f" }, "parallel_tool_calls": false,
        "reasoning": { "effort": "none" }, "include": ["message.output_text.logprobs"], "top_logprobs": 2
    });
    assert_eq!(post(&server.address, PATH, &body).status, 200);
    let job = backend.jobs().remove(0);
    assert_eq!((job.max_tokens, job.seed, job.logprobs), (Some(5), 4, Some(2)));
    assert_eq!((job.sampling.temperature, job.sampling.top_p), (Some(0.5), Some(0.9)));
    let Input::Chat { tools, choice, parallel, template_vars, .. } = job.input else { panic!("no chat") };
    let function = json!({ "name": "f", "parameters": parameters, "strict": true });
    assert_eq!(tools, [json!({ "type": "function", "function": function })]);
    assert_eq!(
        (choice, parallel, &template_vars["enable_thinking"]),
        (ToolChoice::Named("f".into()), false, &json!(false))
    );
    let format = json!({ "type": "json_schema", "name": "n", "schema": parameters, "strict": true });
    assert_eq!(post(&server.address, PATH, &json!({ "input": "Hi", "text": { "format": format } })).status, 200);
    assert_eq!(backend.jobs()[1].form, Some((Form::JsonSchema(parameters), "text.format.schema")));
}

#[test]
fn responses_and_chat_completions_give_the_same_answer() {
    let server = Running::with(EngineBackend::new([("stories", stories().clone())]).unwrap());
    let options = json!({ "seed": 5, "max_tokens": 20, "max_output_tokens": 20, "temperature": 0.8 });
    let with = |name: &str, value: Value| {
        let mut body = options.clone();
        body[name] = value;
        body
    };
    let turns = json!([{ "role": "user", "content": "Once upon a time" }]);
    let chat = post(&server.address, "/v1/chat/completions", &with("messages", turns)).json();
    let answer = post(&server.address, PATH, &with("input", json!("Once upon a time"))).json();
    assert_eq!(answer["output"][0]["content"][0]["text"], chat["choices"][0]["message"]["content"]);
    let mut logprobs = with("input", json!("Once upon a time"));
    logprobs["include"] = json!(["message.output_text.logprobs"]);
    let answer = post(&server.address, PATH, &logprobs).json();
    assert!(!answer["output"][0]["content"][0]["logprobs"].as_array().unwrap().is_empty());
}
