//! Byte-level BPE on small vocabularies.

use fewbit_tokenizer::{SpecialTokens, TokenKind, Tokenizer, Vocabulary};
use proptest::prelude::*;

use crate::support::{byte_level, small};

fn encoded(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, SpecialTokens::Plain);
    ids.iter().map(|&id| tokenizer.token_text(id).unwrap_or_default().to_owned()).collect()
}

#[test]
fn merges_are_applied_by_rank() {
    let tokenizer = small();
    // "ab" comes before "Ġa", so that the space of " ab" stays alone.
    assert_eq!(encoded(&tokenizer, "abc ab ac hello"), ["abc", "Ġ", "ab", "Ġa", "c", "Ġ", "hello"]);
}

#[test]
fn whole_piece_is_one_token_only_if_merges_are_ignored() {
    // "xyz" is a token that no merge leads to.
    let build = |pre: &str| {
        let mut vocabulary = byte_level(pre, &["a b"]);
        vocabulary.tokens.to_mut().push("xyz".to_owned());
        vocabulary.kinds.push(TokenKind::Normal);
        Tokenizer::new(&vocabulary).expect("valid")
    };
    let (merging, ignoring) = (build("gpt-2"), build("llama-bpe"));
    // Twice: the second time, it is known of the token whether merges lead to it.
    for _ in 0..2 {
        assert_eq!(encoded(&merging, "xyz"), ["x", "y", "z"]);
        assert_eq!(encoded(&merging, "ab"), ["ab"]);
        assert_eq!(encoded(&ignoring, "xyz"), ["xyz"]);
    }
}

#[test]
fn merges_may_pass_through_symbols_without_a_token() {
    // "ab" is in no token; "abc" is.
    let mut vocabulary = byte_level("gpt-2", &[]);
    vocabulary.tokens.to_mut().push("abc".to_owned());
    vocabulary.kinds.push(TokenKind::Normal);
    vocabulary.merges = vec!["a b".to_owned(), "ab c".to_owned()].into();
    let tokenizer = Tokenizer::new(&vocabulary).expect("valid");
    assert_eq!(encoded(&tokenizer, "abc"), ["abc"]);
    assert_eq!(encoded(&tokenizer, "abd"), ["a", "b", "d"]);
}

#[test]
fn control_tokens_are_text_unless_parsed() {
    let tokenizer = small();
    let text = "<s>hello<|im_end|><think>";
    let plain = tokenizer.encode(text, SpecialTokens::Plain);
    assert_eq!(tokenizer.decode(&plain), text);
    // The user-defined token is text, so it is recognised in either case.
    assert_eq!(plain.iter().filter(|&id| (256..263).contains(id)).collect::<Vec<_>>(), [&261]);
    let parsed = tokenizer.encode(text, SpecialTokens::Parse);
    assert_eq!(parsed.first(), Some(&257));
    assert_eq!(parsed.get(parsed.len() - 2..), Some(&[260, 261][..]));
    assert_eq!(tokenizer.decode(&parsed), "hello<think>");
    assert_eq!(tokenizer.decode_with_special(&parsed), text);
}

#[test]
fn merges_never_produce_control_tokens() {
    let mut vocabulary = byte_level("llama-bpe", &[]);
    vocabulary.merges = vec!["< s".to_owned(), "<s >".to_owned()].into();
    let tokenizer = Tokenizer::new(&vocabulary).expect("valid");
    assert_eq!(encoded(&tokenizer, "<s>"), ["<", "s", ">"]);
}

#[test]
fn bos_defaults_to_the_family_and_can_be_overridden() {
    let build = |pre: &str, add_bos| {
        let vocabulary = Vocabulary { add_bos, ..byte_level(pre, &[]) };
        Tokenizer::new(&vocabulary).expect("valid")
    };
    assert!(!build("gpt-2", None).add_bos());
    assert!(build("llama-bpe", None).add_bos());
    assert!(!build("llama-bpe", Some(false)).add_bos());
    assert_eq!(build("gpt-2", Some(true)).with_bos(vec![]), [257]);
}

#[test]
fn end_of_generation_tokens_are_found_by_id_and_text() {
    let ends = |vocabulary: &Vocabulary<'_>| -> Vec<String> {
        let tokenizer = Tokenizer::new(vocabulary).expect("valid");
        tokenizer.end_of_generation().map(|id| tokenizer.token_text(id).unwrap_or_default().to_owned()).collect()
    };
    let mut vocabulary = byte_level("gpt-2", &[]);
    vocabulary.eos = None;
    assert_eq!(ends(&vocabulary), ["</s>", "<|im_end|>"]);
    vocabulary.end_of_generation = vec![65, 1_000_000];
    assert_eq!(ends(&vocabulary), ["A", "</s>", "<|im_end|>"]);
    // A file that lost the types: what can only be a control token is one, `</s>` may be text.
    vocabulary.kinds.clear();
    vocabulary.end_of_generation.clear();
    assert_eq!(ends(&vocabulary), ["<|im_end|>"]);
    // Where answers have several messages, the end of one is not the end of the answer.
    vocabulary.tokens.to_mut().extend(["<|end|>", "<|return|>", "<|call|>"].map(String::from));
    assert_eq!(ends(&vocabulary), ["<|im_end|>", "<|return|>", "<|call|>"]);
}

/// Gemma's vocabulary has the tags of HTML as user-defined tokens, `</s>` among them, and ends answers otherwise.
#[test]
fn html_tags_do_not_end_generation() {
    let mut vocabulary = byte_level("gpt-2", &[]);
    let (tag, end) = (vocabulary.tokens.len(), vocabulary.tokens.len() + 1);
    let old = vocabulary.tokens.iter().position(|token| token == "</s>").expect("it is there");
    vocabulary.tokens.to_mut()[old] = "<old>".to_owned();
    vocabulary.tokens.to_mut().extend(["</s>", "<eos>"].map(String::from));
    vocabulary.kinds.extend([TokenKind::UserDefined, TokenKind::Control]);
    vocabulary.eos = Some(end as u32);
    let tokenizer = Tokenizer::new(&vocabulary).expect("valid");
    assert!(!tokenizer.end_of_generation().any(|id| id == tag as u32));
    assert!(tokenizer.end_of_generation().any(|id| id == end as u32));
    assert_eq!(tokenizer.encode("</s>", SpecialTokens::Plain), [tag as u32], "user-defined tokens are text");
    // Where it is the only one to end answers, it does, in files that have it as user-defined too.
    vocabulary.tokens.to_mut()[end] = "<other>".to_owned();
    let tokenizer = Tokenizer::new(&vocabulary).expect("valid");
    assert!(tokenizer.end_of_generation().any(|id| id == tag as u32));
}

#[test]
fn character_bpe_escapes_spaces_and_falls_back_to_bytes() {
    let mut tokens: Vec<String> = (0..=255).map(|b| format!("<0x{b:02X}>")).collect();
    let mut kinds = vec![TokenKind::Byte; 256];
    for text in ["\u{2581}", "a", "b", "\u{2581}a", "\n", "\n\n"] {
        tokens.push(text.to_owned());
        kinds.push(TokenKind::Normal);
    }
    let tokenizer = Tokenizer::new(&Vocabulary {
        model: "gemma4".into(),
        tokens: tokens.into(),
        kinds,
        merges: vec!["\u{2581} a".to_owned()].into(),
        add_bos: Some(false),
        ..Vocabulary::default()
    })
    .expect("valid");
    assert_eq!(encoded(&tokenizer, "a ab"), ["a", "\u{2581}a", "b"]);
    assert_eq!(encoded(&tokenizer, "a\n\nb"), ["a", "\n\n", "b"]);
    assert_eq!(encoded(&tokenizer, "\u{e9}"), ["<0xC3>", "<0xA9>"]);
    let ids = tokenizer.encode("a  \u{e9}\n\n\n", SpecialTokens::Plain);
    assert_eq!(tokenizer.decode(&ids), "a  \u{e9}\n\n\n");
}

#[test]
fn long_words_do_not_take_quadratic_time() {
    // Each rule doubles a run of one letter, so that merges go on at every length.
    let runs: Vec<String> = (0..10).map(|i| "a".repeat(1 << i)).collect();
    let rules: Vec<String> = runs.iter().map(|run| format!("{run} {run}")).collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    let tokenizer = Tokenizer::new(&byte_level("gpt-2", &rules)).expect("valid");
    let ids = tokenizer.encode(&"a".repeat(1 << 20), SpecialTokens::Plain);
    assert_eq!(ids.len(), 1 << 10);
    for unit in [" ", "\n", "!", "1", "\u{4e2d}", "\u{301}", "ab", "<|im_end|>", "<think>"] {
        let text = unit.repeat((1 << 20) / unit.len());
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text, SpecialTokens::Plain)), text);
    }
}

proptest! {
    #[test]
    fn any_text_round_trips(text in any::<String>(), words in "[a-c \\n'<>s1-3]{0,40}") {
        let tokenizer = small();
        for text in [text, words] {
            let ids = tokenizer.encode(&text, SpecialTokens::Plain);
            prop_assert_eq!(tokenizer.decode(&ids), text);
        }
    }
}
