//! Closes the objects of a type's schema, so that they have only the fields of the type.
//!
//! Such a schema allows other fields, because deserialization does by default. But a model that may add fields adds
//! some, and may never end. Nothing is lost without them, because deserialization skips them. If a schema combines an
//! object from several schemas (by `allOf`, or `properties` next to alternatives), no part may forbid the fields of
//! another; such a schema is not changed.

use serde_json::{Map, Value};

/// Keywords that combine a schema with the one around it.
const PARTS: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];
/// Keywords that decide which other fields are allowed.
const OTHERS: [&str; 3] = ["additionalProperties", "patternProperties", "unevaluatedProperties"];

/// Closes all objects, or none. The schema nests no deeper than [`super::MAX_DEPTH`].
pub(super) fn close(schema: &mut Value) {
    let mut is_composed = false;
    each(schema, &mut |fields| {
        let has = |name: &&str| fields.contains_key(*name);
        is_composed |= has(&"allOf") || (has(&"properties") && PARTS.iter().any(has));
    });
    if !is_composed {
        each(schema, &mut |fields| {
            if fields.contains_key("properties") && !OTHERS.iter().any(|name| fields.contains_key(*name)) {
                fields.insert("additionalProperties".into(), false.into());
            }
        });
    }
}

/// Calls `f` with every schema in this one, and with itself.
fn each(schema: &mut Value, f: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(fields) = schema else { return };
    f(fields);
    for (name, value) in fields.iter_mut() {
        match (name.as_str(), value) {
            ("$defs" | "definitions" | "properties" | "patternProperties", Value::Object(named)) => {
                named.values_mut().for_each(|schema| each(schema, f));
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems", Value::Array(schemas)) => {
                schemas.iter_mut().for_each(|schema| each(schema, f));
            }
            ("additionalProperties" | "items", schema) => each(schema, f),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(mut schema: Value) -> Value {
        close(&mut schema);
        schema
    }

    #[test]
    fn objects_are_closed_at_every_level() {
        let open = json!({ "type": "object", "properties": { "properties": { "type": "string" } } });
        let shut = closed(open.clone());
        assert_eq!(shut["additionalProperties"], json!(false));
        assert_eq!(shut["properties"], open["properties"], "a field that is called like a keyword");
        for (name, around) in [("$defs", json!({ "A": open })), ("oneOf", json!([open])), ("items", open.clone())] {
            let text = closed(json!({ name: around })).to_string();
            assert!(text.contains(r#""additionalProperties":false"#), "{text}");
        }
        let map = json!({ "type": "object", "properties": {}, "additionalProperties": { "type": "string" } });
        assert_eq!(closed(map.clone()), map);
        let example = json!({ "default": { "properties": {} }, "type": "object" });
        assert_eq!(closed(example.clone()), example);
    }

    #[test]
    fn partial_objects_stay_open() {
        let part = json!({ "type": "object", "properties": { "a": true } });
        for schema in [
            json!({ "allOf": [part, part] }),
            json!({ "properties": { "b": true }, "oneOf": [part, part] }),
            json!({ "properties": { "x": { "properties": { "tag": true }, "$ref": "#/$defs/A" } }, "$defs": { "A": part } }),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }
}
