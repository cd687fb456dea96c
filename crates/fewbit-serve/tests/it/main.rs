//! The server over real sockets: with a scripted backend, and with a small model.

mod batches;
mod client;
mod ending;
mod engine;
mod line;
mod logs;
mod messages;
mod models;
mod openapi;
mod rerank;
mod responses;
mod streams;
#[path = "../support/mod.rs"]
mod support;

use std::sync::OnceLock;

use fewbit::{Model, ModelBuilder};
use support::Running;

/// A Llama model with 260 thousand weights that tells children's stories. It has every part of a large model, in 1 MB.
const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/stories260K-f32.gguf");

/// A chat template with one message per line.
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
