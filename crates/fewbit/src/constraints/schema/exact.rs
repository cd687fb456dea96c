//! JSON with exact numbers of any size.
//!
//! A number is its digits and a power of ten: nothing is rounded, and two spellings of the same value are equal.

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

use super::super::{ConstraintError, MAX_DEPTH, invalid};

const KIND: &str = "JSON schema";

/// A JSON value. Objects keep their order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Parses a text.
    pub(crate) fn read(text: &str) -> Result<Self, ConstraintError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        // Checks with serde_json first, whose errors have lines and columns.
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| invalid(KIND, &error))?;
        Reader { rest: text }.value(0)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Self::Object(fields) => fields.iter().find(|(found, _)| found == name).map(|(_, value)| value),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

/// Writes JSON that [`Json::read`] parses as the same value.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Strings are written like in serde_json.
        let text = |text: &str| Value::from(text).to_string();
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) if number.is_zero() => f.write_str("0"),
            Self::Number(number) => {
                let sign = if number.is_negative { "-" } else { "" };
                write!(f, "{sign}{}e{}", number.digits, number.exponent)
            }
            Self::String(value) => f.write_str(&text(value)),
            Self::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i == 0 { "[" } else { "," })?;
                }
                f.write_str(if items.is_empty() { "[]" } else { "]" })
            }
            Self::Object(fields) => {
                for (i, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{}{}:{value}", if i == 0 { "{" } else { "," }, text(name))?;
                }
                f.write_str(if fields.is_empty() { "{}" } else { "}" })
            }
        }
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => Self::Number(Number::of(&number.to_string())),
            Value::String(text) => Self::String(text.clone()),
            Value::Array(items) => Self::Array(items.iter().map(Self::from).collect()),
            Value::Object(fields) => {
                Self::Object(fields.iter().map(|(name, value)| (name.clone(), Self::from(value))).collect())
            }
        }
    }
}

/// Parses text that is known to be valid JSON.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Json, ConstraintError> {
        if depth > MAX_DEPTH {
            let reason = format!("it nests more than {MAX_DEPTH} levels");
            return Err(ConstraintError::TooLarge { kind: KIND, reason });
        }
        self.space();
        match self.rest.bytes().next().unwrap_or_default() {
            b'{' => {
                let mut fields: Vec<(String, Json)> = Vec::new();
                let mut places = std::collections::HashMap::new();
                self.skip(1);
                while !self.ends(b'}') {
                    let name = self.string()?;
                    // A colon.
                    self.space();
                    self.skip(1);
                    let value = self.value(depth + 1)?;
                    match places.get(&name) {
                        // As in other parsers, the last one of equal names counts.
                        Some(&at) => fields[at] = (name, value),
                        None => {
                            places.insert(name.clone(), fields.len());
                            fields.push((name, value));
                        }
                    }
                }
                Ok(Json::Object(fields))
            }
            b'[' => {
                let mut items = Vec::new();
                self.skip(1);
                while !self.ends(b']') {
                    items.push(self.value(depth + 1)?);
                }
                Ok(Json::Array(items))
            }
            b'"' => self.string().map(Json::String),
            b'n' => Ok(self.word(4, Json::Null)),
            b't' => Ok(self.word(4, Json::Bool(true))),
            b'f' => Ok(self.word(5, Json::Bool(false))),
            _ => {
                let is_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
                let length = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
                let number = Number::of(&self.rest[..length]);
                self.skip(length.max(1));
                Ok(Json::Number(number))
            }
        }
    }

    fn word(&mut self, length: usize, value: Json) -> Json {
        self.skip(length);
        value
    }

    /// Whether a list ends here; if not, the reader is at its next element.
    fn ends(&mut self, end: u8) -> bool {
        self.space();
        if self.rest.starts_with(',') {
            self.skip(1);
            self.space();
        }
        let ends = self.rest.is_empty() || self.rest.as_bytes()[0] == end;
        if ends {
            self.skip(1);
        }
        ends
    }

    fn string(&mut self) -> Result<String, ConstraintError> {
        let mut is_escaped = false;
        let end = self.rest.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            ends
        });
        let length = end.map_or(self.rest.len(), |end| end + 2);
        let text = serde_json::from_str(&self.rest[..length]).map_err(|error| invalid(KIND, &error))?;
        self.skip(length);
        Ok(text)
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn skip(&mut self, n: usize) {
        self.rest = self.rest.get(n..).unwrap_or_default();
    }
}

/// `±digits * 10^exponent`
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Number {
    pub(super) is_negative: bool,
    /// Without leading and trailing zeros; empty for 0.
    digits: String,
    exponent: i64,
}

impl Number {
    /// The value of a JSON number. The digits of an exponent beyond an i64 do not matter: it is refused as too large
    /// wherever it is used.
    pub(crate) fn of(text: &str) -> Self {
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let mut exponent: i64 = exponent
            .parse::<i64>()
            .unwrap_or(if exponent.starts_with('-') { i64::MIN } else { i64::MAX })
            .clamp(-1 << 60, 1 << 60);
        let is_negative = mantissa.starts_with('-');
        let (integer, fraction) = mantissa.trim_start_matches('-').split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{}{fraction}", integer.trim_start_matches('-'));
        exponent -= fraction.len() as i64;
        let trimmed = digits.trim_end_matches('0');
        exponent += (digits.len() - trimmed.len()) as i64;
        let digits = trimmed.trim_start_matches('0').to_owned();
        if digits.is_empty() {
            return Self { is_negative: false, digits, exponent: 0 };
        }
        Self { is_negative, digits, exponent }
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    pub(crate) fn is_integer(&self) -> bool {
        self.exponent >= 0
    }

    pub(super) fn negated(mut self) -> Self {
        self.is_negative = !self.is_negative && !self.is_zero();
        self
    }

    /// The digits before and after the point, without the sign; `None` if there are more than `max`. The digits before
    /// the point have no leading zeros, except a single 0.
    pub(super) fn plain(&self, max: usize) -> Option<(String, String)> {
        if self.is_zero() {
            return Some(("0".into(), String::new()));
        }
        let length = self.digits.len() as i64;
        if self.exponent.abs() > max as i64 || length > max as i64 {
            return None;
        }
        if self.exponent >= 0 {
            return Some((format!("{}{}", self.digits, "0".repeat(self.exponent as usize)), String::new()));
        }
        let point = length + self.exponent;
        if point > 0 {
            let (integer, fraction) = self.digits.split_at(point as usize);
            Some((integer.to_owned(), fraction.to_owned()))
        } else {
            Some(("0".into(), format!("{}{}", "0".repeat((-point) as usize), self.digits)))
        }
    }

    /// The text of the number; `None` if it takes more than `max` digits.
    pub(super) fn text(&self, max: usize) -> Option<String> {
        let (integer, fraction) = self.plain(max)?;
        let sign = if self.is_negative { "-" } else { "" };
        let point = if fraction.is_empty() { "" } else { "." };
        Some(format!("{sign}{integer}{point}{fraction}"))
    }

    /// The number as a count, if it is one: minus zero, a fraction of zero and an exponent make no difference.
    pub(super) fn as_count(&self) -> Option<u64> {
        if self.is_negative || !self.is_integer() {
            return None;
        }
        self.plain(19)?.0.parse().ok()
    }

    /// The digits of the value, and the power of ten that they are multiplied by.
    pub(super) fn parts(&self) -> (&str, i64) {
        (&self.digits, self.exponent)
    }

    fn magnitude(&self, other: &Self) -> Ordering {
        match (self.is_zero(), other.is_zero()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        let place = |number: &Self| number.digits.len() as i64 + number.exponent;
        place(self).cmp(&place(other)).then_with(|| self.digits.cmp(&other.digits))
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.is_negative, other.is_negative) {
            (false, false) => self.magnitude(other),
            (true, true) => other.magnitude(self),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_size_compare_by_value() {
        for (a, b) in [("1", "1.0"), ("100", "1e2"), ("-0", "0"), ("0.5", "5E-1"), ("1e+2", "1.00e2")] {
            assert_eq!(Number::of(a), Number::of(b), "{a} {b}");
        }
        let sorted = ["-1e400", "-20", "-3", "-0.5", "0", "0.05", "0.5", "3", "20", "9007199254740993", "1e400"];
        for pair in sorted.windows(2) {
            assert!(Number::of(pair[0]) < Number::of(pair[1]), "{pair:?}");
        }
        let text = |text: &str| Number::of(text).text(50);
        assert_eq!(text("175928847299117063").as_deref(), Some("175928847299117063"));
        assert_eq!(text("-12.50e-3").as_deref(), Some("-0.0125"));
        assert_eq!(text("1e400"), None);
        assert_eq!(text("1e99999999999999999999"), None);
        assert!(Number::of("1.50e1").is_integer() && !Number::of("1.5").is_integer());
    }

    #[test]
    fn text_and_serde_values_give_the_same_json() {
        let text = r#" {"a": [1, -2.5e3, "x\"\\y\u00e9", true, false, null, {}, []], "b": {"a": 18446744073709551616}, "a" : 1 } "#;
        let Json::Object(fields) = Json::read(text).unwrap() else { panic!() };
        assert_eq!(fields[0], ("a".into(), Json::Number(Number::of("1"))));
        assert_eq!(fields[1].1.get("a"), Some(&Json::Number(Number::of("18446744073709551616"))));
        for text in [r#"{"k":[1,2,{"x":"a,]}"}],"y":[[],[[]]]}"#, "[]", "3", r#""\\""#, "[ 1 , 2 ]", "{ }"] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(Json::read(text).unwrap(), Json::from(&value), "{text}");
        }
        for text in ["", "{", "[1,]", "tru", "\"\\ud800\"", "1 2"] {
            assert!(Json::read(text).is_err(), "{text}");
        }
        assert!(matches!(Json::read(&"[".repeat(9000)), Err(ConstraintError::Invalid { .. })));
        let deep = format!("{}{}", "[".repeat(9000), "]".repeat(9000));
        assert!(matches!(Json::read(&deep), Err(ConstraintError::TooLarge { .. })));
    }
}
