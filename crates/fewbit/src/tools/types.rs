//! The types that a schema allows for a value, and the value of a text without type information.

use serde_json::Value;

use super::python;

/// How many references and alternatives are followed to find types.
const MAX_DEPTH: usize = 8;

/// The types of JSON Schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Types {
    pub(super) string: bool,
    pub(super) number: bool,
    pub(super) boolean: bool,
    pub(super) null: bool,
    pub(super) object: bool,
    pub(super) array: bool,
}

impl Types {
    /// The types that a schema names, itself or in its parts; empty if it leaves them open.
    pub(super) fn of(schema: &Value, root: &Value) -> Self {
        let mut types = Self::default();
        types.add(schema, root, 0);
        types
    }

    /// Whether the value can only be a string, or nothing is known about it.
    pub(super) fn is_text(self) -> bool {
        self == Self::default() || self == Self { string: true, ..Self::default() }
    }

    fn add(&mut self, schema: &Value, root: &Value, depth: usize) {
        let Some(schema) = resolve(schema, root).filter(|_| depth < MAX_DEPTH) else { return };
        let mut add = |name: &str| match name {
            "string" => self.string = true,
            "integer" | "number" => self.number = true,
            "boolean" => self.boolean = true,
            "null" => self.null = true,
            "object" => self.object = true,
            "array" => self.array = true,
            _ => {}
        };
        match schema.get("type") {
            Some(Value::String(name)) => return add(name),
            Some(Value::Array(names)) => return names.iter().filter_map(Value::as_str).for_each(add),
            _ => {}
        }
        let values = schema.get("enum").and_then(Value::as_array).into_iter().flatten().chain(schema.get("const"));
        values.for_each(|value| {
            add(match value {
                Value::String(_) => "string",
                Value::Number(_) => "number",
                Value::Bool(_) => "boolean",
                Value::Null => "null",
                Value::Object(_) => "object",
                Value::Array(_) => "array",
            });
        });
        for key in ["anyOf", "oneOf", "allOf"] {
            for part in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
                self.add(part, root, depth + 1);
            }
        }
    }

    pub(super) fn allow(self, value: &Value) -> bool {
        match value {
            Value::String(_) => self.string,
            Value::Number(_) => self.number,
            Value::Bool(_) => self.boolean,
            Value::Null => self.null,
            Value::Object(_) => self.object,
            Value::Array(_) => self.array,
        }
    }

    /// The value of a text: read as JSON or as Python if the types allow the result, otherwise the text itself.
    pub(super) fn value(self, text: &str) -> Value {
        if !self.is_text() {
            let trimmed = text.trim();
            let read = serde_json::from_str(trimmed).ok().or_else(|| python::parse(trimmed));
            // If a string is allowed, a quoted text is a string that contains the quotes.
            if let Some(value) = read.filter(|value| !value.is_string() && self.allow(value)) {
                return value;
            }
        }
        text.into()
    }
}

/// Follows the references of a schema within its document.
pub(super) fn resolve<'a>(mut schema: &'a Value, root: &'a Value) -> Option<&'a Value> {
    for _ in 0..MAX_DEPTH {
        match schema.get("$ref").and_then(Value::as_str) {
            Some(reference) => schema = root.pointer(reference.strip_prefix('#')?)?,
            None => return Some(schema),
        }
    }
    None
}

/// The schema of one property.
pub(super) fn property<'a>(parameters: &'a Value, name: &str) -> Option<&'a Value> {
    resolve(parameters, parameters)?.get("properties")?.get(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_converted_to_the_type_of_the_schema() {
        let root = json!({ "$defs": { "Unit": { "enum": ["C", "F"] }, "Point": { "type": "object" } } });
        let value = |schema: Value, text: &str| Types::of(&schema, &root).value(text);
        assert_eq!(value(json!({ "type": "string" }), "12"), json!("12"));
        assert_eq!(value(json!({ "type": "string" }), "\"12\""), json!("\"12\""));
        assert_eq!(value(json!({ "type": "integer" }), " 12\n"), json!(12));
        assert_eq!(value(json!({ "type": "integer" }), "18446744073709551615"), json!(u64::MAX));
        assert_eq!(value(json!({ "type": "integer" }), "many"), json!("many"));
        assert_eq!(value(json!({ "type": ["string", "null"] }), "null"), json!(null));
        assert_eq!(value(json!({ "type": ["integer", "string"] }), "12"), json!(12));
        assert_eq!(value(json!({ "type": "boolean" }), "True"), json!(true));
        assert_eq!(value(json!({ "type": "array" }), "['a', 1]"), json!(["a", 1]));
        assert_eq!(value(json!({ "$ref": "#/$defs/Point" }), "{\"x\": 1}"), json!({ "x": 1 }));
        assert_eq!(value(json!({ "$ref": "#/$defs/Unit" }), "C"), json!("C"));
        assert_eq!(value(json!({ "anyOf": [{ "type": "number" }, { "type": "null" }] }), "1.5"), json!(1.5));
        assert_eq!(value(json!({}), "12"), json!("12"));
        assert_eq!(value(json!({ "$ref": "#/$defs/None" }), "12"), json!("12"));
    }
}
