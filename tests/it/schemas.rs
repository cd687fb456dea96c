//! Schemas as they occur in practice, in about five hundred combinations.

use fewbit::Model;
use fewbit::sample::CustomSampler;
use serde_json::{Map, Value, json};

/// Pushes a random text towards its end after some tokens: towards tokens that close a string, a list or an object, and
/// away from those that only make it longer.
pub(crate) struct Closing {
    after: usize,
    begun_at: Option<usize>,
    /// The bias of each token's logit: largest for the end of a string, inside which brackets close nothing.
    push: Vec<f32>,
}

impl Closing {
    pub(crate) fn new(model: &Model, after: usize) -> Self {
        let tokenizer = model.tokenizer();
        let push = |id| {
            let bytes = tokenizer.token_bytes(id);
            let has = |any: &[u8]| bytes.iter().any(|b| any.contains(b));
            match has(b"[{(,\\") {
                false if has(b"\"") => 60.0,
                false if has(b"]})") => 30.0,
                // The fraction of a second could go on forever; this ends it.
                false if matches!(bytes, b"Z" | b"z") => 30.0,
                _ if tokenizer.is_end_of_generation(id) => 30.0,
                _ => 0.0,
            }
        };
        Self { after, begun_at: None, push: (0..tokenizer.n_vocab() as u32).map(push).collect() }
    }
}

impl CustomSampler for Closing {
    fn adjust(&mut self, tokens: &[u32], logits: &mut [f32]) {
        let begun_at = *self.begun_at.get_or_insert(tokens.len());
        if tokens.len() - begun_at >= self.after {
            logits.iter_mut().zip(&self.push).for_each(|(logit, push)| *logit += push);
        }
    }
}

/// Schemas of single values.
fn values() -> Vec<(&'static str, Value)> {
    vec![
        ("string", json!({ "type": "string" })),
        ("short string", json!({ "type": "string", "minLength": 2, "maxLength": 12 })),
        ("non-empty string", json!({ "type": "string", "minLength": 1 })),
        ("integer", json!({ "type": "integer" })),
        ("percentage", json!({ "type": "integer", "minimum": 0, "maximum": 100 })),
        ("year", json!({ "type": "integer", "minimum": 1900, "maximum": 2099 })),
        ("negative", json!({ "type": "integer", "exclusiveMaximum": 0, "minimum": -5000 })),
        ("price", json!({ "type": "number", "minimum": 0, "maximum": 9999.99 })),
        ("latitude", json!({ "type": "number", "minimum": -90, "maximum": 90 })),
        ("ratio", json!({ "type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1 })),
        ("boolean", json!({ "type": "boolean" })),
        ("null", json!({ "type": "null" })),
        ("enum", json!({ "enum": ["red", "green", "blue"] })),
        ("mixed enum", json!({ "enum": ["auto", 0, 1, true, null] })),
        ("const", json!({ "const": "v1" })),
        ("object const", json!({ "const": { "kind": "none", "n": [1, 2] } })),
        ("nullable string", json!({ "type": ["string", "null"], "maxLength": 10 })),
        ("number or string", json!({ "type": ["integer", "string"], "maxLength": 8 })),
        ("any of", json!({ "anyOf": [{ "type": "integer" }, { "type": "boolean" }] })),
        ("postcode", json!({ "type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$" })),
        ("version", json!({ "type": "string", "pattern": "^v?[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}$" })),
        ("slug", json!({ "type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 40 })),
        ("colour", json!({ "type": "string", "pattern": "^#[0-9a-fA-F]{6}$" })),
        ("date", json!({ "type": "string", "format": "date" })),
        ("date-time", json!({ "type": "string", "format": "date-time" })),
        ("time", json!({ "type": "string", "format": "time" })),
        ("email", json!({ "type": "string", "format": "email", "maxLength": 30 })),
        ("uuid", json!({ "type": "string", "format": "uuid" })),
        ("ipv4", json!({ "type": "string", "format": "ipv4" })),
        ("list of words", json!({ "type": "array", "items": { "type": "string", "maxLength": 8 }, "maxItems": 4 })),
        ("vector", json!({ "type": "array", "items": { "type": "number" }, "minItems": 3, "maxItems": 3 })),
        (
            "tuple",
            json!({
                "type": "array", "prefixItems": [{ "type": "string", "maxLength": 5 }, { "type": "integer" }],
                "items": false, "minItems": 2
            }),
        ),
        ("flags", json!({ "type": "object", "additionalProperties": { "type": "boolean" } })),
        ("empty object", json!({ "type": "object", "additionalProperties": false })),
        (
            "point",
            json!({
                "type": "object", "properties": { "x": { "type": "number" }, "y": { "type": "number" } },
                "required": ["x", "y"], "additionalProperties": false
            }),
        ),
        (
            "optional",
            json!({
                "type": "object",
                "properties": { "id": { "type": "integer" }, "note": { "type": "string", "maxLength": 9 } },
                "required": ["id"], "additionalProperties": false
            }),
        ),
    ]
}

fn object(fields: &[(&str, &Value)], required: usize, more: bool) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|(name, value)| ((*name).into(), (*value).clone())).collect();
    let required: Vec<&str> = fields.iter().take(required).map(|field| field.0).collect();
    let mut schema = json!({ "type": "object", "properties": properties, "required": required });
    if !more {
        schema["additionalProperties"] = json!(false);
    }
    schema
}

/// Ways to put two values together.
fn shapes(a: &Value, b: &Value) -> Vec<(&'static str, Value)> {
    vec![
        ("record", object(&[("first", a), ("second", b)], 2, false)),
        ("record with optional fields", object(&[("name", a), ("value", b), ("other", a)], 1, false)),
        (
            "list of records",
            json!({
                "type": "array", "items": object(&[("a", a), ("b", b)], 2, false), "minItems": 1, "maxItems": 3
            }),
        ),
        (
            "nested",
            object(&[("outer", &object(&[("inner", &object(&[("a", a)], 1, false)), ("b", b)], 2, false))], 1, false),
        ),
        (
            "either",
            json!({
                "anyOf": [object(&[("kind", &json!({ "const": "a" })), ("a", a)], 2, false),
                          object(&[("kind", &json!({ "const": "b" })), ("b", b)], 2, false)]
            }),
        ),
        (
            "reference",
            json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Pair",
                "type": "object",
                "properties": { "left": { "$ref": "#/$defs/side" }, "right": { "$ref": "#/$defs/side" }, "b": b },
                "required": ["left", "right"], "additionalProperties": false,
                "$defs": { "side": object(&[("value", a)], 1, false) }
            }),
        ),
        (
            "map",
            json!({ "type": "object", "additionalProperties": a, "properties": { "default": b }, "required": ["default"] }),
        ),
        (
            "all of",
            json!({
                "allOf": [
                    { "type": "object", "properties": { "a": a }, "required": ["a"] },
                    { "type": "object", "properties": { "b": b }, "required": ["b"] }
                ]
            }),
        ),
        ("nullable", json!({ "anyOf": [{ "type": "null" }, object(&[("a", a), ("b", b)], 1, false)] })),
        (
            "tree",
            json!({
                "$ref": "#/$defs/node",
                "$defs": { "node": {
                    "type": "object",
                    "properties": {
                        "value": a, "label": b,
                        "children": { "type": "array", "items": { "$ref": "#/$defs/node" }, "maxItems": 2 }
                    },
                    "required": ["value"], "additionalProperties": false
                } }
            }),
        ),
        (
            "described",
            json!({
                "title": "Item", "description": "An item.", "type": "object",
                "properties": {
                    "a": { "description": "First.", "anyOf": [a, { "type": "null" }] },
                    "b": b
                },
                "required": ["a", "b"], "additionalProperties": false
            }),
        ),
        (
            "table",
            json!({
                "type": "array", "minItems": 1, "maxItems": 2,
                "items": { "type": "array", "prefixItems": [a, b], "minItems": 2, "items": false }
            }),
        ),
    ]
}

/// All schemas, with a name for each.
pub(crate) fn all() -> Vec<(String, Value)> {
    let values = values();
    let mut all: Vec<(String, Value)> =
        values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    for (i, (name, a)) in values.iter().enumerate() {
        // Each value next to another one, in every shape.
        let (other, b) = &values[(i * 7 + 5) % values.len()];
        all.extend(shapes(a, b).into_iter().map(|(shape, schema)| (format!("{shape} of {name} and {other}"), schema)));
        // And next to a third one in one shape.
        let (third, c) = &values[(i * 5 + 11) % values.len()];
        let (shape, schema) = shapes(a, c).swap_remove(i % 12);
        all.push((format!("{shape} of {name} and {third}"), schema));
    }
    all.extend(extra().into_iter().map(|(name, schema)| (name.to_owned(), schema)));
    all
}

/// What APIs, forms and extractions ask for.
fn extra() -> Vec<(&'static str, Value)> {
    let person = object(
        &[
            ("name", &json!({ "type": "string", "minLength": 1, "maxLength": 20 })),
            ("age", &json!({ "type": "integer", "minimum": 0, "maximum": 150 })),
            ("email", &json!({ "type": "string", "format": "email", "maxLength": 30 })),
        ],
        2,
        false,
    );
    vec![
        ("person", person.clone()),
        (
            "team",
            object(
                &[("lead", &person), ("members", &json!({ "type": "array", "items": person, "maxItems": 2 }))],
                2,
                false,
            ),
        ),
        (
            "invoice",
            json!({
                "type": "object",
                "properties": {
                    "number": { "type": "string", "pattern": "^INV-[0-9]{4,8}$" },
                    "issued": { "type": "string", "format": "date" },
                    "currency": { "enum": ["EUR", "USD", "GBP"] },
                    "lines": { "type": "array", "minItems": 1, "maxItems": 3, "items": {
                        "type": "object",
                        "properties": {
                            "text": { "type": "string", "maxLength": 16 },
                            "quantity": { "type": "integer", "minimum": 1, "maximum": 99 },
                            "price": { "type": "number", "minimum": 0, "maximum": 100000 }
                        },
                        "required": ["text", "quantity", "price"], "additionalProperties": false
                    } },
                    "paid": { "type": "boolean" }
                },
                "required": ["number", "issued", "currency", "lines", "paid"], "additionalProperties": false
            }),
        ),
        (
            "tool call",
            json!({
                "type": "object",
                "properties": {
                    "name": { "const": "get_weather" },
                    "arguments": {
                        "type": "object",
                        "properties": {
                            "city": { "type": "string", "maxLength": 20 },
                            "unit": { "enum": ["celsius", "fahrenheit"] }
                        },
                        "required": ["city"], "additionalProperties": false
                    }
                },
                "required": ["name", "arguments"], "additionalProperties": false
            }),
        ),
        (
            "GeoJSON point",
            json!({
                "type": "object",
                "properties": {
                    "type": { "const": "Point" },
                    "coordinates": { "type": "array", "minItems": 2, "maxItems": 3, "items": { "type": "number" } }
                },
                "required": ["type", "coordinates"]
            }),
        ),
        (
            "expression",
            json!({
                "$ref": "#/$defs/e",
                "$defs": { "e": { "anyOf": [
                    { "type": "integer" },
                    { "type": "object", "properties": {
                        "op": { "enum": ["+", "-", "*"] }, "l": { "$ref": "#/$defs/e" }, "r": { "$ref": "#/$defs/e" }
                    }, "required": ["op", "l", "r"], "additionalProperties": false }
                ] } }
            }),
        ),
        (
            "named patterns",
            json!({
                "type": "object", "patternProperties": { "^n_[a-z]{1,5}$": { "type": "integer" } }, "additionalProperties": false
            }),
        ),
    ]
}
