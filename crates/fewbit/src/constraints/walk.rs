//! Visiting the schemas in a schema, and nothing that only looks like one.

use serde_json::{Map, Value};

/// Keywords whose value is a schema.
const SCHEMA: [&str; 12] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
/// Keywords whose value is a list of schemas.
const LISTS: [&str; 5] = ["allOf", "anyOf", "items", "oneOf", "prefixItems"];
/// Keywords whose value has schemas by name.
const NAMED: [&str; 5] = ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// Runs `f` with the fields of every schema in this one, from the outside in, and with where it stands: a JSON
/// pointer. The first error ends it.
pub(super) fn each<E>(
    schema: &mut Value,
    f: &mut impl FnMut(&str, &mut Map<String, Value>) -> Result<(), E>,
) -> Result<(), E> {
    visit(schema, &mut String::from("#"), f)
}

fn visit<E>(
    schema: &mut Value,
    at: &mut String,
    f: &mut impl FnMut(&str, &mut Map<String, Value>) -> Result<(), E>,
) -> Result<(), E> {
    let Value::Object(fields) = schema else { return Ok(()) };
    f(at, fields)?;
    let length = at.len();
    for (name, value) in fields.iter_mut() {
        let name = name.as_str();
        step(at, name);
        match value {
            Value::Array(schemas) if LISTS.contains(&name) => {
                let length = at.len();
                for (i, schema) in schemas.iter_mut().enumerate() {
                    step(at, &i.to_string());
                    visit(schema, at, f)?;
                    at.truncate(length);
                }
            }
            Value::Object(named) if NAMED.contains(&name) => {
                let length = at.len();
                for (name, schema) in named.iter_mut() {
                    step(at, name);
                    visit(schema, at, f)?;
                    at.truncate(length);
                }
            }
            value if SCHEMA.contains(&name) => visit(value, at, f)?,
            _ => {}
        }
        at.truncate(length);
    }
    Ok(())
}

fn step(at: &mut String, name: &str) {
    at.push('/');
    at.push_str(&name.replace('~', "~0").replace('/', "~1"));
}
