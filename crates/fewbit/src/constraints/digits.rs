//! What the compiled grammar cannot say of numbers: that they end, and integers that no f64 holds.
//!
//! A number may have any number of digits in JSON, and a model that has begun one may not find its end. So the digits
//! are counted while a text is generated: at most [`INTEGER`] before the point, [`FRACTION`] after it (an f64 has 17) and
//! [`EXPONENT`] in the exponent, or as many as the longest number in the schema has.
//!
//! The grammar is made of f64s. A constant that none of them holds stands in it as the range of its neighbours, and
//! here its digits are compared: an integer that begins as these neighbours do has to go on as the constant does.

use std::sync::Arc;

use fewbit_tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::ConstraintError;

const INTEGER: usize = 20;
const FRACTION: usize = 17;
const EXPONENT: usize = 2;

/// How many digits the neighbours of a constant have to begin with, so that nothing else is taken for it.
const MIN_STEM: usize = 12;

/// The bounds of one schema.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Limits {
    integer: usize,
    fraction: usize,
    exponent: usize,
    /// Integers beyond 2^53 that are no f64, as text, and what their neighbours begin with.
    constants: Vec<(String, String)>,
}

/// Makes a schema one that can be compiled, with the limits that have to be kept besides.
pub(super) fn prepare(schema: &mut Value) -> Result<Limits, ConstraintError> {
    let mut limits = Limits { integer: INTEGER, fraction: FRACTION, exponent: EXPONENT, constants: Vec::new() };
    let mut left = vec![&*schema];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(items) => left.extend(items),
            Value::Object(fields) => left.extend(fields.values()),
            Value::Number(number) => limits.admit(&number.to_string()),
            _ => {}
        }
    }
    let mut exact = Exact::default();
    super::walk::each(schema, &mut |at, fields| exact.replace(at, fields))?;
    limits.constants = exact.0.into_iter().map(|found| (found.constant.to_string(), found.stem)).collect();
    Ok(limits)
}

impl Limits {
    /// Those of two schemas, of which either may come.
    pub(super) fn joined(mut self, other: Self) -> Self {
        self.integer = self.integer.max(other.integer);
        self.fraction = self.fraction.max(other.fraction);
        self.exponent = self.exponent.max(other.exponent);
        self.constants.extend(other.constants);
        self
    }

    /// Leaves room for a number of this length.
    fn admit(&mut self, number: &str) {
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, ""));
        let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let shift = exponent.parse::<i32>().unwrap_or(0).unsigned_abs() as usize;
        let up = if exponent.starts_with('-') { 0 } else { shift };
        self.integer = self.integer.max(integer.len() + up + 1);
        self.fraction = self.fraction.max(fraction.len() + shift - up + 1);
    }
}

/// Constants beyond 2^53 that are no f64.
#[derive(Default)]
struct Exact(Vec<Found>);

struct Found {
    constant: i64,
    place: String,
    /// The sign and digits that the f64s below and above it have in common.
    stem: String,
}

impl Exact {
    fn replace(&mut self, at: &str, fields: &mut Map<String, Value>) -> Result<(), ConstraintError> {
        for name in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"] {
            if let Some(bound) = fields.get(name).filter(|bound| is_inexact(bound) && !bound.is_f64()) {
                return Err(refused(&format!("{at}/{name}"), bound));
            }
        }
        for name in ["const", "enum"] {
            let values = match fields.get(name) {
                Some(Value::Array(values)) if name == "enum" => values.clone(),
                Some(value) if name == "const" => vec![value.clone()],
                _ => continue,
            };
            let place = format!("{at}/{name}");
            if !values.iter().any(has_inexact) {
                continue;
            }
            let (large, others): (Vec<_>, Vec<_>) = values.into_iter().partition(is_inexact);
            if let Some(value) = others.iter().find(|value| has_inexact(value)) {
                return Err(refused(&place, value));
            }
            let mut parts = Vec::new();
            for value in large {
                let constant = value.as_i64().filter(|value| value.unsigned_abs() < 1 << 62);
                let constant = constant.ok_or_else(|| refused(&place, &value))?;
                let (low, high) = neighbours(constant);
                let stem = common(&low.to_string(), &high.to_string());
                if stem.len() < MIN_STEM {
                    return Err(refused(&place, &value));
                }
                // Digits that go on as another place's constant would not say which was meant.
                let near = self.0.iter().find(|other| {
                    let alike = other.stem.starts_with(&stem) || stem.starts_with(&other.stem);
                    alike && other.place != place && other.constant != constant
                });
                if let Some(other) = near {
                    let reason = format!(
                        "the constants {} at {} and {constant} at {place} cannot be told apart",
                        other.constant, other.place
                    );
                    return Err(ConstraintError::Invalid { kind: "JSON schema", reason });
                }
                self.0.push(Found { constant, place: place.clone(), stem });
                parts.push(json!({ "type": "integer", "minimum": low, "maximum": high }));
            }
            if !others.is_empty() {
                parts.push(json!({ "enum": others }));
            }
            fields.shift_remove(name);
            super::add_any_of(fields, Value::Array(parts));
        }
        Ok(())
    }
}

/// The f64s below and above an integer that is none, and within 2^62.
fn neighbours(integer: i64) -> (i64, i64) {
    let nearest = integer as f64;
    let (low, high) =
        if (nearest as i64) < integer { (nearest, nearest.next_up()) } else { (nearest.next_down(), nearest) };
    (low as i64, high as i64)
}

/// What two texts begin with.
fn common(a: &str, b: &str) -> String {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

/// Whether a value is an integer that no f64 holds.
fn is_inexact(value: &Value) -> bool {
    match (value.as_i64(), value.as_u64()) {
        (Some(value), _) => (value as f64) as i128 != i128::from(value),
        (None, Some(value)) => (value as f64) as i128 != i128::from(value),
        // A longer one was read as an f64, and what was meant is not known.
        (None, None) => value.as_f64().is_some_and(|value| value.fract() == 0.0 && value.abs() >= 18e18),
    }
}

/// The same of anything in it.
fn has_inexact(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(has_inexact),
        Value::Object(fields) => fields.values().any(has_inexact),
        value => is_inexact(value),
    }
}

fn refused(at: &str, value: &Value) -> ConstraintError {
    let reason = format!("the integer {value} at {at} is beyond 2^53 and cannot be enforced exactly there");
    ConstraintError::Invalid { kind: "JSON schema", reason }
}

/// The tokens of a vocabulary that have digits.
#[derive(Debug)]
pub(super) struct DigitTokens {
    ids: Vec<u32>,
    /// The longest run of digits among them.
    longest: usize,
}

impl DigitTokens {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let mut this = Self { ids: Vec::new(), longest: 0 };
        for id in 0..tokenizer.n_vocab() as u32 {
            let bytes = tokenizer.token_bytes(id);
            let run = bytes.split(|byte| !byte.is_ascii_digit()).map(<[u8]>::len).max().unwrap_or(0);
            if run > 0 {
                this.ids.push(id);
                this.longest = this.longest.max(run);
            }
        }
        this
    }
}

/// Where in a JSON text something is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Outside,
    Text { escaped: bool },
    Integer,
    Fraction(usize),
    Exponent(usize),
}

/// Follows the numbers of a text.
pub(super) struct Digits {
    limits: Limits,
    tokens: Arc<DigitTokens>,
    tokenizer: Arc<Tokenizer>,
    place: Place,
    /// The sign and digits of the integer that the text is in.
    integer: String,
    banned: Vec<(u32, f32)>,
}

impl Digits {
    pub(super) fn new(limits: Limits, tokens: Arc<DigitTokens>, tokenizer: Arc<Tokenizer>) -> Self {
        Self { limits, tokens, tokenizer, place: Place::Outside, integer: String::new(), banned: Vec::new() }
    }

    /// Makes impossible, in `logits` `[n_vocab]`, what would go beyond the limits; nothing, if that would be all.
    pub(super) fn restrict(&mut self, logits: &mut [f32]) {
        let room = |limit: usize, n: usize| n + self.tokens.longest <= limit;
        let limits = &self.limits;
        let stems = limits.constants.iter().map(|(_, stem)| stem.len());
        let shortest = stems.chain([limits.integer, limits.fraction]).min().unwrap_or(0);
        let is_free = match self.place {
            Place::Text { .. } => true,
            Place::Outside => room(shortest, 0),
            Place::Integer => room(shortest, self.integer.len()),
            Place::Fraction(n) => room(limits.fraction, n),
            Place::Exponent(_) => false,
        };
        if is_free {
            return;
        }
        let tokens = Arc::clone(&self.tokens);
        let tokenizer = Arc::clone(&self.tokenizer);
        self.banned.clear();
        let mut integer = String::with_capacity(self.integer.len() + 8);
        for &id in &tokens.ids {
            let Some(logit) = logits.get_mut(id as usize).filter(|logit| **logit > f32::NEG_INFINITY) else { continue };
            integer.clone_from(&self.integer);
            let mut place = self.place;
            let fits = tokenizer.token_bytes(id).iter().all(|&byte| self.limits.step(&mut place, &mut integer, byte));
            if !fits {
                self.banned.push((id, *logit));
                *logit = f32::NEG_INFINITY;
            }
        }
        // A schema may want more digits than the limits have, by a pattern of its own say: then it gets them.
        if !self.banned.is_empty() && logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            for (id, logit) in self.banned.drain(..) {
                logits[id as usize] = logit;
            }
        }
    }

    /// Takes the token that came.
    pub(super) fn accept(&mut self, token: u32) {
        for &byte in self.tokenizer.token_bytes(token) {
            self.limits.step(&mut self.place, &mut self.integer, byte);
        }
    }
}

impl Limits {
    /// Goes on by a byte. Whether the text stays within the limits.
    fn step(&self, place: &mut Place, integer: &mut String, byte: u8) -> bool {
        let (next, fits) = match (*place, byte) {
            (Place::Text { escaped: false }, b'"') => (Place::Outside, true),
            (Place::Text { escaped }, _) => (Place::Text { escaped: !escaped && byte == b'\\' }, true),
            (Place::Integer, b'0'..=b'9') => {
                integer.push(char::from(byte));
                (Place::Integer, self.has_integer(integer))
            }
            (Place::Integer, b'.') => (Place::Fraction(0), true),
            (Place::Integer | Place::Fraction(_), b'e' | b'E') => (Place::Exponent(0), true),
            (Place::Fraction(n), b'0'..=b'9') => (Place::Fraction(n + 1), n < self.fraction),
            (Place::Exponent(n), b'0'..=b'9') => (Place::Exponent(n + 1), n < self.exponent),
            (Place::Exponent(0), b'+' | b'-') => (Place::Exponent(0), true),
            (_, b'"') => (Place::Text { escaped: false }, true),
            (_, b'-' | b'0'..=b'9') => {
                integer.clear();
                integer.push(char::from(byte));
                (Place::Integer, true)
            }
            _ => (Place::Outside, true),
        };
        *place = next;
        fits
    }

    /// Whether the sign and digits of an integer can be those of one.
    fn has_integer(&self, integer: &str) -> bool {
        let is_near = |stem: &str| integer.len() > stem.len() && integer.starts_with(stem);
        if self.constants.iter().any(|(_, stem)| is_near(stem)) {
            return self.constants.iter().any(|(constant, _)| constant.starts_with(integer));
        }
        integer.trim_start_matches('-').len() <= self.integer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(limits: &Limits, text: &str) -> bool {
        let (mut place, mut integer) = (Place::Outside, String::new());
        text.bytes().all(|byte| limits.step(&mut place, &mut integer, byte))
    }

    #[test]
    fn numbers_end() {
        let limits = prepare(&mut json!({})).unwrap();
        for text in
            ["12345678901234567890", "-0.12345678901234567", "[1e99, 1E-99, 2.5e+07]", r#""0.1111111111111111111111""#]
        {
            assert!(fits(&limits, text), "{text}");
        }
        for text in ["123456789012345678901", "0.123456789012345678", "1e100", r#"["\"", 0.123456789012345678"#] {
            assert!(!fits(&limits, text), "{text}");
        }
        let wide = prepare(&mut json!({ "minimum": 1e30, "const": 0.12345678901234567 })).unwrap();
        assert!(fits(&wide, "1000000000000000000000000000000") && fits(&wide, "0.12345678901234567"));
    }

    #[test]
    fn constants_beyond_f64_are_their_digits() {
        let id = 175_928_847_299_117_063_i64;
        let mut schema = json!({ "enum": [id, "none", -id], "title": "id" });
        let limits = prepare(&mut schema).unwrap();
        assert!(schema.get("enum").is_none() && schema["anyOf"].as_array().is_some_and(|parts| parts.len() == 3));
        assert!(fits(&limits, "175928847299117063") && fits(&limits, "-175928847299117063"));
        assert!(fits(&limits, "1759288472991") && fits(&limits, "9007199254740995"), "others are free");
        assert!(!fits(&limits, "175928847299117056") && !fits(&limits, "1759288472991170630"));
        for part in &schema["anyOf"].as_array().unwrap()[..2] {
            let bound = |name: &str| part[name].as_i64().unwrap();
            assert!(
                bound("minimum") <= bound("minimum").signum() * id
                    && bound("minimum").signum() * id <= bound("maximum")
            );
            assert!(!is_inexact(&part["minimum"]) && !is_inexact(&part["maximum"]));
        }
        // What can be held needs nothing.
        let mut schema = json!({ "const": 1_i64 << 60 });
        assert_eq!(prepare(&mut schema).unwrap(), prepare(&mut json!({})).unwrap());
    }

    #[test]
    fn what_cannot_be_exact_is_refused_by_its_place() {
        let id = 175_928_847_299_117_063_i64;
        for (schema, place) in [
            (json!({ "properties": { "a/b": { "maximum": id } } }), "#/properties/a~1b/maximum"),
            (json!({ "const": { "id": id } }), "#/const"),
            (json!({ "enum": [u64::MAX] }), "#/enum"),
            (json!({ "const": 1e25 }), "#/const"),
            (json!({ "items": { "const": id }, "contains": { "const": id + 2 } }), "#/contains/const"),
            // Its neighbours differ from the first digit on.
            (json!({ "enum": [99_999_999_999_999_999_i64] }), "#/enum"),
        ] {
            let error = prepare(&mut schema.clone()).expect_err("refused").to_string();
            assert!(error.contains(place), "{schema}: {error}");
        }
    }
}
