//! Calls that must be: the answer is held to `{"name": "...", "arguments": {...}}` of one of the tools.
//!
//! Every reader of calls takes such an object at the beginning of an answer for a call. Where it does not, because the
//! template has begun the model's thinking already, the object is read here.

use fewbit::Tool;
use serde_json::{Map, Value, json};

use crate::backend::{BackendError, CallDelta};

/// Tables of schemas that `$ref` points into from the root.
const TABLES: [&str; 2] = ["$defs", "definitions"];

/// The schema of a call of one of these tools.
pub(crate) fn schema(tools: &[&Tool]) -> Result<Value, BackendError> {
    let mut root = Map::new();
    let mut calls = Vec::new();
    for tool in tools {
        let mut parameters = tool.parameters.clone();
        if let Value::Object(fields) = &mut parameters {
            for table in TABLES {
                // They stay at the root, where their names point to.
                let Some(Value::Object(own)) = fields.shift_remove(table) else { continue };
                let all = root.entry(table).or_insert_with(|| Value::Object(Map::new()));
                for (name, schema) in own {
                    match all.get(&name) {
                        Some(other) if *other != schema => {
                            let text =
                                format!("two tools have different definitions of {name:?} in `{table}`: rename one");
                            return Err(BackendError::invalid("tools", text));
                        }
                        _ => all[name.as_str()] = schema,
                    }
                }
            }
            fields.entry("type").or_insert_with(|| "object".into());
        }
        calls.push(json!({
            "type": "object",
            "properties": { "name": { "const": tool.name }, "arguments": parameters },
            "required": ["name", "arguments"],
            "additionalProperties": false
        }));
    }
    match calls.pop() {
        Some(Value::Object(only)) if calls.is_empty() => root.extend(only),
        last => {
            calls.extend(last);
            root.insert("anyOf".to_owned(), calls.into());
        }
    }
    Ok(Value::Object(root))
}

/// The call that a whole answer is; `None` if it was cut.
pub(crate) fn read(answer: &str) -> Option<CallDelta> {
    let value: Value = serde_json::from_str(answer).ok()?;
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = value.get("arguments")?.to_string();
    let id = crate::server::random_id("")[..9].to_owned();
    Some(CallDelta { index: 0, id: Some(id), name: Some(name), arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_stay_where_references_look() {
        let of = |table: Value| {
            Tool::new("f", "", json!({ "$defs": { "X": table }, "properties": { "x": { "$ref": "#/$defs/X" } } }))
        };
        let (one, other) = (of(json!({ "type": "string" })), of(json!({ "type": "number" })));
        let only = schema(&[&one]).unwrap();
        assert_eq!(only["$defs"]["X"], json!({ "type": "string" }));
        assert_eq!(only["properties"]["arguments"]["type"], "object");
        assert_eq!(only.pointer("/properties/arguments/$defs"), None);
        let both = schema(&[&one, &one]).unwrap();
        assert_eq!(both["anyOf"].as_array().unwrap().len(), 2);
        assert!(schema(&[&one, &other]).unwrap_err().message.contains("\"X\""));
    }

    #[test]
    fn an_answer_is_a_call_or_cut() {
        let call = read(r#"{"name":"f","arguments":{"x":1}}"#).unwrap();
        assert_eq!((call.name.as_deref(), call.arguments.as_str()), (Some("f"), r#"{"x":1}"#));
        assert_eq!(call.id.unwrap().len(), 9);
        assert_eq!(read(r#"{"name":"f","argum"#), None);
    }
}
