//! Shared by the tests of servers and of the gateway: a running server, and the list of its endpoints.
#![allow(dead_code)] // no test uses all of it

use std::thread::{self, JoinHandle};

use fewbit_serve::{Backend, Server};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// A server that runs in its own thread.
pub(crate) struct Running {
    pub(crate) address: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<bool>>,
}

impl Running {
    pub(crate) fn start(backend: impl Backend, configure: impl FnOnce(Server) -> Server) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (tell, address) = std::sync::mpsc::channel();
        let server = configure(Server::new(backend));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let bound = server.bind("127.0.0.1:0").await.unwrap();
                tell.send(bound.local_addr().to_string()).unwrap();
                bound.run(async { drop(stopped.await) }).await
            })
        });
        Self { address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn with(backend: impl Backend) -> Self {
        Self::start(backend, |server| server)
    }

    /// Tells the server to stop.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until the server has stopped. Returns whether all requests were answered in time.
    pub(crate) fn join(mut self) -> bool {
        self.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Every endpoint that needs a key, with a valid request.
pub(crate) fn endpoints() -> Vec<(&'static str, &'static str, Value)> {
    let hi = json!([{ "role": "user", "content": "Hi" }]);
    vec![
        ("POST", "/v1/chat/completions", json!({ "messages": hi })),
        ("POST", "/v1/completions", json!({ "prompt": "Hi" })),
        ("POST", "/v1/messages", json!({ "messages": hi, "max_tokens": 9 })),
        ("POST", "/v1/messages/count_tokens", json!({ "messages": hi })),
        ("POST", "/v1/responses", json!({ "input": "Hi" })),
        ("POST", "/v1/embeddings", json!({ "input": "Hi" })),
        ("POST", "/v1/rerank", json!({ "query": "Hi", "documents": ["Ho"] })),
        ("GET", "/tokenizer_info", Value::Null),
        ("POST", "/tokenize", json!({ "content": "Hi" })),
        ("POST", "/detokenize", json!({ "tokens": [72, 105] })),
        ("GET", "/v1/models", Value::Null),
        ("GET", "/v1/models/scripted", Value::Null),
        ("GET", "/metrics", Value::Null),
    ]
}
