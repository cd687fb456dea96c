//! Logs contain numbers and names, but never the text of a request or a key.

use std::io::Write;
use std::sync::{Arc, Mutex};

use fewbit_serve::{EngineBackend, Keys};
use serde_json::json;

use crate::client::{request, send};
use crate::{Running, stories};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn log_contains_no_texts_and_no_keys() {
    let log = Log::default();
    let writer = log.clone();
    // The subscriber is global for the test binary, because the server has threads of its own.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let key = "KEYKEYKEYKEYKEYKEY";
    let backend = EngineBackend::new([("stories", stories().clone())]).unwrap();
    let server = Running::start(backend, |server| server.keys(Keys::new([key]).unwrap()));
    let bearer = format!("Bearer {key}");
    let secret = "ZWEBRA";
    let ask = |path: &str, body: serde_json::Value, key: &str| {
        let bytes = request("POST", path, &[("Authorization", key)], &body.to_string());
        send(&server.address, &bytes).answer()
    };
    let answer = ask("/v1/completions", json!({ "prompt": secret, "echo": true, "seed": 1 }), &bearer);
    assert!(answer.json()["choices"][0]["text"].as_str().unwrap().contains(secret));
    let messages = json!([{ "role": "user", "content": secret }]);
    assert_eq!(ask("/v1/chat/completions", json!({ "messages": messages, "max_tokens": 3 }), &bearer).status, 200);
    assert_eq!(ask("/v1/chat/completions", json!({ "messages": secret }), &bearer).status, 400);
    assert_eq!(ask("/v1/embeddings", json!({ "input": secret }), &bearer).status, 200);
    assert_eq!(ask(&format!("/v1/{secret}"), json!({}), "Bearer WRONGWRONGWRONG").status, 401);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("endpoint=\"/v1/embeddings\"") && text.contains("fewbit::request"), "{text}");
    for private in [secret, key, "WRONGWRONG"] {
        assert!(!text.contains(private), "{private} is in the log");
    }
}
