//! Compiles the regular expressions of `tokenizer.json` for the regex engine of this crate.
//!
//! The files are written for Oniguruma, whose syntax agrees with that of `regex-automata` in the constructs that
//! tokenizers use. Expressions that the two read differently, or that the engine does not support, are errors: a split
//! that is nearly right gives wrong tokens.

use crate::splitter::Cut;

/// The end of nearly every expression; see [`crate::splitter`].
const WORDS_END: &str = r"|\s+(?!\S)|\s+";

/// Compiles an expression, or returns a description of the unsupported part.
pub(super) fn compile(pattern: &str) -> Result<Cut, String> {
    let (pattern, whitespace) = match pattern.strip_suffix(WORDS_END) {
        Some(start) => (start, true),
        None => (pattern, false),
    };
    check(pattern)?;
    // As in Ruby, `^` and `$` match at the ends of the text and at every newline.
    let cut = Cut::new(&format!("(?m){pattern}"), whitespace).map_err(|error| match error.syntax_error() {
        Some(error) => first_line_of_error(&error.to_string()),
        None => error.to_string(),
    })?;
    if cut.matches_nothing() {
        return Err("an expression that matches nothing".to_owned());
    }
    Ok(cut)
}

/// The message of a syntax error, without the diagram of its position.
fn first_line_of_error(text: &str) -> String {
    let line = text.lines().rev().find(|line| line.starts_with("error: "));
    line.unwrap_or(text).trim_start_matches("error: ").to_owned()
}

/// Looks for constructs that Oniguruma reads differently.
fn check(pattern: &str) -> Result<(), String> {
    let mut chars = pattern.chars().peekable();
    let mut depth_of_classes = 0usize;
    let mut after_quantifier = false;
    while let Some(c) = chars.next() {
        let mut is_quantifier = false;
        match c {
            '\\' => {
                // Other escapes that differ (hexadecimal digits, backreferences and so on) are errors in this engine
                // anyway.
                match chars.next() {
                    Some('A' | 'z' | 'b' | 'B') | None if depth_of_classes == 0 => {
                        return Err(format!("an anchor in an expression ({pattern})"));
                    }
                    _ => {}
                }
            }
            '[' => depth_of_classes += 1,
            ']' => depth_of_classes = depth_of_classes.saturating_sub(1),
            '(' if depth_of_classes == 0 && chars.peek() == Some(&'?') => {
                let group: String = chars.clone().take(3).collect();
                if !(group.starts_with("?:") || group == "?i:") {
                    return Err(format!("the group ({group} in an expression"));
                }
                // This question mark is not a quantifier.
                chars.next();
            }
            '+' if depth_of_classes == 0 && after_quantifier => {
                return Err(format!("a possessive quantifier in an expression ({pattern})"));
            }
            '*' | '+' | '?' if depth_of_classes == 0 => is_quantifier = !after_quantifier,
            _ => {}
        }
        after_quantifier = is_quantifier;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_engines_read_differently_are_rejected() {
        for (pattern, why) in [
            (r"a++", "possessive"),
            (r"[^a]?+b", "possessive"),
            (r"a(?=b)", "?=b"),
            (r"\s+(?!\S)", "?!"),
            (r"(?<=a)b", "?<="),
            (r"(?m:.)", "?m:"),
            (r"\ba", "anchor"),
            (r"a*", "matches nothing"),
            (r"(a)\1", "backreference"),
            (r"\h+", "escape"),
            (r"[a", "unclosed"),
        ] {
            let error = compile(pattern).expect_err(pattern);
            assert!(error.contains(why), "{pattern}: {error}");
        }
    }

    #[test]
    fn patterns_of_known_tokenizers_compile() {
        for pattern in [
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|\s+(?!\S)|\s+"##,
            r"\s+$",
            r"[一-龥ࠀ-一가-퟿]+",
            r"a+?b",
        ] {
            compile(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        }
    }
}
