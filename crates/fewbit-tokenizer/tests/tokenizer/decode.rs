//! Decoding token by token.

use fewbit_tokenizer::{SpecialTokens, Tokenizer};
use proptest::prelude::*;

use crate::support::{byte_level, small, stories};

/// Pieces of the streaming decoder, each of which is valid UTF-8 by its type.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut decoder = tokenizer.decoder();
    let mut pieces: Vec<String> = ids.iter().map(|&id| decoder.push(tokenizer, id)).collect();
    pieces.push(decoder.finish());
    pieces
}

#[test]
fn characters_are_streamed_whole() {
    let tokenizer = small();
    let ids: Vec<u32> = "é🙂!".bytes().map(u32::from).collect();
    assert_eq!(stream(&tokenizer, &ids), ["", "é", "", "", "", "🙂", "!", ""]);
}

#[test]
fn invalid_sequences_become_one_replacement_character_each() {
    let tokenizer = small();
    assert_eq!(stream(&tokenizer, &[0xF0, 0x9F, 0x41]), ["", "", "\u{FFFD}A", ""]);
    assert_eq!(stream(&tokenizer, &[0xF0, 0x9F]), ["", "", "\u{FFFD}"]);
    assert_eq!(stream(&tokenizer, &[0xFF, 0x80]), ["\u{FFFD}", "\u{FFFD}", ""]);
}

#[test]
fn control_tokens_and_unknown_ids_decode_to_no_text() {
    let tokenizer = small();
    assert_eq!(stream(&tokenizer, &[257, 0x41, 256, 999_999, u32::MAX, 260]).concat(), "A");
    assert_eq!(tokenizer.token_bytes(999_999), b"");
    assert_eq!(tokenizer.token_text(999_999), None);
    // A control token inside a character does not break it.
    assert_eq!(stream(&tokenizer, &[0xC3, 257, 0xA9]), ["", "", "é", ""]);
}

proptest! {
    /// Ids 0 to 255 of [`small`] are bytes, and stories260K has its bytes from id 3.
    #[test]
    fn streamed_pieces_equal_the_lossy_decoding_of_all_bytes(
        bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), Just(0xE2), Just(0x82), Just(0xF0), Just(0x9F), Just(0xED)],
            0..40,
        ),
    ) {
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        let ids: Vec<u32> = bytes.iter().map(|&b| u32::from(b)).collect();
        let tokenizer = small();
        prop_assert_eq!(stream(&tokenizer, &ids).concat(), whole.clone());
        prop_assert_eq!(tokenizer.decode(&ids), whole);
    }

    #[test]
    fn streamed_pieces_equal_the_decoding_of_any_tokens(ids in prop::collection::vec(0u32..600, 0..40)) {
        for tokenizer in [stories(), Tokenizer::new(&byte_level("gpt-2", &["a b"])).expect("valid")] {
            prop_assert_eq!(stream(&tokenizer, &ids).concat(), tokenizer.decode(&ids));
            let bytes: Vec<u8> =
                ids.iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            let decoded = tokenizer.decode(&ids);
            // The two differ in the one leading space that the encoder would have put there.
            prop_assert!(whole == decoded || whole.strip_prefix(' ') == Some(&decoded));
        }
    }

    #[test]
    fn text_round_trips_through_byte_tokens(text in any::<String>()) {
        let tokenizer = stories();
        prop_assume!(!text.contains('\u{2581}'));
        let ids = tokenizer.encode(&text, SpecialTokens::Plain);
        prop_assert_eq!(stream(&tokenizer, &ids).concat(), text);
    }
}
