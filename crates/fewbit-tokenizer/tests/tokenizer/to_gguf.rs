//! From the files of a Hugging Face repository to GGUF metadata: the same tokens, or an error.

use fewbit_tokenizer::{HfFiles, SpecialTokens, TokenKind, Tokenizer, TokenizerError, TokenizerOptions, Vocabulary};
use serde_json::{Value, json};

use crate::hf::{KEEPS_SPACES, byte_level, characters, files, sentencepiece, tekken, with_config};

/// The tokenizer that a GGUF file made from `files` has.
fn through_gguf(files: &HfFiles) -> (Vocabulary<'static>, Tokenizer) {
    let vocabulary = Vocabulary::from_hf(files, &TokenizerOptions::default()).expect("GGUF has a form for it");
    let meta = vocabulary.to_gguf(vocabulary.tokens.len());
    let read = Tokenizer::from_gguf(&meta).expect("valid");
    (vocabulary, read)
}

fn load_error(files: &HfFiles) -> String {
    match Vocabulary::from_hf(files, &TokenizerOptions::default()) {
        Err(error @ TokenizerError::NoGgufForm { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// [`byte_level`] with another expression, normalizer and use of rules.
fn splitting_by(pattern: &str, normalizer: Value, ignore_merges: bool) -> Value {
    let mut json = byte_level();
    json["normalizer"] = normalizer;
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern.into();
    json["model"]["ignore_merges"] = ignore_merges.into();
    json["added_tokens"][1]["rstrip"] = false.into();
    json
}

const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[test]
fn pre_tokenizer_is_recognized_by_its_behavior() {
    // Llama 3 writes the contractions out.
    let llama3 = CL100K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?i:'[sdmt]|'ll|'ve|'re)");
    let qwen = CL100K.replace("{1,3}", "");
    let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    for (pattern, normalizer, ignore_merges, name) in [
        (llama3.as_str(), Value::Null, true, "llama-bpe"),
        (CL100K, Value::Null, false, "dbrx"),
        (&qwen, json!({"type": "NFC"}), false, "qwen2"),
        (&qwen, Value::Null, false, "deepseek-r1-qwen"),
        (gpt2, Value::Null, false, "gpt-2"),
    ] {
        let files = files(&splitting_by(pattern, normalizer, ignore_merges));
        let (vocabulary, tokenizer) = through_gguf(&files);
        assert_eq!(vocabulary.pre.as_deref(), Some(name), "{pattern}");
        let own = Tokenizer::from_hf(&files).expect("supported");
        for text in ["ab ba", "ae\u{301}", "a<end>b", "b<think>"] {
            for special in [SpecialTokens::Plain, SpecialTokens::Parse] {
                assert_eq!(tokenizer.encode(text, special), own.encode(text, special), "{name}: {text}");
            }
        }
        assert_eq!((tokenizer.bos(), tokenizer.add_bos()), (Some(7), true), "what the post-processor adds");
    }
    // SmolLM2: digits by themselves, then words.
    let mut smollm = byte_level();
    smollm["normalizer"] = Value::Null;
    smollm["added_tokens"][1]["rstrip"] = false.into();
    smollm["pre_tokenizer"]["pretokenizers"] =
        json!([{"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "add_prefix_space": false}]);
    assert_eq!(through_gguf(&files(&smollm)).0.pre.as_deref(), Some("smollm"));
}

#[test]
fn both_chat_templates_are_kept() {
    let templates = json!([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]);
    let json = splitting_by(CL100K, Value::Null, false);
    let (vocabulary, tokenizer) = through_gguf(&with_config(&json, json!({ "chat_template": templates })));
    assert_eq!((tokenizer.chat_template(), tokenizer.tool_template()), (Some("D"), Some("T")));
    let meta = vocabulary.to_gguf(vocabulary.tokens.len());
    assert_eq!(meta.get("tokenizer.chat_templates"), Some(&vec!["tool_use".to_owned()].into()));
}

#[test]
fn tokenizers_unknown_to_gguf_are_rejected_unless_named() {
    let own = files(&splitting_by(r"\p{L}|\p{N}|\s|.", Value::Null, false));
    assert!(load_error(&own).contains("TokenizerOptions::pre"));
    let options = TokenizerOptions::with_pre("gpt-2");
    assert_eq!(Vocabulary::from_hf(&own, &options).expect("named").pre.as_deref(), Some("gpt-2"));
    assert!(load_error(&files(&splitting_by(CL100K, json!({"type": "NFKC"}), false))).contains("normalizer"));
    assert!(
        load_error(&files(&splitting_by(CL100K, json!({"type": "NFC"}), false))).contains("TokenizerOptions::pre"),
        "not without NFC"
    );
    let mut spaced = splitting_by(CL100K, Value::Null, false);
    spaced["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": true});
    assert!(load_error(&files(&spaced)).contains("space"));
}

#[test]
fn merge_rules_become_scores() {
    let config = json!({"bos_token": "<s>", "add_bos_token": true, "chat_template": "T"});
    let (vocabulary, tokenizer) = through_gguf(&with_config(&characters(), config));
    assert_eq!(vocabulary.model, "llama");
    assert_eq!((vocabulary.scores[260], vocabulary.scores[261], vocabulary.scores[258]), (0.0, -1.0, -2.0));
    assert_eq!(tokenizer.encode("ab a", SpecialTokens::Plain), [261, 260]);
    assert_eq!(tokenizer.encode("\u{e9}", SpecialTokens::Plain), [257, 0xC3 + 1, 0xA9 + 1]);
    assert_eq!((tokenizer.bos(), tokenizer.add_bos(), tokenizer.chat_template()), (Some(262), true, Some("T")));
    // Without the second rule, SentencePiece would still make the token.
    let mut json = characters();
    json["model"]["merges"] = json!(["\u{2581} a"]);
    let files = with_config(&json, json!({"bos_token": "<s>", "add_bos_token": true}));
    assert!(load_error(&files).contains("what becomes of"));
}

#[test]
fn tekken_ranks_become_merge_rules() {
    let mut json = tekken();
    // Tekken's own expression.
    const TITLE: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+";
    const UPPER: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*";
    const REST: &str = r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json["config"]["pattern"] = [TITLE, UPPER, REST].join("|").into();
    let mut files = HfFiles::default();
    files.tekken_json = Some(json.to_string().into_bytes());
    let (vocabulary, tokenizer) = through_gguf(&files);
    assert_eq!((vocabulary.pre.as_deref(), vocabulary.model.as_str()), (Some("tekken"), "gpt2"));
    let merges: Vec<&str> = vocabulary.merges.iter().map(String::as_str).collect();
    assert_eq!(merges[..4], ["a b", "b c", "a bc", "ab c"]);
    let own = Tokenizer::from_hf(&files).expect("supported");
    for text in ["abc", "abcb", "bbc \u{e9}1", "[INST]a"] {
        assert_eq!(tokenizer.encode(text, SpecialTokens::Parse), own.encode(text, SpecialTokens::Parse), "{text}");
    }
}

#[test]
fn sentencepiece_pieces_stay_the_same() {
    let mut files = HfFiles::default();
    files.tokenizer_model = Some(sentencepiece(2, &KEEPS_SPACES));
    let (vocabulary, tokenizer) = through_gguf(&files);
    assert_eq!((vocabulary.model.as_str(), vocabulary.scores.len()), ("llama", tokenizer.n_vocab()));
    let own = Tokenizer::from_hf(&files).expect("supported");
    for text in ["ab a", "<s>ab  ba", "\u{e9}"] {
        assert_eq!(tokenizer.encode(text, SpecialTokens::Parse), own.encode(text, SpecialTokens::Parse), "{text}");
    }
}

#[test]
fn vocabulary_is_padded_or_cut_to_the_size_of_the_model() {
    let config = json!({"bos_token": "<s>", "eos_token": "<end>", "add_bos_token": true});
    let mut json = splitting_by(CL100K, Value::Null, false);
    json["post_processor"] = Value::Null;
    let mut files = with_config(&json, config);
    files.generation_config = Some(br#"{"eos_token_id": [8, 3]}"#.to_vec());
    let vocabulary = Vocabulary::from_hf(&files, &TokenizerOptions::default()).expect("GGUF has a form for it");
    let read = |n| Tokenizer::from_gguf(&vocabulary.to_gguf(n)).expect("valid");
    let longer = read(12);
    assert_eq!(
        (longer.n_vocab(), longer.token_text(11), longer.kind(11)),
        (12, Some("[PAD11]"), Some(TokenKind::Unused))
    );
    assert_eq!(longer.end_of_generation().collect::<Vec<_>>(), [3, 8], "every end that the files name");
    let shorter = read(8);
    assert_eq!((shorter.n_vocab(), shorter.eos()), (8, None));
}

#[test]
fn declared_end_of_generation_tokens_are_kept() {
    // `</s>` is an end by itself only as a special token, `<|end|>` only where an answer is one message.
    let mut json = splitting_by(CL100K, Value::Null, false);
    let added = json["added_tokens"].as_array_mut().expect("a list");
    added.truncate(2);
    for (id, text) in [(9, "<|end|>"), (10, "<|return|>"), (11, "<|call|>")] {
        added.push(json!({"id": id, "content": text, "special": true}));
    }
    json["model"]["vocab"]["</s>"] = json!(12);
    for declared in [vec![12], vec![9], vec![8, 9]] {
        let mut files = files(&json);
        files.generation_config = Some(json!({ "eos_token_id": declared }).to_string().into_bytes());
        let own: Vec<u32> = Tokenizer::from_hf(&files).expect("supported").end_of_generation().collect();
        assert!(declared.iter().all(|id| own.contains(id)), "{own:?}");
        let (_, read) = through_gguf(&files);
        assert_eq!(read.end_of_generation().collect::<Vec<_>>(), own, "{declared:?}");
    }
}
