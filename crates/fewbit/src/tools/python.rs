//! Calls in Python: `[f(a=1, b='x'), g()]`, or one alone: OLMo's, or Llama's `f.call(a=1)` after its mark.
//!
//! The end of an argument is found character by character; then it is parsed as a literal, and emitted as JSON. The
//! words of JSON (`true`, `false`, `null`) are accepted too.

use serde_json::{Map, Number, Value};

use super::parser::{Input, MAX_NAME_BYTES, Out, Outcome};

/// Deeper nested literals are refused.
const MAX_DEPTH: usize = 64;

/// The state of a list of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before `[`.
    Open,
    /// A name, up to its `(`.
    Name,
    /// Arguments, up to `)`.
    Arguments,
    /// `,` or `]`.
    After,
}

/// A string in an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotes {
    None,
    /// The number of opening quotes so far: one or two.
    Opening(char, u8),
    Single(char),
    /// The number of closing quotes so far.
    Triple(char, u8),
    /// After a backslash in a string.
    Escape(char, bool),
}

/// Calls in Python's notation.
#[derive(Debug)]
pub(super) struct Python {
    state: State,
    is_list: bool,
    /// Whether a mark came before; without one it may be other text in brackets.
    is_marked: bool,
    name: String,
    argument: String,
    depth: usize,
    quotes: Quotes,
    arguments: Map<String, Value>,
    /// Whether a complete call was read.
    has_read: bool,
}

impl Python {
    /// Calls in a list.
    pub(super) fn list(is_marked: bool) -> Self {
        Self { state: State::Open, is_list: true, is_marked, ..Self::one() }
    }

    /// One call, after a mark.
    pub(super) fn one() -> Self {
        Self {
            state: State::Name,
            is_list: false,
            is_marked: true,
            name: String::new(),
            argument: String::new(),
            depth: 0,
            quotes: Quotes::None,
            arguments: Map::new(),
            has_read: false,
        }
    }

    pub(super) fn feed(&mut self, input: &mut Input, out: &mut Out) -> Outcome {
        while let Some(c) = input.rest().chars().next() {
            let result = match self.state {
                State::Open => {
                    self.state = State::Name;
                    Ok(false)
                }
                State::Name => self.name(c, out),
                State::Arguments => {
                    // The source of a call includes this character.
                    out.attempt.push(c);
                    let result = self.argument(c, out);
                    if result.is_err() {
                        out.attempt.pop();
                    } else {
                        input.next();
                        if result == Ok(true) {
                            return Outcome::Done;
                        }
                        continue;
                    }
                    result
                }
                State::After => match c {
                    ',' => {
                        self.state = State::Name;
                        Ok(false)
                    }
                    ']' => Ok(true),
                    c if c.is_whitespace() => Ok(false),
                    _ => Err(format!("{c:?} cannot follow a call in its list")),
                },
            };
            match result {
                Ok(is_done) => {
                    out.attempt.extend(input.next());
                    if is_done {
                        return Outcome::Done;
                    }
                }
                Err(reason) => {
                    let is_call = self.is_marked || self.has_read || out.tool(&self.name).is_some();
                    if !is_call {
                        return Outcome::Text;
                    }
                    return Outcome::Broken { name: Some(self.name.clone()).filter(|name| !name.is_empty()), reason };
                }
            }
        }
        Outcome::Wait
    }

    fn name(&mut self, c: char, out: &mut Out) -> Result<bool, String> {
        match c {
            '(' if !self.name.is_empty() => {
                // Llama 3.1's built-in tools are objects with one method.
                if out.tool(&self.name).is_none()
                    && let Some(name) = self.name.strip_suffix(".call")
                {
                    self.name = name.to_owned();
                }
                if out.tool(&self.name).is_none() && !self.is_marked && !self.has_read {
                    return Err("nothing of this name".to_owned());
                }
                self.state = State::Arguments;
                let name = self.name.clone();
                out.begin(&name, None);
            }
            c if c.is_whitespace() && self.name.is_empty() => {}
            c if (c.is_alphanumeric() || "_-.".contains(c)) && self.name.len() < MAX_NAME_BYTES => self.name.push(c),
            ']' if self.name.is_empty() && self.is_list && self.has_read => return Ok(true),
            _ => return Err(format!("{c:?} cannot stand in a name")),
        }
        Ok(false)
    }

    /// Takes a character of an argument; returns whether it completes a call that is the only one.
    fn argument(&mut self, c: char, out: &mut Out) -> Result<bool, String> {
        if self.in_quotes(c) {
            self.argument.push(c);
            return Ok(false);
        }
        match c {
            '(' | '[' | '{' => {
                self.depth += 1;
                self.argument.push(c);
            }
            ')' | ']' | '}' if self.depth > 0 => {
                self.depth -= 1;
                self.argument.push(c);
            }
            ',' if self.depth == 0 => self.end_argument(out)?,
            ')' => {
                if !self.argument.trim().is_empty() {
                    self.end_argument(out)?;
                }
                out.arguments(if self.arguments.is_empty() { "{}" } else { "}" });
                let name = std::mem::take(&mut self.name);
                out.complete(&name, None, Value::Object(std::mem::take(&mut self.arguments)));
                (self.state, self.has_read) = (State::After, true);
                return Ok(!self.is_list);
            }
            ']' | '}' => return Err(format!("{c:?} closes nothing")),
            _ => self.argument.push(c),
        }
        Ok(false)
    }

    /// Whether a character is part of a string.
    fn in_quotes(&mut self, c: char) -> bool {
        self.quotes = match self.quotes {
            Quotes::None if c == '\'' || c == '"' => Quotes::Opening(c, 1),
            Quotes::None => return false,
            Quotes::Opening(quote, 1) if c == quote => Quotes::Opening(quote, 2),
            Quotes::Opening(quote, 2) if c == quote => Quotes::Triple(quote, 0),
            Quotes::Opening(_, 2) => {
                // It was an empty string.
                self.quotes = Quotes::None;
                return self.in_quotes(c);
            }
            Quotes::Opening(quote, _) | Quotes::Single(quote) if c == '\\' => Quotes::Escape(quote, false),
            Quotes::Opening(quote, _) => Quotes::Single(quote),
            Quotes::Single(quote) if c == quote => Quotes::None,
            Quotes::Single(quote) => Quotes::Single(quote),
            Quotes::Triple(quote, _) if c == '\\' => Quotes::Escape(quote, true),
            Quotes::Triple(quote, 2) if c == quote => Quotes::None,
            Quotes::Triple(quote, n) if c == quote => Quotes::Triple(quote, n + 1),
            Quotes::Triple(quote, _) => Quotes::Triple(quote, 0),
            Quotes::Escape(quote, true) => Quotes::Triple(quote, 0),
            Quotes::Escape(quote, false) => Quotes::Single(quote),
        };
        true
    }

    fn end_argument(&mut self, out: &mut Out) -> Result<(), String> {
        let text = std::mem::take(&mut self.argument);
        let (key, literal) = text.split_once('=').ok_or_else(|| format!("{:?} has no name", shortened(&text)))?;
        let key = key.trim();
        let is_name = key.chars().all(|c| c.is_alphanumeric() || c == '_') && !key.is_empty();
        if !is_name || self.arguments.contains_key(key) {
            return Err(format!("{:?} cannot be the name of an argument here", shortened(key)));
        }
        let value = parse(literal).ok_or_else(|| format!("the value of {key:?} is no Python literal"))?;
        let before = if self.arguments.is_empty() { '{' } else { ',' };
        out.arguments(&format!("{before}{}:{value}", Value::from(key)));
        self.arguments.insert(key.to_owned(), value);
        Ok(())
    }
}

fn shortened(text: &str) -> String {
    text.trim().chars().take(40).collect()
}

/// The value of a Python literal, if JSON has such a value.
pub(super) fn parse(text: &str) -> Option<Value> {
    let mut literal = Literal { rest: text };
    let value = literal.value(0)?;
    literal.rest.trim().is_empty().then_some(value)
}

struct Literal<'a> {
    rest: &'a str,
}

impl Literal<'_> {
    fn eat(&mut self, mark: &str) -> bool {
        let rest = self.rest.trim_start();
        match rest.strip_prefix(mark) {
            Some(after) => {
                self.rest = after;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.rest = self.rest.trim_start();
        match self.rest.chars().next()? {
            '[' => self.list("[", "]", depth),
            '(' => self.list("(", ")", depth),
            '{' => self.dict(depth),
            '\'' | '"' => self.strings(),
            'r' | 'R' | 'u' | 'U' if self.rest[1..].starts_with(['\'', '"']) => self.strings(),
            c if c.is_ascii_digit() || "+-.".contains(c) => self.number(),
            _ => {
                let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at(end);
                self.rest = rest;
                match word {
                    "True" | "true" => Some(true.into()),
                    "False" | "false" => Some(false.into()),
                    "None" | "null" => Some(Value::Null),
                    _ => None,
                }
            }
        }
    }

    fn list(&mut self, open: &str, close: &str, depth: usize) -> Option<Value> {
        self.eat(open);
        let mut items = Vec::new();
        let mut has_comma = false;
        while !self.eat(close) {
            if !items.is_empty() && !std::mem::take(&mut has_comma) {
                return None;
            }
            items.push(self.value(depth + 1)?);
            has_comma = self.eat(",");
        }
        // `(1)` is a number.
        if open == "(" && items.len() == 1 && !has_comma { items.pop() } else { Some(Value::Array(items)) }
    }

    fn dict(&mut self, depth: usize) -> Option<Value> {
        self.eat("{");
        let mut fields = Map::new();
        let mut has_comma = true;
        while !self.eat("}") {
            if !std::mem::take(&mut has_comma) {
                return None;
            }
            let Value::String(key) = self.value(depth + 1)? else { return None };
            if !self.eat(":") {
                return None;
            }
            let value = self.value(depth + 1)?;
            fields.insert(key, value);
            has_comma = self.eat(",");
        }
        Some(Value::Object(fields))
    }

    fn number(&mut self) -> Option<Value> {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-._".contains(c));
        let (text, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", text.strip_prefix('+').unwrap_or(text)),
        };
        let digits = digits.replace('_', "");
        for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
            if let Some(digits) = digits.to_ascii_lowercase().strip_prefix(prefix) {
                return i64::from_str_radix(&format!("{sign}{digits}"), radix).ok().map(Value::from);
            }
        }
        if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return None;
        }
        let text = format!("{sign}{digits}");
        // Integers stay integers, as far as JSON values can hold them.
        if let Ok(whole) = text.parse::<i64>() {
            return Some(whole.into());
        }
        if let Ok(whole) = text.parse::<u64>() {
            return Some(whole.into());
        }
        Number::from_f64(text.parse().ok()?).map(Value::Number)
    }

    /// One string, or several adjacent ones, which are concatenated.
    fn strings(&mut self) -> Option<Value> {
        let mut text = String::new();
        loop {
            self.rest = self.rest.trim_start();
            let prefixed = self.rest.strip_prefix(['r', 'R', 'u', 'U']).filter(|rest| rest.starts_with(['\'', '"']));
            let is_raw = prefixed.is_some() && self.rest.starts_with(['r', 'R']);
            let rest = prefixed.unwrap_or(self.rest);
            let Some(quote) = rest.chars().next().filter(|c| "'\"".contains(*c)) else { return Some(text.into()) };
            let triple = quote.to_string().repeat(3);
            let mark = if rest.starts_with(&triple) { triple.as_str() } else { &triple[..1] };
            self.rest = &rest[mark.len()..];
            self.string(mark, is_raw, &mut text)?;
        }
    }

    fn string(&mut self, mark: &str, is_raw: bool, text: &mut String) -> Option<()> {
        loop {
            if let Some(rest) = self.rest.strip_prefix(mark) {
                self.rest = rest;
                return Some(());
            }
            let c = self.take()?;
            if c != '\\' {
                text.push(c);
                continue;
            }
            let c = self.take()?;
            if is_raw {
                text.push('\\');
                text.push(c);
                continue;
            }
            match c {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                'b' => text.push('\u{8}'),
                'f' => text.push('\u{c}'),
                'a' => text.push('\u{7}'),
                'v' => text.push('\u{b}'),
                '0' => text.push('\0'),
                '\n' => {}
                '\\' | '\'' | '"' => text.push(c),
                'x' => text.push(self.code(2)?),
                'u' => text.push(self.utf16()?),
                'U' => text.push(self.code(8)?),
                _ => {
                    text.push('\\');
                    text.push(c);
                }
            }
        }
    }

    fn take(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn hex(&mut self, n_digits: usize) -> Option<u32> {
        let (digits, rest) = self.rest.split_at_checked(n_digits)?;
        self.rest = rest;
        digits.chars().all(|c| c.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
    }

    fn code(&mut self, n_digits: usize) -> Option<char> {
        char::from_u32(self.hex(n_digits)?)
    }

    /// A character, or both surrogates of one as in JSON.
    fn utf16(&mut self) -> Option<char> {
        let first = self.hex(4)?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first);
        }
        self.rest = self.rest.strip_prefix("\\u")?;
        let second = self.hex(4)?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
        char::from_u32(0x10000 + ((first - 0xd800) << 10) + second)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn python_literals_are_parsed_as_json_values() {
        for (text, value) in [
            ("1", json!(1)),
            ("-2_000", json!(-2000)),
            ("18446744073709551615", json!(u64::MAX)),
            ("0x1F", json!(31)),
            ("-0b101", json!(-5)),
            (" .5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("True", json!(true)),
            ("None", json!(null)),
            ("false", json!(false)),
            (r"'it\'s \x41\u00e9\n'", json!("it's Aé\n")),
            (r"'\ud83d\ude00'", json!("😀")),
            ("'a' \"b\"", json!("ab")),
            ("'''a'b\nc'''", json!("a'b\nc")),
            (r"r'\d+'", json!(r"\d+")),
            ("''", json!("")),
            ("[1, (2, 3), (4), (5,), ]", json!([1, [2, 3], 4, [5]])),
            ("{'a': {\"b\": []}, 'c': ()}", json!({ "a": { "b": [] }, "c": [] })),
        ] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
        for text in
            ["", "x", "f()", "1 2", "[1 2]", "{1: 2}", "{'a'}", "'a", "1..2", "'\\ud800'", "--1", "{'a': 1 'b': 2}"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"[".repeat(1000)), None);
    }
}
