//! The server over real sockets: with a backend that says what it was told to, and with a small model.

mod client;
mod ending;
mod engine;
mod line;
mod logs;
mod messages;
mod responses;
mod streams;

use std::sync::OnceLock;
use std::thread::{self, JoinHandle};

use fewbit::{Model, ModelBuilder};
use fewbit_serve::{Backend, Server};
use tokio::sync::oneshot;

/// A Llama of 260 thousand weights that tells children's stories: every part of the real thing in 1 MB.
const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/stories260K-f32.gguf");

/// Roles and messages one to a line.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

fn load(configure: impl FnOnce(ModelBuilder) -> ModelBuilder) -> Model {
    configure(Model::builder().threads(1).chat_template(TEMPLATE)).load(STORIES).unwrap()
}

/// The stories model, loaded once.
fn stories() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(|builder| builder))
}

/// A server in a thread of its own.
struct Running {
    address: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<bool>>,
}

impl Running {
    fn start(backend: impl Backend, configure: impl FnOnce(Server) -> Server) -> Self {
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

    fn with(backend: impl Backend) -> Self {
        Self::start(backend, |server| server)
    }

    /// Begins to stop.
    fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Whether all was answered in time.
    fn join(mut self) -> bool {
        self.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}
