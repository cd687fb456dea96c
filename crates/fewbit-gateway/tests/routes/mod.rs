//! Routes over real sockets: to fewbit's own servers, and to servers that hang, answer wrongly or disconnect.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fewbit_gateway::{By, Config, Gateway, Live, Outcome, Prices, Route, Routes, Row, usage};
use fewbit_serve::{
    Backend, CallDelta, Finish, Piece, Script, ScriptedBackend, Token, UpstreamBackend, UpstreamConfig,
};
use serde_json::{Value, json};

use super::support::Running;

const KEY: &str = "sk-upstream-secret";

/// Starts a server that sends this answer to each connection and then closes it, unless the answer is empty. Returns
/// its address and the requests that it received.
fn raw(answer: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = Arc::clone(&seen);
    thread::spawn(move || {
        let mut held = Vec::new();
        for socket in listener.incoming() {
            let mut reader = BufReader::new(socket.unwrap());
            let mut request = String::new();
            let mut length = 0;
            while reader.read_line(&mut request).unwrap_or(0) > 2 {
                let line = request.lines().last().unwrap_or_default().to_ascii_lowercase();
                length = line.strip_prefix("content-length: ").map_or(length, |n| n.parse().unwrap());
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            requests.lock().unwrap().push(request + std::str::from_utf8(&body).unwrap());
            let mut socket = reader.into_inner();
            if answer.is_empty() {
                held.push(socket);
            } else {
                let _ = socket.write_all(answer.as_bytes());
            }
        }
    });
    (address, seen)
}

fn upstream(address: &str) -> Arc<dyn Backend> {
    let mut config = UpstreamConfig::new(format!("http://{address}/v1/"), ["scripted"]);
    config.key = Some(KEY.to_owned());
    config.timeout = Duration::from_millis(400);
    Arc::new(UpstreamBackend::new(config).unwrap())
}

/// A server whose only model is this route.
fn server(route: Route) -> Running {
    Running::with(Routes::new(None, Vec::new(), vec![route]))
}

fn ask(server: &Running, path: &str, body: &Value) -> (u16, Value, String) {
    server.ask("", if body.is_null() { "GET" } else { "POST" }, path, body.clone())
}

fn chat(more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "a private question" }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn script() -> Script {
    let call = CallDelta { index: 0, id: Some("call_1".into()), name: Some("f".into()), arguments: "{\"a\"".into() };
    let more = CallDelta { index: 0, id: None, name: None, arguments: ":1}".into() };
    let token = Token { text: "é".into(), bytes: "é".into(), logprob: Some(-0.5), top: Vec::new() };
    Script::new()
        .piece(Piece { reasoning: "Hm.".into(), ..Piece::default() })
        .piece(Piece { text: "é".into(), tokens: vec![token], ..Piece::default() })
        .piece(Piece { calls: vec![call], ..Piece::default() })
        .piece(Piece { calls: vec![more], ..Piece::default() })
        .end(Finish::ToolCalls)
}

#[test]
fn upstream_answers_equal_direct_answers() {
    let backend = ScriptedBackend::default();
    let far = Running::with(backend.clone());
    let near = server(Route::new("near").to("far/scripted", upstream(&far.address), "scripted", 1));
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    let body =
        chat(json!({ "tools": tools, "logprobs": true, "seed": 3, "stop": ["x"], "max_tokens": 50, "top_k": 4 }));
    let requests = [
        ("/v1/chat/completions", body.clone(), script()),
        ("/v1/messages", chat(json!({ "max_tokens": 9 })), script()),
        ("/v1/completions", json!({ "prompt": [72, 105], "max_tokens": 3 }), Script::words("There it is.")),
        ("/v1/completions", json!({ "prompt": "Hi" }), Script::words("cut off").end(Finish::Length)),
        ("/v1/embeddings", json!({ "input": ["Hi", "there"] }), Script::new()),
    ];
    for (path, body, script) in requests {
        if path != "/v1/embeddings" {
            backend.push(script.clone());
            backend.push(script);
        }
        let [direct, relayed] = [&far, &near].map(|server| {
            let (status, mut answer, text) = ask(server, path, &body);
            assert_eq!(status, 200, "{text}");
            for own in ["id", "model", "created", "system_fingerprint"] {
                answer[own] = Value::Null;
            }
            answer
        });
        assert_eq!(direct, relayed, "{path}");
    }
    // The settings of the request were forwarded unchanged.
    let jobs = backend.jobs();
    let (direct, relayed) = (&jobs[0], &jobs[1]);
    assert_eq!((&direct.input, direct.seed, direct.max_tokens), (&relayed.input, relayed.seed, relayed.max_tokens));
    assert_eq!((&direct.sampling.stop, direct.sampling.top_k), (&relayed.sampling.stop, relayed.sampling.top_k));
    // A stream is relayed piece by piece.
    backend.push(Script::new().text("One ").wait(Duration::from_millis(20)).text("two.").end(Finish::Stop));
    let (_, _, text) = ask(&near, "/v1/chat/completions", &chat(json!({ "stream": true })));
    assert!(text.contains("\"content\":\"One \"") && text.contains("\"content\":\"two.\""), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{text}");
}

const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";

fn stream(events: &str) -> &'static str {
    Box::leak(format!("{STREAM}{events}").into_boxed_str())
}

fn text(text: &str) -> String {
    format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": { "content": text } }] }))
}

fn end() -> String {
    let chunk = json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] });
    format!("data: {chunk}\n\ndata: [DONE]\n\n")
}

#[test]
fn upstream_failures_are_reported_as_errors() {
    let status = |status: &str, body: &str| -> &'static str {
        let n = body.len();
        Box::leak(format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n{body}").into_boxed_str())
    };
    let end = end();
    let schema = json!({ "response_format": { "type": "json_schema", "json_schema": {
        "name": "x", "schema": { "type": "object", "required": ["a"], "properties": { "a": { "type": "integer" } } } } } });
    let tools = json!({ "tools": [{ "type": "function", "function": { "name": "f" } }], "tool_choice": "required" });
    let none = json!({});
    for (answer, more, want, words) in [
        ("", &none, 502, "said nothing for"),
        ("nonsense\r\n\r\n", &none, 502, "closed the connection"),
        ("HTTP/1.1 200 OK\r\n", &none, 502, "closed the connection"),
        (status("200 OK", "<html>"), &none, 502, "no chunk"),
        (status("500 Oh", KEY), &none, 502, "status 500"),
        (status("302 Found\r\nLocation: http://127.0.0.1:1/", ""), &none, 502, "status 302"),
        (status("401 No", "{\"error\":{\"message\":\"wrong key sk-upstream-secret\"}}"), &none, 502, "refused the key"),
        (status("429 No\r\nRetry-After: 7", ""), &none, 503, "try again later"),
        (status("400 No", "{\"error\":{\"message\":\"too hot\",\"param\":\"temperature\"}}"), &none, 400, "too hot"),
        (stream(""), &none, 502, "broke its answer off"),
        (stream(&text("Half an")), &none, 502, "broke its answer off"),
        (stream(&(text("Half an") + "data: [DONE]\n\n")), &none, 502, "broke its answer off"),
        (stream("data: {\"choices\": 3}\n\n"), &none, 502, "no chunk"),
        (stream("data: {\"error\": {\"message\": \"sk-upstream-secret\"}}\n\n"), &none, 502, "failed in the middle"),
        (stream("data: {\"choices\": [{\"index\": 9, \"text\": \"x\"}]}\n\n"), &none, 502, "was not asked for"),
        (
            stream("data: {\"choices\": [{\"delta\": {\"tool_calls\": [{\"index\": 4000000000}]}}]}\n\n"),
            &none,
            502,
            "have not begun",
        ),
        (stream(&(text("{\"a\": \"no\"}") + &end)), &schema, 502, "the schema forbids"),
        (stream(&(text("I will not.") + &end)), &schema, 502, "not JSON"),
        (stream(&(text("I will not.") + &end)), &tools, 502, "had to call"),
        (stream(&(text("{\"a\": 1}") + &end)), &schema, 200, "{\\\"a\\\": 1}"),
        (
            status("200 OK", "{\"choices\":[{\"message\":{\"content\":\"whole\"},\"finish_reason\":\"stop\"}]}"),
            &none,
            200,
            "whole",
        ),
        (STREAM, &json!({ "regex": "a+" }), 400, "`regex` cannot be enforced"),
    ] {
        let (address, seen) = raw(answer);
        let near = server(Route::new("near").to("far/scripted", upstream(&address), "scripted", 1));
        let (got, body, shown) = ask(&near, "/v1/chat/completions", &chat(more.clone()));
        assert_eq!(got, want, "{words}: {shown}");
        assert!(shown.contains(words) && !shown.contains(KEY), "{words}: {shown}");
        assert_eq!(shown.to_ascii_lowercase().contains("retry-after: 7"), want == 503, "{shown}");
        if want == 400 && words == "too hot" {
            assert_eq!(body["error"]["param"], "temperature");
        }
        for request in &*seen.lock().unwrap() {
            assert!(request.starts_with("POST /v1/chat/completions ") && request.contains(&format!("Bearer {KEY}")));
        }
    }
    // No server listens at this address any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let near = server(Route::new("near").to("far/scripted", upstream(&gone), "scripted", 1));
    let (got, body, shown) = ask(&near, "/v1/chat/completions", &chat(json!({})));
    assert_eq!((got, &body["error"]["code"]), (502, &json!("upstream_error")));
    assert!(shown.contains("cannot be reached"), "{shown}");
    // An answer that breaks off midway gives an error event, and no end event.
    let (address, _) = raw(stream(&text("Half an")));
    let near = server(Route::new("near").to("far/scripted", upstream(&address), "scripted", 1));
    let (got, _, text) = ask(&near, "/v1/chat/completions", &chat(json!({ "stream": true })));
    assert_eq!(got, 200);
    assert!(text.contains("Half an") && text.contains("broke its answer off") && !text.contains("[DONE]"), "{text}");
}

#[test]
fn fallback_answers_if_the_first_target_fails() {
    let (broken, seen) = raw("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let backend = ScriptedBackend::default();
    let far = Running::with(backend.clone());
    let route = Route::new("near").retries(1).to("broken/scripted", upstream(&broken), "scripted", 1).to(
        "far/scripted",
        upstream(&far.address),
        "scripted",
        0,
    );
    let near = server(route);
    let n_seen = || seen.lock().unwrap().len();
    // One retry each, until five failures in a row open the breaker.
    for (n, want) in [(1, 2), (2, 4), (3, 5), (4, 5), (5, 5)] {
        backend.push(Script::words("From far away."));
        let (status, body, text) = ask(&near, "/v1/chat/completions", &chat(json!({})));
        assert_eq!(status, 200, "{text}");
        assert_eq!(body["choices"][0]["message"]["content"], "From far away.");
        assert!(text.contains("x-fewbit-backend: far/scripted\r\n") && text.contains("x-fewbit-fallback: true\r\n"));
        assert_eq!(n_seen(), want, "request {n}");
    }
    let (_, _, text) = ask(&near, "/metrics", &Value::Null);
    for line in [
        "route_retries_total{model=\"near\"} 2",
        "route_fallbacks_total{model=\"near\"} 5",
        "route_open_breakers{model=\"near\"} 1",
    ] {
        assert!(text.contains(&format!("fewbit_{line}\n")), "{line}: {text}");
    }
    // An invalid request is not retried: it would be invalid for every target.
    let (status, body, _) = ask(&near, "/v1/chat/completions", &chat(json!({ "grammar": "root ::= \"a\"" })));
    assert_eq!((status, &body["error"]["param"]), (400, &json!("grammar")));
    let (status, _, _) = ask(&near, "/tokenize", &json!({ "content": "Hi" }));
    assert_eq!(status, 400);
}

#[test]
fn target_with_broken_streams_is_skipped() {
    let (broken, seen) = raw(stream(&text("Half an")));
    let backend = ScriptedBackend::default();
    let far = Running::with(backend.clone());
    let route = Route::new("near").to("broken/scripted", upstream(&broken), "scripted", 1).to(
        "far/scripted",
        upstream(&far.address),
        "scripted",
        0,
    );
    let near = server(route);
    for n in 1..=7 {
        backend.push(Script::words("Whole."));
        let (status, _, shown) = ask(&near, "/v1/chat/completions", &chat(json!({ "stream": true })));
        // An answer that has begun is not requested again.
        let words = if n <= 5 { "broke its answer off" } else { "Whole." };
        assert!(status == 200 && shown.contains(words), "request {n}: {shown}");
        assert_eq!(shown.contains("x-fewbit-fallback: true"), n > 5, "request {n}: {shown}");
    }
    assert_eq!(seen.lock().unwrap().len(), 5);
}

#[test]
fn log_and_usage_name_the_target_that_answered() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let ada = super::key(store, "ada", |_| ());
    let (broken, _) = raw("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    // Without usage: an answer of 12 bytes in 2 pieces.
    let (silent, _) = raw(stream(&(text("An ans") + &text("wer is") + &end())));
    let (half, _) = raw(stream(&text("Half an")));
    let to = |route: Route, name: &str, address: &str| {
        let upstream = upstream(address);
        route.to(format!("{name}/scripted"), upstream, "scripted", u32::from(name == "broken" || name == "half"))
    };
    let backend = ScriptedBackend::new([Script::words("A secret answer.")]);
    let far = Running::with(backend);
    let routes = vec![
        to(to(Route::new("estimated"), "broken", &broken), "silent", &silent),
        to(Route::new("counted"), "far", &far.address),
        to(Route::new("torn"), "half", &half),
    ];
    let gateway = Gateway::open(store, Prices::new(), Routes::new(None, Vec::new(), routes)).unwrap();
    let near = Running::start(gateway.backend(), |server| server.gate(gateway));
    let ask = |model: &str| near.chat(&ada, json!({ "model": model, "stream": model == "torn" })).0;
    assert_eq!([ask("estimated"), ask("counted"), ask("torn")], [200, 200, 200]);
    drop(near);
    let entries = super::log(store);
    let shown: Vec<_> = entries
        .iter()
        .map(|entry| {
            let backend = entry.backend.as_deref().unwrap();
            (backend, entry.fallback, entry.estimated, entry.prompt_tokens, entry.completion_tokens, entry.outcome)
        })
        .collect();
    // "a private question" has 18 bytes.
    let want = [
        ("silent/scripted", true, true, 5, 3, Outcome::Complete),
        ("far/scripted", false, false, 1, 3, Outcome::Complete),
        ("half/scripted", false, true, 5, 1, Outcome::Failed),
    ];
    assert_eq!(shown, want);
    let rows = usage(store, By::Backend).unwrap();
    let of = |row: &Row| (row.of.clone(), row.answers, row.fallbacks, row.estimated);
    let want = [("far/scripted", 0, 0), ("half/scripted", 0, 1), ("silent/scripted", 1, 1)];
    assert_eq!(
        rows.iter().map(of).collect::<Vec<_>>(),
        want.map(|(of, n, estimated)| (of.to_owned(), 1, n, estimated))
    );
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
}

#[test]
fn reload_applies_valid_configs_and_ignores_invalid_ones() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let path = folder.path().join("fewbit.toml");
    let [ada, ops] = ["ada", "ops"].map(|name| {
        super::key(&store, name, |key| {
            if name == "ops" {
                key.endpoints = super::list(&["/admin"]);
            }
        })
    });
    let [one, two] = ["one", "two"].map(|words| {
        let slow = |wait| Script::new().text(words).wait(Duration::from_millis(wait)).text(" end").end(Finish::Stop);
        ScriptedBackend::new([slow(0), slow(0), slow(300)])
    });
    let servers = [&one, &two].map(|backend| Running::with(backend.clone()));
    let write = |server: usize, more: &str| {
        let address = &servers[server].address;
        let text = format!(
            "store = \"store\"\n[[upstreams]]\nname = \"far\"\nurl = \"http://{address}/v1\"\n[[routes]]\nname = \"near\"\n\
             to = [{{ upstream = \"far\", model = \"scripted\" }}]\n[prices.near]\ninput = 0\noutput = {}\n{more}",
            (server + 1) * 1_000_000
        );
        std::fs::write(&path, text).unwrap();
    };
    write(0, "");
    let config = Config::read(&path).unwrap();
    let prices = config.prices();
    let live = Live::new(&path, config, None, Vec::new()).unwrap();
    let gateway = Gateway::open(&store, prices, live.backend()).unwrap();
    let priced = gateway.clone();
    let reload = move || live.reload(|settings| priced.apply(settings)).map_err(|error| chain(&error));
    let near = Running::start(gateway.backend(), |server| server.gate(gateway).on_reload(reload));
    let answer = || near.chat(&ada, json!({})).1["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let reload = |key: &str| {
        let (status, body, _) = near.ask(key, "POST", "/admin/reload", Value::Null);
        (status, body["error"]["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(answer(), "one end");
    // A key without a scope for `/admin` may not reload.
    write(1, "");
    assert_eq!((reload(&ada).0, reload("").0), (403, 401));
    assert_eq!(answer(), "one end");
    for (more, words) in [
        ("[[upstreams]]", "line 11"),
        ("[prices.far]\ninput = 1\noutput = 1", "line 11: there is a price for \"far\""),
        ("[[models]]\nmodel = \"m\"", "`models` has changed, which needs a restart"),
    ] {
        write(1, more);
        let (status, message) = reload(&ops);
        assert!(status == 422 && message.contains(words) && message.contains("stays"), "{status} {message}");
    }
    // A request in progress finishes with the routes and prices with which it began.
    write(1, "");
    let begun = thread::scope(|scope| {
        let begun = scope.spawn(answer);
        while one.jobs().len() < 3 {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(reload(&ops), (200, String::new()));
        assert_eq!(answer(), "two end");
        begun.join().unwrap()
    });
    assert_eq!(begun, "one end");
    drop(near);
    let mut costs: Vec<_> = super::log(&store).iter().map(|entry| entry.cost).collect();
    costs.sort_by(f64::total_cmp);
    assert_eq!(costs, [2.0, 2.0, 2.0, 4.0]);
}
