//! Regular expressions of schemas: ECMA-262, searched in a string, converted to match the JSON text of that string.
//!
//! There are three steps. The pattern is translated to the syntax of the crate `regex` ([`translate`]). It is anchored
//! where `^` and `$` are at its ends; elsewhere they are errors. Each character becomes its text between the quotes of
//! JSON ([`Pattern::quoted`]), with one spelling for each character.

use std::fmt::Write;

use regex_automata::meta::Regex;
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look};

/// A regular expression for one character of a JSON string, with one spelling for each: that of most writers.
pub(super) const CHARACTER: &str = r#"([^"\\\x00-\x1F]|\\(["\\bfnrt]|u00(0[0-7]|0b|0e|0f|1[0-9a-f])))"#;

/// The largest size of a compiled pattern, in bytes.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// The most copies of a part that `{n}` may require.
const MAX_REPEAT: u32 = 10_000;

/// A regular expression for strings.
#[derive(Debug)]
pub(super) struct Pattern {
    /// The expression for the text between the quotes.
    pub(super) quoted: String,
    matcher: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.quoted == other.quoted
    }
}

impl Pattern {
    /// A pattern of a schema. The error is the reason why it cannot be used.
    pub(super) fn new(source: &str) -> Result<Self, String> {
        let translated = translate(source)?;
        let hir = regex_syntax::ParserBuilder::new().nest_limit(100).build().parse(&translated);
        let hir = hir.map_err(|error| match error {
            regex_syntax::Error::Parse(error) => error.kind().to_string(),
            regex_syntax::Error::Translate(error) => error.kind().to_string(),
            _ => "it cannot be read".to_owned(),
        })?;
        let mut quoted = String::new();
        anchored(&hir, true, true, &mut quoted)?;
        Ok(Self { quoted, matcher: matcher(&translated)? })
    }

    /// A pattern from a regular expression of fewbit's own, for a whole string.
    pub(super) fn whole(source: &str) -> Self {
        Self::new(&format!("^(?:{source})$")).expect("the regular expressions of formats are valid")
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.matcher.is_match(text)
    }
}

fn matcher(translated: &str) -> Result<Regex, String> {
    let config = Regex::config().nfa_size_limit(Some(MAX_COMPILED_BYTES)).hybrid_cache_capacity(MAX_COMPILED_BYTES);
    Regex::builder().configure(config).build(translated).map_err(|_| "it is too large".to_owned())
}

/// Translates ECMA-262 to the syntax of the crate `regex`.
fn translate(source: &str) -> Result<String, String> {
    const SPACE: &str = r"\t-\r \u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}";
    let mut out = String::with_capacity(source.len());
    let mut chars = source.chars().peekable();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let escaped = chars.next().ok_or("it ends in a backslash")?;
                let set = match escaped.to_ascii_lowercase() {
                    'd' => Some("0-9"),
                    'w' => Some("0-9A-Za-z_"),
                    's' => Some(SPACE),
                    _ => None,
                };
                if let Some(set) = set {
                    let negation = if escaped.is_ascii_uppercase() { "^" } else { "" };
                    let _ = write!(out, "[{negation}{set}]");
                    continue;
                }
                match escaped {
                    't' | 'n' | 'r' | 'v' | 'f' => {
                        out.push('\\');
                        out.push(escaped);
                    }
                    '0' if !chars.peek().is_some_and(char::is_ascii_digit) => out.push_str(r"\x00"),
                    'b' if in_class => out.push_str(r"\x08"),
                    'b' | 'B' => return Err("word boundaries (\\b, \\B) cannot be followed".to_owned()),
                    'c' => {
                        let letter = chars.next().filter(char::is_ascii_alphabetic).ok_or("\\c without a letter")?;
                        let _ = write!(out, r"\x{:02X}", letter as u32 % 32);
                    }
                    'x' | 'u' => {
                        out.push('\\');
                        out.push(escaped);
                        if chars.peek() == Some(&'{') {
                            braced(&mut chars, &mut out);
                        }
                    }
                    'p' | 'P' => {
                        out.push('\\');
                        out.push(escaped);
                        if chars.peek() != Some(&'{') {
                            return Err(format!("\\{escaped} without a name in braces"));
                        }
                        braced(&mut chars, &mut out);
                    }
                    '1'..='9' | 'k' => return Err("references to groups cannot be followed".to_owned()),
                    c if c.is_ascii_alphanumeric() => return Err(format!("\\{c} is not known")),
                    c => out.push_str(&regex_syntax::escape(c.encode_utf8(&mut [0; 4]))),
                }
            }
            '[' if in_class => out.push_str(r"\["),
            '[' => {
                in_class = true;
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                if chars.peek() == Some(&']') {
                    return Err("a class is empty".to_owned());
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            // In ECMA-262 these are literal characters.
            ']' => out.push_str(r"\]"),
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && out.ends_with('-') => out.push_str(r"\-"),
            '.' if !in_class => out.push_str(r"[^\n\r\u{2028}\u{2029}]"),
            '{' if !in_class && !is_repetition(chars.clone()) => out.push_str(r"\{"),
            '}' if !in_class && !ends_repetition(&out) => out.push_str(r"\}"),
            '(' if !in_class && chars.peek() == Some(&'?') => {
                chars.next();
                out.push_str("(?");
                match chars.next() {
                    Some(':') => out.push(':'),
                    Some('<') if !matches!(chars.peek(), Some('=' | '!')) => out.push('<'),
                    _ => return Err("lookaround and flags, (?…), cannot be followed".to_owned()),
                }
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Copies a name or a number, and the braces around it.
fn braced(chars: &mut impl Iterator<Item = char>, out: &mut String) {
    for c in chars {
        out.push(c);
        if c == '}' {
            break;
        }
    }
}

/// Whether the text after a brace makes it `{n}`, `{n,}` or `{n,m}`.
fn is_repetition(chars: impl Iterator<Item = char>) -> bool {
    let inside: String = chars.take_while(|c| *c != '}').take(24).collect();
    let (min, max) = inside.split_once(',').unwrap_or((&inside, ""));
    !min.is_empty() && min.bytes().chain(max.bytes()).all(|byte| byte.is_ascii_digit())
}

/// Whether the next brace ends what [`is_repetition`] began.
fn ends_repetition(out: &str) -> bool {
    out.rfind('{').is_some_and(|at| {
        !out[..at].ends_with('\\') && out[at + 1..].bytes().all(|byte| byte.is_ascii_digit() || byte == b',')
    })
}

/// Writes the whole strings that contain a match of `hir`; `left` and `right`: whether more text may be on that side.
fn anchored(hir: &Hir, left: bool, right: bool, out: &mut String) -> Result<(), String> {
    let pad = |out: &mut String, open: bool| {
        if open {
            let _ = write!(out, "{CHARACTER}*");
        }
    };
    match hir.kind() {
        HirKind::Look(Look::Start) if left => {
            pad(out, right);
            Ok(())
        }
        HirKind::Look(Look::End) if right => {
            pad(out, left);
            Ok(())
        }
        HirKind::Capture(capture) => anchored(&capture.sub, left, right, out),
        HirKind::Alternation(parts) => {
            out.push('(');
            for (i, part) in parts.iter().enumerate() {
                if i > 0 {
                    out.push('|');
                }
                anchored(part, left, right, out)?;
            }
            out.push(')');
            Ok(())
        }
        HirKind::Concat(parts) => {
            let mut parts = parts.as_slice();
            let (mut left, mut right) = (left, right);
            // Several in a row are equivalent to one.
            while let [first, rest @ ..] = parts
                && left
                && is_look(first, Look::Start)
            {
                parts = rest;
                if !rest.first().is_some_and(|next| is_look(next, Look::Start)) {
                    left = false;
                }
            }
            while let [rest @ .., last] = parts
                && right
                && is_look(last, Look::End)
            {
                parts = rest;
                if !rest.last().is_some_and(|next| is_look(next, Look::End)) {
                    right = false;
                }
            }
            match parts {
                [] => {
                    if left || right {
                        pad(out, true);
                    }
                    Ok(())
                }
                [one] => anchored(one, left, right, out),
                [first, middle @ .., last] => {
                    anchored(first, left, false, out)?;
                    for part in middle {
                        write_quoted(part, out)?;
                    }
                    anchored(last, false, right, out)
                }
            }
        }
        _ => {
            pad(out, left);
            write_quoted(hir, out)?;
            pad(out, right);
            Ok(())
        }
    }
}

fn is_look(hir: &Hir, look: Look) -> bool {
    match hir.kind() {
        HirKind::Look(found) => *found == look,
        HirKind::Capture(capture) => is_look(&capture.sub, look),
        _ => false,
    }
}

/// Writes `hir` for the text between quotes.
fn write_quoted(hir: &Hir, out: &mut String) -> Result<(), String> {
    match hir.kind() {
        HirKind::Empty => {}
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).map_err(|_| "it matches bytes that are not text")?;
            for c in text.chars() {
                write_class(&ClassUnicode::new([ClassUnicodeRange::new(c, c)]), out);
            }
        }
        HirKind::Class(Class::Unicode(class)) => write_class(class, out),
        HirKind::Class(Class::Bytes(_)) => return Err("it matches bytes that are not text".to_owned()),
        HirKind::Look(_) => return Err("^ and $ can only be followed at the ends".to_owned()),
        HirKind::Repetition(repetition) => {
            if repetition.max.unwrap_or(repetition.min) > MAX_REPEAT {
                return Err(format!("it repeats a part more than {MAX_REPEAT} times"));
            }
            out.push('(');
            write_quoted(&repetition.sub, out)?;
            out.push(')');
            let _ = match (repetition.min, repetition.max) {
                (0, None) => write!(out, "*"),
                (1, None) => write!(out, "+"),
                (min, None) => write!(out, "{{{min},}}"),
                (min, Some(max)) => write!(out, "{{{min},{max}}}"),
            };
        }
        HirKind::Capture(capture) => write_quoted(&capture.sub, out)?,
        HirKind::Concat(parts) => {
            for part in parts {
                write_quoted(part, out)?;
            }
        }
        HirKind::Alternation(parts) => {
            out.push('(');
            for (i, part) in parts.iter().enumerate() {
                if i > 0 {
                    out.push('|');
                }
                write_quoted(part, out)?;
            }
            out.push(')');
        }
    }
    Ok(())
}

/// Writes the JSON texts of a class of characters.
fn write_class(class: &ClassUnicode, out: &mut String) {
    let range = |from, to| ClassUnicode::new([ClassUnicodeRange::new(from, to)]);
    let mut plain = class.clone();
    let mut special = range('\0', '\x1F');
    special.union(&ClassUnicode::new(['"', '\\'].map(|c| ClassUnicodeRange::new(c, c))));
    plain.difference(&special);
    special.intersect(class);
    let mut parts = Vec::new();
    if !plain.ranges().is_empty() {
        let mut text = String::from("[");
        for range in plain.ranges() {
            let _ = write!(text, "\\x{{{:X}}}", u32::from(range.start()));
            if range.start() != range.end() {
                let _ = write!(text, "-\\x{{{:X}}}", u32::from(range.end()));
            }
        }
        text.push(']');
        parts.push(text);
    }
    for range in special.ranges() {
        for c in range.start()..=range.end() {
            let quoted = serde_json::Value::from(c.to_string()).to_string();
            parts.push(regex_syntax::escape(&quoted[1..quoted.len() - 1]));
        }
    }
    match parts.as_slice() {
        // An empty class.
        [] => out.push_str(r"[^\x{0}-\x{10FFFF}]"),
        [one] => out.push_str(one),
        several => {
            let _ = write!(out, "({})", several.join("|"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a string's JSON text, and the string itself, match.
    fn matches(pattern: &str, text: &str) -> bool {
        let source = pattern;
        let pattern = Pattern::new(source).unwrap();
        let quoted = Regex::new(&format!("^(?:\"{}\")$", pattern.quoted)).unwrap();
        let found = quoted.is_match(serde_json::Value::from(text).to_string().as_str());
        assert_eq!(found, pattern.is_match(text), "{source} on {text:?}: {}", pattern.quoted);
        found
    }

    #[test]
    fn patterns_match_anywhere_in_json_encoded_strings() {
        for (pattern, yes, no) in [
            ("a", &["a", "xay", "\n\"a\\"][..], &["", "b"][..]),
            ("^a", &["ab"], &["ba"]),
            ("a$", &["ba"], &["ab"]),
            ("^a$", &["a"], &["ab", "ba"]),
            ("^(a|b$)", &["ax", "b"], &["bx", "xa"]),
            ("^$", &[""], &["a"]),
            ("", &["", "x"], &[]),
            ("^a|b$", &["ax", "xb"], &["xax"]),
            (r"^\d+$", &["12"], &["١", "1a"]),
            (r"^\w\s\S\W\D$", &["a\u{feff}bé-"], &["é b--"]),
            (r#"^["\\\n]+$"#, &["\"\\\n"], &["n"]),
            (r"^[^a]$", &["\"", "\u{1f}", "é", "\\"], &["a", ""]),
            (r"^.$", &["\"", "\t", "é"], &["\n", "\u{2028}"]),
            // A set of `[a[&&~]`, then `--]`.
            (r"^[a[&&~]--]$", &["a--]", "[--]", "~--]"], &["b--]", "a"]),
            (r"^a{2}b{,3}c{1,}\/$", &["aab{,3}cc/"], &["ab"]),
            (r"^\p{Lu}\u00e9\u{1F600}\x41\cJ$", &["Éé😀A\n"], &["é"]),
            (r"^(?<y>a|b)(?:c)$", &["ac"], &["a"]),
            ("^🐲*$", &["", "🐲🐲"], &["🐉"]),
            (r"^[a\-z]$", &["-"], &["b"]),
            (r"^a\.b\}$", &["a.b}"], &["axb}"]),
        ] {
            yes.iter().for_each(|text| assert!(matches(pattern, text), "{pattern} {text:?}"));
            no.iter().for_each(|text| assert!(!matches(pattern, text), "{pattern} {text:?}"));
        }
        for bad in
            ["(", "[z-a]", "a(?=b)", "(?!a)", r"\bx", r"(a)\1", "x^y", r"\p", r"\q", "[]", "(?i)a", "a\\", "a{99999}"]
        {
            assert!(Pattern::new(bad).is_err(), "{bad}");
        }
    }
}
