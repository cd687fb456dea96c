//! SmolLM2's tokenizer against Hugging Face's: `tests/data/golden_ids.py`.

use fewbit_tokenizer::{SpecialTokens, TokenKind, Tokenizer, TokenizerOptions};

use crate::support::{Golden, smollm2_file, texts};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(smollm2_file().metadata()).expect("supported")
}

#[test]
fn ids_match_hugging_face() {
    let tokenizer = tokenizer();
    let goldens: Vec<Golden> = serde_json::from_str(include_str!("../data/smollm2_ids.json")).expect("valid");
    for (text, golden) in texts().iter().zip(&goldens) {
        // Twice: the second time, whole pieces are known to be reachable or not.
        for _ in 0..2 {
            assert_eq!(tokenizer.encode(text, SpecialTokens::Plain), golden.plain, "{text:?}");
            assert_eq!(tokenizer.encode(text, SpecialTokens::Parse), golden.special, "{text:?}");
        }
    }
}

/// Random Unicode, code, white space and special tokens: `tests/data/random_ids.py`.
#[test]
fn ids_of_random_texts_match_hugging_face() {
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        plain: Vec<u32>,
        special: Vec<u32>,
    }
    let tokenizer = tokenizer();
    for line in include_str!("../data/smollm2_random.jsonl").lines() {
        let case: Case = serde_json::from_str(line).expect("valid");
        assert_eq!(tokenizer.encode(&case.text, SpecialTokens::Plain), case.plain, "{:?}", case.text);
        assert_eq!(tokenizer.encode(&case.text, SpecialTokens::Parse), case.special, "{:?}", case.text);
    }
}

#[test]
fn decoding_restores_the_text() {
    let tokenizer = tokenizer();
    // Every text that the vocabulary can express: some bytes have no token of their own in it.
    let has_all_bytes =
        |ids: &[u32], text: &str| ids.iter().map(|&id| tokenizer.token_bytes(id).len()).sum::<usize>() == text.len();
    let mut n_whole = 0;
    for text in texts() {
        let ids = tokenizer.encode(&text, SpecialTokens::Plain);
        if has_all_bytes(&ids, &text) {
            assert_eq!(tokenizer.decode(&ids), text);
            n_whole += 1;
        }
    }
    assert!(n_whole + 3 > texts().len(), "{n_whole}");
}

#[test]
fn special_tokens_and_flags_are_read() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.n_vocab(), 49152);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unknown()), (Some(1), Some(2), Some(0)));
    assert!(!tokenizer.add_bos() && !tokenizer.add_eos());
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.kind(2), Some(TokenKind::Control));
    let ends: Vec<u32> = tokenizer.end_of_generation().collect();
    assert!(ends.contains(&0) && ends.contains(&2) && !ends.contains(&1), "{ends:?}");
    assert_eq!(tokenizer.token_bytes(2), b"");
    assert_eq!(tokenizer.decode_with_special(&[1, 2]), "<|im_start|><|im_end|>");
    assert!(tokenizer.chat_template().is_some_and(|t| t.contains("<|im_start|>")));
}

#[test]
fn the_pre_tokenizer_can_be_overridden() {
    let file = smollm2_file();
    let with = |pre: &str| Tokenizer::from_gguf_with(file.metadata(), &TokenizerOptions::with_pre(pre));
    // Two newlines before a word are two pieces for GPT-2 and one for Llama 3.
    let ids = |pre| with(pre).expect("known").encode("a\n\nb", SpecialTokens::Plain).len();
    assert_eq!((ids("smollm"), ids("gpt-2"), ids("llama-bpe")), (4, 4, 3));
    let error = with("no-such").expect_err("unknown").to_string();
    assert!(error.contains("no-such") && error.contains("TokenizerOptions::pre"), "{error}");
}
