//! Tests of the public API and of the repository, in one program.

mod asynchronous;
mod chat;
mod constraints;
// A GPU that is none, for the tests of what a model does when it fails; those of fewbit-gpu have it too.
#[cfg(feature = "cuda")]
#[allow(dead_code)]
#[path = "../../crates/fewbit-gpu/tests/cuda_shim/mod.rs"]
mod cuda_shim;
mod dependencies;
mod devices;
mod embed;
mod engine;
mod evaluate;
mod exact;
#[cfg(feature = "cuda")]
#[allow(dead_code)]
#[path = "../../crates/fewbit-gpu/tests/fake_driver/mod.rs"]
mod fake_driver;
mod generate;
mod hf;
mod hub;
mod hub_server;
mod loading;
mod lora;
mod measure;
mod mtp;
mod public_api;
mod repos;
mod sampling;
mod schemas;
mod session;
mod smollm2;
mod smollm2_generation;
mod smollm2_together;
mod speculation;
mod tidy;
mod tool_choice;
mod tools;
mod tracing;

use std::sync::OnceLock;
use std::thread;

use fewbit::expert::format::{GgufFile, GgufWriter};
use fewbit::{Model, ModelBuilder};

/// A Llama with 260 thousand weights that tells children's stories: it has every part of a real model in 1 MB.
const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/stories260K-f32.gguf");

/// Roles and messages, one per line. `<s>` is the model's token for the beginning of a text.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

/// The stories model, with a chat template that it was not trained for, loaded once.
fn stories() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(|b| b))
}

/// The stories model, loaded separately with other settings.
fn load(configure: impl FnOnce(ModelBuilder) -> ModelBuilder) -> Model {
    configure(Model::builder().threads(1).chat_template(TEMPLATE)).load(STORIES).unwrap()
}

/// The same with other metadata and weights: `weights` gets the name and the bytes of each tensor.
fn altered(metadata: impl FnOnce(&mut GgufWriter<'_>), weights: impl Fn(&str, &mut [u8])) -> Model {
    let file = GgufFile::open(STORIES.as_ref()).unwrap();
    let mut writer = GgufWriter::with_metadata(file.metadata().clone());
    metadata(&mut writer);
    for tensor in file.tensors() {
        let mut bytes = file.tensor_bytes(tensor).to_vec();
        weights(&tensor.name, &mut bytes);
        writer.tensor(&tensor.name, &tensor.shape, tensor.ty, bytes).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("altered.gguf");
    writer.write_file(&path).unwrap();
    Model::builder().threads(1).load_file(&path).unwrap()
}

/// Runs `n` calls at once, each on its own thread.
fn together<R: Send>(n: usize, run: impl Fn(usize) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..n).map(|i| scope.spawn(move || run(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
