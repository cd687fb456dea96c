//! Arbitrary bytes as a saved conversation, and a good one whose bytes are changed.
//!
//! See `gguf.rs` for how to run it. The first two bytes say where in the good file the others go; at 0 they are the
//! whole file.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use fewbit::Model;
use libfuzzer_sys::fuzz_target;

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/stories260K-f32.gguf");
const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

struct Saved {
    model: Model,
    path: PathBuf,
    good: Vec<u8>,
}

/// A model, a path of this process, and a conversation of one turn.
static SAVED: LazyLock<Saved> = LazyLock::new(|| {
    let model = Model::builder().threads(1).chat_template(TEMPLATE).load(STORIES).expect("it is in the repository");
    let path = std::env::temp_dir().join(format!("fewbit-fuzz-{}.session", std::process::id()));
    let mut chat = model.chat().temperature(0.0).max_tokens(4).start().expect("a conversation");
    chat.send("Once").expect("an answer");
    chat.save(&path).expect("writable");
    let good = fs::read(&path).expect("written above");
    Saved { model, path, good }
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&[low, high], bytes)) = bytes.split_first_chunk() else { return };
    let at = usize::from(u16::from_le_bytes([low, high]));
    let mut file = SAVED.good.clone();
    match file.get_mut(at..) {
        Some(rest) if at > 0 => rest.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte),
        _ => file = bytes.to_vec(),
    }
    fs::write(&SAVED.path, &file).expect("writable");
    if let Ok(chat) = SAVED.model.chat().restore(&SAVED.path) {
        assert!(!chat.messages().is_empty());
    }
});
