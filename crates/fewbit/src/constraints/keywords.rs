//! Keywords that constrain nothing: they are taken out, for the compiler refuses what it does not know.
//!
//! They are defaults written down (`uniqueItems: false`), keywords that say what is so anyway (names of properties are
//! strings), and annotations. A `format` that is not in [`FORMATS`] is an annotation as well: JSON Schema 2020-12,
//! Validation, 7.2.1.

use serde_json::{Map, Value};

/// The formats of strings that are enforced.
pub(super) const FORMATS: [&str; 10] =
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];

/// Keywords that only describe.
const ANNOTATIONS: [&str; 5] = ["$vocabulary", "contentSchema", "deprecated", "readOnly", "writeOnly"];

/// Takes out of one schema what says nothing.
pub(super) fn simplify(fields: &mut Map<String, Value>) {
    let has = |name: &str| fields.contains_key(name);
    let (no_if, no_branch) = (!has("if"), !has("then") && !has("else"));
    let no_contains = !has("contains");
    let any_number = fields.get("minContains").is_some_and(is_zero) && !has("maxContains");
    fields.retain(|name, value| !match name.as_str() {
        "uniqueItems" => *value == Value::Bool(false),
        "propertyNames" => is_open(value) || is_string(value),
        "unevaluatedItems" | "unevaluatedProperties" => is_open(value),
        "dependentRequired" | "dependentSchemas" | "dependencies" => value.as_object().is_some_and(Map::is_empty),
        "if" => no_branch,
        "then" | "else" => no_if,
        "minContains" | "maxContains" => no_contains || (name == "minContains" && any_number),
        "contains" => any_number,
        "not" => *value == Value::Bool(false),
        "format" => value.as_str().is_some_and(|format| !FORMATS.contains(&format)),
        name => ANNOTATIONS.contains(&name),
    });
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

/// A schema of anything.
fn is_open(schema: &Value) -> bool {
    *schema == Value::Bool(true) || schema.as_object().is_some_and(Map::is_empty)
}

/// A schema of any string.
fn is_string(schema: &Value) -> bool {
    let describes = |name: &str| ["type", "title", "description", "$comment"].contains(&name);
    schema.as_object().is_some_and(|fields| {
        fields.get("type").and_then(Value::as_str) == Some("string") && fields.keys().all(|name| describes(name))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_says_nothing_goes() {
        let mut schema = json!({
            "type": "array", "uniqueItems": false, "deprecated": true, "format": "password",
            "then": {}, "minContains": 0, "contains": { "const": 1 }, "propertyNames": { "type": "string" },
            "unevaluatedItems": true, "dependentRequired": {}, "minItems": 1
        });
        simplify(schema.as_object_mut().unwrap());
        assert_eq!(schema, json!({ "type": "array", "minItems": 1 }));
        let schema = json!({
            "uniqueItems": true, "format": "date", "if": {}, "then": {}, "contains": {},
            "propertyNames": { "type": "string", "maxLength": 3 }, "dependentRequired": { "a": ["b"] }, "not": {}
        });
        let mut kept = schema.clone();
        simplify(kept.as_object_mut().unwrap());
        assert_eq!(kept, schema);
    }
}
