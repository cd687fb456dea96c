//! The pipeline that every request passes through: authentication, and which errors invalid requests get.

use fewbit_serve::{BackendError, BackendErrorKind, Finish, Keys, Script, ScriptedBackend, Server};
use serde_json::{Value, json};

use crate::Running;
use crate::client::{get, post, request, send};
use crate::support::endpoints;

const KEY: &str = "a-key-of-the-tests-0001";
const OTHER: &str = "a-key-of-the-tests-0002";

fn script() -> Script {
    Script::words("Well, hello.")
}

#[test]
fn every_endpoint_requires_a_key() {
    let backend = ScriptedBackend::new([script(), script(), script(), script()]);
    let server = Running::start(backend.clone(), |server| server.keys(Keys::new([KEY, OTHER]).unwrap()));
    let ask = |method: &str, path: &str, body: &Value, headers: &[(&str, &str)]| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        send(&server.address, &request(method, path, headers, &body)).answer()
    };
    let (bearer, lower) = (format!("Bearer {KEY}"), format!("bearer  {KEY} "));
    for (method, path, body) in endpoints() {
        let refused = ask(method, path, &body, &[]);
        let code = (!path.starts_with("/v1/messages")).then(|| "missing_api_key".to_owned());
        assert_eq!(refused.error(401), ("authentication_error".into(), None, code), "{path}");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        for wrong in [("Authorization", "Bearer wrong"), ("x-api-key", "wrong"), ("Authorization", KEY)] {
            assert_eq!(ask(method, path, &body, &[wrong]).status, 401, "{path} {wrong:?}");
        }
        assert!(backend.jobs().is_empty() || path != "/v1/chat/completions");
        for right in [("Authorization", &bearer[..]), ("x-api-key", KEY), ("Authorization", &lower[..])] {
            let needs_script = ["/v1/messages", "/v1/responses"].contains(&path) || path.ends_with("completions");
            if needs_script {
                backend.push(script());
            }
            assert_eq!(ask(method, path, &body, &[right]).status, 200, "{path} {right:?}");
        }
    }
    // Stored answers need a key as well, and only the key that requested an answer gets it.
    backend.push(script());
    let own = [("x-api-key", KEY)];
    let answer = ask("POST", "/v1/responses", &json!({ "input": "Hi" }), &own).json();
    let path = format!("/v1/responses/{}", answer["id"].as_str().unwrap());
    for method in ["GET", "DELETE"] {
        assert_eq!(ask(method, &path, &Value::Null, &[]).status, 401);
        assert_eq!(ask(method, &path, &Value::Null, &[("x-api-key", OTHER)]).status, 404);
        assert_eq!(ask(method, &path, &Value::Null, &own).status, 200);
    }
    // Without a key, unknown paths cannot be told from known ones.
    assert_eq!(ask("GET", "/v1/none", &Value::Null, &[]).status, 401);
    assert_eq!(
        ask("GET", "/v1/none", &Value::Null, &[("x-api-key", KEY)]).error(404).2.as_deref(),
        Some("unknown_url")
    );
    assert_eq!(ask("GET", "/health", &Value::Null, &[]).json(), json!({ "status": "ok" }));
}

#[test]
fn invalid_fields_are_named_in_errors() {
    let backend = ScriptedBackend::default();
    let server = Running::with(backend.clone());
    let hi = json!([{ "role": "user", "content": "Hi" }]);
    let chat = |field: &str, value: Value| {
        let mut body = json!({ "messages": hi });
        body[field] = value;
        ("/v1/chat/completions", body)
    };
    let completion = |field: &str, value: Value| {
        let mut body = json!({ "prompt": "Hi" });
        body[field] = value;
        ("/v1/completions", body)
    };
    let object = json!({ "type": "json_object" });
    for ((path, body), param) in [
        (chat("messages", Value::Null), "messages"),
        (chat("messages", json!([])), "messages"),
        (chat("messages", json!([{ "content": "Hi" }])), "messages[0].role"),
        (chat("messages", json!([{ "role": "user", "content": "Hi" }, { "role": "x" }])), "messages[1].role"),
        (chat("messages", json!([{ "role": "user", "content": 3 }])), "messages[0].content"),
        (chat("temperature", json!("hot")), "temperature"),
        (chat("max_tokens", json!(-1)), "max_tokens"),
        (chat("max_completion_tokens", json!(1.5)), "max_completion_tokens"),
        (chat("n", json!(0)), "n"),
        (chat("n", json!(129)), "n"),
        (chat("seed", json!("x")), "seed"),
        (chat("stop", json!([1])), "stop"),
        (chat("stop", json!(vec!["a"; 65])), "stop"),
        (chat("stream", json!("yes")), "stream"),
        (chat("stream_options", json!({ "include_usage": 1 })), "stream_options.include_usage"),
        (chat("logit_bias", json!({ "x": 1 })), "logit_bias"),
        (chat("logprobs", json!(3)), "logprobs"),
        (chat("top_logprobs", json!(3)), "top_logprobs"),
        (chat("response_format", json!({ "type": "xml" })), "response_format.type"),
        (chat("tool_choice", json!("always")), "tool_choice"),
        (chat("functions", json!([{ "name": "f" }])), "functions"),
        (chat("chat_template_kwargs", json!([])), "chat_template_kwargs"),
        (("/v1/chat/completions", json!({ "messages": hi, "regex": "a", "response_format": object })), "regex"),
        (("/v1/chat/completions", json!({ "messages": hi, "regex": "a", "grammar": "root ::= \"a\"" })), "grammar"),
        (("/v1/chat/completions", json!({ "messages": hi, "tools": [{}], "response_format": object })), "tools"),
        (("/v1/responses", json!({ "input": [] })), "input"),
        (("/v1/responses", json!({ "input": [{ "type": "x" }] })), "input"),
        (("/v1/responses", json!({ "input": "a", "previous_response_id": "none" })), "previous_response_id"),
        (("/v1/responses", json!({ "input": "a", "tools": [{ "type": "web_search" }] })), "tools[0].type"),
        (("/v1/responses", json!({ "input": "a", "background": true })), "background"),
        (("/v1/responses", json!({ "input": "a", "conversation": "c" })), "conversation"),
        (("/v1/responses", json!({ "input": "a", "text": { "format": { "type": "xml" } } })), "text.format.type"),
        (("/v1/responses", json!({ "input": "a", "regex": "a", "text": { "format": object } })), "regex"),
        (("/v1/responses", json!({ "input": "a", "top_logprobs": 21 })), "top_logprobs"),
        (completion("prompt", Value::Null), "prompt"),
        (completion("prompt", json!([])), "prompt"),
        (completion("prompt", json!([["x"]])), "prompt"),
        (completion("logprobs", json!(true)), "logprobs"),
        (completion("logprobs", json!(21)), "logprobs"),
        (completion("echo", json!("yes")), "echo"),
        (completion("best_of", json!(2)), "best_of"),
        (completion("suffix", json!("x")), "suffix"),
        (("/v1/completions", json!({ "prompt": ["a", "b", "c"], "n": 50 })), "n"),
        (("/v1/embeddings", json!({ "input": [] })), "input"),
        (("/v1/embeddings", json!({ "input": "a", "encoding_format": "hex" })), "encoding_format"),
        (("/v1/embeddings", json!({ "input": "a", "dimensions": 7 })), "dimensions"),
        (("/tokenize", json!({})), "content"),
        (("/detokenize", json!({ "tokens": [-1] })), "tokens[0]"),
        (("/detokenize", json!({ "tokens": [256] })), "tokens"),
    ] {
        let (kind, at, _) = post(&server.address, path, &body).error(400);
        assert_eq!((kind.as_str(), at.as_deref()), ("invalid_request_error", Some(param)), "{path} {body}");
    }
    assert!(backend.jobs().is_empty());
}

#[test]
fn malformed_requests_are_rejected() {
    let server = Running::start(ScriptedBackend::default(), |server| server.body_limit(1000));
    let post = |body: &str| send(&server.address, &request("POST", "/v1/completions", &[], body)).answer();
    let deep = "[".repeat(500);
    for body in ["", "{", "[]", "3", "\"x\"", "\u{feff}{}", "{\"prompt\": \"\\ud800\"}", &deep] {
        assert_eq!(post(body).error(400).1, None, "{body}");
    }
    let large = json!({ "prompt": "x".repeat(1000) }).to_string();
    assert_eq!(post(&large).error(413).0, "invalid_request_error");
    // A chunked body, whose size is not announced.
    let head =
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{}\r\n", 600, " ".repeat(600));
    let bytes = [head, &chunk, &chunk, "0\r\n\r\n"].concat();
    assert_eq!(send(&server.address, bytes.as_bytes()).answer().status, 413);

    assert_eq!(get(&server.address, "/v1/none").error(404).2.as_deref(), Some("unknown_url"));
    assert_eq!(get(&server.address, "/v1/completions").error(405).0, "invalid_request_error");
    assert_eq!(get(&server.address, "/v1/models/none").error(404).2.as_deref(), Some("model_not_found"));
    let other = json!({ "model": "gpt-4", "prompt": "" }).to_string();
    assert_eq!(
        post(&other).error(404),
        ("invalid_request_error".into(), Some("model".into()), Some("model_not_found".into()))
    );
    for garbage in ["GET\r\n\r\n", "GET / HTTP/9\r\n\r\n", "GET /\u{0} HTTP/1.1\r\n\r\n"] {
        assert_eq!(send(&server.address, garbage.as_bytes()).answer().status, 400, "{garbage:?}");
    }
    assert_eq!(get(&server.address, "/health").status, 200);
}

#[test]
fn cross_origin_requests_are_rejected() {
    let backend = ScriptedBackend::default();
    let server = Running::with(backend.clone());
    let port = server.address.rsplit(':').next().unwrap();
    let ask = |headers: &[(&str, &str)]| send(&server.address, &request("GET", "/v1/models", headers, "")).answer();
    let own = format!("http://localhost:{port}");
    let host = format!("localhost:{port}");
    assert_eq!(ask(&[("Host", &host), ("Origin", &own)]).status, 200);
    assert_eq!(ask(&[("Host", &server.address)]).status, 200);
    assert_eq!(ask(&[("Host", &format!("[::1]:{port}"))]).status, 200);
    for headers in [
        &[("Host", &host[..]), ("Origin", "http://evil.example")][..],
        &[("Host", &host[..]), ("Origin", "null")],
        &[("Host", "evil.example")],
        &[("Host", "127.0.0.1.evil.example")],
    ] {
        let refused = ask(headers);
        assert_eq!(refused.error(403).0, "permission_error", "{headers:?}");
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
}

#[test]
fn backend_errors_map_to_http_statuses() {
    use BackendErrorKind::{Busy, Internal, Invalid, TooLong, Unavailable, UnknownModel};
    let backend = ScriptedBackend::default();
    let server = Running::with(backend.clone());
    for (kind, status, code) in [
        (Invalid, 400, None),
        (TooLong, 400, Some("context_length_exceeded")),
        (UnknownModel, 404, Some("model_not_found")),
        (Busy, 429, Some("queue_full")),
        (Unavailable, 503, None),
        (Internal, 500, None),
    ] {
        for is_streamed in [false, true] {
            backend.push(Script::refuse(BackendError::new(kind, "no")));
            let answer = post(&server.address, "/v1/completions", &json!({ "prompt": "a", "stream": is_streamed }));
            assert_eq!(answer.error(status).2.as_deref(), code);
            assert_eq!(answer.header("retry-after").is_some(), [429, 503].contains(&status));
        }
    }
    // Answers that fail in the middle, do not end, or panic.
    let broken = [
        Script::new().text("a").fail(BackendError::new(Unavailable, "no")),
        Script::new().text("a"),
        Script::new().text("a").panic(),
    ];
    for (script, status) in broken.into_iter().zip([503, 500, 500]) {
        backend.push(script);
        post(&server.address, "/v1/completions", &json!({ "prompt": "a" })).error(status);
    }
    backend.push(Script::new().text("fine").end(Finish::Length));
    let answer = post(&server.address, "/v1/completions", &json!({ "prompt": "a" })).json();
    assert_eq!(answer["choices"], json!([{ "index": 0, "text": "fine", "logprobs": null, "finish_reason": "length" }]));
}

#[test]
fn non_loopback_addresses_require_keys() {
    let bind = |address: &str, keys: Option<Keys>| {
        let server = Server::new(ScriptedBackend::default());
        let server = match keys {
            Some(keys) => server.keys(keys),
            None => server,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(server.bind(address)).map(|bound| bound.local_addr()).map_err(|error| error.to_string())
    };
    for open in ["0.0.0.0:0", "[::]:0"] {
        let refused = bind(open, None).unwrap_err();
        assert!(refused.contains("there are no keys"), "{refused}");
    }
    assert_ne!(bind("0.0.0.0:0", Some(Keys::new([KEY]).unwrap())).unwrap().port(), 0);
    assert!(bind("localhost:0", None).unwrap().ip().is_loopback());
    assert!(bind("8080", None).unwrap_err().contains("IP:PORT"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(bind(&taken.local_addr().unwrap().to_string(), None).unwrap_err().contains("cannot listen on"));
}

#[test]
fn the_feature_of_a_request_is_a_name() {
    let backend = ScriptedBackend::default().then_always(script());
    let server = Running::with(backend.clone());
    let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
    let ask = |path: &str, body: &Value, header: Option<&str>| {
        let headers: Vec<_> = header.map(|value| ("x-fewbit-feature", value)).into_iter().collect();
        send(&server.address, &request("POST", path, &headers, &body.to_string())).answer()
    };
    let with = |mut body: Value, metadata: Value| {
        body["metadata"] = metadata;
        body
    };
    // What a request says itself counts more than a header that a client sends with all.
    for (body, header, want) in [
        (chat.clone(), None, None),
        (chat.clone(), Some("search"), Some("search")),
        (with(chat.clone(), json!({ "feature": "mail/reply:v1.2_x-y" })), Some("search"), Some("mail/reply:v1.2_x-y")),
        (with(chat.clone(), json!({ "feature": null, "other": "any text: ü" })), None, None),
        (with(chat.clone(), Value::Null), Some("search"), Some("search")),
    ] {
        let answer = ask("/v1/chat/completions", &body, header);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let jobs = backend.jobs();
        assert_eq!(jobs[jobs.len() - 1].caller.feature.as_deref(), want, "{body} {header:?}");
    }
    let messages =
        with(json!({ "messages": chat["messages"], "max_tokens": 9 }), json!({ "feature": "a", "user_id": "u" }));
    let responses = with(json!({ "input": "Hi" }), json!({ "feature": "a" }));
    for (path, body) in
        [("/v1/messages", messages), ("/v1/responses", responses), ("/v1/completions", json!({ "prompt": "Hi" }))]
    {
        assert_eq!(ask(path, &body, Some("a")).status, 200, "{path}");
        let jobs = backend.jobs();
        assert_eq!(jobs[jobs.len() - 1].caller.feature.as_deref(), Some("a"), "{path}");
    }
    // The log has no room for texts of requests.
    let n_jobs = backend.jobs().len();
    for wrong in ["", "two words", "a\u{fc}", &"x".repeat(65)] {
        let answer = ask("/v1/chat/completions", &with(chat.clone(), json!({ "feature": wrong })), None);
        assert_eq!(answer.error(400).1.as_deref(), Some("metadata.feature"), "{wrong:?}");
        assert_eq!(ask("/v1/chat/completions", &chat, Some(wrong)).error(400).1.as_deref(), Some("x-fewbit-feature"));
    }
    let answer = ask("/v1/chat/completions", &with(chat.clone(), json!({ "feature": 3 })), None);
    assert_eq!(answer.error(400).1.as_deref(), Some("metadata.feature"));
    assert_eq!(ask("/v1/chat/completions", &with(chat, json!([])), None).error(400).1.as_deref(), Some("metadata"));
    assert_eq!(backend.jobs().len(), n_jobs);
}
