//! Clients that disconnect, and a server that stops.

use std::time::Duration;

use fewbit_serve::{Finish, Script, ScriptedBackend};
use serde_json::json;

use crate::Running;
use crate::client::{get, post, request, send, wait_until};

/// Practically forever.
const LONG: Duration = Duration::from_secs(600);

fn body(is_streamed: bool) -> Vec<u8> {
    let body = json!({ "prompt": "Hi", "stream": is_streamed }).to_string();
    request("POST", "/v1/completions", &[], &body)
}

#[test]
fn disconnecting_clients_cancel_their_answers() {
    let endless = || Script::new().text("word ").wait(LONG).end(Finish::Stop);
    let backend = ScriptedBackend::new([endless(), endless()]);
    let server = Running::with(backend.clone());
    let mut streamed = send(&server.address, &body(true));
    streamed.read_to("data: ");
    let whole = send(&server.address, &body(false));
    wait_until("both run", || backend.running() == 2);
    drop(streamed);
    wait_until("the stream ended", || backend.running() == 1);
    drop(whole);
    wait_until("the other ended", || backend.running() == 0);
    wait_until("both are counted as gone", || {
        get(&server.address, "/metrics").body.contains("{endpoint=\"/v1/completions\",status=\"499\"} 2")
    });
    assert!(server.join());
}

#[test]
fn stopping_server_finishes_running_answers() {
    let slow = Script::new().text("first ").wait(Duration::from_millis(300)).text("last").end(Finish::Stop);
    let backend = ScriptedBackend::new([slow]);
    let mut server = Running::with(backend.clone());
    let mut streamed = send(&server.address, &body(true));
    streamed.read_to("data: ");
    server.stop();
    streamed.read_to("data: {\"id\":");
    streamed.read_to("data: [DONE]");
    wait_until("nobody listens", || std::net::TcpStream::connect(&server.address).is_err());
    assert!(server.join());
    assert_eq!(backend.running(), 0);
}

#[test]
fn answers_that_exceed_the_drain_time_are_aborted() {
    let backend = ScriptedBackend::new([Script::new().text("first ").wait(LONG)]);
    let server = Running::start(backend.clone(), |server| server.drain(Duration::from_millis(50)));
    let mut streamed = send(&server.address, &body(true));
    streamed.read_to("data: ");
    assert!(!server.join());
    assert_eq!(backend.running(), 0);
}

#[test]
fn requests_are_counted_by_endpoint_and_status() {
    let server = Running::with(ScriptedBackend::new([Script::words("x")]));
    assert_eq!(post(&server.address, "/v1/completions", &json!({ "prompt": "Hi", "stream": true })).status, 200);
    assert_eq!(post(&server.address, "/v1/completions", &json!({})).status, 400);
    assert_eq!(get(&server.address, "/none").status, 404);
    let metrics = get(&server.address, "/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in [
        "fewbit_http_requests_total{endpoint=\"/v1/completions\",status=\"200\"} 1",
        "fewbit_http_requests_total{endpoint=\"/v1/completions\",status=\"400\"} 1",
        "fewbit_http_requests_total{endpoint=\"unknown\",status=\"404\"} 1",
        "fewbit_http_requests_in_flight 1",
        "fewbit_requests_running{model=\"scripted\"} 0",
    ] {
        assert!(metrics.body.lines().any(|found| found == line), "{line}\n{}", metrics.body);
    }
}
