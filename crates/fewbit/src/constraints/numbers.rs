//! Bounds for numbers that a schema leaves unbounded.
//!
//! JSON has numbers of any size, and a model that has begun one may not find its end: readers of the text would not
//! hold it. So integers stay within what their `format` says, else within what an f64 holds exactly, and other numbers
//! within 15 digits before the point. What is generated still satisfies the schema as it was given.

use serde_json::{Value, json};

/// `2^53 - 1`
const EXACT: f64 = 9_007_199_254_740_991.0;
const WIDE: f64 = 1e15;

/// Fields of a schema that hold values, not schemas.
const VALUES: [&str; 4] = ["const", "default", "enum", "examples"];

/// Adds bounds where there are none. The schema nests no deeper than [`super::MAX_DEPTH`].
pub(super) fn bound(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(bound),
        Value::Object(fields) => {
            let is = |name: &str| match fields.get("type") {
                Some(Value::String(found)) => found == name,
                Some(Value::Array(types)) => types.iter().any(|found| found == name),
                _ => false,
            };
            let range = if fields.contains_key("const") || fields.contains_key("enum") {
                // Has no others.
                None
            } else if is("number") {
                Some((-WIDE, WIDE))
            } else if is("integer") {
                Some(integers(fields.get("format").and_then(Value::as_str).unwrap_or_default()))
            } else {
                None
            };
            if let Some((low, high)) = range {
                let bound = |names: [&str; 2]| names.iter().find_map(|name| fields.get(*name)?.as_f64());
                let (min, max) = (bound(["minimum", "exclusiveMinimum"]), bound(["maximum", "exclusiveMaximum"]));
                // A bound beyond ours says that larger numbers are meant.
                if max.is_none() && min.is_none_or(|min| min < high) {
                    fields.insert("maximum".into(), number(high));
                }
                if min.is_none() && max.is_none_or(|max| max > low) {
                    fields.insert("minimum".into(), number(low));
                }
            }
            for (name, field) in fields.iter_mut() {
                if !VALUES.contains(&name.as_str()) {
                    bound(field);
                }
            }
        }
        _ => {}
    }
}

fn number(x: f64) -> Value {
    json!(x as i64)
}

/// The range of an integer `format`.
fn integers(format: &str) -> (f64, f64) {
    match format {
        "int8" => (i8::MIN.into(), i8::MAX.into()),
        "uint8" => (0.0, u8::MAX.into()),
        "int16" => (i16::MIN.into(), i16::MAX.into()),
        "uint16" => (0.0, u16::MAX.into()),
        "int32" => (i32::MIN.into(), i32::MAX.into()),
        "uint32" => (0.0, u32::MAX.into()),
        "uint64" | "uint" | "uint128" => (0.0, EXACT),
        _ => (-EXACT, EXACT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_open_gets_a_bound() {
        let mut schema = json!({
            "properties": {
                "a": { "type": "integer", "format": "int8" },
                "b": { "type": ["number", "null"], "minimum": 3 },
                "c": { "type": "number", "minimum": 1e20 },
                "d": { "type": "integer", "minimum": 1, "maximum": 2 },
                "type": { "type": "string" }
            },
            "enum": [{ "type": "number" }]
        });
        bound(&mut schema);
        assert_eq!(
            schema,
            json!({
                "properties": {
                    "a": { "type": "integer", "format": "int8", "maximum": 127, "minimum": -128 },
                    "b": { "type": ["number", "null"], "minimum": 3, "maximum": 1_000_000_000_000_000_i64 },
                    "c": { "type": "number", "minimum": 1e20 },
                    "d": { "type": "integer", "minimum": 1, "maximum": 2 },
                    "type": { "type": "string" }
                },
                "enum": [{ "type": "number" }]
            })
        );
    }
}
