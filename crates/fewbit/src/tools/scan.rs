//! Scans one JSON value, character by character: where its keys and values begin and end, and whether it is valid.
//!
//! It accepts exactly JSON (RFC 8259), except for numbers with leading zeros and unpaired `\u` surrogates, which the
//! parser of the whole value rejects.

/// Deeper nested values are rejected: the arguments of no schema go this deep.
const MAX_DEPTH: usize = 128;

/// The meaning of a character in the value. Depths count the objects and lists that are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing of interest.
    None,
    /// The quote that begins a key.
    KeyStart,
    /// The quote that ends it.
    KeyEnd,
    /// The quote that begins a string.
    StringStart,
    /// The quote that ends it.
    StringEnd,
    /// The first character of a number or a word.
    Scalar,
    /// `{` or `[`; already counted in the depth.
    Open,
    /// `}` or `]`; no longer counted in the depth.
    Close,
}

/// The text is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Invalid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value; in a list that has just begun, or its end.
    Value {
        may_end: bool,
    },
    /// A key; in an object that has just begun, or its end.
    Key {
        may_end: bool,
    },
    Colon,
    /// A comma, or the end of what is open.
    After,
    String {
        is_key: bool,
    },
    Escape {
        is_key: bool,
    },
    Hex {
        is_key: bool,
        left: u8,
    },
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
    Number(Number),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Digits,
    Point,
    Decimals,
    E,
    Sign,
    Exponent,
}

/// The state of a value that is an object, a list or a string: only these mark their own end.
#[derive(Debug)]
pub(super) struct Scanner {
    /// For each open object or list, whether it is an object.
    open: Vec<bool>,
    state: State,
    is_done: bool,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), state: State::Value { may_end: false }, is_done: false }
    }

    /// Number of objects and lists that are open.
    pub(super) fn depth(&self) -> usize {
        self.open.len()
    }

    /// Whether the value is complete.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Takes the next character of the value. Must not be called once it is complete.
    pub(super) fn push(&mut self, c: char) -> Result<Event, Invalid> {
        match self.state {
            State::String { is_key } => self.in_string(c, is_key),
            State::Escape { is_key } => {
                self.state = match c {
                    '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => State::String { is_key },
                    'u' => State::Hex { is_key, left: 4 },
                    _ => return Err(Invalid),
                };
                Ok(Event::None)
            }
            State::Hex { is_key, left } => {
                if !c.is_ascii_hexdigit() {
                    return Err(Invalid);
                }
                self.state = if left == 1 { State::String { is_key } } else { State::Hex { is_key, left: left - 1 } };
                Ok(Event::None)
            }
            State::Word(rest) => {
                let rest = rest.strip_prefix(c).ok_or(Invalid)?;
                self.state = if rest.is_empty() { State::After } else { State::Word(rest) };
                Ok(Event::None)
            }
            State::Number(number) => match number.next(c) {
                Some(next) => {
                    self.state = State::Number(next);
                    Ok(Event::None)
                }
                None if number.may_end() => {
                    self.state = State::After;
                    self.between(c)
                }
                None => Err(Invalid),
            },
            _ => self.between(c),
        }
    }

    fn in_string(&mut self, c: char, is_key: bool) -> Result<Event, Invalid> {
        match c {
            '"' => {
                self.state = if is_key { State::Colon } else { State::After };
                self.is_done = self.open.is_empty();
                Ok(if is_key { Event::KeyEnd } else { Event::StringEnd })
            }
            '\\' => {
                self.state = State::Escape { is_key };
                Ok(Event::None)
            }
            '\0'..='\x1f' => Err(Invalid),
            _ => Ok(Event::None),
        }
    }

    /// A character outside of strings, numbers and words.
    fn between(&mut self, c: char) -> Result<Event, Invalid> {
        if matches!(c, ' ' | '\n' | '\r' | '\t') {
            return Ok(Event::None);
        }
        match (self.state, c) {
            (State::Value { .. }, '{') => self.open(true),
            (State::Value { .. }, '[') => self.open(false),
            (State::Value { may_end: true }, ']') | (State::Key { may_end: true }, '}') => self.close(),
            (State::Value { .. }, '"') => {
                self.state = State::String { is_key: false };
                Ok(Event::StringStart)
            }
            (State::Value { .. }, _) => {
                self.state = match c {
                    't' => State::Word("rue"),
                    'f' => State::Word("alse"),
                    'n' => State::Word("ull"),
                    '-' => State::Number(Number::Minus),
                    '0'..='9' => State::Number(Number::Digits),
                    _ => return Err(Invalid),
                };
                Ok(Event::Scalar)
            }
            (State::Key { .. }, '"') => {
                self.state = State::String { is_key: true };
                Ok(Event::KeyStart)
            }
            (State::Colon, ':') => {
                self.state = State::Value { may_end: false };
                Ok(Event::None)
            }
            (State::After, ',') => {
                self.state = match self.open.last() {
                    Some(true) => State::Key { may_end: false },
                    Some(false) => State::Value { may_end: false },
                    None => return Err(Invalid),
                };
                Ok(Event::None)
            }
            (State::After, '}') if self.open.last() == Some(&true) => self.close(),
            (State::After, ']') if self.open.last() == Some(&false) => self.close(),
            _ => Err(Invalid),
        }
    }

    fn open(&mut self, is_object: bool) -> Result<Event, Invalid> {
        if self.open.len() >= MAX_DEPTH {
            return Err(Invalid);
        }
        self.open.push(is_object);
        self.state = if is_object { State::Key { may_end: true } } else { State::Value { may_end: true } };
        Ok(Event::Open)
    }

    fn close(&mut self) -> Result<Event, Invalid> {
        self.open.pop();
        self.state = State::After;
        self.is_done = self.open.is_empty();
        Ok(Event::Close)
    }
}

impl Number {
    fn next(self, c: char) -> Option<Self> {
        let digit = c.is_ascii_digit();
        Some(match (self, c) {
            (Self::Minus | Self::Digits, _) if digit => Self::Digits,
            (Self::Digits, '.') => Self::Point,
            (Self::Point | Self::Decimals, _) if digit => Self::Decimals,
            (Self::Digits | Self::Decimals, 'e' | 'E') => Self::E,
            (Self::E, '+' | '-') => Self::Sign,
            (Self::E | Self::Sign | Self::Exponent, _) if digit => Self::Exponent,
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Digits | Self::Decimals | Self::Exponent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How many bytes of `text` the first value takes, if it is an object or a list.
    fn length(text: &str) -> Result<Option<usize>, Invalid> {
        let mut scanner = Scanner::new();
        for (at, c) in text.char_indices() {
            scanner.push(c)?;
            if scanner.is_done() {
                return Ok(Some(at + c.len_utf8()));
            }
        }
        Ok(None)
    }

    #[test]
    fn end_of_a_json_value_is_found() {
        for text in [
            "{}",
            "[]",
            r#"{"a": "}\"]", "b": [1, -2.5e+3, true, null, {"c": {}}]}"#,
            " \n[\"\\u00e9\\\\\", [[]]]",
            r#"{"a":0,"b":10e2}"#,
        ] {
            assert_eq!(length(&format!("{text}}}]\"")), Ok(Some(text.len())), "{text}");
            for cut in 0..text.len() {
                if text.is_char_boundary(cut) {
                    assert_eq!(length(&text[..cut]), Ok(None), "{text} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn invalid_json_is_rejected() {
        for text in [
            "}",
            "{]",
            "[}",
            "{a",
            "{\"a\" 1",
            "{\"a\":}",
            "[1 2",
            "[1,]",
            "{\"a\":1,}",
            "[tru ",
            "[-]",
            "[1.]",
            "[1e]",
            "[\"\n",
            "[\"\\x",
            "[\"\\u12g",
            "[,",
            "{,",
            "[\u{a0}",
            "[+1",
            "[.5",
        ] {
            assert_eq!(length(text), Err(Invalid), "{text}");
        }
        assert_eq!(length(&"[".repeat(MAX_DEPTH + 1)), Err(Invalid));
    }

    proptest! {
        /// Whatever the reader of whole values accepts, this accepts, with the same end.
        #[test]
        fn scanner_agrees_with_serde_json(text in r#"[\[{][\[\]{}":,0-9a-e. \\-]{0,12}"#) {
            let mut values = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
            match values.next() {
                Some(Ok(_)) => prop_assert_eq!(length(&text), Ok(Some(values.byte_offset()))),
                Some(Err(error)) if error.is_eof() => prop_assert_eq!(length(&text), Ok(None)),
                _ => prop_assert!(true),
            }
        }
    }
}
