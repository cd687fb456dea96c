//! Vocabularies that must be rejected: one test per error.

use fewbit_format::{Metadata, Value};
use fewbit_tokenizer::{TokenKind, Tokenizer, TokenizerError, Vocabulary};

use crate::support::byte_level;

fn load_error(vocabulary: &Vocabulary<'_>) -> TokenizerError {
    Tokenizer::new(vocabulary).expect_err("must be refused")
}

fn spm() -> Vocabulary<'static> {
    Vocabulary {
        model: "llama".into(),
        tokens: vec!["<unk>".to_owned(), "<s>".to_owned()].into(),
        kinds: vec![TokenKind::Unknown, TokenKind::Control],
        scores: vec![0.0, 0.0].into(),
        unknown: Some(0),
        bos: Some(1),
        ..Vocabulary::default()
    }
}

#[test]
fn missing_model() {
    let error = Tokenizer::from_gguf(&Metadata::default()).expect_err("empty");
    assert!(matches!(error, TokenizerError::MissingModel), "{error}");
}

#[test]
fn unknown_model_is_named() {
    let error = load_error(&Vocabulary { model: "rwkv".into(), ..byte_level("gpt-2", &[]) });
    assert!(matches!(&error, TokenizerError::UnknownModel { model } if model == "rwkv"));
    assert!(error.to_string().contains("rwkv") && error.to_string().contains("gpt2"));
}

#[test]
fn missing_and_unknown_pre_mention_the_override() {
    let error = load_error(&Vocabulary { pre: None, ..byte_level("gpt-2", &[]) });
    assert!(matches!(error, TokenizerError::MissingPre));
    assert!(error.to_string().contains("TokenizerOptions::pre"), "{error}");
    // `gemma4` splits text that is not byte-level.
    for pre in ["", "gpt-3", "gemma4", "Smollm"] {
        let error = load_error(&byte_level(pre, &[]));
        assert!(matches!(&error, TokenizerError::UnknownPre { pre: found } if found == pre));
        assert!(error.to_string().contains("smollm"), "{error}");
    }
}

#[test]
fn missing_tokens() {
    let mut metadata = Metadata::default();
    metadata.set("tokenizer.ggml.model", "gpt2");
    let error = Tokenizer::from_gguf(&metadata).expect_err("no tokens");
    assert!(matches!(error, TokenizerError::MissingField { key: "tokenizer.ggml.tokens" }));
    // A value of another type is the reader's error.
    metadata.set("tokenizer.ggml.tokens", 5u32);
    let error = Tokenizer::from_gguf(&metadata).expect_err("tokens are no list");
    assert!(matches!(error, TokenizerError::Metadata(_)), "{error}");
}

#[test]
fn lists_of_different_lengths() {
    let error = load_error(&Vocabulary { kinds: vec![TokenKind::Normal], ..byte_level("gpt-2", &[]) });
    assert!(matches!(error, TokenizerError::WrongLength { found: 1, .. }), "{error}");
    let error = load_error(&Vocabulary { scores: vec![0.0; 3].into(), ..spm() });
    assert!(matches!(error, TokenizerError::WrongLength { expected: 2, found: 3, .. }), "{error}");
}

#[test]
fn unknown_token_type() {
    let mut metadata = Metadata::default();
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.tokens", vec!["a".to_owned(), "b".to_owned()]);
    metadata.set("tokenizer.ggml.token_type", vec![1i32, 9]);
    let error = Tokenizer::from_gguf(&metadata).expect_err("type 9");
    assert!(matches!(error, TokenizerError::UnknownTokenType { id: 1, found: 9 }), "{error}");
}

#[test]
fn every_key_adds_end_of_generation_tokens() {
    let mut metadata = Metadata::default();
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.pre", "gpt-2");
    metadata.set("tokenizer.ggml.tokens", ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec());
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let ends = |keys: &[(&str, Value)]| {
        let mut metadata = metadata.clone();
        keys.iter().for_each(|(name, value)| metadata.set(key(name), value.clone()));
        Tokenizer::from_gguf(&metadata).expect("valid").end_of_generation().collect::<Vec<_>>()
    };
    let (eos, eot, eom, more) = ("eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids");
    assert_eq!(ends(&[]), [0u32; 0]);
    assert_eq!(ends(&[(eos, 0u32.into())]), [0]);
    assert_eq!(ends(&[(eot, 1u32.into())]), [1]);
    assert_eq!(ends(&[(eom, 2u32.into())]), [2]);
    assert_eq!(ends(&[(eos, 0u32.into()), (eot, 1u32.into()), (eom, 2u32.into())]), [0, 1, 2]);
    assert_eq!(ends(&[(more, vec![3u32, 4].into())]), [3, 4]);
    // Negative ones, and those outside of the vocabulary, stand for none.
    assert_eq!(ends(&[(more, vec![2i32, -1, 4].into())]), [2, 4]);
    assert_eq!(ends(&[(more, vec![2u32, 99].into()), (eot, (-1i32).into()), (eom, u32::MAX.into())]), [2]);
    assert_eq!(ends(&[(eos, 1u32.into()), (more, vec![1u32, 1, 3].into())]), [1, 3]);
    // The name is for people, and of any kind.
    metadata.set("general.name", 7u32);
    assert!(Tokenizer::from_gguf(&metadata).is_ok());
}

#[test]
fn bad_merge() {
    let vocabulary = Vocabulary { merges: vec!["a b".to_owned(), "ab".to_owned()].into(), ..byte_level("gpt-2", &[]) };
    let error = load_error(&vocabulary);
    assert!(matches!(error, TokenizerError::BadMerge { index: 1, .. }), "{error}");
}

#[test]
fn bad_byte_token() {
    let mut vocabulary = spm();
    vocabulary.kinds[1] = TokenKind::Byte;
    let error = load_error(&Vocabulary { add_bos: Some(false), ..vocabulary });
    assert!(matches!(error, TokenizerError::BadByteToken { id: 1, .. }), "{error}");
}

#[test]
fn bad_score() {
    let error = load_error(&Vocabulary { scores: vec![0.0, f32::NAN].into(), ..spm() });
    assert!(matches!(error, TokenizerError::BadScore { id: 1 }), "{error}");
}

#[test]
fn special_token_outside_the_vocabulary() {
    let error = load_error(&Vocabulary { eos: Some(9), ..spm() });
    assert!(matches!(error, TokenizerError::SpecialOutOfRange { id: 9, n_vocab: 2, .. }), "{error}");
}

#[test]
fn bos_or_eos_to_be_added_is_missing() {
    let error = load_error(&Vocabulary { bos: None, ..spm() });
    assert!(matches!(error, TokenizerError::MissingSpecial { .. }), "{error}");
    let error = load_error(&Vocabulary { add_eos: Some(true), ..spm() });
    assert!(error.to_string().contains("eos_token_id"), "{error}");
}

#[test]
fn vocabulary_without_a_fallback_for_bytes() {
    let error = load_error(&Vocabulary { unknown: None, ..spm() });
    assert!(matches!(error, TokenizerError::NoFallback { byte: 0 }), "{error}");
}
