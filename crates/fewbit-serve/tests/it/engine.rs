//! The engine over HTTP: the answers are bit for bit the same as those of the library.

use fewbit::{Constraint, Message, Model};
use fewbit_serve::EngineBackend;
use serde_json::{Value, json};

use crate::client::{get, post, request, send, wait_until};
use crate::{Running, load, stories};

const CHAT: &str = "/v1/chat/completions";

fn serve(model: &Model) -> Running {
    Running::with(EngineBackend::new([("stories", model.clone())]).unwrap())
}

#[test]
fn chat_completions_equal_those_of_the_library() {
    let server = serve(stories());
    let messages = json!([
        { "role": "developer", "content": "Be kind." },
        { "role": "user", "content": "Once" },
        { "role": "assistant", "content": "upon a time" },
        { "role": "user", "content": [{ "type": "text", "text": "there was" }] },
    ]);
    let body = json!({
        "model": "stories", "messages": messages, "seed": 7, "max_tokens": 20, "temperature": 0.9, "top_p": 0.9, "n": 2
    });
    let history = [Message::user("Once"), Message::assistant("upon a time"), Message::user("there was")];
    let alone = |seed: u64| {
        let chat = stories().chat().system("Be kind.").history(history.clone()).seed(seed);
        chat.max_tokens(20).temperature(0.9).top_p(0.9).start().unwrap().reply().run().unwrap()
    };
    let want = [alone(7), alone(8)];
    assert_ne!(want[0].text, want[1].text);
    let answer = post(&server.address, CHAT, &body).json();
    for (i, want) in want.iter().enumerate() {
        assert_eq!(answer["choices"][i]["message"]["content"], want.text.as_str());
        assert_eq!(answer["choices"][i]["finish_reason"], "length");
    }
    assert_eq!(answer["usage"]["prompt_tokens"], want[0].usage.prompt);
    assert_eq!(answer["usage"]["completion_tokens"], 40);

    let mut streamed = body.clone();
    (streamed["stream"], streamed["n"]) = (json!(true), json!(1));
    let events = post(&server.address, CHAT, &streamed).events();
    let texts = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(texts.collect::<String>(), want[0].text);
}

#[test]
fn completions_equal_those_of_the_library() {
    let server = serve(stories());
    let prompt = "Once upon a time";
    let want = stories().generate(prompt).seed(3).max_tokens(12).logprobs(2).echo(true).run().unwrap();
    let body = json!({ "prompt": prompt, "seed": 3, "max_tokens": 12, "logprobs": 2, "echo": true });
    let choice = post(&server.address, "/v1/completions", &body).json()["choices"][0].clone();
    assert_eq!(choice["text"], want.text.as_str());
    let all: Vec<_> = want.prompt_logprobs.iter().chain(&want.logprobs).map(|token| token.logprob).collect();
    let shown: Vec<Option<f32>> = serde_json::from_value(choice["logprobs"]["token_logprobs"].clone()).unwrap();
    assert_eq!(shown, all);
    // The offsets are the positions of the tokens in the text.
    let (tokens, offsets) = (&choice["logprobs"]["tokens"], &choice["logprobs"]["text_offset"]);
    for (token, offset) in tokens.as_array().unwrap().iter().zip(offsets.as_array().unwrap()).skip(1) {
        let offset = usize::try_from(offset.as_u64().unwrap()).unwrap();
        // The first token of this tokenizer begins with a space, which the decoder removes.
        let at: String = want.text.chars().skip(offset.saturating_sub(1)).collect();
        assert!(
            at.starts_with(token.as_str().unwrap().trim_start()) || offset == 0 || at.contains(token.as_str().unwrap())
        );
    }

    // A prompt of token ids, several prompts, and no generated tokens: only the log probabilities of the prompt.
    let tokens = &want.prompt_tokens;
    let body = json!({ "prompt": [tokens, prompt], "seed": 3, "max_tokens": 12 });
    let choices = post(&server.address, "/v1/completions", &body).json()["choices"].clone();
    assert_eq!((&choices[0]["text"], choices[0]["logprobs"].is_null()), (&choices[1]["text"], true));
    let generated = want.text.strip_prefix(&stories().tokenizer().decode(tokens)).unwrap();
    assert_eq!(choices[0]["text"], generated);
    let body = json!({ "prompt": prompt, "max_tokens": 0, "logprobs": 0, "echo": true });
    let choice = post(&server.address, "/v1/completions", &body).json()["choices"][0].clone();
    assert_eq!(choice["text"], prompt);
    let shown: Vec<Option<f32>> = serde_json::from_value(choice["logprobs"]["token_logprobs"].clone()).unwrap();
    let scored = stories().logprobs(prompt, 0).unwrap();
    assert_eq!(shown, scored.iter().map(|token| token.logprob).collect::<Vec<_>>());
}

#[test]
fn stop_texts_and_logit_biases_are_applied() {
    let server = serve(stories());
    let greedy = |more: Value| {
        let mut body = json!({ "prompt": "Once upon a time", "temperature": 0, "max_tokens": 30 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(&server.address, "/v1/completions", &body).json()["choices"][0].clone()
    };
    let free = greedy(json!({}))["text"].as_str().unwrap().to_owned();
    let stopped = greedy(json!({ "stop": ["nothing", "girl"] }));
    assert_eq!((stopped["text"].as_str(), &stopped["finish_reason"]), (free.split("girl").next(), &json!("stop")));
    let first = stories().generate("Once upon a time").temperature(0.0).max_tokens(1).run().unwrap().tokens[0];
    assert_ne!(greedy(json!({ "logit_bias": { first.to_string(): -100 } }))["text"], free);
    // OpenAI's interface allows a `top_p` of 0, which means the most probable token.
    assert_eq!(greedy(json!({ "temperature": 1, "top_p": 0 }))["text"], free);
    // An end that is always the most probable token ends the answer, or does not.
    let end = json!({ stories().tokenizer().eos().unwrap().to_string(): 100 });
    assert_eq!(greedy(json!({ "logit_bias": end }))["finish_reason"], "stop");
    assert_eq!(greedy(json!({ "logit_bias": end, "ignore_eos": true }))["finish_reason"], "length");
    let matched = greedy(json!({ "regex": "[0-9]{3}" }));
    assert!(matched["text"].as_str().unwrap().bytes().all(|byte| byte.is_ascii_digit()));
}

#[test]
fn unsupported_requests_are_rejected_before_streaming() {
    let server = serve(stories());
    let text = |more: Value| {
        let mut body = json!({ "prompt": "Once", "max_tokens": 4, "stream": true });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("/v1/completions", body)
    };
    let chat = |more: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 4, "stream": true });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (CHAT, body)
    };
    let schema =
        |schema: Value| json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": schema } } });
    let f = json!({ "type": "function", "function": { "name": "f" } });
    for ((path, body), param) in [
        (text(json!({ "temperature": -1 })), "temperature"),
        (text(json!({ "temperature": 1e39 })), "temperature"),
        (text(json!({ "top_p": 2 })), "top_p"),
        (text(json!({ "min_p": -1 })), "min_p"),
        (text(json!({ "top_k": -2 })), "top_k"),
        (text(json!({ "repeat_penalty": 0 })), "repeat_penalty"),
        (text(json!({ "logit_bias": { "512": 1 } })), "logit_bias"),
        (text(json!({ "prompt": [512] })), "prompt"),
        (text(json!({ "regex": "(" })), "regex"),
        (text(json!({ "grammar": "root ::= (" })), "grammar"),
        (
            chat(schema(json!({ "type": "object", "properties": { "a": { "type": "no such type" } } }))),
            "response_format.json_schema.schema",
        ),
        (chat(schema(json!({ "type": "object", "required": 3 }))), "response_format.json_schema.schema"),
        (chat(json!({ "tools": [{ "type": "function", "function": {} }] })), "tools[0]"),
        (chat(json!({ "tools": [f, { "type": "web_search" }] })), "tools[1]"),
        (chat(json!({ "tools": [f, f] })), "tools"),
        (
            chat(json!({ "tools": [f], "tool_choice": { "type": "function", "function": { "name": "g" } } })),
            "tool_choice",
        ),
        (chat(json!({ "tool_choice": "required" })), "tool_choice"),
        (chat(json!({ "chat_template_kwargs": { "messages": 1 } })), "chat_template_kwargs"),
        (("/v1/embeddings", json!({ "input": ["a", ""] })), "input[1]"),
        (("/detokenize", json!({ "tokens": [1, 512] })), "tokens[1]"),
    ] {
        let answer = post(&server.address, path, &body);
        assert_eq!(answer.error(400).1.as_deref(), Some(param), "{body}");
    }
    let long = "word ".repeat(2000);
    for (path, body) in [text(json!({ "prompt": long })), ("/v1/embeddings", json!({ "input": long }))] {
        assert_eq!(post(&server.address, path, &body).error(400).2.as_deref(), Some("context_length_exceeded"));
    }
}

#[test]
fn json_schemas_are_enforced() {
    let server = serve(stories());
    let schema = json!({
        "type": "object",
        "properties": { "name": { "enum": ["Lily", "Tom"] }, "age": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["name", "age"], "additionalProperties": false
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "child", "strict": true, "schema": schema } });
    let messages = json!([{ "role": "user", "content": "Who?" }]);
    for seed in 0..4 {
        let body = json!({ "messages": messages, "response_format": format, "seed": seed, "max_tokens": 200 });
        let choice = post(&server.address, CHAT, &body).json()["choices"][0].clone();
        let text = choice["message"]["content"].as_str().unwrap();
        assert_eq!(choice["finish_reason"], "stop", "{text}");
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(jsonschema::is_valid(&schema, &value), "{text}");
        let alone = stories().chat().history([Message::user("Who?")]).seed(seed).max_tokens(200);
        let alone = alone.constraint(Constraint::json_schema(schema.clone())).start().unwrap().reply().run().unwrap();
        assert_eq!(text, alone.text);
    }
}

#[test]
fn required_tool_calls_are_enforced() {
    // A short template, because the model's context has only 512 tokens.
    let template = "{% for t in tools %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.content }}\n\
                    {% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}{% endfor %}";
    let server = serve(&load(|builder| builder.chat_template(template)));
    let function = |name: &str, key: &str| {
        let values = json!({ "type": "string", "enum": ["red", "blue"] });
        let parameters = json!({ "type": "object", "properties": { key: values }, "required": [key], "additionalProperties": false });
        json!({ "type": "function", "function": { "name": name, "description": "Does.", "parameters": parameters } })
    };
    let tools = json!([function("paint", "colour"), function("dress", "cloth")]);
    let messages = json!([{ "role": "user", "content": "Go." }]);
    let named = json!({ "type": "function", "function": { "name": "dress" } });
    for (choice, names) in [(json!("required"), &["paint", "dress"][..]), (named, &["dress"])] {
        for seed in 0..3 {
            let mut body = json!({ "messages": messages, "tools": tools, "tool_choice": choice, "parallel_tool_calls": false, "seed": seed, "max_tokens": 200 });
            let answer = post(&server.address, CHAT, &body);
            assert_eq!(answer.status, 200, "{}", answer.body);
            let whole = answer.json()["choices"][0].clone();
            let call = &whole["message"]["tool_calls"][0];
            let name = call["function"]["name"].as_str().unwrap();
            assert!(names.contains(&name), "{whole}");
            assert_eq!((&whole["finish_reason"], &whole["message"]["content"]), (&json!("tool_calls"), &Value::Null));
            assert_eq!(call["id"].as_str().unwrap().len(), 9);
            let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
            let key = if name == "paint" { "colour" } else { "cloth" };
            assert!(
                arguments.as_object().unwrap().len() == 1
                    && ["red", "blue"].contains(&arguments[key].as_str().unwrap())
            );

            body["stream"] = json!(true);
            let events = post(&server.address, CHAT, &body).events();
            let deltas = || events.iter().filter_map(|event| event.pointer("/choices/0/delta/tool_calls/0"));
            let streamed: String = deltas().filter_map(|delta| delta["function"]["arguments"].as_str()).collect();
            assert_eq!(serde_json::from_str::<Value>(&streamed).unwrap(), arguments);
            assert!(deltas().all(|delta| delta["index"] == 0));
            assert_eq!(deltas().next().unwrap()["function"]["name"], name);
            assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "tool_calls");
        }
    }
    // Send the calls back with the next request.
    let call =
        json!({ "id": "c", "type": "function", "function": { "name": "paint", "arguments": "{\"colour\": \"red\"}" } });
    let messages = json!([
        { "role": "user", "content": "Go." },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "c", "content": "done" },
    ]);
    let body = json!({ "messages": messages, "tools": tools, "max_tokens": 5 });
    assert_eq!(post(&server.address, CHAT, &body).status, 200);
}

#[test]
fn embeddings_and_tokens_equal_those_of_the_library() {
    let server = serve(stories());
    let texts = ["Once upon a time", "a cat"];
    let want = stories().embed(texts).run().unwrap();
    let answer = post(&server.address, "/v1/embeddings", &json!({ "model": "stories", "input": texts })).json();
    for (i, want) in want.vectors.iter().enumerate() {
        let vector: Vec<f32> = serde_json::from_value(answer["data"][i]["embedding"].clone()).unwrap();
        assert_eq!((&vector, answer["data"][i]["index"].as_u64()), (want, Some(i as u64)));
    }
    assert_eq!(answer["usage"], json!({ "prompt_tokens": want.usage.prompt, "total_tokens": want.usage.prompt }));

    let answer = post(&server.address, "/tokenize", &json!({ "content": "a <s> cat", "add_special": true })).json();
    let ids: Vec<u32> = serde_json::from_value(answer["tokens"].clone()).unwrap();
    assert_eq!((ids[0], answer["count"].as_u64(), ids.contains(&0)), (1, Some(ids.len() as u64), false));
    assert_eq!(ids.iter().filter(|&&id| id == 1).count(), 1, "a text's <s> is none");
    let special = post(&server.address, "/tokenize", &json!({ "prompt": "<s>", "parse_special": true })).json();
    assert!(special["tokens"].as_array().unwrap().contains(&json!(1)));
    let back = post(&server.address, "/detokenize", &json!({ "tokens": ids })).json();
    assert_eq!(back["content"], "a <s> cat");
    assert_eq!(get(&server.address, "/v1/models").json()["data"][0]["id"], "stories");
}

#[test]
fn full_queue_responds_with_retry_after() {
    let model = load(|builder| builder.max_running(1).max_waiting(1));
    let server = serve(&model);
    let endless = json!({ "prompt": "Once", "max_tokens": 100000, "stream": true, "logit_bias": { "2": -100 } });
    let mut streams = Vec::new();
    let busy = loop {
        // Send requests until the engine's queue is full.
        let mut sent = send(&server.address, &request("POST", "/v1/completions", &[], &endless.to_string()));
        if sent.line().contains("429") {
            break send(&server.address, &request("POST", "/v1/completions", &[], &endless.to_string())).answer();
        }
        streams.push(sent);
        assert!(streams.len() < 5);
    };
    assert_eq!(busy.error(429).2.as_deref(), Some("queue_full"));
    assert_eq!(busy.header("retry-after"), Some("1"));
    // Clients that disconnect make room, and the engine counts them as cancelled.
    drop(streams);
    wait_until("nothing runs or waits", || (model.metrics().running, model.metrics().waiting) == (0, 0));
    assert!(model.metrics().outcomes.cancelled > 0 && model.metrics().outcomes.refused > 0);
    assert_eq!(post(&server.address, "/v1/completions", &json!({ "prompt": "Once", "max_tokens": 1 })).status, 200);
    let metrics = get(&server.address, "/metrics").body;
    assert!(metrics.contains("fewbit_generated_tokens_total{model=\"stories\"}"), "{metrics}");
}
