//! Arbitrary bytes as the files of a tokenizer: `tokenizer.json`, `tekken.json`, `tokenizer.model`, and the
//! configuration beside them. What is accepted has to encode and decode.
//!
//! See `gguf.rs` for how to run it. The first byte says which file the others are.
#![no_main]

use fewbit_tokenizer::{HfFiles, SpecialTokens, Tokenizer};
use libfuzzer_sys::fuzz_target;

/// A tokenizer for the configuration to go with.
const PLAIN: &str = r#"{"added_tokens": [{"id": 3, "content": "<s>", "special": true}], "model": {"type": "BPE",
    "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}"#;

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    let bytes = bytes.to_vec();
    let mut files = HfFiles::default();
    match kind % 4 {
        0 => files.tokenizer_json = Some(bytes),
        1 => files.tekken_json = Some(bytes),
        2 => files.tokenizer_model = Some(bytes),
        _ => {
            files.tokenizer_json = Some(PLAIN.into());
            files.tokenizer_config = Some(bytes);
        }
    }
    let Ok(tokenizer) = Tokenizer::from_hf(&files) else { return };
    for special in [SpecialTokens::Parse, SpecialTokens::Plain] {
        let ids = tokenizer.encode("ab <s> e\u{301}\n\n  1234\u{3000}x", special);
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.n_vocab()));
        let _ = tokenizer.decode(&ids);
    }
});
