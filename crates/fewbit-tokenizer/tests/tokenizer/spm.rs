//! SentencePiece vocabularies: stories260K against `tests/data/golden_ids.py`, and small ones.

use fewbit_tokenizer::{SpecialTokens, TokenKind, Tokenizer, Vocabulary};

use crate::support::{Golden, stories, texts};

#[test]
fn ids_match_the_plain_algorithm() {
    let tokenizer = stories();
    let goldens: Vec<Golden> = serde_json::from_str(include_str!("../data/stories260k_ids.json")).expect("valid");
    for (text, golden) in texts().iter().zip(&goldens) {
        assert_eq!(tokenizer.encode(text, SpecialTokens::Plain), golden.plain, "{text:?}");
        assert_eq!(tokenizer.encode(text, SpecialTokens::Parse), golden.special, "{text:?}");
    }
}

#[test]
fn decoding_restores_the_text() {
    let tokenizer = stories();
    // U+2581 is how the vocabulary spells a space.
    for text in texts().iter().filter(|text| !text.contains('\u{2581}')) {
        let ids = tokenizer.encode(text, SpecialTokens::Plain);
        assert_eq!(&tokenizer.decode(&ids), text);
    }
}

#[test]
fn leading_space_is_removed_only_at_the_start_of_a_text() {
    let tokenizer = stories();
    let ids = tokenizer.encode("Once upon", SpecialTokens::Plain);
    let bos = tokenizer.bos().expect("there is one");
    assert_eq!(tokenizer.with_bos(ids.clone())[0], bos);
    assert_eq!(tokenizer.with_bos(tokenizer.with_bos(ids.clone())).len(), ids.len() + 1);
    assert_eq!(tokenizer.decode(&tokenizer.with_bos(ids.clone())), "Once upon");

    let mut fresh = tokenizer.decoder();
    let mut continuing = tokenizer.decoder_after(&ids);
    let mut after_bos = tokenizer.decoder_after(&[bos]);
    assert_eq!(fresh.push(&tokenizer, ids[0]), tokenizer.decode(&ids[..1]));
    assert!(continuing.push(&tokenizer, ids[0]).starts_with(' '));
    assert!(!after_bos.push(&tokenizer, ids[0]).starts_with(' '));
    // Only the first space is the encoder's.
    let spaces = tokenizer.encode("  x", SpecialTokens::Plain);
    assert_eq!(tokenizer.decode(&spaces), "  x");
}

/// `<unk>`, `<s>`, `</s>`, then pieces with scores.
fn vocabulary(pieces: &[(&str, f32)]) -> Vocabulary<'static> {
    let special = [("<unk>", TokenKind::Unknown), ("<s>", TokenKind::Control), ("</s>", TokenKind::Control)];
    let (mut tokens, mut kinds): (Vec<String>, Vec<TokenKind>) =
        special.iter().map(|(text, kind)| ((*text).to_owned(), *kind)).unzip();
    let mut scores = vec![0.0; 3];
    for (text, score) in pieces {
        tokens.push((*text).to_owned());
        kinds.push(TokenKind::Normal);
        scores.push(*score);
    }
    Vocabulary {
        model: "llama".into(),
        tokens: tokens.into(),
        kinds,
        scores: scores.into(),
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..Vocabulary::default()
    }
}

#[test]
fn highest_score_merges_first_and_leftmost_among_ties() {
    let pieces = [("a", -9.0), ("b", -9.0), ("ab", -2.0), ("ba", -1.0), ("aa", -3.0), ("\u{2581}", -9.0)];
    let tokenizer = Tokenizer::new(&vocabulary(&pieces)).expect("valid");
    let texts = |text: &str| -> Vec<String> {
        let ids = tokenizer.encode(text, SpecialTokens::Plain);
        ids.iter().map(|&id| tokenizer.token_text(id).unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(texts("aba"), ["\u{2581}", "a", "ba"]);
    assert_eq!(texts("aaa"), ["\u{2581}", "aa", "a"]);
}

#[test]
fn characters_without_a_token_become_the_unknown_token() {
    let tokenizer = Tokenizer::new(&vocabulary(&[("a", -1.0)])).expect("valid");
    assert_eq!(tokenizer.encode("a\u{e9}a", SpecialTokens::Plain), [0, 3, 0, 3]);
    assert_eq!(tokenizer.decode(&[0, 3]), "a");
}

#[test]
fn control_tokens_are_never_merged_from_text() {
    // Pieces that lead up to the text of a control token, whose score is the highest there is.
    let pieces = [("<", -1.0), ("s", -1.0), (">", -1.0), ("<s", -1.0), ("s>", -1.0)];
    let mut vocabulary = vocabulary(&pieces);
    vocabulary.add_space_prefix = Some(false);
    let tokenizer = Tokenizer::new(&vocabulary).expect("valid");
    let ids = tokenizer.encode("<s>", SpecialTokens::Plain);
    assert!(!ids.contains(&1), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids), "<s>");
    assert_eq!(tokenizer.encode("<s>", SpecialTokens::Parse), [1]);
}

#[test]
fn special_tokens_may_strip_following_white_space() {
    let mut vocabulary = vocabulary(&[("a", -1.0), ("\n", -1.0), ("\u{2581}", -1.0)]);
    vocabulary.add_space_prefix = Some(false);
    vocabulary.strips_after = vec![2];
    let tokenizer = Tokenizer::new(&vocabulary).expect("valid");
    assert_eq!(tokenizer.encode("</s>\n \na<s>\na", SpecialTokens::Parse), [2, 3, 1, 4, 3]);
}

#[test]
fn long_words_do_not_take_quadratic_time() {
    let tokenizer = stories();
    for unit in ["a", " ", "\u{4e2d}", "ab", "\n", "once "] {
        let text = unit.repeat((1 << 20) / unit.len());
        let ids = tokenizer.encode(&text, SpecialTokens::Plain);
        assert_eq!(tokenizer.decode(&ids), text);
    }
}
