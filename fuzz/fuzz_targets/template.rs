//! Arbitrary text as a chat template, and as what a conversation says to a plain one.
//!
//! See `gguf.rs` for how to run it. Templates that make one string or namespace grow without end are known to
//! take all memory or stack; the limits here keep the first kind small.
#![no_main]

use fewbit_tokenizer::{
    ChatTemplate, Message, TemplateInput, TemplateLimits, TokenKind, Tokenizer, Vocabulary, encode_rendered,
};
use libfuzzer_sys::fuzz_target;

const SPECIAL: [&str; 4] = ["<s>", "</s>", "<|im_end|>", "[INST]"];

/// A vocabulary of bytes and special tokens, with SentencePiece's byte fallback.
fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut kinds = vec![TokenKind::Byte; 256];
    tokens.extend(SPECIAL.map(String::from));
    kinds.extend([TokenKind::Control; SPECIAL.len()]);
    Tokenizer::new(&Vocabulary {
        model: "llama".into(),
        scores: vec![0.0; tokens.len()].into(),
        tokens: tokens.into(),
        kinds,
        add_bos: Some(false),
        add_space_prefix: Some(false),
        ..Vocabulary::default()
    })
    .expect("a valid vocabulary")
}

fuzz_target!(|text: &str| {
    let tokenizer = tokenizer();
    let messages = [Message::user(text)];
    let input = TemplateInput::new(&messages);

    let plain = ChatTemplate::new("[INST]{{ messages[0].content }}</s>", &tokenizer).expect("a valid template");
    let ids = encode_rendered(&tokenizer, &plain.render(&input).expect("renders"));
    let special: Vec<u32> = ids.iter().copied().filter(|&id| tokenizer.is_control(id)).collect();
    assert_eq!(special, [259, 257], "only the template's own");
    // This vocabulary spells a space as U+2581, so that the two cannot be told apart.
    assert_eq!(tokenizer.decode(&ids).replace('\u{2581}', " "), text.replace('\u{2581}', " "));

    let limits = TemplateLimits { steps: 1_000, steps_per_message: 0, output_bytes: 1 << 16 };
    if let Ok(template) = ChatTemplate::with_limits(text, &tokenizer, limits)
        && let Ok(prompt) = template.render(&input)
    {
        assert!(prompt.text().len() <= 1 << 16);
        let _ = encode_rendered(&tokenizer, &prompt);
    }
});
