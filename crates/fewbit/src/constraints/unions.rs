//! `oneOf` whose parts exclude each other, which is `anyOf`.
//!
//! Exactly one part of a `oneOf` may fit, and a text that is generated for one part says nothing of the others. If it
//! can be shown that no value fits two of them, the first that fits is the only one. That is shown by types, by constants
//! and by properties that one part requires and the other gives another constant or type: tagged unions, also by `$ref`.

use serde_json::{Map, Value};

/// How far references and parts of parts are followed.
const MAX_DEPTH: usize = 16;

/// Renames each `oneOf` of `schema` that is shown to be an `anyOf`.
pub(super) fn resolve(schema: &mut Value) {
    let root = schema.clone();
    let Ok(()) = super::walk::each::<std::convert::Infallible>(schema, &mut |_, fields| {
        let Some(Value::Array(parts)) = fields.get("oneOf") else { return Ok(()) };
        let all_disjoint = (1..parts.len()).all(|i| (0..i).all(|j| disjoint(&root, &parts[i], &parts[j], 0)));
        if all_disjoint && let Some(parts) = fields.shift_remove("oneOf") {
            super::add_any_of(fields, parts);
        }
        Ok(())
    });
}

/// Whether it is certain that no value fits both.
fn disjoint(root: &Value, a: &Value, b: &Value, depth: usize) -> bool {
    if *a == Value::Bool(false) || *b == Value::Bool(false) {
        return true;
    }
    if depth > MAX_DEPTH {
        return false;
    }
    let (a, b) = (conjuncts(root, a), conjuncts(root, b));
    let cases = |ours: &[&Map<String, Value>], theirs: &[&Map<String, Value>]| {
        ours.iter().any(|fields| {
            ["anyOf", "oneOf"].iter().filter_map(|name| fields.get(*name)?.as_array()).any(|parts| {
                parts.iter().all(|part| {
                    theirs.iter().any(|other| disjoint(root, part, &Value::Object((*other).clone()), depth + 1))
                })
            })
        })
    };
    let is_object = a.iter().chain(&b).any(|fields| types(fields).is_some_and(|types| types == ["object"]));
    let pairs = a.iter().any(|a| b.iter().any(|b| values_differ(a, b) || types_differ(a, b)));
    pairs
        || (is_object && (tags_differ(root, &a, &b, depth) || tags_differ(root, &b, &a, depth)))
        || cases(&a, &b)
        || cases(&b, &a)
}

/// The schemas that a value has to fit all, to fit this one: itself, what it refers to, and the parts of `allOf`.
fn conjuncts<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a Map<String, Value>> {
    let mut all: Vec<&Map<String, Value>> = Vec::new();
    let mut left = vec![schema];
    while let Some(schema) = left.pop() {
        let Value::Object(fields) = schema else { continue };
        if all.len() >= MAX_DEPTH || all.iter().any(|known| std::ptr::eq(*known, fields)) {
            continue;
        }
        all.push(fields);
        let reference = fields.get("$ref").and_then(Value::as_str).and_then(|reference| target(root, reference));
        left.extend(reference);
        left.extend(fields.get("allOf").and_then(Value::as_array).into_iter().flatten());
    }
    all
}

/// What a reference within the schema refers to.
fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let pointer = reference.strip_prefix('#')?;
    let mut bytes = Vec::with_capacity(pointer.len());
    let mut rest = pointer.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    root.pointer(&String::from_utf8(bytes).ok()?)
}

fn types(fields: &Map<String, Value>) -> Option<Vec<&str>> {
    match fields.get("type")? {
        Value::String(one) => Some(vec![one]),
        Value::Array(several) => several.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// The values that a schema leaves, if it lists them.
fn values(fields: &Map<String, Value>) -> Option<Vec<&Value>> {
    match (fields.get("const"), fields.get("enum")) {
        (Some(value), _) => Some(vec![value]),
        (None, Some(Value::Array(values))) => Some(values.iter().collect()),
        _ => None,
    }
}

fn is_of(value: &Value, ty: &str) -> bool {
    match value {
        Value::Null => ty == "null",
        Value::Bool(_) => ty == "boolean",
        Value::String(_) => ty == "string",
        Value::Array(_) => ty == "array",
        Value::Object(_) => ty == "object",
        Value::Number(number) => {
            ty == "number" || (ty == "integer" && number.as_f64().is_none_or(|number| number.fract() == 0.0))
        }
    }
}

fn types_differ(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let overlap = |a: &str, b: &str| a == b || matches!((a, b), ("number", "integer") | ("integer", "number"));
    if let (Some(a), Some(b)) = (types(a), types(b)) {
        return !a.iter().any(|a| b.iter().any(|b| overlap(a, b)));
    }
    let no_value = |values: Vec<&Value>, types: Vec<&str>| !values.iter().any(|v| types.iter().any(|ty| is_of(v, ty)));
    let check = |a, b| values(a).zip(types(b)).is_some_and(|(values, types)| no_value(values, types));
    check(a, b) || check(b, a)
}

fn values_differ(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    match (values(a), values(b)) {
        (Some(a), Some(b)) => !a.iter().any(|a| b.iter().any(|b| may_be_equal(a, b))),
        _ => false,
    }
}

/// JSON's 1 and 1.0 are equal.
fn may_be_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || (!(a.is_i64() && b.is_i64()) && a.as_f64() == b.as_f64()),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| may_be_equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| may_be_equal(a, b)))
        }
        (a, b) => a == b,
    }
}

/// Whether an object that fits `a` has a property that `b` gives another value, or does not allow.
fn tags_differ(root: &Value, a: &[&Map<String, Value>], b: &[&Map<String, Value>], depth: usize) -> bool {
    let required = a.iter().filter_map(|fields| fields.get("required")?.as_array()).flatten().filter_map(Value::as_str);
    let property = |of: &[&Map<String, Value>], name: &str| -> Vec<Value> {
        let found = of.iter().filter_map(|fields| fields.get("properties")?.get(name).cloned());
        found.collect()
    };
    required.into_iter().any(|name| {
        let (ours, theirs) = (property(a, name), property(b, name));
        let is_closed = b.iter().any(|fields| {
            fields.get("additionalProperties") == Some(&Value::Bool(false))
                && !fields.contains_key("patternProperties")
                && fields.get("properties").is_none_or(|properties| properties.get(name).is_none())
        });
        is_closed || ours.iter().any(|ours| theirs.iter().any(|theirs| disjoint(root, ours, theirs, depth + 1)))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Whether `oneOf` of these became `anyOf`.
    fn is_resolved(parts: Value, defs: Value) -> bool {
        let mut schema = json!({ "properties": { "x": { "oneOf": parts } }, "$defs": defs });
        resolve(&mut schema);
        schema["properties"]["x"].get("anyOf").is_some()
    }

    #[test]
    fn parts_that_exclude_each_other_are_alternatives() {
        let tag = |name: &str| json!({ "type": "object", "properties": { "t": { "const": name } }, "required": ["t"] });
        let defs = json!({ "a/b%": tag("a"), "B": { "allOf": [tag("b")] }, "T": { "enum": ["c", "d"] } });
        let by_ref = json!({ "properties": { "t": { "$ref": "#/$defs/T" } } });
        for parts in [
            json!([{ "$ref": "#/$defs/a~1b%25" }, { "$ref": "#/$defs/B" }, by_ref]),
            json!([{ "type": "string" }, { "type": ["integer", "null"] }, { "const": { "a": 1 } }]),
            json!([{ "enum": [1, 2] }, { "const": 3.0 }, { "type": "boolean" }]),
            json!([{ "anyOf": [{ "const": 1 }, { "const": 2 }] }, { "const": 3 }]),
            json!([
                { "type": "object", "required": ["x"] },
                { "type": "object", "properties": { "y": true }, "additionalProperties": false }
            ]),
            json!([true, false]),
        ] {
            assert!(is_resolved(parts.clone(), defs.clone()), "{parts}");
        }
        for parts in [
            json!([{ "type": "integer" }, { "type": "number" }]),
            json!([{ "const": 1 }, { "const": 1.0 }]),
            json!([{ "required": ["x"] }, { "required": ["y"] }]),
            // What is no object has no tag.
            json!([
                { "properties": { "t": { "const": 1 } }, "required": ["t"] },
                { "properties": { "t": { "const": 2 } }, "required": ["t"] }
            ]),
            json!([{ "$ref": "#/$defs/B" }, { "type": "object", "properties": { "t": { "const": "c" }, "u": {} } }, {}]),
            json!([{ "$ref": "#/$defs/missing" }, { "$ref": "#/$defs/B" }]),
            json!([{ "$ref": "#" }, { "$ref": "#" }]),
        ] {
            assert!(!is_resolved(parts.clone(), defs.clone()), "{parts}");
        }
    }
}
