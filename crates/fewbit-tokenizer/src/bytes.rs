//! The printable characters that byte-level vocabularies use for bytes.
//!
//! GPT-2 stored its vocabulary as text, so every byte needed a visible character: the printable bytes of Latin-1 are
//! written as themselves, and the 68 others, in order, as U+0100 to U+0143.

/// Whether a byte is written as itself.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character for each byte.
const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut next = 0x100u32;
    let mut byte = 0;
    while byte < 256 {
        let code = if is_printable(byte as u8) {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        chars[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => '\0',
        };
        byte += 1;
    }
    chars
};

/// The byte for each of U+0000 to U+0143, or 256 if there is none.
const BYTES: [u16; 0x144] = {
    let mut bytes = [256; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[CHARS[byte] as usize] = byte as u16;
        byte += 1;
    }
    bytes
};

/// The character for `byte`.
pub(crate) fn char_of(byte: u8) -> char {
    CHARS[usize::from(byte)]
}

/// The bytes that a token's text stands for, or `None` if one of its characters does not stand for a byte.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| BYTES.get(c as usize).and_then(|&byte| u8::try_from(byte).ok())).collect()
}

/// The byte of a byte token, whose text is `<0xAB>`.
pub(crate) fn parse_byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let plain = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_characters_map_one_to_one() {
        for byte in 0..=255 {
            assert_eq!(decode(&char_of(byte).to_string()), Some(vec![byte]));
        }
        assert_eq!(char_of(b' '), 'Ġ');
        assert_eq!(char_of(b'\n'), 'Ċ');
        assert_eq!(char_of(0xAD), '\u{143}');
        assert_eq!(decode("▁"), None);
    }

    #[test]
    fn byte_tokens_need_two_hexadecimal_digits() {
        assert_eq!(parse_byte_token("<0x0A>"), Some(10));
        for bad in ["<0xA>", "<0x+1>", "<0x123>", "0x12", "<0xG0>"] {
            assert_eq!(parse_byte_token(bad), None, "{bad}");
        }
    }
}
