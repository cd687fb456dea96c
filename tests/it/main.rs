//! Tests of the public API and of the repository, in one program.

mod asynchronous;
mod chat;
mod constraints;
mod dependencies;
mod embed;
mod engine;
mod evaluate;
mod exact;
mod generate;
mod hf;
mod hub;
mod loading;
mod lora;
mod public_api;
mod sampling;
mod schemas;
mod session;
mod smollm2;
mod smollm2_generation;
mod smollm2_together;
mod speculation;
mod tidy;
mod tools;
mod tracing;

use std::sync::OnceLock;

use fewbit::Model;

/// A Llama of 260 thousand weights that tells children's stories: every part of the real thing in 1 MB.
const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/stories260K-f32.gguf");

/// Roles and messages one to a line. `<s>` is the model's token for the beginning of a text.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

/// The stories model, with a chat template that it was not trained for, loaded once.
fn stories() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::builder().threads(1).chat_template(TEMPLATE).load(STORIES).unwrap())
}
